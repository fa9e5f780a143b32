//! Conversion of training states as people have them, and of files that were made to do harm.

use std::path::Path;
use std::time::{Duration, Instant};

use hdf5_writer::{DatasetBuilder, FilterDescription, Hdf5Builder, Hdf5Writer, WriteOptions};
use imgclass_checkpoint::{
    Architecture, CheckpointError, Converted, OpenCheckpoint, Overrides, WeightsSource,
};
use imgclass_test_support::checkpoints::{
    Tensors, archived, pickled_dict, pth, tensors, text, zip,
};
use safetensors::Dtype;

/// Converts a file of these bytes in a folder of its own.
fn convert(bytes: &[u8]) -> (tempfile::TempDir, Result<Converted, CheckpointError>) {
    let folder = tempfile::tempdir().expect("a folder");
    let input = folder.path().join("input.bin");
    std::fs::write(&input, bytes).expect("written");
    let output = folder.path().join("out/model.safetensors");
    let converted = imgclass_checkpoint::convert(&input, &output, &Overrides::default());
    (folder, converted)
}

/// Returns why a file is refused. Nothing may be left of it.
fn refusal(bytes: &[u8], what: &str) -> String {
    let (folder, converted) = convert(bytes);
    let said = converted.expect_err(what).to_string();
    let left = walkdir::WalkDir::new(folder.path()).into_iter().flatten();
    let files = left.filter(|entry| entry.file_type().is_file()).count();
    assert_eq!(files, 1, "{what} leaves files");
    said
}

/// Returns the values of a tensor of a converted file.
fn values(converted: &Converted, name: &str, dims: &[usize]) -> Vec<f32> {
    let source = WeightsSource::local(&converted.weights);
    let opened = OpenCheckpoint::open(&source, &Overrides::default()).expect("it opens");
    let taken: Result<Vec<f32>, CheckpointError> = opened.weights.take_all(|tensors| {
        for (name, dims) in opened.info.architecture.tensors(opened.info.classes) {
            tensors.tensor(&name, &dims)?;
        }
        tensors.tensor(name, dims)
    });
    taken.expect("a tensor")
}

fn network() -> Tensors {
    tensors(&Architecture::RESNET18, 3)
}

/// A pickle of protocol 2 around a body.
fn pickle(body: &[Vec<u8>]) -> Vec<u8> {
    [&b"\x80\x02"[..], &body.concat(), b"."].concat()
}

/// A dictionary of entries that are pickled already.
fn dict(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut body = b"}(".to_vec();
    for (key, value) in entries {
        body.extend(text(key));
        body.extend(value);
    }
    body.push(b'u');
    body
}

/// A zip archive as PyTorch writes it: padding in each member's own extra field so that its content
/// begins at a multiple of 64, sizes in the directory alone, and records for 64 bits at the end.
fn pytorch_zip(root: &str, members: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (member, content) in members {
        let name = format!("{root}/{member}");
        let (header, size) = (file.len() as u32, (content.len() as u32).to_le_bytes());
        let padding = (64 - (file.len() + 30 + name.len() + 4) % 64) % 64;
        let lengths = [
            (name.len() as u16).to_le_bytes(),
            (padding as u16 + 4).to_le_bytes(),
        ];
        file.extend(b"PK\x03\x04\x00\x00\x08\x08\x00\x00\x00\x00\x00\x00");
        file.extend([0; 12]);
        file.extend(lengths.concat());
        file.extend(name.bytes());
        file.extend(b"FB");
        file.extend((padding as u16).to_le_bytes());
        file.extend(vec![b'Z'; padding]);
        file.extend(*content);
        let crc = crc32(content).to_le_bytes();
        file.extend([&b"PK\x07\x08"[..], &crc, &size, &size].concat());
        directory.extend(b"PK\x01\x02\x00\x00\x00\x00\x08\x08\x00\x00\x00\x00\x00\x00");
        directory.extend([crc, size, size].concat());
        directory.extend(lengths[0]);
        directory.extend([0; 12]);
        directory.extend(header.to_le_bytes());
        directory.extend(name.bytes());
    }
    let (count, start, length) = (members.len(), file.len(), directory.len());
    file.extend(directory);
    let end = file.len() as u64;
    file.extend(b"PK\x06\x06");
    file.extend(44u64.to_le_bytes());
    file.extend([0x1e, 3, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for number in [count, count, length, start] {
        file.extend((number as u64).to_le_bytes());
    }
    file.extend(b"PK\x06\x07\x00\x00\x00\x00");
    file.extend(end.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    file.extend(b"PK\x05\x06\x00\x00\x00\x00");
    file.extend([(count as u16).to_le_bytes(); 2].concat());
    file.extend((length as u32).to_le_bytes());
    file.extend((start as u32).to_le_bytes());
    file.extend([0, 0]);
    file
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| (crc >> 1) ^ (0xedb8_8320 * (crc & 1));
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc))
    })
}

