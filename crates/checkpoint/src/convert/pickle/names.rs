//! Which code a pickle may name: what tensors are written with, and what training programs keep
//! their records in. Anything else is refused.

/// The names that tensors are written with (`torch/_weights_only_unpickler.py` has a longer list).
const WEIGHTS: [(&str, &[&str]); 6] = [
    ("collections", &["OrderedDict", "defaultdict"]),
    (
        "torch._utils",
        &[
            "_rebuild_tensor_v2",
            "_rebuild_parameter",
            "_rebuild_parameter_with_state",
        ],
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
            "Tensor",
            "device",
            "dtype",
            "float32",
            "float16",
            "bfloat16",
            "float64",
            "int64",
        ],
    ),
    ("torch.storage", &["UntypedStorage", "TypedStorage"]),
    ("torch.nn.parameter", &["Parameter"]),
    ("torch._tensor", &["_rebuild_from_type_v2"]),
];

/// The names in which training programs keep their records beside the weights: options, numbers,
/// times, paths.
const RECORDS: [(&str, &[&str]); 27] = [
    ("argparse", &["Namespace"]),
    ("types", &["SimpleNamespace"]),
    ("collections", &["Counter", "deque"]),
    (
        "builtins",
        &[
            "set",
            "frozenset",
            "complex",
            "bytearray",
            "slice",
            "list",
            "dict",
            "tuple",
            "int",
            "float",
            "str",
            "bool",
            "bytes",
            "object",
            "range",
        ],
    ),
    (
        "__builtin__",
        &[
            "set",
            "frozenset",
            "complex",
            "bytearray",
            "slice",
            "list",
            "dict",
            "tuple",
            "int",
            "float",
            "str",
            "bool",
            "unicode",
            "object",
            "xrange",
        ],
    ),
    ("_codecs", &["encode"]),
    ("copyreg", &["_reconstructor"]),
    ("copy_reg", &["_reconstructor"]),
    (
        "datetime",
        &["datetime", "date", "time", "timedelta", "timezone"],
    ),
    (
        "pathlib",
        &[
            "Path",
            "PosixPath",
            "WindowsPath",
            "PurePath",
            "PurePosixPath",
            "PureWindowsPath",
        ],
    ),
    ("pathlib._local", &["Path", "PosixPath", "WindowsPath"]),
    (
        "numpy",
        &["dtype", "ndarray", "float64", "float32", "int64", "bool_"],
    ),
    ("numpy.core.multiarray", &["scalar", "_reconstruct"]),
    ("numpy._core.multiarray", &["scalar", "_reconstruct"]),
    ("easydict", &["EasyDict"]),
    ("yacs.config", &["CfgNode"]),
    (
        "torch.nn.modules.loss",
        &[
            "CrossEntropyLoss",
            "BCEWithLogitsLoss",
            "NLLLoss",
            "MSELoss",
            "BCELoss",
            "L1Loss",
            "KLDivLoss",
        ],
    ),
    ("pytorch_lightning.utilities.parsing", &["AttributeDict"]),
    ("lightning_fabric.utilities.data", &["AttributeDict"]),
    ("lightning.pytorch.utilities.parsing", &["AttributeDict"]),
    ("lightning.fabric.utilities.data", &["AttributeDict"]),
    ("torch.torch_version", &["TorchVersion"]),
    ("omegaconf.dictconfig", &["DictConfig"]),
    ("omegaconf.listconfig", &["ListConfig"]),
    ("omegaconf.base", &["ContainerMetadata", "Metadata"]),
    (
        "omegaconf.nodes",
        &[
            "AnyNode",
            "StringNode",
            "IntegerNode",
            "FloatNode",
            "BooleanNode",
        ],
    ),
    ("typing", &["Any"]),
];

/// Refuses a function or class that is in neither list.
pub(super) fn check_global(module: &str, name: &str) -> Result<(), String> {
    let mut known = WEIGHTS.iter().chain(&RECORDS);
    if known.any(|(of, names)| *of == module && names.contains(&name)) {
        return Ok(());
    }
    let shown: String = format!("{module}.{name}").chars().take(120).collect();
    Err(refusal(&shown))
}

/// Returns the error for a pickle that names `what`.
pub(super) fn refusal(what: &str) -> String {
    format!(
        "its pickle names {what:?}, which is neither part of plain weights nor of usual training \
         records; nothing in it was run. Save the model's state_dict() alone: \
         torch.save(model.state_dict(), ...)"
    )
}
