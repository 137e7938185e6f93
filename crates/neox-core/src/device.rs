//! Where to compute and in which precision, from the words of a config file.

use std::sync::OnceLock;

use tch::{Cuda, Device, Kind};

use crate::error::DeviceError;

/// Reads `auto`, `cpu`, `cuda` or `cuda:N`; `auto` is the first GPU if there is one.
///
/// # Errors
/// - [`DeviceError::UnknownDevice`] for any other word
/// - [`DeviceError::NoCuda`] if a GPU is asked for and this libtorch sees none
/// - [`DeviceError::CudaIndex`] if it sees fewer
///
/// # Examples
/// ```
/// # use neox_core::parse_device;
/// assert_eq!(parse_device("cpu")?, tch::Device::Cpu);
/// assert!(parse_device("cuda:999").is_err());
/// # Ok::<(), neox_core::DeviceError>(())
/// ```
pub fn parse_device(text: &str) -> Result<Device, DeviceError> {
    let index = match text {
        "auto" => {
            load_cuda();
            return Ok(Device::cuda_if_available());
        }
        "cpu" => return Ok(Device::Cpu),
        "cuda" => 0,
        _ => text
            .strip_prefix("cuda:")
            .and_then(|index| index.parse::<usize>().ok())
            .ok_or_else(|| DeviceError::UnknownDevice { text: text.into() })?,
    };
    load_cuda();
    if !Cuda::is_available() {
        return Err(DeviceError::NoCuda { text: text.into() });
    }
    let count = usize::try_from(Cuda::device_count()).unwrap_or(0);
    if index >= count {
        return Err(DeviceError::CudaIndex { index, count });
    }
    Ok(Device::Cuda(index))
}

/// Loads the CUDA part of libtorch, if there is one beside the part that this program is linked with: without it libtorch sees no GPU.
///
/// [`parse_device`] does it. It is not linked, so that programs start quickly, and run where there is none.
pub fn load_cuda() {
    static LOADED: OnceLock<Option<libloading::Library>> = OnceLock::new();
    LOADED.get_or_init(|| {
        let name = libloading::library_filename("torch_cuda");
        #[expect(unsafe_code, reason = "a library is loaded")]
        // SAFETY: it belongs to the libtorch of this process, and what it does when it is loaded is to tell that one of itself.
        match unsafe { libloading::Library::new(&name) } {
            Ok(library) => Some(library),
            Err(err) => {
                tracing::debug!("no CUDA: {err}");
                None
            }
        }
    });
}

/// Lets this process keep the memory of tensors on the CPU that are gone for those to come, instead of handing it back: fresh memory is
/// filled with zeros by the system, page by page, which takes up to a sixth of a forward pass (docs/performance.md).
///
/// It changes how all of the process takes memory, so nothing here calls it by itself. The peak stays about the same, but memory is
/// held between peaks. Only glibc is asked; elsewhere nothing happens.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const GIB: libc::c_int = 1 << 30;
        // glibc before 2.35 takes no more than this as the size from which blocks are the system's own.
        const OLDEST_MOST: libc::c_int = 32 << 20;
        let set = |parameter, value| {
            #[expect(unsafe_code, reason = "a function of C")]
            // SAFETY: it takes two numbers and refuses what it does not know.
            unsafe {
                libc::mallopt(parameter, value) == 1
            }
        };
        let _ = set(libc::M_MMAP_THRESHOLD, GIB) || set(libc::M_MMAP_THRESHOLD, OLDEST_MOST);
        let _ = set(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
    }
}

/// Reads `f32`, `f16` or `bf16`.
///
/// # Errors
/// - [`DeviceError::UnknownDtype`] for any other word
///
/// # Examples
/// ```
/// # use neox_core::parse_dtype;
/// assert_eq!(parse_dtype("bf16")?, tch::Kind::BFloat16);
/// # Ok::<(), neox_core::DeviceError>(())
/// ```
pub fn parse_dtype(text: &str) -> Result<Kind, DeviceError> {
    match text {
        "f32" => Ok(Kind::Float),
        "f16" => Ok(Kind::Half),
        "bf16" => Ok(Kind::BFloat16),
        _ => Err(DeviceError::UnknownDtype { text: text.into() }),
    }
}