#[test]
fn the_name_within_pytorchs_archive_does_not_matter() {
    let network = network();
    let state = pickle(&[pickled_dict(&network)]);
    let names: Vec<String> = (0..network.len()).map(|i| format!("data/{i}")).collect();
    for length in [1, 20, 21, 22, 53, 85] {
        let mut members: Vec<(&str, &[u8])> = vec![("data.pkl", &state), ("byteorder", b"little")];
        let storages = names.iter().zip(&network);
        members.extend(storages.map(|(name, tensor)| (name.as_str(), &tensor.3[..])));
        members.push(("version", b"3\n"));
        let (_folder, converted) = convert(&pytorch_zip(&"x".repeat(length), &members));
        let converted = converted.unwrap_or_else(|e| panic!("{length}: {e}"));
        assert_eq!(converted.classes, 3);
    }
}

#[test]
fn the_moving_average_is_taken_where_timm_takes_it_and_the_rest_is_named() {
    let (plain, mut average) = (network(), network());
    let last = average.iter_mut().find(|(name, ..)| name == "fc.bias");
    let last = last.expect("a bias");
    last.3 = [1f32, 2.0, 3.0]
        .iter()
        .flat_map(|x| x.to_le_bytes())
        .collect();
    let all = [plain.clone(), average.clone()].concat();
    // The storages of the second dictionary follow those of the first.
    let first = pickled_dict(&plain);
    let both = pickled_dict(&all);
    let second = [
        &b"ccollections\nOrderedDict\n)R("[..],
        &both[first.len() - 1..],
    ]
    .concat();
    let namespace = [
        b"cargparse\nNamespace\n)\x81".to_vec(),
        dict(&[("lr", b"K\x01".to_vec())]),
        b"b".to_vec(),
    ];
    let none = b"N".to_vec();
    type Entries<'a> = &'a [(&'a str, Vec<u8>)];
    let table: [(Entries, bool, &str, &[&str]); 4] = [
        (
            &[
                ("epoch", b"K\x07".to_vec()),
                ("state_dict", first.clone()),
                ("state_dict_ema", second.clone()),
                ("args", namespace.concat()),
            ],
            true,
            "`state_dict_ema`, a moving average",
            &["epoch", "state_dict", "args"],
        ),
        (
            &[
                ("model", first.clone()),
                ("model_ema", second.clone()),
                ("optimizer", dict(&[])),
            ],
            true,
            "`model_ema`, a moving average",
            &["model", "optimizer"],
        ),
        (
            &[("state_dict", first.clone()), ("state_dict_ema", none)],
            false,
            "",
            &["state_dict_ema"],
        ),
        (
            &[("model", first), ("state_dict", second)],
            true,
            "",
            &["model"],
        ),
    ];
    for (entries, takes_second, note, left_out) in table {
        let (_folder, converted) = convert(&archived(&pickle(&[dict(entries)]), &all));
        let converted = converted.unwrap_or_else(|e| panic!("{note}: {e}"));
        let notes = converted.notes.concat();
        assert!(notes.contains(note), "{notes}");
        assert_eq!(converted.notes.is_empty(), note.is_empty());
        assert_eq!(converted.left_out, left_out);
        let bias = values(&converted, "fc.bias", &[3]);
        assert_eq!(bias == [1.0, 2.0, 3.0], takes_second, "{note}: {bias:?}");
    }
}

fn named(name: &str, dtype: Dtype, bytes: usize) -> (String, Vec<usize>, Dtype, Vec<u8>) {
    let size = if dtype == Dtype::I64 { 8 } else { 4 };
    (name.to_owned(), vec![bytes / size], dtype, vec![0; bytes])
}

#[test]
fn records_of_training_beside_the_weights_are_left_out_and_what_may_be_network_is_refused() {
    let prefixed = |prefix: &str| -> Tensors {
        let network = network().into_iter();
        network
            .map(|(name, dims, dtype, bytes)| (format!("{prefix}{name}"), dims, dtype, bytes))
            .collect()
    };
    let records: [(&str, &[(&str, Dtype)]); 4] = [
        ("module.", &[("n_averaged", Dtype::I64)]),
        (
            "model.",
            &[
                ("criterion.weight", Dtype::F32),
                ("train_acc.tp", Dtype::I64),
            ],
        ),
        ("", &[("loss_fn.pos_weight", Dtype::F32)]),
        (
            "net.",
            &[
                ("net.criterion.weight", Dtype::F32),
                ("val_metrics.f1.total", Dtype::F32),
            ],
        ),
    ];
    for (prefix, extras) in records {
        let mut all = prefixed(prefix);
        all.extend(extras.iter().map(|(name, dtype)| named(name, *dtype, 16)));
        let (_folder, converted) = convert(&pth(&all));
        let converted = converted.unwrap_or_else(|e| panic!("{extras:?}: {e}"));
        let names: Vec<&str> = extras.iter().map(|(name, _)| *name).collect();
        assert_eq!(converted.left_out, names);
    }
    let refused = [
        ("model.", "head.weight", "may be a part of it"),
        ("", "head.weight", "another network"),
        (
            "model.",
            "normalizer.new_mean",
            "prepares pictures within the network",
        ),
        ("", "mean", "prepares pictures within the network"),
    ];
    for (prefix, extra, part) in refused {
        let mut all = prefixed(prefix);
        all.push(named(extra, Dtype::F32, 16));
        let said = refusal(&pth(&all), extra);
        assert!(
            said.contains(extra) && said.contains(part),
            "{extra}: {said}"
        );
    }
}

#[test]
fn relatives_of_our_networks_are_told_apart_by_their_tensors() {
    let rename = |from: &str, to: &str| -> Tensors {
        let mut all = network();
        for (name, ..) in &mut all {
            if name == from {
                *name = to.to_owned();
            }
        }
        all
    };
    let mut squeezed = network();
    squeezed.push(named("layer1.0.se.fc1.weight", Dtype::F32, 16));
    let mut blurred = network();
    blurred.push(named("layer2.0.aa.filt", Dtype::F32, 16));
    for (all, part) in [
        (
            rename("conv1.weight", "conv1.0.weight"),
            "ResNet-C, -D or -S",
        ),
        (squeezed, "squeeze-and-excitation"),
        (blurred, "blurred pooling"),
    ] {
        let said = refusal(&pth(&all), part);
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn what_is_there_twice_is_refused_by_name() {
    let mut twice = network();
    twice.push(twice[5].clone());
    let said = refusal(&pth(&twice), "a key twice");
    assert!(
        said.contains(&twice[5].0) && said.contains("twice"),
        "{said}"
    );
    let entries = [("state_dict", dict(&[])), ("state_dict", dict(&[]))];
    let said = refusal(
        &archived(&pickle(&[dict(&entries)]), &vec![]),
        "a wrapper twice",
    );
    assert!(said.contains("`state_dict` is there twice"), "{said}");
    let said = refusal(
        &pytorch_zip("a", &[("data.pkl", b"x"), ("data.pkl", b"y")]),
        "a member twice",
    );
    assert!(said.contains("twice"), "{said}");
    let dense = |name: &str| {
        let kernel =
            DatasetBuilder::typed_data(format!("{name}/kernel:0"), vec![4, 4], &[0f32; 16]);
        kernel.expect("a dataset")
    };
    let plan = Hdf5Builder::new()
        .dataset(dense("hidden"))
        .dataset(dense("out"))
        .into_plan();
    let writer = Hdf5Writer::new(std::io::Cursor::new(Vec::new()), WriteOptions::default());
    let file = writer
        .finish(plan.expect("a plan"))
        .expect("written")
        .into_inner();
    let said = refusal(&file, "two dense layers");
    assert!(
        said.contains("`hidden`") && said.contains("`out`"),
        "{said}"
    );
}

#[test]
fn a_file_that_says_more_than_it_holds_costs_no_more_than_its_size() {
    // 2000 tensors over one storage.
    let shared: Tensors = (0..2000)
        .map(|i| {
            (
                format!("layer1.{i}.conv1.weight"),
                vec![1 << 18],
                Dtype::F32,
                vec![0; 1 << 20],
            )
        })
        .take(1)
        .collect();
    let mut body = b"}(".to_vec();
    let one = pickled_dict(&shared);
    // The entry without the dictionary around it.
    let start = one.iter().position(|byte| *byte == b'(').expect("a mark") + 1;
    let entry = &one[start..one.len() - 1];
    let described = &entry[text(&shared[0].0).len()..];
    for i in 0..2000 {
        body.extend(text(&format!("layer1.{i}.conv1.weight")));
        body.extend(described);
    }
    body.push(b'u');
    let file = archived(&pickle(&[body]), &shared);
    let said = refusal(&file, "a shared storage");
    assert!(said.contains("more bytes than the file"), "{said}");
    // An archive of many members is read in one pass.
    let many: Vec<String> = (0..20_000).map(|i| format!("data/{i}")).collect();
    let empty = pickle(&[dict(&[])]);
    let mut members: Vec<(&str, &[u8])> = vec![("archive/data.pkl", &empty)];
    members.extend(many.iter().map(|name| (name.as_str(), &b"x"[..])));
    let file = zip(&members);
    let start = Instant::now();
    let said = refusal(&file, "many members");
    assert!(said.contains("no weights"), "{said}");
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    // So is a pickle that doubles an object at each step, which would have 2^60 values.
    let mut bomb = b"Kpq\x00".to_vec();
    bomb.extend(b"h\x00h\x00\x86q\x00".repeat(60));
    let said = refusal(&archived(&pickle(&[bomb]), &vec![]), "doubling");
    assert!(said.contains("no dictionary"), "{said}");
    // One list of pairs, of which call after call makes a dictionary.
    let mut calls = b"ccollections\nOrderedDict\nq\x000K\x01K\x02\x86q\x010](".to_vec();
    calls.extend(b"h\x01".repeat(100_000));
    calls.extend(b"e\x85q\x02");
    calls.extend(b"h\x00h\x02R0".repeat(100_000));
    let start = Instant::now();
    let said = refusal(&archived(&pickle(&[calls]), &vec![]), "many dictionaries");
    assert!(said.contains("dictionaries of more than"), "{said}");
    assert!(start.elapsed() < Duration::from_secs(5));
    let endless = pickle(&[b"N0".repeat(3 << 20)]);
    let said = refusal(&archived(&endless, &vec![]), "many steps");
    assert!(said.contains("steps"), "{said}");
}

#[test]
fn numbers_that_an_hdf5_file_only_announces_are_not_read() {
    let file = |kernel: DatasetBuilder| {
        let plan = Hdf5Builder::new().dataset(kernel).into_plan();
        let writer = Hdf5Writer::new(std::io::Cursor::new(Vec::new()), WriteOptions::default());
        let written = writer.finish(plan.expect("a plan"));
        written.expect("written").into_inner()
    };
    let kernel = |dims: Vec<u64>, values: &[f32]| {
        DatasetBuilder::typed_data("dense/kernel:0", dims, values).expect("a dataset")
    };
    // There are none of them, but 10^18 columns to bring to another layout.
    let said = refusal(
        &file(kernel(vec![0, 1_000_000_000_000_000_000], &[])),
        "no rows",
    );
    assert!(said.contains("has no numbers"), "{said}");
    // A million zeros in some thousand bytes.
    let deflate = FilterDescription {
        id: 1,
        name: None,
        client_data: vec![9],
    };
    let zeros = kernel(vec![1024, 1024], &vec![0.0; 1 << 20]);
    let packed = zeros.chunked(vec![1024, 1024]).filter(deflate);
    let said = refusal(&file(packed), "zeros");
    assert!(said.contains("than its bytes can hold"), "{said}");
}

#[test]
fn the_collected_hostile_files_are_refused_at_once_with_their_reasons() {
    let test = "collected hostile files";
    let Some(cases) = imgclass_test_support::shared("cases/hostile", test) else {
        return;
    };
    let read = |name: &str| std::fs::read(Path::new(&cases).join(name)).expect("a case");
    for (name, part) in [
        ("overlap.pth", "overlap"),
        ("shared_storage.pth", "more bytes than the file"),
        ("two_dense.h5", "one dense layer"),
        ("h5_dag_11x10.h5", "again and again"),
    ] {
        let start = Instant::now();
        let said = refusal(&read(name), name);
        assert!(said.contains(part), "{name}: {said}");
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{name}: {:?}",
            start.elapsed()
        );
    }
}
