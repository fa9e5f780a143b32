//! The machine that a pickle is a program for: a stack, a memo, and some sixty opcodes.

use std::collections::HashMap;

use super::names::{check_global, refusal};
use super::{Ref, Value};

/// The most opcodes that are carried out. Each makes at most one value. A ResNet-152 with its
/// optimizer's state has some 500,000.
const MAX_STEPS: usize = 4 << 20;

/// The machine that a pickle is a program for.
pub(super) struct Machine<'a> {
    rest: &'a [u8],
    values: Vec<Value<'a>>,
    stack: Vec<Ref>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Ref>,
    /// How many elements of lists have been gone over for dictionaries.
    copied: usize,
}

impl<'a> Machine<'a> {
    /// Makes a machine that will run the program in `bytes`.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            copied: 0,
        }
    }

    /// Runs the program. Returns all values that it made, and the one that it describes.
    pub(super) fn run(mut self) -> Result<(Vec<Value<'a>>, Ref), String> {
        for _ in 0..MAX_STEPS {
            match self.byte()? {
                b'.' => {
                    let root = self.pop()?;
                    return Ok((self.values, root));
                }
                code => self.step(code)?,
            }
        }
        Err(format!(
            "its pickle has more than {MAX_STEPS} steps, too many for one of weights"
        ))
    }

    /// Carries out one opcode (`Lib/pickletools.py` of CPython describes them).
    fn step(&mut self, code: u8) -> Result<(), String> {
        match code {
            // PROTO, FRAME
            0x80 => self.take(1).map(drop),
            0x95 => self.take(8).map(drop),
            // MARK, POP, POP_MARK, DUP
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => self.pop_any(),
            b'1' => self.pop_to_mark().map(drop),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
                Ok(())
            }
            // NONE, NEWTRUE, NEWFALSE
            b'N' => self.push(Value::None),
            0x88 | 0x89 => self.push(Value::Other),
            // BININT, BININT1, BININT2, LONG1, LONG4
            b'J' => {
                let number = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(number.into()))
            }
            b'K' => {
                let number = self.byte()?;
                self.push(Value::Int(number.into()))
            }
            b'M' => {
                let number = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(number.into()))
            }
            0x8a => {
                let length = self.byte()?;
                self.push_long(length.into())
            }
            0x8b => {
                let length = self.length::<4>()?;
                self.push_long(length)
            }
            // BINFLOAT
            b'G' => {
                self.take(8)?;
                self.push(Value::Other)
            }
            // SHORT_BINUNICODE, BINUNICODE, BINUNICODE8
            0x8c => self.push_text::<1>(),
            b'X' => self.push_text::<4>(),
            0x8d => self.push_text::<8>(),
            // SHORT_BINSTRING, BINSTRING: texts of Python 2
            b'U' => self.push_text::<1>(),
            b'T' => self.push_text::<4>(),
            // SHORT_BINBYTES, BINBYTES, BINBYTES8, BYTEARRAY8
            b'C' => self.push_bytes::<1>(),
            b'B' => self.push_bytes::<4>(),
            0x8e | 0x96 => self.push_bytes::<8>(),
            // EMPTY_TUPLE, TUPLE, TUPLE1, TUPLE2, TUPLE3
            b')' => self.push(Value::Tuple(Vec::new())),
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Tuple(items))
            }
            0x85..=0x87 => {
                let count = usize::from(code - 0x84);
                let mut items = Vec::with_capacity(count);
                for _ in 0..count {
                    items.push(self.pop()?);
                }
                items.reverse();
                self.push(Value::Tuple(items))
            }
            // EMPTY_LIST, EMPTY_SET, LIST, FROZENSET
            b']' | 0x8f => self.push(Value::List(Vec::new())),
            b'l' | 0x91 => {
                let items = self.pop_to_mark()?;
                self.push(Value::List(items))
            }
            // APPEND, APPENDS, ADDITEMS
            b'a' => {
                let item = self.pop()?;
                self.extend_list(vec![item])
            }
            b'e' | 0x90 => {
                let items = self.pop_to_mark()?;
                self.extend_list(items)
            }
            // EMPTY_DICT, DICT, SETITEM, SETITEMS
            b'}' => self.push(Value::Dict(Vec::new())),
            b'd' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Dict(pairs(&items)))
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.extend_dict(&[key, value])
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.extend_dict(&items)
            }
            // GLOBAL, STACK_GLOBAL
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push_global(module, name)
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (self.value(module), self.value(name)) {
                    (Some(&Value::Text(module)), Some(&Value::Text(name))) => {
                        self.push_global(module, name)
                    }
                    _ => Err(refusal("code (by values)")),
                }
            }
            // REDUCE, NEWOBJ, NEWOBJ_EX, BUILD
            b'R' | 0x81 => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.push_call(function, arguments)
            }
            0x92 => {
                let (_named, arguments, function) = (self.pop()?, self.pop()?, self.pop()?);
                self.push_call(function, arguments)
            }
            // The attributes of an object say nothing about tensors.
            b'b' => self.pop().map(drop),
            // BINPERSID
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Persistent(id))
            }
            // BINGET, LONG_BINGET, BINPUT, LONG_BINPUT, MEMOIZE
            b'h' => {
                let key = self.byte()?;
                self.recall(key.into())
            }
            b'j' => {
                let key = u32::from_le_bytes(self.array()?);
                self.recall(key)
            }
            b'q' => {
                let key = self.byte()?;
                self.memorise(key.into())
            }
            b'r' => {
                let key = u32::from_le_bytes(self.array()?);
                self.memorise(key)
            }
            0x94 => {
                let key = u32::try_from(self.memo.len()).unwrap_or(u32::MAX);
                self.memorise(key)
            }
            // INST, OBJ, EXT1, EXT2, EXT4: further ways to name code.
            b'i' | b'o' | 0x82..=0x84 => Err(refusal("code (by opcode)")),
            other => Err(format!(
                "its pickle is damaged, or not of the protocols 2 to 5 that torch.save writes: opcode \
                 {other:#04x}"
            )),
        }
    }

    fn push(&mut self, value: Value<'a>) -> Result<(), String> {
        // There are no more values than steps.
        self.stack
            .push(Ref(u32::try_from(self.values.len()).unwrap_or(u32::MAX)));
        self.values.push(value);
        Ok(())
    }

    fn push_long(&mut self, length: usize) -> Result<(), String> {
        let bytes = self.take(length)?;
        if length > 8 {
            return Err("its pickle has an integer of more than 64 bits".to_owned());
        }
        let negative = bytes.last().is_some_and(|last| last & 0x80 != 0);
        let mut all = [if negative { 0xff } else { 0 }; 8];
        all[..length].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(all)))
    }

    fn push_text<const N: usize>(&mut self) -> Result<(), String> {
        let length = self.length::<N>()?;
        if length > self.rest.len() {
            return Err("its pickle ends in the middle of a text".to_owned());
        }
        let bytes = self.take(length)?;
        // A text that is no UTF-8 names no tensor.
        self.push(std::str::from_utf8(bytes).map_or(Value::Other, Value::Text))
    }

    fn push_bytes<const N: usize>(&mut self) -> Result<(), String> {
        let length = self.length::<N>()?;
        self.take(length)?;
        self.push(Value::Other)
    }

    fn push_global(&mut self, module: &'a str, name: &'a str) -> Result<(), String> {
        check_global(module, name)?;
        self.push(Value::Global { module, name })
    }

    /// Pushes what a call would have returned. Calls of dictionaries' classes give a dictionary.
    fn push_call(&mut self, function: Ref, arguments: Ref) -> Result<(), String> {
        let is_dict = matches!(
            self.value(function),
            Some(Value::Global {
                module: "collections",
                name: "OrderedDict" | "defaultdict"
            })
        );
        if !is_dict {
            return self.push(Value::Call {
                function,
                arguments,
            });
        }
        // Python 2 passes the pairs as the one argument.
        let items = match self.value(arguments) {
            Some(Value::Tuple(arguments)) => arguments.first().copied(),
            _ => None,
        };
        let items = match items.and_then(|items| self.value(items)) {
            Some(Value::List(items)) => items,
            _ => return self.push(Value::Dict(Vec::new())),
        };
        // Nothing else copies what is there, and one list can be the argument of many calls.
        let copied = self.copied.saturating_add(items.len());
        if copied > MAX_STEPS {
            return Err(format!(
                "its pickle makes dictionaries of more than {MAX_STEPS} entries, too many for one of \
                 weights"
            ));
        }
        let pairs = items.iter().filter_map(|pair| match self.value(*pair) {
            Some(Value::List(pair) | Value::Tuple(pair)) => match pair[..] {
                [key, value] => Some((key, value)),
                _ => None,
            },
            _ => None,
        });
        let pairs = pairs.collect();
        self.copied = copied;
        self.push(Value::Dict(pairs))
    }

    fn value(&self, at: Ref) -> Option<&Value<'a>> {
        self.values.get(at.0 as usize)
    }

    fn extend_list(&mut self, mut items: Vec<Ref>) -> Result<(), String> {
        let top = self.top()?;
        // Other containers are records, whose content is not looked at.
        if let Some(Value::List(list)) = self.values.get_mut(top.0 as usize) {
            list.append(&mut items);
        }
        Ok(())
    }

    fn extend_dict(&mut self, items: &[Ref]) -> Result<(), String> {
        let top = self.top()?;
        if let Some(Value::Dict(dict)) = self.values.get_mut(top.0 as usize) {
            dict.extend(pairs(items));
        }
        Ok(())
    }

    fn memorise(&mut self, key: u32) -> Result<(), String> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<(), String> {
        let missing = || format!("its pickle uses value {key}, which it has not kept");
        let value = self.memo.get(&key).copied().ok_or_else(missing)?;
        self.stack.push(value);
        Ok(())
    }

    fn top(&self) -> Result<Ref, String> {
        self.stack.last().copied().ok_or_else(empty)
    }

    fn pop(&mut self) -> Result<Ref, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(empty());
        }
        self.stack.pop().ok_or_else(empty)
    }

    /// Removes the topmost value, or the topmost mark where nothing is above it.
    fn pop_any(&mut self) -> Result<(), String> {
        match self.marks.last() {
            Some(height) if *height == self.stack.len() => {
                self.marks.pop();
                Ok(())
            }
            _ => self.pop().map(drop),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Ref>, String> {
        let height = self.marks.pop().ok_or_else(empty)?;
        Ok(self.stack.split_off(height.min(self.stack.len())))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or("its pickle ends in the middle")?;
        self.rest = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let bytes = self.take(N)?;
        bytes
            .first_chunk()
            .copied()
            .ok_or_else(|| "its pickle ends in the middle".to_owned())
    }

    /// Reads a length of `N` bytes.
    fn length<const N: usize>(&mut self) -> Result<usize, String> {
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(self.take(N)?);
        usize::try_from(u64::from_le_bytes(wide)).map_err(|e| e.to_string())
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let end = self.rest.iter().position(|byte| *byte == b'\n');
        let line = self.take(end.ok_or("its pickle ends in the middle")?)?;
        self.take(1)?;
        std::str::from_utf8(line).map_err(|_| refusal("code (not a text)"))
    }
}

/// Makes pairs of keys and values that follow each other.
fn pairs(items: &[Ref]) -> Vec<(Ref, Ref)> {
    let pairs = items.as_chunks::<2>().0.iter();
    pairs.map(|[key, value]| (*key, *value)).collect()
}

fn empty() -> String {
    "its pickle is damaged: it uses a value that is not there".to_owned()
}
