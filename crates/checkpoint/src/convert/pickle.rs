//! Reads a pickle by candle's reader, which builds inert values and calls nothing. This module adds
//! bounds, so that no pickle can exhaust memory or the stack, and refuses everything that names
//! code beyond what weights are made of.

use candle_core::pickle::{Object, Stack};

/// The modules, and of each the functions and classes, that tensors are written with
/// (`torch/_weights_only_unpickler.py` has a longer list).
const HARMLESS: [(&str, &[&str]); 5] = [
    ("collections", &["OrderedDict", "defaultdict"]),
    (
        "torch._utils",
        &["_rebuild_tensor_v2", "_rebuild_parameter"],
    ),
    (
        "torch",
        &[
            "FloatStorage",
            "DoubleStorage",
            "HalfStorage",
            "BFloat16Storage",
            "LongStorage",
            "IntStorage",
            "ShortStorage",
            "CharStorage",
            "ByteStorage",
            "BoolStorage",
            "Size",
        ],
    ),
    ("torch.storage", &["UntypedStorage", "TypedStorage"]),
    ("torch.nn.parameter", &["Parameter"]),
];

/// The opcodes that name code in ways that candle's reader does not know: INST, OBJ, EXT1 to EXT4,
/// NEWOBJ_EX, STACK_GLOBAL.
const CODE: [u8; 7] = [b'i', b'o', 0x82, 0x83, 0x84, 0x92, 0x93];

/// The deepest nesting that is read. A state dictionary's tensors are nested 8 deep; candle's
/// values recurse when they are copied and dropped.
const MAX_DEPTH: usize = 64;

/// The most values that are looked at, which are no fewer than are ever copied. A ResNet-152 with
/// its optimizer's state has some 400,000.
const MAX_VALUES: usize = 2 << 20;

/// Reads the object that a pickle describes.
pub(super) fn read_object(mut bytes: &[u8]) -> Result<Object, String> {
    let mut stack = Stack::empty();
    let mut budget = MAX_VALUES;
    loop {
        check_opcode(bytes)?;
        let ended = stack.read(&mut bytes);
        if ended.map_err(|e| describe_damage(&e))? {
            break;
        }
        let Some(top) = stack.stack().last() else {
            continue;
        };
        if let Object::Class {
            module_name,
            class_name,
        } = top
        {
            check_class(module_name, class_name)?;
        }
        budget = spend(top, budget, MAX_DEPTH)
            .ok_or("its pickle is too large or too deep for one of weights")?;
    }
    stack.finalize().map_err(|e| describe_damage(&e))
}

/// Shortens the error of candle's reader, which may show a whole object and a backtrace after it.
fn describe_damage(error: &candle_core::Error) -> String {
    let text = error.to_string();
    let shown: String = text
        .lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(120)
        .collect();
    format!("its pickle is damaged, or not of the protocol 2 that torch.save writes: {shown}")
}

/// Refuses what candle's reader would trust: lengths beyond the end, and integers of more than 64
/// bits.
fn check_opcode(bytes: &[u8]) -> Result<(), String> {
    match *bytes {
        [] => Err("its pickle ends in the middle".to_owned()),
        [code, ..] if CODE.contains(&code) => Err(refusal("code (by opcode)")),
        [b'X', a, b, c, d, ref rest @ ..]
            if u32::from_le_bytes([a, b, c, d]) as usize > rest.len() =>
        {
            Err("its pickle ends in the middle of a text".to_owned())
        }
        [0x8a, length, ..] if length > 8 => {
            Err("its pickle has an integer of more than 64 bits".to_owned())
        }
        _ => Ok(()),
    }
}

/// Refuses a function or class that is none of [`HARMLESS`].
fn check_class(module: &str, name: &str) -> Result<(), String> {
    let known = HARMLESS
        .iter()
        .any(|(known, names)| *known == module && names.contains(&name));
    if known {
        return Ok(());
    }
    let shown: String = format!("{module}.{name}").chars().take(120).collect();
    Err(refusal(&shown))
}

fn refusal(what: &str) -> String {
    format!(
        "its pickle names {what:?}, which is not part of plain weights; nothing in it was run. \
         Save the model's state_dict() alone: torch.save(model.state_dict(), ...)"
    )
}

/// Takes one off the budget for every value within and returns the rest; `None` if the budget is
/// used up, or the nesting is too deep.
fn spend(object: &Object, budget: usize, depth: usize) -> Option<usize> {
    let budget = budget.checked_sub(1)?;
    let depth = depth.checked_sub(1)?;
    let all = |budget: usize, objects: &[Object]| {
        objects
            .iter()
            .try_fold(budget, |budget, object| spend(object, budget, depth))
    };
    match object {
        Object::Tuple(items) | Object::List(items) => all(budget, items),
        Object::Dict(pairs) => pairs.iter().try_fold(budget, |budget, (key, value)| {
            spend(value, spend(key, budget, depth)?, depth)
        }),
        Object::Reduce { callable, args } | Object::Build { callable, args } => {
            spend(args, spend(callable, budget, depth)?, depth)
        }
        Object::PersistentLoad(id) => spend(id, budget, depth),
        Object::Unicode(text) => budget.checked_sub(text.len() / 16),
        _ => Some(budget),
    }
}
