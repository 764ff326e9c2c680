//! Files that PyTorch writes: a zip of a pickle and of the tensors' bytes.
//!
//! A pickle is a program, and running one from elsewhere means running anything. This interpreter knows
//! the opcodes and the few names that a dictionary of tensors is made of, and refuses everything else;
//! what it builds are numbers, texts, lists and places in the file, never objects.
//!
//! Limits: the pickle's bytes, its operations, and of what is taken out of it the depth, the number and
//! the names, because what a pickle holds once it can name a million times. Lists and dictionaries are
//! entries of a table, so that one inside of another, or inside of itself, costs no recursion anywhere.
use std::{collections::HashMap, io::Cursor, ops::Range};

use super::raw::{Element, MAX_DIMS, Raw};

/// Bytes of a pickle: that of Moondream 3 takes 100 KB.
const MAX_PICKLE: usize = 16 << 20;
/// Operations of a pickle: that of Moondream 3 has some 20,000.
const MAX_OPS: usize = 1 << 20;
/// Members of the zip.
const MAX_MEMBERS: usize = 1 << 16;
/// How deep dictionaries and lists may hold each other around tensors.
const MAX_DEPTH: usize = 8;
/// Entries of dictionaries and lists on the way to the tensors.
const MAX_ENTRIES: usize = 1 << 16;
/// Bytes of a tensor's name, and of a storage's.
const MAX_NAME: usize = 512;
/// Arguments of a call.
const MAX_ARGUMENTS: usize = 16;

/// Whether a file begins as a zip does.
pub(super) fn is_zip(data: &[u8]) -> bool {
    data.starts_with(b"PK\x03\x04")
}

/// The tensors of a file by name: keys of nested dictionaries and indices of lists joined by dots.
pub(super) fn tensors(data: &[u8], file: usize) -> Result<Vec<(String, Raw)>, String> {
    let members = members(data)?;
    let pickles: Vec<_> = members.iter().filter(|(name, _)| name.ends_with("/data.pkl")).collect();
    let [(name, pickle)] = pickles[..] else {
        return Err(format!("{} data.pkl in the zip, not one", pickles.len()));
    };
    let folder = name.strip_suffix("data.pkl").expect("it ends so");
    if let Some(order) = members.get(&format!("{folder}byteorder"))
        && data[order.clone()] != *b"little"
    {
        return Err("its numbers are not little-endian".into());
    }
    if pickle.len() > MAX_PICKLE {
        return Err(format!("a pickle of {} bytes, more than {MAX_PICKLE}", pickle.len()));
    }
    let mut machine = Machine::new(&data[pickle.clone()]);
    let top = machine.run()?;
    let mut found = Vec::new();
    machine.collect(top, &mut found)?;
    let place = |(name, tensor): (String, Tensor)| {
        let storage = members
            .get(&format!("{folder}data/{}", tensor.storage))
            .ok_or_else(|| format!("{name}: its bytes are not in the file"))?;
        let raw = tensor.place(storage, file).map_err(|why| format!("{name}: {why}"))?;
        Ok((name, raw))
    };
    found.into_iter().map(place).collect()
}

/// The stored members of a zip, and where their bytes are.
fn members(data: &[u8]) -> Result<HashMap<String, Range<usize>>, String> {
    let damaged = |error: zip::result::ZipError| error.to_string();
    let mut archive = zip::ZipArchive::new(Cursor::new(data)).map_err(damaged)?;
    if archive.len() > MAX_MEMBERS {
        return Err(format!("a zip of {} members, more than {MAX_MEMBERS}", archive.len()));
    }
    let mut members = HashMap::new();
    for i in 0..archive.len() {
        let member = archive.by_index_raw(i).map_err(damaged)?;
        let name = member.name().map_err(damaged)?.into_owned();
        if member.compression() != zip::CompressionMethod::Stored || member.encrypted() {
            return Err(format!("{name} is compressed or encrypted"));
        }
        let range = member.data_start().and_then(|start| {
            let end = start.checked_add(member.size())?;
            Some(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
        });
        let range = range.filter(|range| range.end <= data.len());
        let range = range.ok_or_else(|| format!("{name} ends outside of the file"))?;
        members.insert(name, range);
    }
    Ok(members)
}

/// What the machine computes with. Texts are places in the pickle, containers entries of a table.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    None,
    Bool,
    Int(i64),
    Float,
    Text(Range<usize>),
    Tuple(usize),
    List(usize),
    Dict(usize),
    /// Module and name.
    Global(Range<usize>, Range<usize>),
    Storage {
        element: Option<Element>,
        key: Range<usize>,
    },
    Tensor(usize),
    Mark,
}

