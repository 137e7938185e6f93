//! CUDA's driver and its run-time compiler, as the libraries of PyTorch bring them: nothing of CUDA is needed to build this crate.

#![expect(unsafe_code, reason = "CUDA's C interface")]

use std::{
    collections::HashMap,
    ffi::{CStr, CString, c_char, c_int, c_uint, c_void},
    ptr::{null, null_mut},
    sync::{Mutex, OnceLock},
};

use libloading::Library;
use tch::{TchError, Tensor};

/// Links both the compiler and the driver, each in the version that this PyTorch is made for.
const LIBRARY: &str = if cfg!(windows) {
    "caffe2_nvrtc.dll"
} else {
    "libcaffe2_nvrtc.so"
};
const COMPUTE_CAPABILITY: [c_int; 2] = [75, 76];

type Handle = *mut c_void;

/// The functions that are called, by their names in C.
struct Api {
    create_program: unsafe extern "C" fn(
        *mut Handle,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile_program: unsafe extern "C" fn(Handle, c_int, *const *const c_char) -> c_int,
    log_size: unsafe extern "C" fn(Handle, *mut usize) -> c_int,
    log: unsafe extern "C" fn(Handle, *mut c_char) -> c_int,
    cubin_size: unsafe extern "C" fn(Handle, *mut usize) -> c_int,
    cubin: unsafe extern "C" fn(Handle, *mut c_char) -> c_int,
    destroy_program: unsafe extern "C" fn(*mut Handle) -> c_int,
    error_string: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int,
    device: unsafe extern "C" fn(*mut c_int, c_int) -> c_int,
    attribute: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int,
    retain_context: unsafe extern "C" fn(*mut Handle, c_int) -> c_int,
    current_context: unsafe extern "C" fn(*mut Handle) -> c_int,
    set_context: unsafe extern "C" fn(Handle) -> c_int,
    load_module: unsafe extern "C" fn(*mut Handle, *const c_void) -> c_int,
    function: unsafe extern "C" fn(*mut Handle, Handle, *const c_char) -> c_int,
    launch: unsafe extern "C" fn(
        Handle,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        Handle,
        *mut *mut c_void,
        *mut *mut c_void,
    ) -> c_int,
    /// What the functions are part of; never closed.
    _library: Library,
}

impl Api {
    fn load() -> Result<Self, libloading::Error> {
        // SAFETY: the library is PyTorch's, which this process uses already; its initialisers only fill tables.
        let library = unsafe { Library::new(LIBRARY)? };
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the type of the field is that of the function in CUDA's headers.
                *unsafe { library.get($name)? }
            };
        }
        Ok(Self {
            create_program: function!(b"nvrtcCreateProgram\0"),
            compile_program: function!(b"nvrtcCompileProgram\0"),
            log_size: function!(b"nvrtcGetProgramLogSize\0"),
            log: function!(b"nvrtcGetProgramLog\0"),
            cubin_size: function!(b"nvrtcGetCUBINSize\0"),
            cubin: function!(b"nvrtcGetCUBIN\0"),
            destroy_program: function!(b"nvrtcDestroyProgram\0"),
            error_string: function!(b"cuGetErrorString\0"),
            device: function!(b"cuDeviceGet\0"),
            attribute: function!(b"cuDeviceGetAttribute\0"),
            retain_context: function!(b"cuDevicePrimaryCtxRetain\0"),
            current_context: function!(b"cuCtxGetCurrent\0"),
            set_context: function!(b"cuCtxSetCurrent\0"),
            load_module: function!(b"cuModuleLoadData\0"),
            function: function!(b"cuModuleGetFunction\0"),
            launch: function!(b"cuLaunchKernel\0"),
            _library: library,
        })
    }

    fn get() -> Result<&'static Self, TchError> {
        static API: OnceLock<Result<Api, String>> = OnceLock::new();
        API.get_or_init(|| Self::load().map_err(|err| err.to_string()))
            .as_ref()
            .map_err(|err| TchError::Torch(format!("CUDA's compiler is not there: {err}")))
    }

    fn check(&self, doing: &str, result: c_int) -> Result<(), TchError> {
        if result == 0 {
            return Ok(());
        }
        let mut text = null();
        // SAFETY: the text, if there is one, is a constant of the driver.
        let said = unsafe {
            (self.error_string)(result, &raw mut text);
            match text.is_null() {
                true => String::new(),
                false => format!(": {}", CStr::from_ptr(text).to_string_lossy()),
            }
        };
        Err(TchError::Torch(format!(
            "CUDA failed to {doing} (error {result}{said})"
        )))
    }
}

/// A compiled function of a GPU; lives as long as the process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Function {
    function: Handle,
    context: Handle,
}

// SAFETY: handles of functions and contexts may be used by any thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// Source code and what is defined for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Source {
    pub(crate) text: &'static str,
    pub(crate) defines: Vec<(&'static str, usize)>,
}

