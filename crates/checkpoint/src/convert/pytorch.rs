//! Reads PyTorch's zip of weights (`torch.save` since 1.6): a pickle that describes the tensors,
//! and their numbers beside it.

use std::borrow::Cow;
use std::collections::HashSet;

use safetensors::Dtype;

use super::archive::Archive;
use super::pickle::{Pickle, Ref, Value};
use super::{ForeignTensors, StoredTensor};
use crate::naming::{Naming, Role};
use crate::text::shown;

/// The keys under which training programs put the state dictionary, in the order in which timm
/// looks for the first four (`timm/models/_helpers.py`): a moving average of the weights is what its
/// author would use.
const WRAPPERS: [&str; 7] = [
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model",
    "model_state_dict",
    "module",
    "net",
];

/// Those of [`WRAPPERS`] that hold a moving average.
const AVERAGES: [&str; 2] = ["state_dict_ema", "model_ema"];

/// How deep state dictionaries are wrapped, at most.
const MAX_WRAPPERS: usize = 4;

/// The most dimensions of a tensor that is read.
const MAX_RANK: usize = 8;

/// What the pickle says about one tensor.
struct TensorRecord<'a> {
    name: &'a str,
    /// The class of its storage, which says the type of the numbers.
    class: &'a str,
    /// The member of the archive that holds the numbers.
    key: &'a str,
    /// Where the tensor begins in its storage, in elements.
    offset: usize,
    dims: Vec<usize>,
    strides: Vec<usize>,
}

/// The dictionary of tensors that a file means, and what was passed over on the way to it.
struct StateDict<'a> {
    entries: Vec<(&'a str, Ref)>,
    notes: Vec<String>,
    left_out: Vec<String>,
}

/// Reads the floating-point tensors of a file, under its names. Counters are left out: inference
/// has no use for them.
pub(super) fn read_tensors(file: &[u8]) -> Result<ForeignTensors<'_>, String> {
    let archive = Archive::read(file)?;
    let roots = archive
        .names()
        .filter_map(|name| name.strip_suffix("data.pkl"));
    let root = roots
        .min_by_key(|root| root.len())
        .ok_or("it is a zip archive without a data.pkl, so not PyTorch's")?;
    if archive.names().any(|name| {
        name.strip_prefix(root)
            .is_some_and(|name| name.starts_with("code/"))
    }) {
        return Err(
            "it is a TorchScript program: load it with torch.jit.load and save its \
                    state_dict()"
                .to_owned(),
        );
    }
    let byte_order = archive.find(&format!("{root}byteorder"));
    if byte_order.is_some_and(|order| order != b"little") {
        return Err(
            "its numbers are big-endian: save it again on a little-endian machine".to_owned(),
        );
    }
    let pickle = Pickle::read(archive.member(&format!("{root}data.pkl"))?)?;
    read_state(&pickle, &archive, root, file.len())
}

/// Reads the tensors that a pickle describes. Together they may have as many bytes as the file.
pub(super) fn read_state<'a>(
    pickle: &Pickle<'a>,
    archive: &Archive<'a>,
    root: &str,
    file_bytes: usize,
) -> Result<ForeignTensors<'a>, String> {
    let state = find_state_dict(pickle)?;
    let mut found = ForeignTensors {
        tensors: Vec::new(),
        notes: state.notes,
        left_out: state.left_out,
    };
    let names: Vec<&str> = state
        .entries
        .iter()
        .filter(|(_, value)| is_tensor(pickle, *value))
        .map(|(name, _)| *name)
        .collect();
    let naming = Naming::detect_among(&names);
    let mut total = 0usize;
    for (name, value) in state.entries {
        if !is_tensor(pickle, value) {
            found.left_out.push(shown(name));
            continue;
        }
        match naming.role(name) {
            Role::Network => {}
            Role::Record => {
                found.left_out.push(shown(name));
                continue;
            }
            Role::Unknown(why) => return Err(why),
        }
        let tensor = describe_tensor(pickle, name, value)?;
        let Some((dtype, size)) = element_type(&tensor)? else {
            continue;
        };
        let storage = archive.member(&format!("{root}data/{}", tensor.key))?;
        let elements = gather(&tensor, storage, size)?;
        total = total.saturating_add(elements.len());
        if total > file_bytes {
            return Err(format!(
                "its tensors have more bytes than the file, which has {file_bytes}: they show the same \
                 numbers again and again"
            ));
        }
        let name = name.to_owned();
        found.tensors.push(match dtype {
            Dtype::F64 => {
                let doubles = elements.as_chunks::<8>().0.iter();
                let values: Vec<f32> = doubles.map(|b| f64::from_le_bytes(*b) as f32).collect();
                StoredTensor::from_f32(name, tensor.dims, &values)
            }
            dtype => StoredTensor {
                name,
                dims: tensor.dims,
                dtype,
                bytes: elements,
            },
        });
    }
    Ok(found)
}

