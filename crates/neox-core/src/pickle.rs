//! A reader for the one kind of pickle that matters here: `data.pkl` of a `torch.save` archive
//! that holds a dictionary of tensors.
//!
//! It knows the few instructions and the few names that such a file uses, builds plain values and
//! calls nothing. Everything else is an error, so a hostile file cannot run code.

use std::collections::BTreeMap;

use tch::Kind;

use crate::error::PickleError;

/// One tensor as the pickle describes it: a strided view of a stored array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PickledTensor {
    /// Name of the archive entry under `data/`.
    pub(crate) storage: String,
    pub(crate) kind: Kind,
    /// Elements in the storage.
    pub(crate) storage_len: i64,
    pub(crate) offset: i64,
    pub(crate) shape: Vec<i64>,
    pub(crate) stride: Vec<i64>,
}

/// The names a pickle may mention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Kind),
}

impl Global {
    fn from_names(module: &str, name: &str) -> Result<Self, PickleError> {
        Ok(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch", "FloatStorage") => Self::Storage(Kind::Float),
            ("torch", "HalfStorage") => Self::Storage(Kind::Half),
            ("torch", "BFloat16Storage") => Self::Storage(Kind::BFloat16),
            ("torch", "DoubleStorage") => Self::Storage(Kind::Double),
            ("torch", "LongStorage") => Self::Storage(Kind::Int64),
            ("torch", "IntStorage") => Self::Storage(Kind::Int),
            ("torch", "ShortStorage") => Self::Storage(Kind::Int16),
            ("torch", "CharStorage") => Self::Storage(Kind::Int8),
            ("torch", "ByteStorage") => Self::Storage(Kind::Uint8),
            ("torch", "BoolStorage") => Self::Storage(Kind::Bool),
            _ => {
                return Err(PickleError::Global {
                    name: format!("{module}.{name}").chars().take(200).collect(),
                });
            }
        })
    }
}

/// A value; compound ones are indices into the machine's lists, so that no nesting, however deep,
/// recurses.
#[derive(Debug, Clone, Copy)]
enum Value {
    /// None, booleans and floats: present in pickles, never needed.
    Ignored,
    Int(i64),
    Text(usize),
    Tuple(usize),
    List,
    Dict(usize),
    Global(Global),
    Storage(usize),
    Tensor(usize),
}

#[derive(Debug, Clone)]
struct Storage {
    key: usize,
    kind: Kind,
    len: i64,
}

/// Reads the pickle of a dictionary from names to tensors.
pub(crate) fn read_tensors(pickle: &[u8]) -> Result<BTreeMap<String, PickledTensor>, PickleError> {
    Machine::new(pickle).run()
}

#[derive(Debug)]
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: BTreeMap<u32, Value>,
    texts: Vec<&'a str>,
    tuples: Vec<Vec<Value>>,
    dicts: Vec<Vec<(Value, Value)>>,
    storages: Vec<Storage>,
    tensors: Vec<PickledTensor>,
}

