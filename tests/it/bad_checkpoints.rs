//! What must not be loaded: each kind of bad file, configuration and table of labels ends the command with an error that names the culprit.

use crate::support::binary::{run, text};
use imgclass_checkpoint::Architecture;
use imgclass_test_support::checkpoints::{Tensors, in_transformers, renamed, safetensors, tensors};
use safetensors::Dtype;

fn tensor<'a>(
    tensors: &'a mut Tensors,
    name: &str,
) -> &'a mut (String, Vec<usize>, Dtype, Vec<u8>) {
    let found = tensors.iter_mut().find(|(n, ..)| n == name);
    found.expect("a tensor")
}

/// A safetensors file with any header.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [
        &(header.len() as u64).to_le_bytes(),
        header.as_bytes(),
        data,
    ]
    .concat()
}

/// Runs `weights verify` on files in a folder of their own, and gives its exit code and what it said.
fn verify(files: &[(&str, &[u8])], arguments: &[&str]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).expect("written");
    }
    let command = ["weights", "verify", "--weights", "net.safetensors"];
    let output = run(folder.path(), &[&command[..], arguments].concat());
    (output.status.code(), text(&output.stderr))
}

fn refused(what: &str, files: &[(&str, &[u8])], arguments: &[&str], parts: &[&str]) {
    let (code, said) = verify(files, arguments);
    assert_eq!(code, Some(1), "{what}: {said}");
    for part in parts {
        assert!(said.contains(part), "{what}: {part} is not in: {said}");
    }
}

