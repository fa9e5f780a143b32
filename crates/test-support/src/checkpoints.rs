//! Checkpoints that a test writes: the formula's weights for any network, under anybody's names, in anybody's form.

use std::io::Write;

use imgclass_checkpoint::Architecture;
use imgclass_checkpoint::formula::FormulaWeights;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// Name, dimensions, type and bytes.
pub type Tensors = Vec<(String, Vec<usize>, Dtype, Vec<u8>)>;

/// The formula's values of a tensor.
pub fn values(name: &str, dims: &[usize]) -> Vec<f32> {
    FormulaWeights { seed: 0 }.values(name, dims)
}

/// The formula's network under torchvision's names.
pub fn tensors(architecture: &Architecture, classes: usize) -> Tensors {
    let tensor = |(name, dims): (String, Vec<usize>)| {
        let bytes = values(&name, &dims)
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect();
        (name, dims, Dtype::F32, bytes)
    };
    architecture
        .tensors(classes)
        .into_iter()
        .map(tensor)
        .collect()
}

/// The same with half-precision numbers.
pub fn halved(tensors: Tensors) -> Tensors {
    let half = |(name, dims, _, bytes): (String, Vec<usize>, Dtype, Vec<u8>)| {
        let floats = bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b));
        let bytes = floats
            .flat_map(|x| half::f16::from_f32(x).to_le_bytes())
            .collect();
        (name, dims, Dtype::F16, bytes)
    };
    tensors.into_iter().map(half).collect()
}

/// What transformers calls torchvision's tensors, written down here a second time.
pub fn in_transformers(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    match parts[..] {
        ["conv1", part] => format!("resnet.embedder.embedder.convolution.{part}"),
        ["bn1", part] => format!("resnet.embedder.embedder.normalization.{part}"),
        ["fc", part] => format!("classifier.1.{part}"),
        [layer, block, ref rest @ ..] => {
            let stage: usize = layer.trim_start_matches("layer").parse().expect("a stage");
            let within = match *rest {
                ["downsample", "0", part] => format!("shortcut.convolution.{part}"),
                ["downsample", "1", part] => format!("shortcut.normalization.{part}"),
                [layer, part] => {
                    let index: usize = layer[layer.len() - 1..].parse().expect("a digit");
                    let kind = match layer.starts_with("conv") {
                        true => "convolution",
                        false => "normalization",
                    };
                    format!("layer.{}.{kind}.{part}", index - 1)
                }
                ref other => panic!("{other:?}"),
            };
            format!(
                "resnet.encoder.stages.{}.layers.{block}.{within}",
                stage - 1
            )
        }
        ref other => panic!("{other:?}"),
    }
}

/// The same tensors under other names.
pub fn renamed(tensors: Tensors, name: impl Fn(&str) -> String) -> Tensors {
    let rename = |(old, dims, dtype, bytes): (String, _, _, _)| (name(&old), dims, dtype, bytes);
    tensors.into_iter().map(rename).collect()
}

/// A safetensors file.
pub fn safetensors(tensors: &Tensors) -> Vec<u8> {
    let views = tensors.iter().map(|(name, dims, dtype, bytes)| {
        let view = TensorView::new(*dtype, dims.clone(), bytes).expect("a tensor");
        (name.as_str(), view)
    });
    safetensors::serialize(views, None).expect("serialized")
}

/// A zip archive whose members are stored, as PyTorch and Keras write them.
pub fn zip(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in members {
        archive.start_file(*name, stored).expect("a member");
        archive.write_all(bytes).expect("written");
    }
    archive.finish().expect("an archive").into_inner()
}

/// `torch.save(state_dict, ...)`, byte by byte: protocol 2, one storage a tensor.
pub fn pth(tensors: &Tensors) -> Vec<u8> {
    let mut pickle = b"\x80\x02".to_vec();
    pickle.extend(pickled_dict(tensors));
    pickle.push(b'.');
    archived(&pickle, tensors)
}

/// PyTorch's archive around a pickle and the tensors' numbers.
pub fn archived(pickle: &[u8], tensors: &Tensors) -> Vec<u8> {
    let names: Vec<String> = (0..tensors.len())
        .map(|i| format!("archive/data/{i}"))
        .collect();
    let mut members: Vec<(&str, &[u8])> = vec![("archive/data.pkl", pickle)];
    members.push(("archive/byteorder", b"little"));
    members.extend(
        names
            .iter()
            .zip(tensors)
            .map(|(name, t)| (name.as_str(), &t.3[..])),
    );
    members.push(("archive/version", b"3\n"));
    zip(&members)
}

/// An ordered dictionary of tensors, without the pickle's head and end.
pub fn pickled_dict(tensors: &Tensors) -> Vec<u8> {
    let mut p = b"ccollections\nOrderedDict\n)R(".to_vec();
    for (key, (name, dims, dtype, bytes)) in tensors.iter().enumerate() {
        let (class, size) = match dtype {
            Dtype::F32 => ("FloatStorage", 4),
            Dtype::F16 => ("HalfStorage", 2),
            Dtype::F64 => ("DoubleStorage", 8),
            Dtype::I64 => ("LongStorage", 8),
            other => panic!("{other:?}"),
        };
        p.extend(text(name));
        p.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        p.extend(text("storage"));
        p.extend(format!("ctorch\n{class}\n").bytes());
        p.extend(text(&key.to_string()));
        p.extend(text("cpu"));
        p.extend(int(bytes.len() / size));
        p.extend(b"tQ");
        p.extend(int(0));
        let strides = (0..dims.len()).map(|i| dims[i + 1..].iter().product::<usize>());
        for list in [dims.clone(), strides.collect()] {
            p.push(b'(');
            p.extend(list.into_iter().flat_map(int));
            p.push(b't');
        }
        p.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    p.push(b'u');
    p
}

/// BINUNICODE.
pub fn text(text: &str) -> Vec<u8> {
    let mut p = vec![b'X'];
    p.extend((text.len() as u32).to_le_bytes());
    p.extend(text.bytes());
    p
}

fn int(value: usize) -> Vec<u8> {
    let mut p = vec![b'J'];
    p.extend((value as i32).to_le_bytes());
    p
}