#[derive(Clone, Debug)]
struct Tensor {
    storage: String,
    element: Element,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl Tensor {
    /// Where its bytes are.
    fn place(&self, storage: &Range<usize>, file: usize) -> Result<Raw, String> {
        let overflow = || "its size overflows".to_string();
        let mut count = 1usize;
        for (&size, &stride) in self.shape.iter().zip(&self.strides).rev() {
            if size != 1 && stride != count {
                return Err("it is a view with strides; save a contiguous copy".into());
            }
            count = count.checked_mul(size).ok_or_else(overflow)?;
        }
        let bytes = |n: usize| n.checked_mul(self.element.bytes()).ok_or_else(overflow);
        let start = storage.start.checked_add(bytes(self.offset)?).ok_or_else(overflow)?;
        let end = start.checked_add(bytes(count)?).ok_or_else(overflow)?;
        if end > storage.end {
            return Err("it reaches past its storage".into());
        }
        Raw::new(self.element, self.shape.clone(), file, start..end)
    }
}

struct Machine<'a> {
    code: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    memo: HashMap<u32, Value>,
    tuples: Vec<Vec<Value>>,
    lists: Vec<Vec<Value>>,
    dicts: Vec<Vec<(Value, Value)>>,
    tensors: Vec<Tensor>,
}

type Step<T> = Result<T, String>;

impl<'a> Machine<'a> {
    fn new(code: &'a [u8]) -> Self {
        Machine {
            code,
            at: 0,
            stack: Vec::new(),
            memo: HashMap::new(),
            tuples: Vec::new(),
            lists: Vec::new(),
            dicts: Vec::new(),
            tensors: Vec::new(),
        }
    }

    fn take(&mut self, bytes: usize) -> Step<Range<usize>> {
        let end = self.at.checked_add(bytes).filter(|&end| end <= self.code.len());
        let range = self.at..end.ok_or("the pickle is cut short")?;
        self.at = range.end;
        Ok(range)
    }

    fn byte(&mut self) -> Step<u8> {
        let at = self.take(1)?.start;
        Ok(self.code[at])
    }

    /// A little-endian number of so many bytes.
    fn number(&mut self, bytes: usize) -> Step<u64> {
        let range = self.take(bytes)?;
        Ok(self.code[range].iter().rev().fold(0, |sum, &b| sum << 8 | u64::from(b)))
    }

    /// Up to a line's end.
    fn line(&mut self) -> Step<Range<usize>> {
        let rest = &self.code[self.at..];
        let len = rest.iter().position(|&b| b == b'\n').ok_or("the pickle is cut short")?;
        let range = self.take(len)?;
        self.take(1)?;
        Ok(range)
    }