#[test]
fn tensors_that_are_no_network_of_ours_are_named() {
    type Case = (&'static str, fn(&mut Tensors), &'static [&'static str]);
    let cases: [Case; 12] = [
        (
            "a missing tensor",
            |t| t.retain(|(name, ..)| name != "layer2.1.bn2.bias"),
            &["ResNet-18", "`layer2.1.bn2.bias`", "no such tensor"],
        ),
        (
            "a missing block",
            |t| t.retain(|(name, ..)| !name.starts_with("layer4.1.")),
            &["ResNet-18", "`layer4.1.conv1.weight`"],
        ),
        (
            "a further block",
            |t| {
                t.push((
                    "layer1.2.conv1.weight".into(),
                    vec![1],
                    Dtype::F32,
                    vec![0; 4],
                ))
            },
            &["ResNet-18", "`layer1.2.conv1.weight`", "another network"],
        ),
        (
            "a further tensor",
            |t| t.push(("head.weight".into(), vec![1], Dtype::F32, vec![0; 4])),
            &["`head.weight`", "another network"],
        ),
        (
            "a wider network",
            |t| tensor(t, "layer1.0.conv1.weight").1 = vec![128, 32, 3, 3],
            &[
                "`layer1.0.conv1.weight`",
                "[64, 64, 3, 3]",
                "[128, 32, 3, 3]",
            ],
        ),
        (
            "one channel",
            |t| {
                let conv = tensor(t, "conv1.weight");
                conv.1[1] = 1;
                conv.3.truncate(64 * 49 * 4);
            },
            &["`conv1.weight`", "[64, 3, 7, 7]", "[64, 1, 7, 7]"],
        ),
        (
            "no last layer",
            |t| t.retain(|(name, ..)| !name.starts_with("fc.")),
            &["`fc.weight`", "[classes, 512]"],
        ),
        (
            "integers",
            |t| tensor(t, "fc.bias").2 = Dtype::I32,
            &["`fc.bias`", "I32"],
        ),
        (
            "not a number",
            |t| tensor(t, "layer3.0.bn1.weight").3[8..12].copy_from_slice(&f32::NAN.to_le_bytes()),
            &["`layer3.0.bn1.weight`", "NaN at element 2"],
        ),
        (
            "infinity",
            |t| tensor(t, "fc.weight").3[..4].copy_from_slice(&f32::INFINITY.to_le_bytes()),
            &["`fc.weight`", "inf at element 0"],
        ),
        (
            "a variance below zero",
            |t| tensor(t, "bn1.running_var").3[4..8].copy_from_slice(&(-1f32).to_le_bytes()),
            &["`bn1.running_var`", "-1 at element 1"],
        ),
        (
            "a prefix on some",
            |t| tensor(t, "conv1.weight").0 = "module.conv1.weight".into(),
            &["`conv1.weight`", "`module.conv1.weight`"],
        ),
    ];
    let good = tensors(&Architecture::RESNET18, 2);
    for (what, change, parts) in cases {
        let mut bad = good.clone();
        change(&mut bad);
        refused(what, &[("net.safetensors", &safetensors(&bad))], &[], parts);
    }
    let mut theirs = renamed(good, in_transformers);
    theirs
        .retain(|(name, ..)| name != "resnet.encoder.stages.2.layers.1.layer.1.normalization.bias");
    let bytes = safetensors(&theirs);
    let name = "`resnet.encoder.stages.2.layers.1.layer.1.normalization.bias`";
    refused(
        "transformers' names",
        &[("net.safetensors", &bytes)],
        &[],
        &[name],
    );
    let vit: Tensors = vec![(
        "blocks.0.attn.qkv.weight".into(),
        vec![1],
        Dtype::F32,
        vec![0; 4],
    )];
    let bytes = safetensors(&vit);
    refused(
        "another network",
        &[("net.safetensors", &bytes)],
        &[],
        &["`fc.weight`", "`blocks.0.attn.qkv.weight`"],
    );
}

#[test]
fn files_that_are_not_whole_or_lie_about_themselves_are_refused() {
    let one = r#"{"fc.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}"#;
    let twice = r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}"#;
    let whole = safetensors(&tensors(&Architecture::RESNET18, 2));
    let cases: [(&str, Vec<u8>, &[&str]); 12] = [
        ("nothing", vec![], &[]),
        ("cut in its numbers", whole[..whole.len() / 2].to_vec(), &[]),
        ("cut in its header", whole[..100].to_vec(), &[]),
        ("a byte too many", [&whole[..], b"x"].concat(), &[]),
        (
            "a name twice",
            file(twice, &[0; 4]),
            &["`a` is there twice"],
        ),
        (
            "a header of 2^63 bytes",
            [&(1u64 << 63).to_le_bytes()[..], b"{}"].concat(),
            &[],
        ),
        (
            "offsets of 64 bits",
            file(
                &one.replace("[0, 4]", "[18446744073709551612, 18446744073709551615]"),
                &[0; 4],
            ),
            &[],
        ),
        (
            "offsets beyond the end",
            file(&one.replace("[0, 4]", "[0, 4000000000000]"), &[0; 4]),
            &[],
        ),
        (
            "offsets that fall",
            file(&one.replace("[0, 4]", "[4, 0]"), &[0; 4]),
            &[],
        ),
        (
            "a shape that overflows",
            file(&one.replace("[1]", "[4294967296, 4294967296, 2]"), &[0; 4]),
            &[],
        ),
        (
            "a negative shape",
            file(&one.replace("[1]", "[-1]"), &[0; 4]),
            &[],
        ),
        (
            "no classes",
            file(
                &one.replace("[1]", "[0, 512]").replace("[0, 4]", "[0, 0]"),
                &[],
            ),
            &["`fc.weight`", "[0, 512]"],
        ),
    ];
    for (what, bytes, parts) in cases {
        refused(what, &[("net.safetensors", &bytes)], &[], parts);
        let (_, said) = verify(&[("net.safetensors", &bytes)], &[]);
        assert!(said.contains("net.safetensors"), "{what}: {said}");
    }
}

#[test]
fn configurations_and_labels_that_disagree_with_the_weights_are_refused_with_both_numbers() {
    let net = safetensors(&tensors(&Architecture::RESNET18, 3));
    let timm = |more: &str| {
        format!(
            r#"{{"architecture": "resnet18", "pretrained_cfg": {{"input_size": [3, 224, 224]}} {more}}}"#
        )
    };
    let theirs = r#"{"model_type": "resnet", "layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "id2label": {"0": "a", "1": "b"}}"#;
    let configs = [
        (
            timm(r#", "num_classes": 7"#),
            &["`num_classes` says 7 classes", "has 3 rows"][..],
        ),
        (
            timm(r#", "label_names": ["a", "b"]"#),
            &["there are 2 of them", "3 classes"],
        ),
        (
            theirs.to_owned(),
            &["`id2label` says 2 classes", "has 3 rows"],
        ),
        (
            timm("").replace("resnet18", "resnet34"),
            &["ResNet-34", "`layer1.2.conv1.weight`"],
        ),
        (
            timm("").replace("resnet18", "resnet50"),
            &["ResNet-50", "`fc.weight`", "[3, 512]"],
        ),
        (
            timm("").replace("resnet18", "resnext50_32x4d"),
            &["resnext50_32x4d"],
        ),
        ("{}".to_owned(), &["pretrained_cfg"]),
        ("[1]".to_owned(), &["config.json"]),
        (timm("") + "}", &["config.json"]),
        (" ".repeat(5 << 20), &["config.json", "bytes"]),
    ];
    for (config, parts) in configs {
        let files: [(&str, &[u8]); 2] = [
            ("net.safetensors", &net),
            ("config.json", config.as_bytes()),
        ];
        refused(&config[..config.len().min(200)], &files, &[], parts);
    }
    let tables: [(&[u8], &[&str]); 6] = [
        (
            b"one\ntwo\n",
            &["there are 2 of them", "3 classes", "names.txt"],
        ),
        (
            b"one\ntwo\nthree\nfour",
            &["there are 4 of them", "3 classes"],
        ),
        (b"", &["there are 0 of them", "3 classes"]),
        (b"one\n\nthree\n", &["line 2"]),
        (b"n01\tone\tmore\ntwo\nthree", &["line 1"]),
        (b"\xff\xfe\x00", &["names.txt"]),
    ];
    for (table, parts) in tables {
        let files: [(&str, &[u8]); 2] = [("net.safetensors", &net), ("names.txt", table)];
        refused(
            &String::from_utf8_lossy(table),
            &files,
            &["--labels", "names.txt"],
            parts,
        );
    }
    let missing = &["--labels", "nowhere.txt"];
    refused(
        "no table",
        &[("net.safetensors", &net)],
        missing,
        &["nowhere.txt"],
    );
    let files: [(&str, &[u8]); 2] = [("net.safetensors", &net), ("names.txt", b"one\ntwo\nthree")];
    assert_eq!(verify(&files, &["--labels", "names.txt"]).0, Some(0));
}

#[test]
fn a_command_line_that_names_no_such_thing_is_refused_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let cases: [(&[&str], &str); 4] = [
        (&["--weights", "random:resnet26"], "resnet18, resnet34"),
        (&["--weights", "random", "--variant", "v2"], "v1 or v1.5"),
        (
            &["--weights", "random", "--preprocessing", "keras"],
            "torchvision or caffe",
        ),
        (&["--weights", "a", "--weights-file", "b"], "--weights-file"),
    ];
    for (arguments, part) in cases {
        let output = run(folder.path(), &[&["weights", "verify"], arguments].concat());
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(part), "{arguments:?}: {said}");
    }
    let output = run(
        folder.path(),
        &["weights", "verify", "--weights", "random:resnet18"],
    );
    assert!(
        text(&output.stdout).contains("random: whole, ResNet-18"),
        "{}",
        text(&output.stderr)
    );
}
