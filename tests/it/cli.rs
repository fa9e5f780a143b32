//! The binary as users run it: its commands, formats, exit codes and errors, and the server from its start to its end.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use crate::support::binary::{Running, http, imgclass, run, text};
use crate::support::pictures::{example, write_picture};
use imgclass_checkpoint::formula::FormulaWeights;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

#[test]
fn classify_reports_bad_inputs_and_goes_on_with_exit_code_1() {
    let folder = folder();
    std::fs::create_dir_all(folder.path().join("pictures/deep")).expect("folders");
    write_picture(&folder.path().join("pictures/b.png"), 0);
    write_picture(&folder.path().join("pictures/deep/a.jpg"), 0);
    std::fs::write(folder.path().join("pictures/notes.txt"), "no picture").expect("a file");
    std::fs::write(folder.path().join("broken.png"), b"\x89PNG\r\n\x1a\nrest").expect("a file");
    std::fs::create_dir(folder.path().join("empty")).expect("a folder");
    let inputs = [
        "pictures",
        "broken.png",
        "missing.jpg",
        "http://127.0.0.1/x.png",
        "empty",
    ];
    let arguments = [
        &[
            "classify",
            "--weights",
            "random:resnet18",
            "--format",
            "jsonl",
            "--top-k",
            "3",
        ],
        &inputs[..],
    ]
    .concat();
    let output = run(folder.path(), &arguments);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let lines: Vec<Value> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect();
    let files: Vec<&str> = lines
        .iter()
        .map(|line| line["file"].as_str().expect("a name"))
        .collect();
    assert_eq!(
        files,
        [
            "pictures/b.png",
            "pictures/deep/a.jpg",
            "broken.png",
            "missing.jpg",
            inputs[3],
            "empty"
        ]
    );
    for line in &lines[..2] {
        assert_eq!(
            line.as_object()
                .expect("an object")
                .keys()
                .collect::<Vec<_>>(),
            ["file", "predictions"]
        );
        let predictions = line["predictions"].as_array().expect("predictions");
        assert_eq!(predictions.len(), 3);
        let keys: Vec<_> = predictions[0]
            .as_object()
            .expect("an object")
            .keys()
            .collect();
        assert_eq!(keys, ["index", "wnid", "label", "probability"]);
    }
    for line in &lines[2..] {
        assert!(
            line["error"].as_str().is_some_and(|text| !text.is_empty()),
            "{line}"
        );
    }
}

