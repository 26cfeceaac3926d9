//! A pickle that `torch.save` made of a dictionary of tensors. A pickle is a program for a stack machine that may call
//! anything by name; this one knows the few instructions and names that such a file needs, makes plain values of them, and
//! refuses every other by name.
//!
//! Source: CPython's `pickletools.py`; `torch/_utils.py`, `_rebuild_tensor_v2`; `torch/serialization.py`, `persistent_id`.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, bail, ensure};

use super::tensors::Dtype;

/// A tensor, as far as the pickle says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pickled {
    pub(super) storage: Storage,
    /// All in values.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Storage {
    pub(super) dtype: Dtype,
    pub(super) key: String,
    pub(super) n_values: usize,
}

/// Errors: the program is cut short, does what a dictionary of tensors does not need (named), or makes something else.
pub(super) fn read(bytes: &[u8]) -> Result<BTreeMap<String, Pickled>> {
    let mut machine = Machine { bytes, at: 0, values: vec![], stack: vec![], marks: vec![], memo: HashMap::new() };
    let top = loop {
        let at = machine.at;
        if let Some(top) = machine.step().with_context(|| format!("at byte {at}"))? {
            break top;
        }
    };
    let Value::Dict(entries) = &machine.values[top] else { bail!("holds no dictionary") };
    let mut tensors = BTreeMap::new();
    for &(name, tensor) in entries {
        let Value::Text(name) = &machine.values[name] else { bail!("a key of the dictionary is no text") };
        let Value::Tensor(tensor) = &machine.values[tensor] else { bail!("`{name}` is no tensor") };
        ensure!(tensors.insert(name.clone(), tensor.clone()).is_none(), "has `{name}` twice");
    }
    Ok(tensors)
}

/// A value's place among all values. Values refer to each other by it, so that none is ever copied as a whole.
type Id = usize;

enum Value {
    None,
    Bool,
    Whole(i64),
    Text(String),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Storage),
    Tensor(Pickled),
}

#[derive(Clone, Copy, PartialEq)]
enum Global {
    OrderedDict,
    RebuildTensor,
    Storage(Dtype),
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// One instruction. The last gives the program's value.
    fn step(&mut self) -> Result<Option<Id>> {
        match self.take::<1>()?[0] {
            0x80 => {
                let [protocol] = self.take()?;
                ensure!(protocol == 2, "pickle protocol {protocol}; torch.save's is 2");
            }
            b'.' => return Ok(Some(self.pop()?)),
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.push(Value::None),
            0x88 | 0x89 => self.push(Value::Bool),
            b'K' => {
                let [value] = self.take()?;
                self.push(Value::Whole(value.into()));
            }
            b'M' => {
                let value = u16::from_le_bytes(self.take()?);
                self.push(Value::Whole(value.into()));
            }
            b'J' => {
                let value = i32::from_le_bytes(self.take()?);
                self.push(Value::Whole(value.into()));
            }
            0x8a => {
                let value = self.long()?;
                self.push(Value::Whole(value));
            }
            b'X' => {
                let n = u32::from_le_bytes(self.take()?) as usize;
                let text = std::str::from_utf8(self.take_slice(n)?).context("a text is not UTF-8")?.to_owned();
                self.push(Value::Text(text));
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                let global = Global::named(&module, &name)?;
                self.push(Value::Global(global));
            }
            b'}' => self.push(Value::Dict(vec![])),
            b')' => self.push(Value::Tuple(vec![])),
            b't' => {
                let mark = self.pop_mark()?;
                let items = self.stack.split_off(mark);
                self.push(Value::Tuple(items));
            }
            n @ 0x85..=0x87 => {
                let first = self.stack_after_mark(usize::from(n - 0x84))?;
                let items = self.stack.split_off(first);
                self.push(Value::Tuple(items));
            }
            b'q' => {
                let [at] = self.take()?;
                self.memoise(at.into())?;
            }
            b'r' => {
                let at = u32::from_le_bytes(self.take()?);
                self.memoise(at)?;
            }
            b'h' => {
                let [at] = self.take()?;
                self.recall(at.into())?;
            }
            b'j' => {
                let at = u32::from_le_bytes(self.take()?);
                self.recall(at)?;
            }
            b's' => {
                let first = self.stack_after_mark(2)?;
                self.set_items(first)?;
            }
            b'u' => {
                let mark = self.pop_mark()?;
                self.set_items(mark)?;
            }
            b'Q' => self.persistent()?,
            b'R' => self.call()?,
            // What a module says of its versions, as an attribute of its dictionary: of no use here.
            b'b' => {
                self.pop()?;
                let &of = self.stack.last().context("nothing to build on")?;
                ensure!(matches!(self.values[of], Value::Dict(_)), "BUILD of something else than a dictionary");
            }
            other => bail!("the pickle instruction {} is not needed by tensors; refused", named(other)),
        }
        Ok(None)
    }