/// The function `name` of `source` on GPU number `device`, compiled when first asked for.
///
/// # Errors
/// - if PyTorch's CUDA libraries are not there, or the compiler or the driver fails
pub(crate) fn function(
    device: usize,
    source: &Source,
    name: &'static str,
) -> Result<Function, TchError> {
    type Functions = HashMap<(usize, Source, &'static str), Function>;
    static COMPILED: OnceLock<Mutex<Functions>> = OnceLock::new();
    let mut compiled = COMPILED
        .get_or_init(Mutex::default)
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let key = (device, source.clone(), name);
    if let Some(function) = compiled.get(&key) {
        return Ok(*function);
    }
    let api = Api::get()?;
    let (mut gpu, mut context) = (0, null_mut());
    let mut capability = [0; 2];
    // SAFETY: the pointers are those of local values of the types that the driver fills.
    unsafe {
        api.check("find the GPU", (api.device)(&raw mut gpu, device as c_int))?;
        for (part, attribute) in capability.iter_mut().zip(COMPUTE_CAPABILITY) {
            let result = (api.attribute)(part, attribute, gpu);
            api.check("ask for the capability of the GPU", result)?;
        }
        api.check("use the GPU", (api.retain_context)(&raw mut context, gpu))?;
    }
    let binary = compile(api, source, capability)?;
    let mut function = Function {
        function: null_mut(),
        context,
    };
    let name_in_c = c_string(name)?;
    in_context(api, context, || {
        let mut module = null_mut();
        // SAFETY: `binary` is what the compiler made, and the driver keeps a copy.
        unsafe {
            let result = (api.load_module)(&raw mut module, binary.as_ptr().cast());
            api.check("load the kernel", result)?;
            let found = &raw mut function.function;
            let result = (api.function)(found, module, name_in_c.as_ptr());
            api.check("find the kernel", result)
        }
    })?;
    compiled.insert(key, function);
    Ok(function)
}

fn c_string(text: &str) -> Result<CString, TchError> {
    CString::new(text).map_err(|err| TchError::Torch(err.to_string()))
}

/// Machine code of `source` for a GPU of this capability.
fn compile(api: &Api, source: &Source, [major, minor]: [c_int; 2]) -> Result<Vec<u8>, TchError> {
    let text = c_string(source.text)?;
    let mut options = vec![c_string(&format!("--gpu-architecture=sm_{major}{minor}"))?];
    options.push(c_string("--std=c++17")?);
    for (name, value) in &source.defines {
        options.push(c_string(&format!("-D{name}={value}"))?);
    }
    let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
    let mut program = null_mut();
    // SAFETY: texts end with 0 and outlive the calls; buffers are as long as the compiler says.
    unsafe {
        let result =
            (api.create_program)(&raw mut program, text.as_ptr(), null(), 0, null(), null());
        api.check("read the kernel", result)?;
        let compiled = (api.compile_program)(program, options.len() as c_int, options.as_ptr());
        let mut size = 0;
        let result = if compiled == 0 {
            (api.cubin_size)(program, &raw mut size);
            let mut binary = vec![0u8; size];
            (api.cubin)(program, binary.as_mut_ptr().cast());
            Ok(binary)
        } else {
            (api.log_size)(program, &raw mut size);
            let mut log = vec![0u8; size];
            (api.log)(program, log.as_mut_ptr().cast());
            Err(TchError::Torch(format!(
                "CUDA's compiler refused the kernel for sm_{major}{minor} (error {compiled}): {}",
                String::from_utf8_lossy(&log).trim_end_matches('\0').trim()
            )))
        };
        (api.destroy_program)(&raw mut program);
        result
    }
}

/// Does something while `context` is the current one of this thread.
fn in_context<T>(
    api: &Api,
    context: Handle,
    work: impl FnOnce() -> Result<T, TchError>,
) -> Result<T, TchError> {
    let mut before = null_mut();
    // SAFETY: contexts are handles of the driver.
    unsafe {
        (api.current_context)(&raw mut before);
        api.check("use the GPU", (api.set_context)(context))?;
    }
    let result = work();
    if before != context {
        // SAFETY: it was current before.
        unsafe { (api.set_context)(before) };
    }
    result
}

/// An argument of a function on the GPU.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Argument<'t> {
    /// The memory of a contiguous tensor.
    Tensor(&'t Tensor),
    Int(usize),
}

impl Function {
    /// Starts it, behind what libtorch has started, with blocks of `threads`; it runs on while this returns.
    ///
    /// # Safety
    /// The arguments are what the function takes, tensors are on its GPU, and reads and writes of a `grid` of this size stay within
    /// them.
    ///
    /// # Errors
    /// - if the driver refuses
    pub(crate) unsafe fn launch(
        &self,
        grid: [usize; 3],
        threads: usize,
        arguments: &[Argument<'_>],
    ) -> Result<(), TchError> {
        let api = Api::get()?;
        // Each as the eight bytes that it begins with: little-endian machines are the only ones with these GPUs.
        let mut values = Vec::with_capacity(arguments.len());
        for argument in arguments {
            values.push(match argument {
                Argument::Tensor(tensor) => {
                    if !tensor.is_contiguous() {
                        return Err(TchError::Torch(format!(
                            "a tensor for a CUDA kernel is not contiguous: {tensor:?}"
                        )));
                    }
                    tensor.data_ptr() as u64
                }
                Argument::Int(value) => *value as u64,
            });
        }
        let mut places: Vec<*mut c_void> = values
            .iter_mut()
            .map(|value| (&raw mut *value).cast())
            .collect();
        let [x, y, z] = grid.map(|n| n as c_uint);
        in_context(api, self.context, || {
            // SAFETY: as the caller says; the null stream is the one that libtorch uses.
            let result = unsafe {
                (api.launch)(
                    self.function,
                    x,
                    y,
                    z,
                    threads as c_uint,
                    1,
                    1,
                    0,
                    null_mut(),
                    places.as_mut_ptr(),
                    null_mut(),
                )
            };
            api.check("start the kernel", result)
        })
    }
}