/// Finds the dictionary of tensors: the one that the file is, or the one within it that a training
/// program wrapped.
fn find_state_dict<'a>(pickle: &Pickle<'a>) -> Result<StateDict<'a>, String> {
    let mut at = pickle.root;
    let (mut notes, mut left_out) = (Vec::new(), Vec::new());
    for _ in 0..=MAX_WRAPPERS {
        let pairs = pickle
            .dict(at)
            .ok_or("it holds no dictionary of tensors, as a state_dict() is")?;
        let texts = pairs
            .iter()
            .filter_map(|(key, value)| Some((pickle.text(*key)?, *value)));
        let entries: Vec<(&str, Ref)> = texts.collect();
        let mut seen = HashSet::new();
        if let Some((twice, _)) = entries.iter().find(|(key, _)| !seen.insert(*key)) {
            return Err(format!("its key `{}` is there twice", shown(twice)));
        }
        let is_dict = |value: Ref| pickle.dict(value).is_some();
        let wrapped = WRAPPERS.iter().find_map(|wrapper| {
            let mut entries = entries.iter();
            entries.find(|(key, value)| key == wrapper && is_dict(*value))
        });
        let Some((wrapper, inner)) = wrapped else {
            return Ok(StateDict {
                entries,
                notes,
                left_out,
            });
        };
        if AVERAGES.contains(wrapper) {
            notes.push(format!(
                "the weights are those of `{wrapper}`, a moving average, as timm takes them"
            ));
        }
        let others = entries.iter().filter(|(key, _)| key != wrapper);
        left_out.extend(others.map(|(key, _)| shown(key)));
        at = *inner;
    }
    Err(format!(
        "its state dictionary is wrapped more than {MAX_WRAPPERS} times"
    ))
}

/// Returns whether a value is a tensor, well described or not.
fn is_tensor(pickle: &Pickle<'_>, value: Ref) -> bool {
    let rebuilds = |name: &str| name.starts_with("_rebuild_");
    pickle.call(value).is_some_and(|(name, _)| rebuilds(name))
}

/// Returns what the pickle says about one tensor, or an error that names the tensor.
fn describe_tensor<'a>(
    pickle: &Pickle<'a>,
    name: &'a str,
    value: Ref,
) -> Result<TensorRecord<'a>, String> {
    parse_tensor(pickle, name, value).ok_or_else(|| {
        format!(
            "tensor `{}` is described in a way that no plain tensor is",
            shown(name)
        )
    })
}

