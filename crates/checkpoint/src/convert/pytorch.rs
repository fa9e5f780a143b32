//! PyTorch's zip of weights (`torch.save` since 1.6): a pickle that describes the tensors, and their numbers beside it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use candle_core::pickle::Object;
use safetensors::Dtype;

use super::{Tensor, member, members, pickle};

/// Where training programs put the state dictionary.
const WRAPPERS: [&str; 3] = ["state_dict", "model_state_dict", "model"];

/// The most dimensions of a tensor that is read.
const MAX_RANK: usize = 8;

/// What the pickle says of one tensor.
struct Described {
    name: String,
    storage: Storage,
    /// In elements.
    offset: usize,
    dims: Vec<usize>,
    strides: Vec<usize>,
}

struct Storage {
    class: String,
    key: String,
}

/// The floating-point tensors of a file, under its names. Counters are left out: inference has no use for them.
pub(super) fn tensors(file: &[u8]) -> Result<Vec<Tensor>, String> {
    let names = members(file)?;
    let root = names.iter().find_map(|name| name.strip_suffix("data.pkl"));
    let root = root.ok_or("it is a zip archive without a data.pkl, so not PyTorch's")?;
    if names.contains(&format!("{root}byteorder"))
        && member(file, &format!("{root}byteorder"))? != b"little"
    {
        return Err(
            "its numbers are big-endian: save it again on a little-endian machine".to_owned(),
        );
    }
    let object = pickle::object(&member(file, &format!("{root}data.pkl"))?)?;
    let mut storages = HashMap::new();
    let mut tensors = Vec::new();
    for tensor in state_dict(object)? {
        let Some((dtype, size)) = dtype(&tensor)? else {
            continue;
        };
        let key = tensor.storage.key.clone();
        let storage = match storages.entry(key) {
            Entry::Occupied(read) => read.into_mut(),
            Entry::Vacant(place) => {
                let content = member(file, &format!("{root}data/{}", place.key()))?;
                place.insert(content)
            }
        };
        let elements = gather(&tensor, storage, size)?;
        tensors.push(match dtype {
            Dtype::F64 => {
                let doubles = elements.as_chunks::<8>().0.iter();
                let values: Vec<f32> = doubles.map(|b| f64::from_le_bytes(*b) as f32).collect();
                Tensor::f32(tensor.name, tensor.dims, &values)
            }
            dtype => Tensor {
                name: tensor.name,
                dims: tensor.dims,
                dtype,
                bytes: elements,
            },
        });
    }
    Ok(tensors)
}

/// The tensors of a dictionary, or of the one within it that training programs wrap.
fn state_dict(object: Object) -> Result<Vec<Described>, String> {
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
        return state_dict(inner);
    }
    let mut found = Vec::new();
    for (key, value) in pairs {
        if let (Object::Unicode(name), Object::Reduce { .. }) = (key, &value) {
            found.push(described(name, value)?);
        }
    }
    Ok(found)
}

fn described(name: String, value: Object) -> Result<Described, String> {
    let unknown = format!("tensor `{name}` is described in a way that no plain tensor is");
    parsed(name, value).ok_or(unknown)
}

/// `_rebuild_tensor_v2(storage, offset, size, stride, ...)`, maybe within `_rebuild_parameter(tensor, ...)`.
fn parsed(name: String, value: Object) -> Option<Described> {
    let (callable, args) = value.reduce().ok()?;
    let (_, function) = callable.class().ok()?;
    let mut args = args.tuple().ok()?.into_iter();
    if function == "_rebuild_parameter" {
        return match args.next()? {
            inner @ Object::Reduce { .. } if !is_parameter(&inner) => parsed(name, inner),
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
    Some(Described {
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

/// The type of a tensor's numbers and their size in bytes; `None` for counters.
fn dtype(tensor: &Described) -> Result<Option<(Dtype, usize)>, String> {
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

/// A tensor's elements in row-major order, whatever its strides.
fn gather(tensor: &Described, storage: &[u8], size: usize) -> Result<Vec<u8>, String> {
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