    /// `callable(*arguments)`, of which two are known.
    fn call(&mut self) -> Result<()> {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        let Value::Global(callable) = self.values[callable] else { bail!("a call of something that has no name") };
        let Value::Tuple(arguments) = &self.values[arguments] else { bail!("a call without a tuple of arguments") };
        let made = match callable {
            Global::OrderedDict if arguments.is_empty() => Value::Dict(vec![]),
            Global::RebuildTensor => Value::Tensor(self.tensor(arguments)?),
            Global::OrderedDict => bail!("collections.OrderedDict is called with arguments; refused"),
            Global::Storage(_) => bail!("a storage's class is called; refused"),
        };
        self.push(made);
        Ok(())
    }

    /// `_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, backward_hooks)`.
    fn tensor(&self, arguments: &[Id]) -> Result<Pickled> {
        let &[storage, offset, shape, strides, _, _] = arguments else {
            bail!("torch._utils._rebuild_tensor_v2 is called with {} arguments, expected 6", arguments.len());
        };
        let Value::Storage(storage) = &self.values[storage] else { bail!("a tensor without a storage") };
        Ok(Pickled {
            storage: storage.clone(),
            offset: self.size(offset)?,
            shape: self.sizes(shape)?,
            strides: self.sizes(strides)?,
        })
    }

    /// `('storage', class, key, device, number of values)`.
    fn persistent(&mut self) -> Result<()> {
        let id = self.pop()?;
        let Value::Tuple(parts) = &self.values[id] else { bail!("a persistent id that is no tuple") };
        let &[kind, class, key, _, n_values] = parts.as_slice() else {
            bail!("a persistent id of {} parts", parts.len())
        };
        let (Value::Text(kind), Value::Global(Global::Storage(dtype)), Value::Text(key)) =
            (&self.values[kind], &self.values[class], &self.values[key])
        else {
            bail!("a persistent id that is no storage's");
        };
        ensure!(kind == "storage", "a persistent id that is no storage's");
        // It is copied into every tensor; torch counts from 0.
        ensure!(key.len() <= 16, "a storage's name of {} bytes", key.len());
        let storage = Storage { dtype: *dtype, key: key.clone(), n_values: self.size(n_values)? };
        self.push(Value::Storage(storage));
        Ok(())
    }

    /// What lies above `first` becomes entries of the dictionary below it.
    fn set_items(&mut self, first: usize) -> Result<()> {
        let items = self.stack.split_off(first);
        let (pairs, rest) = items.as_chunks::<2>();
        ensure!(rest.is_empty(), "a key without a value");
        let &of = self.stack.last().context("no dictionary to fill")?;
        let Value::Dict(entries) = &mut self.values[of] else { bail!("entries for something else than a dictionary") };
        entries.extend(pairs.iter().map(|&[key, value]| (key, value)));
        Ok(())
    }

    fn size(&self, id: Id) -> Result<usize> {
        let Value::Whole(size) = self.values[id] else { bail!("a size that is no whole number") };
        usize::try_from(size).with_context(|| format!("a size of {size}"))
    }

    fn sizes(&self, id: Id) -> Result<Vec<usize>> {
        let Value::Tuple(sizes) = &self.values[id] else { bail!("sizes that are no tuple") };
        ensure!(sizes.len() <= 2, "a tensor of {} dimensions", sizes.len());
        sizes.iter().map(|&size| self.size(size)).collect()
    }