    fn text(&self, range: &Range<usize>) -> &'a [u8] {
        &self.code[range.clone()]
    }

    fn pop(&mut self) -> Step<Value> {
        match self.stack.pop() {
            None | Some(Value::Mark) => Err("the pickle takes from an empty stack".into()),
            Some(value) => Ok(value),
        }
    }

    /// Everything above the last mark.
    fn pop_mark(&mut self) -> Step<Vec<Value>> {
        let mark = self.stack.iter().rposition(|v| *v == Value::Mark).ok_or("a mark is missing")?;
        let above = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(above)
    }

    fn tuple(&mut self, items: Vec<Value>) {
        self.stack.push(Value::Tuple(self.tuples.len()));
        self.tuples.push(items);
    }

    fn dict(&mut self) {
        self.stack.push(Value::Dict(self.dicts.len()));
        self.dicts.push(Vec::new());
    }

    fn run(&mut self) -> Step<Value> {
        for _ in 0..MAX_OPS {
            match self.byte()? {
                0x80 => drop(self.byte()?),    // PROTO
                0x95 => drop(self.number(8)?), // FRAME
                b'(' => self.stack.push(Value::Mark),
                b'N' => self.stack.push(Value::None),
                0x88 | 0x89 => self.stack.push(Value::Bool),
                b'K' => self.int(1)?,
                b'M' => self.int(2)?,
                b'J' => {
                    let value = self.number(4)? as u32;
                    self.stack.push(Value::Int(i64::from(value.cast_signed())));
                }
                0x8a => self.long()?,
                b'G' => {
                    self.take(8)?;
                    self.stack.push(Value::Float);
                }
                b'X' => self.push_text(4)?,
                0x8c => self.push_text(1)?,
                b')' => self.tuple(Vec::new()),
                0x85 => self.some_tuple(1)?,
                0x86 => self.some_tuple(2)?,
                0x87 => self.some_tuple(3)?,
                b't' => {
                    let items = self.pop_mark()?;
                    self.tuple(items);
                }
                b']' => {
                    self.stack.push(Value::List(self.lists.len()));
                    self.lists.push(Vec::new());
                }
                b'}' => self.dict(),
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' => {
                    let items = self.pop_mark()?;
                    self.append(items)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set_items(vec![key, value])?;
                }
                b'u' => {
                    let items = self.pop_mark()?;
                    self.set_items(items)?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.stack.push(Value::Global(module, name));
                }
                0x93 => match (self.pop()?, self.pop()?) {
                    (Value::Text(name), Value::Text(module)) => {
                        self.stack.push(Value::Global(module, name));
                    }
                    _ => return Err("a name that is no text".into()),
                },
                b'q' => self.memorize(1)?,
                b'r' => self.memorize(4)?,
                0x94 => self.keep(self.memo.len() as u32)?,
                b'h' => self.recall(1)?,
                b'j' => self.recall(4)?,
                b'Q' => self.persistent()?,
                b'R' => self.reduce()?,
                // What is built on are attributes, of which a dictionary of tensors needs none.
                b'b' => _ = self.pop()?,
                b'.' => return self.pop(),
                code => return Err(format!("operation {code:#04x}, which tensors need not")),
            }
        }
        Err(format!("a pickle of more than {MAX_OPS} operations"))
    }

    fn int(&mut self, bytes: usize) -> Step<()> {
        let value = self.number(bytes)? as i64;
        self.stack.push(Value::Int(value));
        Ok(())
    }

    fn long(&mut self) -> Step<()> {
        let bytes = usize::from(self.byte()?);
        if bytes > 8 {
            return Err(format!("a number of {bytes} bytes"));
        }
        let value = self.number(bytes)?;
        let shift = 64 - 8 * bytes as u32;
        let value = if bytes == 0 { 0 } else { (value << shift).cast_signed() >> shift };
        self.stack.push(Value::Int(value));
        Ok(())
    }

    fn push_text(&mut self, length: usize) -> Step<()> {
        let bytes = self.number(length)? as usize;
        let range = self.take(bytes)?;
        self.stack.push(Value::Text(range));
        Ok(())
    }

    fn some_tuple(&mut self, items: usize) -> Step<()> {
        let from = self.stack.len().checked_sub(items).ok_or("a tuple of nothing")?;
        let items = self.stack.split_off(from);
        self.tuple(items);
        Ok(())
    }

    fn append(&mut self, items: Vec<Value>) -> Step<()> {
        let Some(&Value::List(list)) = self.stack.last() else { return Err("no list".into()) };
        self.lists[list].extend(items);
        Ok(())
    }

    fn set_items(&mut self, items: Vec<Value>) -> Step<()> {
        let Some(&Value::Dict(dict)) = self.stack.last() else {
            return Err("no dictionary".into());
        };
        if items.len() % 2 == 1 {
            return Err("a key without a value".into());
        }
        let mut items = items.into_iter();
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            self.dicts[dict].push((key, value));
        }
        Ok(())
    }

    fn memorize(&mut self, bytes: usize) -> Step<()> {
        let place = self.number(bytes)? as u32;
        self.keep(place)
    }

    fn keep(&mut self, place: u32) -> Step<()> {
        let value = self.stack.last().ok_or("nothing to remember")?.clone();
        self.memo.insert(place, value);
        Ok(())
    }

    fn recall(&mut self, bytes: usize) -> Step<()> {
        let place = self.number(bytes)? as u32;
        let value = self.memo.get(&place).ok_or("something was not remembered")?.clone();
        self.stack.push(value);
        Ok(())
    }

    /// `('storage', type, key, place, length)`.
    fn persistent(&mut self) -> Step<()> {
        let Value::Tuple(tuple) = self.pop()? else { return Err("no storage".into()) };
        let [Value::Text(kind), Value::Global(module, name), Value::Text(key), ..] =
            &self.tuples[tuple][..]
        else {
            return Err("no storage".into());
        };
        if self.text(kind) != b"storage" || !self.text(module).starts_with(b"torch") {
            return Err("a reference to something that is no storage".into());
        }
        let element = match self.text(name) {
            b"FloatStorage" => Some(Element::F32),
            b"HalfStorage" => Some(Element::F16),
            b"BFloat16Storage" => Some(Element::Bf16),
            b"Float8_e4m3fnStorage" => Some(Element::F8),
            b"ByteStorage" => Some(Element::U8),
            b"CharStorage" => Some(Element::I8),
            b"UntypedStorage" => None,
            _ => Some(Element::Other),
        };
        let key = key.clone();
        self.stack.push(Value::Storage { element, key });
        Ok(())
    }

    /// A call of one of the few functions that make dictionaries and tensors.
    fn reduce(&mut self) -> Step<()> {
        let (Value::Tuple(arguments), function) = (self.pop()?, self.pop()?) else {
            return Err("a call without arguments".into());
        };
        let Value::Global(module, name) = &function else { return Err("a call of no name".into()) };
        let arguments = &self.tuples[arguments];
        if arguments.len() > MAX_ARGUMENTS {
            return Err(format!("a call with {} arguments", arguments.len()));
        }
        let arguments = arguments.clone();
        match (self.text(module), self.text(name)) {
            (b"collections", b"OrderedDict") if arguments.is_empty() => self.dict(),
            (b"torch._utils", b"_rebuild_tensor_v2" | b"_rebuild_tensor_v3") => {
                let tensor = self.tensor(&arguments)?;
                self.stack.push(Value::Tensor(self.tensors.len()));
                self.tensors.push(tensor);
            }
            (b"torch._utils", b"_rebuild_parameter") => match arguments.first() {
                Some(tensor @ Value::Tensor(_)) => self.stack.push(tensor.clone()),
                _ => return Err("a parameter that is no tensor".into()),
            },
            (b"torch", b"Size") => match arguments.first() {
                Some(size @ Value::Tuple(_)) => self.stack.push(size.clone()),
                _ => return Err("a size of nothing".into()),
            },
            (module, name) => {
                let text = |bytes| String::from_utf8_lossy(bytes).chars().take(80).collect();
                let (module, name): (String, String) = (text(module), text(name));
                return Err(format!("a call of {module}.{name}, which is not allowed"));
            }
        }
        Ok(())
    }

    /// Storage, offset, size, strides, and with an untyped storage the type as the seventh.
    fn tensor(&self, arguments: &[Value]) -> Step<Tensor> {
        let [Value::Storage { element, key }, Value::Int(offset), shape, strides, rest @ ..] =
            arguments
        else {
            return Err("a tensor without storage, offset, size and strides".into());
        };
        let element = match (element, rest.get(2)) {
            (Some(element), _) => *element,
            (None, Some(Value::Global(_, name))) => match self.text(name) {
                b"float32" => Element::F32,
                b"float16" => Element::F16,
                b"bfloat16" => Element::Bf16,
                b"float8_e4m3fn" => Element::F8,
                b"uint8" => Element::U8,
                b"int8" => Element::I8,
                _ => Element::Other,
            },
            _ => return Err("a tensor without a type".into()),
        };
        let (shape, strides) = (self.sizes(shape)?, self.sizes(strides)?);
        if shape.len() != strides.len() {
            return Err(format!("{} sizes and {} strides", shape.len(), strides.len()));
        }
        let offset = usize::try_from(*offset).map_err(|_| "a negative offset")?;
        let storage = self.name(key)?;
        Ok(Tensor { storage, element, offset, shape, strides })
    }

    fn sizes(&self, value: &Value) -> Step<Vec<usize>> {
        let Value::Tuple(tuple) = value else { return Err("a size that is no tuple".into()) };
        let size = |value: &Value| match value {
            Value::Int(n) => usize::try_from(*n).map_err(|_| "a negative size".to_string()),
            _ => Err("a size that is no number".into()),
        };
        let sizes = &self.tuples[*tuple];
        if sizes.len() > MAX_DIMS {
            return Err(format!("a tensor of {} dimensions", sizes.len()));
        }
        sizes.iter().map(size).collect()
    }

    /// A text that names something.
    fn name(&self, range: &Range<usize>) -> Step<String> {
        match range.len() {
            0..=MAX_NAME => Ok(String::from_utf8_lossy(self.text(range)).into_owned()),
            bytes => Err(format!("a name of {bytes} bytes")),
        }
    }

    /// The tensors in `top`, in order.
    fn collect(&self, top: Value, found: &mut Vec<(String, Tensor)>) -> Step<()> {
        let mut left = vec![(String::new(), top, 0)];
        let mut entries = 0;
        while let Some((name, value, depth)) = left.pop() {
            if depth > MAX_DEPTH {
                return Err(format!("nested deeper than {MAX_DEPTH} levels"));
            }
            let join = |key: &str| match name.is_empty() {
                true => Ok(key.to_owned()),
                false if name.len() + key.len() < MAX_NAME => Ok(format!("{name}.{key}")),
                false => Err(format!("a name of more than {MAX_NAME} bytes")),
            };
            let mut room = |more: usize| {
                entries += more;
                match entries {
                    0..=MAX_ENTRIES => Ok(()),
                    _ => Err(format!("more than {MAX_ENTRIES} entries")),
                }
            };
            match value {
                Value::Tensor(tensor) => found.push((name, self.tensors[tensor].clone())),
                Value::Dict(dict) => {
                    room(self.dicts[dict].len())?;
                    for (key, value) in self.dicts[dict].iter().rev() {
                        let key = match key {
                            Value::Text(key) => self.name(key)?,
                            Value::Int(key) => key.to_string(),
                            _ => return Err("a key that is no text".into()),
                        };
                        left.push((join(&key)?, value.clone(), depth + 1));
                    }
                }
                Value::List(list) => {
                    room(self.lists[list].len())?;
                    for (i, value) in self.lists[list].iter().enumerate().rev() {
                        left.push((join(&i.to_string())?, value.clone(), depth + 1));
                    }
                }
                // Numbers and texts beside the tensors: versions, settings.
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(code: &[u8]) -> Result<Value, String> {
        Machine::new(code).run()
    }

    #[track_caller]
    fn refuses(code: &[u8], message: &str) {
        let error = run(code).unwrap_err();
        assert!(error.contains(message), "{error}");
    }

    #[test]
    fn programs_are_not_run() {
        refuses(b"cos\nsystem\n(X\x02\x00\x00\x00lstR.", "a call of os.system");
        refuses(b"cbuiltins\neval\n)R.", "a call of builtins.eval");
        refuses(b"c__builtin__\ngetattr\n)R.", "__builtin__.getattr");
        refuses(b"(ios\nsystem\n.", "operation 0x69");
        refuses(b"\x80\x02cos\nsystem\n)\x81.", "operation 0x81");
    }

    #[test]
    fn what_is_broken_is_refused() {
        refuses(b"", "cut short");
        refuses(b"X\xff\xff\xff\xffabc", "cut short");
        refuses(b"a.", "empty stack");
        refuses(b"u.", "a mark is missing");
        refuses(b"h\x07.", "not remembered");
        refuses(b"\x85.", "a tuple of nothing");
        refuses(b"NQ.", "no storage");
        refuses(b"\x8a\x09123456789.", "a number of 9 bytes");
        refuses(b"}(N u.", "operation 0x20");
        refuses(b"}(Nu.", "a key without a value");
        let endless = [b"N0".repeat(3), b"q".to_vec()].concat();
        assert!(run(&endless).is_err());
        let size = [b"(".to_vec(), b"K\x01".repeat(9), b"t".to_vec()].concat();
        let tensor = [
            &b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storage"[..],
            b"ctorch\nFloatStorage\nX\x01\0\0\x000tQK\0",
            &size,
            &size,
            b"tR.",
        ];
        refuses(&tensor.concat(), "a tensor of 9 dimensions");
        let many = [b"ctorch\nSize\n(".to_vec(), b"N".repeat(17), b"tR.".to_vec()].concat();
        refuses(&many, "a call with 17 arguments");
    }

    /// What is written once and named often must not become a million copies.
    #[test]
    fn what_a_pickle_repeats_has_limits() {
        let collect = |code: &[u8]| {
            let mut machine = Machine::new(code);
            let top = machine.run().unwrap();
            machine.collect(top, &mut Vec::new()).unwrap_err()
        };
        // 300 names of one list of 300 texts.
        let inner = [b"](".to_vec(), b"N".repeat(300), b"eq\x00".to_vec()].concat();
        let outer = [inner, b"](".to_vec(), b"h\x00".repeat(300), b"e.".to_vec()].concat();
        assert!(collect(&outer).contains("more than 65536 entries"));
        let text = [b"X\x01\x02\0\0".to_vec(), b"a".repeat(513)].concat();
        assert!(collect(&[b"}".to_vec(), text, b"Ns.".to_vec()].concat()).contains("513 bytes"));
        let text = [b"X\x00\x01\0\0".to_vec(), b"a".repeat(256), b"q\x00".to_vec()].concat();
        let nested = [b"}".to_vec(), text, b"}h\x00Nss.".to_vec()].concat();
        assert!(collect(&nested).contains("more than 512 bytes"));
    }

    #[test]
    fn lists_that_hold_themselves_end() {
        // l = []; l.append(l)
        let mut machine = Machine::new(b"]q\x00h\x00a.");
        let top = machine.run().unwrap();
        let error = machine.collect(top, &mut Vec::new()).unwrap_err();
        assert!(error.contains("nested deeper"), "{error}");
    }

    #[test]
    fn numbers_have_signs() {
        assert_eq!(run(b"J\xff\xff\xff\xff."), Ok(Value::Int(-1)));
        assert_eq!(run(b"\x8a\x01\xff."), Ok(Value::Int(-1)));
        assert_eq!(run(b"\x8a\x00."), Ok(Value::Int(0)));
        assert_eq!(run(b"\x8a\x02\x00\x01."), Ok(Value::Int(256)));
        assert_eq!(run(b"M\x00\x01."), Ok(Value::Int(256)));
    }
}
