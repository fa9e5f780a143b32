//! Reads PyTorch's zip of weights (`torch.save` since 1.6): a pickle that describes the tensors,
//! and their numbers beside it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use candle_core::pickle::Object;
use safetensors::Dtype;

use super::archive::{list_members, read_member};
use super::{StoredTensor, pickle};

/// The keys under which training programs put the state dictionary.
const WRAPPERS: [&str; 3] = ["state_dict", "model_state_dict", "model"];

/// The most dimensions of a tensor that is read.
const MAX_RANK: usize = 8;

/// What the pickle says about one tensor.
struct TensorRecord {
    name: String,
    storage: Storage,
    /// Where the tensor begins in its storage, in elements.
    offset: usize,
    dims: Vec<usize>,
    strides: Vec<usize>,
}

/// The member of the archive that holds a tensor's numbers.
struct Storage {
    class: String,
    key: String,
}

/// Reads the floating-point tensors of a file, under its names. Counters are left out: inference
/// has no use for them.
pub(super) fn read_tensors(file: &[u8]) -> Result<Vec<StoredTensor>, String> {
    let names = list_members(file)?;
    let root = names.iter().find_map(|name| name.strip_suffix("data.pkl"));
    let root = root.ok_or("it is a zip archive without a data.pkl, so not PyTorch's")?;
    if names.contains(&format!("{root}byteorder"))
        && read_member(file, &format!("{root}byteorder"))? != b"little"
    {
        return Err(
            "its numbers are big-endian: save it again on a little-endian machine".to_owned(),
        );
    }
    let object = pickle::read_object(&read_member(file, &format!("{root}data.pkl"))?)?;
    let mut storages = HashMap::new();
    let mut tensors = Vec::new();
    for tensor in find_state_dict(object)? {
        let Some((dtype, size)) = element_type(&tensor)? else {
            continue;
        };
        let key = tensor.storage.key.clone();
        let storage = match storages.entry(key) {
            Entry::Occupied(read) => read.into_mut(),
            Entry::Vacant(place) => {
                let content = read_member(file, &format!("{root}data/{}", place.key()))?;
                place.insert(content)
            }
        };
        let elements = gather(&tensor, storage, size)?;
        tensors.push(match dtype {
            Dtype::F64 => {
                let doubles = elements.as_chunks::<8>().0.iter();
                let values: Vec<f32> = doubles.map(|b| f64::from_le_bytes(*b) as f32).collect();
                StoredTensor::from_f32(tensor.name, tensor.dims, &values)
            }
            dtype => StoredTensor {
                name: tensor.name,
                dims: tensor.dims,
                dtype,
                bytes: elements,
            },
        });
    }
    Ok(tensors)
}

/// Returns the tensors of a dictionary, or of the one within it that a training program wrapped.
fn find_state_dict(object: Object) -> Result<Vec<TensorRecord>, String> {
    let pairs = match object {
        Object::Dict(pairs) => pairs,
        // An ordered dictionary with attributes.
        Object::Build { callable, .. } => match *callable {
            Object::Dict(pairs) => pairs,
            _ => return Err("it holds no dictionary of tensors".to_owned()),
        },
        _ => return Err("it holds no dictionary of tensors".to_owned()),
    };
    let wrapped = pairs.iter().position(|(key, value)| {
        let is_wrapper = matches!(key, Object::Unicode(key) if WRAPPERS.contains(&key.as_str()));
        is_wrapper && matches!(value, Object::Dict(_) | Object::Build { .. })
    });
    if let Some(at) = wrapped {
        let (_, inner) = pairs.into_iter().nth(at).ok_or("it is empty")?;
        return find_state_dict(inner);
    }
    let mut found = Vec::new();
    for (key, value) in pairs {
        if let (Object::Unicode(name), Object::Reduce { .. }) = (key, &value) {
            found.push(describe_tensor(name, value)?);
        }
    }
    Ok(found)
}

/// Returns what the pickle says about one tensor, or an error that names the tensor.
fn describe_tensor(name: String, value: Object) -> Result<TensorRecord, String> {
    let unknown = format!("tensor `{name}` is described in a way that no plain tensor is");
    parse_tensor(name, value).ok_or(unknown)
}

/// Parses `_rebuild_tensor_v2(storage, offset, size, stride, ...)`, which may be within
/// `_rebuild_parameter(tensor, ...)`.
fn parse_tensor(name: String, value: Object) -> Option<TensorRecord> {
    let (callable, args) = value.reduce().ok()?;
    let (_, function) = callable.class().ok()?;
    let mut args = args.tuple().ok()?.into_iter();
    if function == "_rebuild_parameter" {
        return match args.next()? {
            inner @ Object::Reduce { .. } if !is_parameter(&inner) => parse_tensor(name, inner),
            _ => None,
        };
    }
    if function != "_rebuild_tensor_v2" {
        return None;
    }
    let storage = args.next()?.persistent_load().ok()?.tuple().ok()?;
    let whole = |object: Object| usize::try_from(object.int_or_long().ok()?).ok();
    let list = |object: Object| -> Option<Vec<usize>> {
        object.tuple().ok()?.into_iter().map(whole).collect()
    };
    let (offset, dims, strides) = (
        whole(args.next()?)?,
        list(args.next()?)?,
        list(args.next()?)?,
    );
    if dims.len() != strides.len() || dims.len() > MAX_RANK {
        return None;
    }
    // ("storage", class, key, device, elements)
    let mut storage = storage.into_iter().skip(1);
    let (_, class) = storage.next()?.class().ok()?;
    let key = storage.next()?.unicode().ok()?;
    Some(TensorRecord {
        name,
        storage: Storage { class, key },
        offset,
        dims,
        strides,
    })
}

fn is_parameter(object: &Object) -> bool {
    let Object::Reduce { callable, .. } = object else {
        return false;
    };
    matches!(&**callable, Object::Class { class_name, .. } if class_name == "_rebuild_parameter")
}

/// Returns the type of a tensor's numbers and their size in bytes; `None` for counters.
fn element_type(tensor: &TensorRecord) -> Result<Option<(Dtype, usize)>, String> {
    Ok(match tensor.storage.class.as_str() {
        "FloatStorage" => Some((Dtype::F32, 4)),
        "HalfStorage" => Some((Dtype::F16, 2)),
        "BFloat16Storage" => Some((Dtype::BF16, 2)),
        "DoubleStorage" => Some((Dtype::F64, 8)),
        "LongStorage" if tensor.name.ends_with("num_batches_tracked") => None,
        other => {
            return Err(format!(
                "tensor `{}` is of type {other}, expected floating-point numbers",
                tensor.name
            ));
        }
    })
}

/// Copies a tensor's elements into row-major order, whatever its strides are.
fn gather(tensor: &TensorRecord, storage: &[u8], size: usize) -> Result<Vec<u8>, String> {
    let beyond = || {
        format!(
            "tensor `{}` of shape {:?} reaches beyond its storage of {} bytes",
            tensor.name,
            tensor.dims,
            storage.len()
        )
    };
    let count = tensor
        .dims
        .iter()
        .try_fold(1usize, |n, d| n.checked_mul(*d));
    // A tensor may repeat its storage by strides of zero, but weights do not.
    let count = count
        .filter(|count| {
            count
                .checked_mul(size)
                .is_some_and(|bytes| bytes <= storage.len())
        })
        .ok_or_else(beyond)?;
    let mut elements = Vec::with_capacity(count * size);
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
    Ok(elements)
}