#[test]
fn classify_reads_standard_input_and_writes_tables_and_csv() {
    let folder = folder();
    write_picture(&folder.path().join("a,b.png"), 0);
    let picture = std::fs::read(folder.path().join("a,b.png")).expect("a picture");
    for (format, expected) in [
        ("table", "-\n"),
        ("csv", "file,rank,index,wnid,label,probability,error\n-,1,"),
    ] {
        let mut child = imgclass(folder.path())
            .args([
                "classify",
                "--weights",
                "random:resnet18",
                "--format",
                format,
                "-",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary runs");
        child
            .stdin
            .take()
            .expect("a pipe")
            .write_all(&picture)
            .expect("written");
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success());
        let found = text(&output.stdout);
        assert!(found.starts_with(expected), "{format}: {found}");
        assert_eq!(
            found.lines().count(),
            6,
            "{format}: a heading and five classes: {found}"
        );
    }
    let output = run(
        folder.path(),
        &[
            "classify",
            "--weights",
            "random:resnet18",
            "--format",
            "csv",
            "--top-k",
            "1",
            "a,b.png",
        ],
    );
    assert!(
        text(&output.stdout)
            .lines()
            .nth(1)
            .expect("a row")
            .starts_with("\"a,b.png\",1,")
    );
}

#[test]
fn command_lines_that_are_wrong_end_with_2_and_say_what_would_be_right() {
    let folder = folder();
    let cases: [(&[&str], &str); 13] = [
        (&["frobnicate"], "unrecognized subcommand"),
        // It could be a file's name.
        (
            &["classify", "--\u{9b}31m\u{202e}"],
            "--\\u{9b}31m\\u{202e}",
        ),
        (&["classify"], "INPUT"),
        (&["serve", "--port", "70000"], "70000"),
        (&["serve", "--threads", "0"], "from 1 to 1024"),
        (&["serve", "--max-batch-size", "257"], "from 1 to 256"),
        (&["serve", "--request-timeout", "0s"], "1ms to 24h"),
        (&["serve", "--payload-limit", "lots"], "such as 20MiB"),
        (
            &["serve", "--device", "tpu"],
            "auto, cpu, candle, cuda:N or metal",
        ),
        (
            &["serve", "--fetch-allow-cidr", "127.0.0.1/40"],
            "127.0.0.1/40",
        ),
        (&["serve", "--dtype", "int4"], "f32, f16, bf16 or int8"),
        (&["classify", "--top-k", "0", "x.png"], "1..=1000"),
        (
            &["classify", "--format", "csv", "--logits", "x.png"],
            "--logits needs --format jsonl",
        ),
    ];
    for (arguments, expected) in cases {
        let output = run(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(
            text(&output.stderr).contains(expected),
            "{arguments:?}: {}",
            text(&output.stderr)
        );
    }
}

#[test]
fn a_device_or_instruction_set_that_is_not_there_is_a_clear_error() {
    let folder = folder();
    write_picture(&folder.path().join("a.png"), 0);
    let mut cases = vec![(["--isa", "sse9"], "sse9")];
    if !cfg!(any(feature = "cuda", feature = "metal")) {
        cases.push((["--dtype", "f16"], "does not compute in f16"));
    }
    if !cfg!(feature = "cuda") {
        cases.push((["--device", "cuda:0"], "--features cuda"));
    }
    if !cfg!(feature = "metal") {
        cases.push((["--device", "metal"], "--features metal"));
    }
    for (option, expected) in cases {
        let output = run(
            folder.path(),
            &[
                &["classify", "--weights", "random:resnet18"],
                &option[..],
                &["a.png"],
            ]
            .concat(),
        );
        assert_eq!(output.status.code(), Some(1), "{option:?}");
        assert!(
            text(&output.stderr).contains(expected),
            "{option:?}: {}",
            text(&output.stderr)
        );
    }
}

#[test]
fn the_hub_out_of_reach_names_the_three_ways_on() {
    let folder = folder();
    write_picture(&folder.path().join("a.png"), 0);
    // Port 1 of this machine: nobody listens there.
    let output = imgclass(folder.path())
        .args(["classify", "a.png"])
        .env("HF_ENDPOINT", "http://127.0.0.1:1")
        .output()
        .expect("the binary runs");
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    for way in [
        "retry",
        "--weights",
        "weights/resnet50.safetensors",
        "--weights random",
    ] {
        assert!(error.contains(way), "{way} is not in: {error}");
    }
}

/// The formula's network as a checkpoint file, after `change` had its way with its tensors.
fn checkpoint(folder: &Path, change: impl Fn(&mut Vec<(String, Vec<usize>, Dtype, Vec<u8>)>)) {
    let mut tensors: Vec<(String, Vec<usize>, Dtype, Vec<u8>)> = resnet50_tensors()
        .into_iter()
        .map(|(name, dims)| {
            let bytes = FormulaWeights { seed: 0 }
                .values(&name, &dims)
                .iter()
                .flat_map(|x| x.to_le_bytes())
                .collect();
            (name, dims, Dtype::F32, bytes)
        })
        .collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, dims, dtype, bytes)| {
        (
            name.as_str(),
            TensorView::new(*dtype, dims.clone(), bytes).expect("a tensor"),
        )
    });
    std::fs::create_dir_all(folder.join("weights")).expect("a folder");
    safetensors::serialize_to_file(views, None, &folder.join("weights/resnet50.safetensors"))
        .expect("written");
}