    fn push(&mut self, value: Value) {
        self.values.push(value);
        self.stack.push(self.values.len() - 1);
    }

    fn pop(&mut self) -> Result<Id> {
        let first = self.stack_after_mark(1)?;
        Ok(self.stack.split_off(first)[0])
    }

    /// The height of the stack below its last `n` values, all of them above the last mark.
    fn stack_after_mark(&self, n: usize) -> Result<usize> {
        let first = self.stack.len().checked_sub(n).filter(|&first| first >= self.marks.last().copied().unwrap_or(0));
        first.context("takes more from the stack than is there")
    }

    fn pop_mark(&mut self) -> Result<usize> {
        self.marks.pop().context("there is no mark on the stack")
    }

    fn memoise(&mut self, at: u32) -> Result<()> {
        let &top = self.stack.last().context("there is nothing to remember")?;
        self.memo.insert(at, top);
        Ok(())
    }

    fn recall(&mut self, at: u32) -> Result<()> {
        let id = *self.memo.get(&at).with_context(|| format!("nothing was remembered as {at}"))?;
        self.stack.push(id);
        Ok(())
    }

    /// A number of up to eight bytes.
    fn long(&mut self) -> Result<i64> {
        let [n] = self.take()?;
        ensure!(n <= 8, "a number of {n} bytes");
        let bytes = self.take_slice(n.into())?;
        let mut value = [if bytes.last().is_some_and(|&last| last >= 0x80) { 0xff } else { 0 }; 8];
        value[..bytes.len()].copy_from_slice(bytes);
        Ok(i64::from_le_bytes(value))
    }

    /// Up to the next line's end.
    fn line(&mut self) -> Result<String> {
        let rest = &self.bytes[self.at..];
        let n = rest.iter().position(|&byte| byte == b'\n').context("cut short")?;
        self.at += n + 1;
        Ok(String::from_utf8_lossy(&rest[..n]).into_owned())
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(*self.take_slice(N)?.first_chunk().context("cut short")?)
    }

    fn take_slice(&mut self, n: usize) -> Result<&'a [u8]> {
        let slice = self.bytes[self.at..].get(..n).context("cut short")?;
        self.at += n;
        Ok(slice)
    }
}

impl Global {
    /// Errors: the name is none of those that a dictionary of tensors needs.
    fn named(module: &str, name: &str) -> Result<Self> {
        Ok(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch", "FloatStorage") => Self::Storage(Dtype::F32),
            ("torch", "HalfStorage") => Self::Storage(Dtype::F16),
            ("torch", "BFloat16Storage") => Self::Storage(Dtype::Bf16),
            ("torch", "IntStorage") => Self::Storage(Dtype::I32),
            ("torch", "LongStorage") => Self::Storage(Dtype::I64),
            _ => bail!("the pickle asks for `{module}.{name}`, which tensors do not need; refused"),
        })
    }
}

/// An instruction by its name in `pickletools`, where it is one that strangers' files are likely to have.
fn named(instruction: u8) -> String {
    let name = match instruction {
        b'i' => "INST",
        b'o' => "OBJ",
        b'P' => "PERSID",
        b'S' | b'T' | b'U' | b'V' => "STRING",
        b'B' | b'C' | 0x8e => "BINBYTES",
        b'F' | b'G' => "FLOAT",
        b'I' | b'L' => "INT",
        b']' | b'l' | b'a' | b'e' => "LIST",
        b'd' => "DICT",
        b'0' | b'1' | b'2' => "POP",
        b'g' | b'p' => "GET",
        0x81 | 0x92 => "NEWOBJ",
        0x82..=0x84 => "EXT",
        0x8b => "LONG4",
        0x8c | 0x8d => "BINUNICODE of a later protocol",
        0x93 => "STACK_GLOBAL",
        0x94 => "MEMOIZE",
        0x95 => "FRAME",
        _ => return format!("{instruction:#04x}"),
    };
    format!("{name} ({instruction:#04x})")
}