impl<'a> Machine<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: BTreeMap::new(),
            texts: Vec::new(),
            tuples: Vec::new(),
            dicts: Vec::new(),
            storages: Vec::new(),
            tensors: Vec::new(),
        }
    }

    fn run(mut self) -> Result<BTreeMap<String, PickledTensor>, PickleError> {
        loop {
            let at = self.at;
            let opcode = self.byte()?;
            match opcode {
                0x80 => match self.byte()? {
                    2..=5 => {}
                    _ => return Err(self.wrong("expected pickle protocol 2 to 5")),
                },
                0x95 => {
                    self.take(8)?; // FRAME: only a length
                }
                b'(' => self.marks.push(self.stack.len()),
                b'N' | 0x88 | 0x89 => self.stack.push(Value::Ignored),
                b'G' => {
                    self.take(8)?;
                    self.stack.push(Value::Ignored);
                }
                b'J' => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.stack.push(Value::Int(value.into()));
                }
                b'K' => {
                    let value = self.byte()?;
                    self.stack.push(Value::Int(value.into()));
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.array()?);
                    self.stack.push(Value::Int(value.into()));
                }
                0x8a => self.long()?,
                b'X' => {
                    let len = u32::from_le_bytes(self.array()?) as usize;
                    self.text(len)?;
                }
                0x8c => {
                    let len = self.byte()?.into();
                    self.text(len)?;
                }
                b')' => self.push_tuple(Vec::new()),
                0x85..=0x87 => {
                    let n = usize::from(opcode - 0x84);
                    let start = self
                        .stack
                        .len()
                        .checked_sub(n)
                        .filter(|start| *start >= self.floor())
                        .ok_or_else(|| self.wrong("too few values for a tuple"))?;
                    let items = self.stack.split_off(start);
                    self.push_tuple(items);
                }
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.push_tuple(items);
                }
                b'}' => self.push_dict(),
                b']' => self.stack.push(Value::List),
                b'a' => {
                    self.pop()?;
                    self.top_list()?;
                }
                b'e' => {
                    self.pop_to_mark()?;
                    self.top_list()?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.top_dict()?.push((key, value));
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    if items.len() % 2 != 0 {
                        return Err(self.wrong("a key without a value"));
                    }
                    let dict = self.top_dict()?;
                    dict.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
                }
                b'q' => {
                    let slot = self.byte()?.into();
                    self.put(slot)?;
                }
                b'r' => {
                    let slot = u32::from_le_bytes(self.array()?);
                    self.put(slot)?;
                }
                0x94 => {
                    let slot = u32::try_from(self.memo.len())
                        .map_err(|_| self.wrong("too many values"))?;
                    self.put(slot)?;
                }
                b'h' => {
                    let slot = self.byte()?.into();
                    self.get(slot)?;
                }
                b'j' => {
                    let slot = u32::from_le_bytes(self.array()?);
                    self.get(slot)?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    let global = Global::from_names(module, name)?;
                    self.stack.push(Value::Global(global));
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let global = Global::from_names(self.as_text(module)?, self.as_text(name)?)?;
                    self.stack.push(Value::Global(global));
                }
                b'Q' => self.persistent()?,
                b'R' => self.reduce()?,
                b'b' => {
                    // `_metadata` of a state dict: versions of modules, not needed.
                    self.pop()?;
                    self.top_dict()?;
                }
                b'.' => return self.finish(),
                _ => return Err(PickleError::Opcode { opcode, at }),
            }
        }
    }

    // --- bytes ---

    fn take(&mut self, n: usize) -> Result<&'a [u8], PickleError> {
        let bytes = self
            .at
            .checked_add(n)
            .and_then(|end| self.bytes.get(self.at..end))
            .ok_or(PickleError::Truncated {
                at: self.bytes.len(),
            })?;
        self.at += n;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8, PickleError> {
        Ok(self.take(1)?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn line(&mut self) -> Result<&'a str, PickleError> {
        let rest = &self.bytes[self.at..];
        let len = rest
            .iter()
            .position(|byte| *byte == b'\n')
            .ok_or(PickleError::Truncated {
                at: self.bytes.len(),
            })?;
        self.at += len + 1;
        std::str::from_utf8(&rest[..len]).map_err(|_| self.wrong("a name that is not UTF-8"))
    }

    fn text(&mut self, len: usize) -> Result<(), PickleError> {
        let bytes = self.take(len)?;
        let text = std::str::from_utf8(bytes).map_err(|_| self.wrong("text that is not UTF-8"))?;
        self.texts.push(text);
        self.stack.push(Value::Text(self.texts.len() - 1));
        Ok(())
    }

    /// LONG1: little-endian two's complement of at most 8 bytes here.
    fn long(&mut self) -> Result<(), PickleError> {
        let len = self.byte()?.into();
        let bytes = self.take(len)?;
        if len > 8 {
            return Err(self.wrong("an integer above 64 bits"));
        }
        let sign = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut wide = [if sign { 0xff } else { 0 }; 8];
        wide[..len].copy_from_slice(bytes);
        self.stack.push(Value::Int(i64::from_le_bytes(wide)));
        Ok(())
    }

    // --- stack and memo ---

    fn wrong(&self, problem: &'static str) -> PickleError {
        PickleError::Structure {
            problem,
            at: self.at,
        }
    }

    /// Values below the last mark are out of reach.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Value, PickleError> {
        if self.stack.len() <= self.floor() {
            return Err(self.wrong("too few values"));
        }
        self.stack.pop().ok_or_else(|| self.wrong("too few values"))
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value>, PickleError> {
        let mark = self
            .marks
            .pop()
            .filter(|mark| *mark <= self.stack.len())
            .ok_or_else(|| self.wrong("expected a mark"))?;
        Ok(self.stack.split_off(mark))
    }

    fn put(&mut self, slot: u32) -> Result<(), PickleError> {
        let top = *self
            .stack
            .last()
            .ok_or_else(|| self.wrong("nothing to remember"))?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn get(&mut self, slot: u32) -> Result<(), PickleError> {
        let value = *self
            .memo
            .get(&slot)
            .ok_or_else(|| self.wrong("a value that was not remembered"))?;
        self.stack.push(value);
        Ok(())
    }

    fn push_tuple(&mut self, items: Vec<Value>) {
        self.tuples.push(items);
        self.stack.push(Value::Tuple(self.tuples.len() - 1));
    }

    fn push_dict(&mut self) {
        self.dicts.push(Vec::new());
        self.stack.push(Value::Dict(self.dicts.len() - 1));
    }

    fn top_dict(&mut self) -> Result<&mut Vec<(Value, Value)>, PickleError> {
        match self.stack.last() {
            Some(Value::Dict(index)) => Ok(&mut self.dicts[*index]),
            _ => Err(self.wrong("expected a dictionary")),
        }
    }

    fn top_list(&self) -> Result<(), PickleError> {
        match self.stack.last() {
            Some(Value::List) => Ok(()),
            _ => Err(self.wrong("expected a list")),
        }
    }

    // --- typed views ---

    fn as_text(&self, value: Value) -> Result<&'a str, PickleError> {
        match value {
            Value::Text(index) => Ok(self.texts[index]),
            _ => Err(self.wrong("expected text")),
        }
    }

    fn as_int(&self, value: Value) -> Result<i64, PickleError> {
        match value {
            Value::Int(int) => Ok(int),
            _ => Err(self.wrong("expected an integer")),
        }
    }

    fn as_tuple(&self, value: Value) -> Result<&[Value], PickleError> {
        match value {
            Value::Tuple(index) => Ok(&self.tuples[index]),
            _ => Err(self.wrong("expected a tuple")),
        }
    }

    fn as_ints(&self, value: Value) -> Result<Vec<i64>, PickleError> {
        self.as_tuple(value)?
            .iter()
            .map(|item| self.as_int(*item))
            .collect()
    }

    // --- what torch.save uses ---

    /// `("storage", torch.HalfStorage, key, device, length)`.
    fn persistent(&mut self) -> Result<(), PickleError> {
        let id = self.pop()?;
        let &[tag, class, key, _device, len] = self.as_tuple(id)? else {
            return Err(self.wrong("expected the five parts of a storage"));
        };
        let (Value::Global(Global::Storage(kind)), Value::Text(key), "storage") =
            (class, key, self.as_text(tag)?)
        else {
            return Err(self.wrong("expected a storage"));
        };
        let len = self.as_int(len)?;
        self.storages.push(Storage { key, kind, len });
        self.stack.push(Value::Storage(self.storages.len() - 1));
        Ok(())
    }

    fn reduce(&mut self) -> Result<(), PickleError> {
        let (args, function) = (self.pop()?, self.pop()?);
        let Value::Global(function) = function else {
            return Err(self.wrong("expected a function that rebuilds tensors"));
        };
        match (function, self.as_tuple(args)?) {
            (Global::OrderedDict, &[]) => self.push_dict(),
            (Global::RebuildParameter, &[tensor @ Value::Tensor(_), ..]) => self.stack.push(tensor),
            (
                Global::RebuildTensor,
                &[
                    Value::Storage(storage),
                    Value::Int(offset),
                    shape,
                    stride,
                    ..,
                ],
            ) => {
                let (shape, stride) = (self.as_ints(shape)?, self.as_ints(stride)?);
                let Storage { key, kind, len } = self.storages[storage].clone();
                if !fits(len, offset, &shape, &stride) {
                    return Err(
                        self.wrong("a tensor that reaches out of its storage, or repeats it")
                    );
                }
                self.tensors.push(PickledTensor {
                    storage: self.texts[key].to_owned(),
                    kind,
                    storage_len: len,
                    offset,
                    shape,
                    stride,
                });
                self.stack.push(Value::Tensor(self.tensors.len() - 1));
            }
            _ => return Err(self.wrong("expected the arguments of a tensor")),
        }
        Ok(())
    }

    fn finish(mut self) -> Result<BTreeMap<String, PickledTensor>, PickleError> {
        let top = self.pop()?;
        let Value::Dict(index) = top else {
            return Err(self.wrong("expected a dictionary of tensors"));
        };
        let mut tensors = BTreeMap::new();
        for &(key, value) in &self.dicts[index] {
            let Value::Tensor(tensor) = value else {
                return Err(self.wrong("expected a dictionary that holds only tensors, as `torch.save(model.state_dict(), ...)` writes it"));
            };
            let name = self.as_text(key)?.to_owned();
            if tensors.insert(name, self.tensors[tensor].clone()).is_some() {
                return Err(self.wrong("a tensor name that comes twice"));
            }
        }
        Ok(tensors)
    }
}

/// Whether a strided view lies inside a storage and names no more elements than it holds.
fn fits(storage_len: i64, offset: i64, shape: &[i64], stride: &[i64]) -> bool {
    let inside = || {
        let mut last = offset;
        let mut count: i64 = 1;
        for (&size, &step) in shape.iter().zip(stride) {
            if size < 0 || step < 0 {
                return None;
            }
            count = count.checked_mul(size)?;
            last = last.checked_add(step.checked_mul((size - 1).max(0))?)?;
        }
        Some(count == 0 || (last < storage_len && count <= storage_len))
    };
    shape.len() == stride.len() && offset >= 0 && storage_len >= 0 && inside() == Some(true)
}
