//! Reads a pickle into inert values: numbers, texts, lists, dictionaries, and the names of whatever
//! code it would have run. Nothing is run.
//!
//! All values are in one list and refer to each other by their index, so a value that a pickle uses
//! again and again is there once, nothing is ever copied, and neither depth nor cycles cost
//! anything. Each opcode makes at most one value, so a bound on opcodes bounds everything.
//!
//! A file that names code beyond what weights and usual training records are made of is refused,
//! although nothing of it would be run: it is another program's model, or an attack on whoever loads
//! it with PyTorch.

mod machine;
mod names;

use machine::Machine;

/// The largest pickle that is read, in bytes. Numbers of tensors are not in it; that of a training
/// state with its optimizer has some 2 MB.
const MAX_BYTES: usize = 32 << 20;

/// The index of a value in its [`Pickle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ref(u32);

/// A value. Sets are lists here, and what is neither a number nor a text is [`Value::Other`].
#[derive(Debug)]
pub(super) enum Value<'a> {
    None,
    Int(i64),
    Text(&'a str),
    Tuple(Vec<Ref>),
    List(Vec<Ref>),
    Dict(Vec<(Ref, Ref)>),
    /// A class or function by its name.
    Global {
        module: &'a str,
        name: &'a str,
    },
    /// What a function or class would have returned for these arguments.
    Call {
        function: Ref,
        arguments: Ref,
    },
    /// What the archive holds beside the pickle, by its description.
    Persistent(Ref),
    Other,
}

/// The values of a pickle.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    values: Vec<Value<'a>>,
    /// The value that the pickle describes.
    pub(super) root: Ref,
}

impl<'a> Pickle<'a> {
    /// Reads a pickle of protocol 2 to 5.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, String> {
        if bytes.len() > MAX_BYTES {
            return Err(format!(
                "its pickle has {} bytes; one of weights has less than {MAX_BYTES}",
                bytes.len()
            ));
        }
        let (values, root) = Machine::new(bytes).run()?;
        Ok(Self { values, root })
    }

    pub(super) fn get(&self, at: Ref) -> &Value<'a> {
        self.values.get(at.0 as usize).unwrap_or(&Value::Other)
    }

    pub(super) fn text(&self, at: Ref) -> Option<&'a str> {
        match self.get(at) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns a number that is not negative.
    pub(super) fn count(&self, at: Ref) -> Option<usize> {
        match self.get(at) {
            Value::Int(number) => usize::try_from(*number).ok(),
            _ => None,
        }
    }

    pub(super) fn tuple(&self, at: Ref) -> Option<&[Ref]> {
        match self.get(at) {
            Value::Tuple(items) => Some(items),
            _ => None,
        }
    }

    pub(super) fn dict(&self, at: Ref) -> Option<&[(Ref, Ref)]> {
        match self.get(at) {
            Value::Dict(pairs) => Some(pairs),
            _ => None,
        }
    }

    /// Returns the name of a class or function, without its module.
    pub(super) fn global(&self, at: Ref) -> Option<&'a str> {
        match self.get(at) {
            Value::Global { name, .. } => Some(name),
            _ => None,
        }
    }

    /// Returns the name of the function and the arguments of a call.
    pub(super) fn call(&self, at: Ref) -> Option<(&'a str, &[Ref])> {
        match self.get(at) {
            Value::Call {
                function,
                arguments,
            } => Some((self.global(*function)?, self.tuple(*arguments)?)),
            _ => None,
        }
    }
}