/// Names and dimensions of torchvision's ResNet-50.
fn resnet50_tensors() -> Vec<(String, Vec<usize>)> {
    let mut tensors = vec![("conv1.weight".to_owned(), vec![64, 3, 7, 7])];
    let norm = |name: &str, channels: usize| {
        ["weight", "bias", "running_mean", "running_var"]
            .map(|part| (format!("{name}.{part}"), vec![channels]))
    };
    tensors.extend(norm("bn1", 64));
    let mut input = 64;
    for (stage, blocks) in [(1, 3), (2, 4), (3, 6), (4, 3)] {
        let width = 32 << stage;
        for block in 0..blocks {
            let name = format!("layer{stage}.{block}");
            let convs = [
                (1, input, width, 1),
                (2, width, width, 3),
                (3, width, width * 4, 1),
            ];
            for (i, from, to, kernel) in convs {
                tensors.push((
                    format!("{name}.conv{i}.weight"),
                    vec![to, from, kernel, kernel],
                ));
                tensors.extend(norm(&format!("{name}.bn{i}"), to));
            }
            if block == 0 {
                tensors.push((
                    format!("{name}.downsample.0.weight"),
                    vec![width * 4, input, 1, 1],
                ));
                tensors.extend(norm(&format!("{name}.downsample.1"), width * 4));
            }
            input = width * 4;
        }
    }
    tensors.extend([
        ("fc.weight".to_owned(), vec![1000, 2048]),
        ("fc.bias".to_owned(), vec![1000]),
    ]);
    tensors
}

#[test]
fn a_local_checkpoint_is_taken_before_the_hub_and_its_configuration_decides_the_preprocessing() {
    let folder = folder();
    checkpoint(folder.path(), |_| ());
    let output = run(folder.path(), &["weights", "verify"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(
        text(&output.stdout).contains("resnet50.safetensors: whole, ResNet-50, 1000 classes, F32")
    );
    let output = run(folder.path(), &["weights", "path"]);
    assert_eq!(
        Path::new(text(&output.stdout).trim())
            .file_name()
            .expect("a name"),
        "resnet50.safetensors"
    );

    let good = r#"{"architecture": "resnet50", "num_classes": 1000, "pretrained_cfg": {"input_size": [3, 176, 176],
        "test_input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 0.875, "test_crop_pct": 0.965,
        "crop_mode": "center", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "classifier": "fc"}}"#;
    let cases = [
        (good.to_owned(), None),
        (good.replace("resnet50", "resnet101"), Some("ResNet-101")),
        (good.replace("0.965", "0"), Some("the crop is 0")),
        (
            good.replace(
                "\"test_input_size\": [3, 224, 224]",
                "\"test_input_size\": [3, 9999, 224]",
            ),
            Some("9999"),
        ),
        (good.replace("0.229", "0.0"), Some("`std`")),
        (good.replace("bicubic", "psychic"), Some("psychic")),
        (
            good.replace("\"num_classes\": 1000", "\"num_classes\": 7"),
            Some("`num_classes` says 7"),
        ),
        ("{}".to_owned(), Some("pretrained_cfg")),
        ("not JSON".to_owned(), Some("config.json")),
    ];
    for (config, error) in cases {
        std::fs::write(folder.path().join("weights/config.json"), &config).expect("written");
        let output = run(folder.path(), &["weights", "verify"]);
        let said = text(&output.stderr);
        match error {
            None => assert!(output.status.success(), "{said}"),
            Some(part) => assert!(
                output.status.code() == Some(1) && said.contains(part),
                "{part}: {said}"
            ),
        }
    }
}

#[test]
fn a_checkpoint_that_does_not_fit_names_the_tensor_what_was_expected_and_what_was_found() {
    type Tensors = Vec<(String, Vec<usize>, Dtype, Vec<u8>)>;
    fn tensor<'a>(
        tensors: &'a mut Tensors,
        name: &str,
    ) -> &'a mut (String, Vec<usize>, Dtype, Vec<u8>) {
        tensors
            .iter_mut()
            .find(|(n, ..)| n == name)
            .expect("a tensor")
    }
    type Case = (fn(&mut Tensors), &'static [&'static str]);
    let cases: [Case; 6] = [
        (
            |t| t.retain(|(name, ..)| name != "layer2.1.bn2.bias"),
            &["layer2.1.bn2.bias", "[128]", "no such tensor"],
        ),
        (
            |t| tensor(t, "conv1.weight").0 = "module.conv1.weight".into(),
            &["conv1.weight", "module.conv1.weight"],
        ),
        (
            |t| tensor(t, "layer4.2.conv3.weight").1 = vec![512, 2048, 1, 1],
            &[
                "layer4.2.conv3.weight",
                "[2048, 512, 1, 1]",
                "[512, 2048, 1, 1]",
            ],
        ),
        (
            |t| tensor(t, "fc.bias").2 = Dtype::I32,
            &["fc.bias", "F32", "I32"],
        ),
        (
            |t| {
                tensor(t, "layer3.0.bn1.running_var").3[8..12]
                    .copy_from_slice(&f32::NAN.to_le_bytes())
            },
            &["layer3.0.bn1.running_var", "finite", "NaN at element 2"],
        ),
        (
            |t| {
                t.push((
                    "layer1.3.conv1.weight".into(),
                    vec![1],
                    Dtype::F32,
                    vec![0; 4],
                ))
            },
            &["layer1.3.conv1.weight", "another network"],
        ),
    ];
    for (change, parts) in cases {
        let folder = folder();
        checkpoint(folder.path(), change);
        let output = run(folder.path(), &["weights", "verify"]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{parts:?}");
        for part in parts {
            assert!(said.contains(part), "{part} is not in: {said}");
        }
    }
}