/// Parses `_rebuild_tensor_v2(storage, offset, size, stride, ...)`. It may be within
/// `_rebuild_parameter(tensor, ...)`, or called by `_rebuild_from_type_v2(function, type, arguments,
/// ...)`.
fn parse_tensor<'a>(pickle: &Pickle<'a>, name: &'a str, value: Ref) -> Option<TensorRecord<'a>> {
    let (mut function, mut arguments) = pickle.call(value)?;
    if function.starts_with("_rebuild_parameter") {
        (function, arguments) = pickle.call(*arguments.first()?)?;
    }
    if function == "_rebuild_from_type_v2" {
        function = pickle.global(*arguments.first()?)?;
        arguments = pickle.tuple(*arguments.get(2)?)?;
    }
    let (&[storage, offset, dims, strides], "_rebuild_tensor_v2") =
        (arguments.first_chunk::<4>()?, function)
    else {
        return None;
    };
    let list = |at: Ref| -> Option<Vec<usize>> {
        let items = pickle.tuple(at)?;
        let items = (items.len() <= MAX_RANK).then_some(items)?;
        items.iter().map(|item| pickle.count(*item)).collect()
    };
    let (dims, strides) = (list(dims)?, list(strides)?);
    if dims.len() != strides.len() {
        return None;
    }
    // ("storage", class, key, device, elements)
    let Value::Persistent(id) = pickle.get(storage) else {
        return None;
    };
    let id = pickle.tuple(*id)?;
    Some(TensorRecord {
        name,
        class: pickle.global(*id.get(1)?)?,
        key: pickle.text(*id.get(2)?)?,
        offset: pickle.count(offset)?,
        dims,
        strides,
    })
}

/// Returns the type of a tensor's numbers and their size in bytes; `None` for counters.
fn element_type(tensor: &TensorRecord<'_>) -> Result<Option<(Dtype, usize)>, String> {
    Ok(match tensor.class {
        "FloatStorage" => Some((Dtype::F32, 4)),
        "HalfStorage" => Some((Dtype::F16, 2)),
        "BFloat16Storage" => Some((Dtype::BF16, 2)),
        "DoubleStorage" => Some((Dtype::F64, 8)),
        "LongStorage" if tensor.name.ends_with("num_batches_tracked") => None,
        other => {
            return Err(format!(
                "tensor `{}` is of type {other}, expected floating-point numbers",
                shown(tensor.name)
            ));
        }
    })
}

/// Returns a tensor's elements in row-major order, whatever its strides are.
fn gather<'a>(
    tensor: &TensorRecord<'_>,
    storage: &'a [u8],
    size: usize,
) -> Result<Cow<'a, [u8]>, String> {
    let beyond = || {
        format!(
            "tensor `{}` of shape {:?} reaches beyond its storage of {} bytes",
            shown(tensor.name),
            tensor.dims,
            storage.len()
        )
    };
    let count = tensor
        .dims
        .iter()
        .try_fold(1usize, |n, d| n.checked_mul(*d));
    // A tensor may repeat its storage by strides of zero, but weights do not.
    let bytes = count.and_then(|count| count.checked_mul(size));
    let (count, bytes) = count
        .zip(bytes.filter(|bytes| *bytes <= storage.len()))
        .ok_or_else(beyond)?;
    if is_row_major(tensor) {
        let start = tensor.offset.checked_mul(size).ok_or_else(beyond)?;
        let end = start.checked_add(bytes).ok_or_else(beyond)?;
        let elements = storage.get(start..end).ok_or_else(beyond)?;
        return Ok(Cow::Borrowed(elements));
    }
    let mut elements = Vec::with_capacity(bytes);
    let mut index = vec![0usize; tensor.dims.len()];
    for _ in 0..count {
        let steps = index.iter().zip(&tensor.strides);
        let at = steps
            .map(|(i, stride)| i.checked_mul(*stride))
            .try_fold(tensor.offset, |at, step| at.checked_add(step?));
        let element = at
            .and_then(|at| at.checked_mul(size))
            .and_then(|start| storage.get(start..start.checked_add(size)?))
            .ok_or_else(beyond)?;
        elements.extend_from_slice(element);
        for (i, dim) in index.iter_mut().zip(&tensor.dims).rev() {
            *i += 1;
            if *i < *dim {
                break;
            }
            *i = 0;
        }
    }
    Ok(Cow::Owned(elements))
}

/// Returns whether a tensor's elements follow each other as their indices do. The stride of a
/// dimension of 1 says nothing.
fn is_row_major(tensor: &TensorRecord<'_>) -> bool {
    let mut expected = 1usize;
    let pairs = tensor.dims.iter().zip(&tensor.strides);
    pairs.rev().all(|(dim, stride)| {
        let fits = *dim == 1 || *stride == expected;
        expected = expected.saturating_mul(*dim);
        fits
    })
}