#[test]
fn a_weights_file_that_is_missing_or_no_safetensors_file_is_said_so() {
    let folder = folder();
    checkpoint(folder.path(), |_| ());
    let whole = std::fs::read(folder.path().join("weights/resnet50.safetensors")).expect("a file");
    let cases: [(&str, &[u8], &str); 4] = [
        ("empty.safetensors", b"", "not a whole safetensors file"),
        (
            "text.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "not a whole safetensors file",
        ),
        (
            "cut.safetensors",
            &whole[..whole.len() / 2],
            "not a whole safetensors file",
        ),
        (
            "head.safetensors",
            &whole[..100],
            "not a whole safetensors file",
        ),
    ];
    for (name, bytes, expected) in cases {
        std::fs::write(folder.path().join(name), bytes).expect("written");
        let output = run(folder.path(), &["weights", "verify", "--weights", name]);
        let said = text(&output.stderr);
        assert!(
            output.status.code() == Some(1) && said.contains(expected) && said.contains(name),
            "{name}: {said}"
        );
    }
    let output = run(
        folder.path(),
        &["weights", "verify", "--weights", "nowhere.safetensors"],
    );
    assert!(
        text(&output.stderr).contains("nowhere.safetensors cannot be read"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn openapi_prints_the_committed_specification() {
    let output = run(folder().path(), &["openapi"]);
    assert!(output.status.success());
    assert!(text(&output.stdout) == include_str!("../../openapi.json"));
}

#[cfg(unix)]
#[test]
fn without_a_command_it_serves_answers_its_own_health_check_and_ends_well_on_sigterm() {
    let folder = folder();
    let mut server = Running::start(folder.path(), &[], &[]);
    let pixel = example();
    let answer = http(
        server.port,
        "POST /classify_image/ HTTP/1.1\r\n",
        &format!(r#"{{"user_id": "9", "image_url": "{pixel}"}}"#),
    );
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(
        answer.contains(r#""user_id":"9""#) && answer.contains(r#""className""#),
        "{answer}"
    );
    let port = server.port.to_string();
    let health = run(folder.path(), &["health", "--port", &port]);
    assert!(health.status.success(), "{}", text(&health.stderr));
    assert_eq!(server.terminate(), Some(0));
    let health = run(folder.path(), &["health", "--port", &port]);
    assert_eq!(health.status.code(), Some(1), "nobody answers any more");
}

#[cfg(unix)]
#[test]
fn variables_of_kubernetes_and_sighup_end_nothing() {
    let folder = folder();
    let link = ("IMGCLASS_METRICS_PORT", "tcp://10.96.0.7:9000");
    let mut server = Running::start(folder.path(), &[], &[link]);
    assert!(server.get("/metrics", "").starts_with("HTTP/1.1 200"));
    server.hangup();
    server.until_logged("SIGHUP: heads are read again");
    for ours in ["tcp://10.96.0.7:80", "1"] {
        let health = imgclass(folder.path())
            .args([
                "health",
                "--url",
                &format!("http://127.0.0.1:{}", server.port),
            ])
            .env("IMGCLASS_PORT", ours)
            .output()
            .expect("the binary runs");
        assert!(health.status.success(), "{ours}: {}", text(&health.stderr));
    }
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn a_port_that_is_taken_is_a_clear_error() {
    let folder = folder();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let output = run(
        folder.path(),
        &[
            "--hostname",
            "127.0.0.1",
            "--port",
            &port,
            "--weights",
            "random:resnet18",
        ],
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains(&format!("cannot listen on 127.0.0.1:{port}")),
        "{}",
        text(&output.stderr)
    );
}
