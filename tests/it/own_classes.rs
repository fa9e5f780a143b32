//! A user's own classes: training, the head's file, and serving it.

mod coarse;

use std::fs;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use imgclass::metrics::Metrics;
use imgclass::service::{Ask, Service, Source};
use imgclass_checkpoint::Architecture;
use imgclass_heads::{ClassWeights, Examples, Head, Picture, TrainingOptions, train};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use poem::http::StatusCode;
use serde_json::{Value, json};

use crate::support::binary::{Running, http, run, text};
use crate::support::pictures::{base64, png, write_picture};
use crate::support::service::{SERVICE, body, client_of, service};

/// Trains on a folder with an untrained network, which is quick to load.
fn train_small(folder: &Path, arguments: &[&str]) -> Output {
    let all = [&["train"], arguments, &["--weights", "random:resnet18"]].concat();
    run(folder, &all)
}

/// Writes small pictures of two classes: dark ones, and ones with a pattern. `seeds` are their
/// numbers.
fn write_classes(folder: &Path, names: [&str; 2], seeds: std::ops::Range<u8>) {
    for (class, name) in names.iter().enumerate() {
        let class_folder = folder.join(name);
        fs::create_dir_all(&class_folder).expect("a folder");
        for seed in seeds.clone() {
            let path = class_folder.join(format!("{seed}.png"));
            if class == 0 {
                let dark = image::RgbImage::from_pixel(40, 40, image::Rgb([seed, 0, seed / 2]));
                dark.save(path).expect("a picture");
            } else {
                write_picture(&path, seed);
            }
        }
    }
}

#[test]
fn a_folder_becomes_a_head_that_classifies_evaluates_and_explains() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    // Names with whatever file systems allow.
    write_classes(
        &at.join("pictures"),
        ["dunkel \u{1f319}", "bunt\tgemustert"],
        0..8,
    );
    fs::write(
        at.join("pictures/dunkel \u{1f319}/broken.png"),
        b"no picture",
    )
    .expect("written");

    let trained = train_small(at, &["pictures", "-o", "a.head", "--report", "a.html"]);
    assert!(trained.status.success(), "{}", text(&trained.stderr));
    assert!(
        text(&trained.stderr).contains("broken.png: left out: "),
        "{}",
        text(&trained.stderr)
    );
    let table = text(&trained.stdout);
    for expected in [
        "2 classes",
        "accuracy",
        "Left out",
        "dunkel",
        "Accuracy by the number",
    ] {
        assert!(table.contains(expected), "{expected}: {table}");
    }
    assert!(!table.contains('\t'), "{table}");
    assert!(
        fs::read_to_string(at.join("a.html"))
            .expect("a page")
            .contains("<table>")
    );
    assert!(!at.join("a.head.features").exists());

    let head = ["--head", "a.head", "--weights", "random:resnet18"];
    let dark = "pictures/dunkel \u{1f319}/3.png";
    let classified = run(
        at,
        &[&["classify", dark, "--format", "jsonl"], &head[..]].concat(),
    );
    let line: Value = serde_json::from_slice(&classified.stdout).expect("a line of JSON");
    assert_eq!(line["predictions"][0]["label"], "dunkel \u{1f319}");
    assert!(line["known"].as_f64().expect("a number") >= 0.0, "{line}");
    let strict = ["--unknown-below", "1", "--format", "jsonl"];
    let unknown = run(at, &[&["classify", dark], &strict[..], &head[..]].concat());
    let line: Value = serde_json::from_slice(&unknown.stdout).expect("a line of JSON");
    if line["known"].as_f64() < Some(1.0) {
        assert_eq!(line["predictions"][0]["label"], "unknown", "{line}");
    }

    fs::remove_file(at.join("pictures/dunkel \u{1f319}/broken.png")).expect("removed");
    let evaluated = run(
        at,
        &[&["eval", "pictures", "--format", "json"], &head[..]].concat(),
    );
    let report: Value = serde_json::from_slice(&evaluated.stdout).expect("a report");
    assert_eq!(report["images"], 16);
    assert!(report["top1"].as_f64() > Some(0.9), "{report}");

    let explained = [
        "explain",
        dark,
        "-o",
        "map.png",
        "--class",
        "bunt\tgemustert",
    ];
    let explained = run(at, &[&explained[..], &head[..]].concat());
    assert!(explained.status.success(), "{}", text(&explained.stderr));
    assert!(
        text(&explained.stdout).contains("class 0"),
        "{}",
        text(&explained.stdout)
    );
}

#[test]
fn an_interrupted_training_goes_on_where_it_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    write_classes(&at.join("pictures"), ["a", "b"], 0..4);
    let trained = train_small(at, &["pictures", "-o", "a.head", "--resume", "--flips"]);
    assert!(trained.status.success(), "{}", text(&trained.stderr));
    let features = at.join("a.head.features");
    let whole = fs::read(&features).expect("the features stay");
    let head = fs::read(at.join("a.head")).expect("a head");

    // As after a crash in the middle of a record.
    fs::write(&features, &whole[..whole.len() * 2 / 3]).expect("written");
    let refused = train_small(at, &["pictures", "-o", "a.head"]);
    assert!(
        text(&refused.stderr).contains("--resume uses them"),
        "{}",
        text(&refused.stderr)
    );
    let again = train_small(at, &["pictures", "-o", "a.head", "--resume", "--flips"]);
    assert!(again.status.success(), "{}", text(&again.stderr));
    assert_eq!(fs::read(at.join("a.head")).expect("a head"), head);
    assert_eq!(fs::read(&features).expect("features").len(), whole.len());
}

#[test]
fn what_cannot_be_trained_says_why_and_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    write_classes(&at.join("two"), ["a", "b"], 0..3);
    write_classes(&at.join("one"), ["a", "a"], 0..3);
    write_classes(&at.join("single"), ["a", "b"], 0..1);
    write_classes(&at.join("doubles"), ["a", "b"], 0..4);
    for seed in 0..4 {
        let copy = at.join(format!("doubles/b/{seed}.png"));
        fs::copy(at.join(format!("doubles/a/{seed}.png")), copy).expect("copied");
    }
    fs::create_dir(at.join("empty")).expect("a folder");
    fs::write(at.join("list.csv"), "file,class\ntwo/a/0.png,\n").expect("written");
    fs::write(at.join("wrong.csv"), "name,class\nx,y\n").expect("written");
    let cases = [
        ("empty", "there are no labelled images"),
        ("one", "all 3 pictures are of one class, \"a\""),
        ("single", "class \"a\" has one picture"),
        ("missing", "missing"),
        ("list.csv", "has no name"),
        ("wrong.csv", "must name a column `file`"),
    ];
    for (labelled, expected) in cases {
        let output = train_small(at, &[labelled, "-o", &format!("{labelled}.head")]);
        let error = text(&output.stderr);
        assert!(
            !output.status.success() && error.contains(expected),
            "{labelled}: {error}"
        );
        assert!(!at.join(format!("{labelled}.head")).exists());
    }
    let doubles = train_small(at, &["doubles", "-o", "doubles.head"]);
    let table = text(&doubles.stdout);
    assert!(
        table.contains("4 of 4 pictures of class \"a\" are also in class \"b\""),
        "{table}"
    );

    let refused = train_small(at, &["two", "-o", "not/there.head"]);
    assert!(
        text(&refused.stderr).contains("its folder is not there"),
        "{}",
        text(&refused.stderr)
    );

    // A head of one network is refused on another.
    let trained = train_small(at, &["two", "-o", "two.head"]);
    assert!(trained.status.success(), "{}", text(&trained.stderr));
    let other = [
        "classify",
        "two",
        "--head",
        "two.head",
        "--weights",
        "random:resnet34",
    ];
    let other = text(&run(at, &other).stderr);
    assert!(
        other.contains("reads the features of another network"),
        "{other}"
    );
}

/// Makes a head for a service's network, of features that are made up.
fn made_up_head(service: &Service, seed: usize, labels: [&str; 2]) -> Vec<u8> {
    let picture = |i: usize| Picture {
        name: i.to_string(),
        label: labels[i % 2].to_owned(),
        features: (0..service.features())
            .map(|j| ((seed + i * 31 + j * (7 + i % 2)) % 101) as f32 / 101.0)
            .collect(),
        mirrored: None,
    };
    let examples = Examples::new((0..12).map(picture)).expect("examples");
    let options = TrainingOptions {
        folds: 3,
        class_weights: ClassWeights::None,
        c: Some(0.01),
        threads: std::num::NonZeroUsize::MIN,
        network: service.network_id(),
        program: "test".to_owned(),
    };
    train(examples, &options, &|_| {})
        .unwrap()
        .head
        .to_bytes()
        .expect("bytes")
}

/// Serves a made-up head under a name.
fn serve_made_up(service: &Service, folder: &Path, name: &str, seed: usize, labels: [&str; 2]) {
    let path = folder.join(format!("{name}.head"));
    fs::write(&path, made_up_head(service, seed, labels)).expect("written");
    service.serve_head(service.load_head(name, &path).expect("a head"));
}

#[tokio::test]
async fn requests_name_a_head_or_several_and_one_pass_serves_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let service = service(&["--request-timeout", "10m"]);
    serve_made_up(&service, folder.path(), "plants", 1, ["fern", "moss"]);
    serve_made_up(&service, folder.path(), "pets", 5, ["cat", "dog"]);
    let client = client_of(service.clone());
    let image = base64(&png(40, 30));
    let classify = |options: Value| {
        let mut request = json!({"images": [{"base64": image}]});
        request
            .as_object_mut()
            .expect("an object")
            .extend(options.as_object().expect("one").clone());
        client.post("/v1/classify").body_json(&request).send()
    };

    let (status, own) = body(classify(json!({})).await).await;
    assert_eq!(status, StatusCode::OK, "{own}");
    assert!(own["results"][0].get("known").is_none(), "{own}");

    let (_, plants) = body(classify(json!({"model": "plants"})).await).await;
    let result = &plants["results"][0];
    assert!(
        ["fern", "moss"].contains(&result["predictions"][0]["label"].as_str().expect("a label"))
    );
    let known = result["known"].as_f64().expect("a number");
    assert!((0.0..=1.0).contains(&known));

    let (_, all) = body(classify(json!({"model": "pets, plants,resnet50"})).await).await;
    let models = all["results"][0]["models"].as_array().expect("a list");
    assert_eq!(models.len(), 3, "{all}");
    assert_eq!(models[1]["predictions"], result["predictions"]);
    assert_eq!(models[2]["predictions"], own["results"][0]["predictions"]);

    let (_, unknown) = body(classify(json!({"model": "plants", "min_known": 1.0})).await).await;
    if known < 1.0 {
        let first = &unknown["results"][0]["predictions"][0];
        assert_eq!(
            (first["label"].as_str(), first["index"].as_u64()),
            (Some("unknown"), Some(2))
        );
    }

    let (status, wrong) = body(classify(json!({"model": "trees"})).await).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let detail = wrong["detail"].as_str().expect("a text");
    assert!(detail.contains("resnet50, plants, pets"), "{detail}");

    let request =
        json!({"user_id": "u", "image_url": crate::support::pictures::example(), "model": "pets"});
    let (_, contract) = body(
        client
            .post("/classify_image/")
            .body_json(&request)
            .send()
            .await,
    )
    .await;
    let name = contract["prediction"][0]["className"]
        .as_str()
        .expect("a name");
    assert!(["cat", "dog"].contains(&name), "{contract}");

    let explain =
        json!({"images": [{"base64": image}], "model": "pets", "class": "dog", "format": "grid"});
    let (_, explained) = body(client.post("/v1/explain").body_json(&explain).send().await).await;
    assert_eq!(
        explained["results"][0]["explanation"]["class"]["label"], "dog",
        "{explained}"
    );

    let (_, model) = body(client.get("/v2/models/plants").send().await).await;
    assert_eq!(
        (&model["name"], &model["outputs"][0]["shape"]),
        (&json!("plants"), &json!([-1, 2]))
    );
    assert_eq!(model["outputs"][3]["name"], "known");
    let (_, model) = body(client.get("/v2/models/resnet50").send().await).await;
    assert_eq!(model["outputs"].as_array().map(Vec::len), Some(3));
    let infer =
        json!({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [image]}]});
    let (_, inferred) = body(
        client
            .post("/v2/models/plants/infer")
            .body_json(&infer)
            .send()
            .await,
    )
    .await;
    assert_eq!(inferred["model_name"], "plants", "{inferred}");
    assert_eq!(inferred["outputs"][1]["shape"], json!([1, 2]), "{inferred}");
    let fit = &inferred["outputs"][3];
    assert_eq!(
        (&fit["name"], &fit["shape"]),
        (&json!("known"), &json!([1, 1]))
    );
    assert!(
        (fit["data"][0].as_f64().expect("a number") - known).abs() < 1e-6,
        "{fit}"
    );
    let known_of_checkpoint = json!({"inputs": infer["inputs"], "outputs": [{"name": "known"}]});
    let (status, refused) = body(
        client
            .post("/v2/models/resnet50/infer")
            .body_json(&known_of_checkpoint)
            .send()
            .await,
    )
    .await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{refused}");
    let predict = json!({"instances": [{"b64": image}]});
    let (_, predicted) = body(
        client
            .post("/v1/models/pets:predict")
            .body_json(&predict)
            .send()
            .await,
    )
    .await;
    assert_eq!(
        predicted["predictions"][0]["probabilities"]
            .as_array()
            .map(Vec::len),
        Some(2)
    );
    let fit = predicted["predictions"][0]["known"].as_f64();
    assert!(fit.is_some_and(|fit| (0.0..=1.0).contains(&fit)));
    let (_, columns) = body(
        client
            .post("/v1/models/pets:predict")
            .body_json(&json!({"inputs": [{"b64": image}]}))
            .send()
            .await,
    )
    .await;
    assert_eq!(columns["outputs"]["known"][0].as_f64(), fit, "{columns}");
    let (status, wrong) = body(client.get("/v2/models/trees").send().await).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(
        wrong["error"]
            .as_str()
            .expect("a text")
            .contains("resnet50, plants, pets"),
        "{wrong}"
    );

    let (_, model) = body(client.get("/v1/model").send().await).await;
    assert_eq!(model["heads"][0]["name"], "plants");
    assert_eq!(model["heads"][1]["labels"], json!(["cat", "dog"]));
    assert_eq!(model["heads"][0]["stale"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_heads_are_swapped_a_hundred_times() {
    let folder = tempfile::tempdir().expect("a folder");
    let service = service(&["--request-timeout", "10m"]);
    serve_made_up(&service, folder.path(), "plants", 1, ["fern", "moss"]);
    let path = folder.path().join("other.head");
    fs::write(&path, made_up_head(&service, 3, ["oak", "elm"])).expect("written");
    let (old, new) = (folder.path().join("plants.head"), path);
    let asking = |service: Arc<Service>| async move {
        let features = vec![0.3; service.features()];
        let mut answered = 0;
        for _ in 0..300 {
            let model = service.head("plants").expect("a head is always there");
            let output = imgclass_network::Output {
                features: Some(features.clone()),
                ..Default::default()
            };
            let scores = service.scores(&model, &output);
            let named = service.named_classes(&model, &scores, 2, 0.0, 0.0);
            let labels: Vec<&str> = named.iter().map(|p| p.label.as_str()).collect();
            assert!(
                labels.contains(&"fern") == labels.contains(&"moss"),
                "{labels:?}"
            );
            answered += 1;
            tokio::task::yield_now().await;
        }
        answered
    };
    let askers: Vec<_> = (0..4)
        .map(|_| tokio::spawn(asking(service.clone())))
        .collect();
    let one_real = service.answer_one(Source::Bytes(png(40, 30).into()), Ask::features());
    let swaps = async {
        for i in 0..100 {
            let path = if i % 2 == 0 { &new } else { &old };
            service.serve_head(service.load_head("plants", path).expect("a head"));
            tokio::task::yield_now().await;
        }
    };
    let (real, ()) = tokio::join!(one_real, swaps);
    assert!(real.is_ok());
    for asker in askers {
        assert_eq!(asker.await.expect("no panic"), 300);
    }
}

/// Waits until the service says `expected` of its first head.
fn until_model_says(running: &Running, expected: &str) {
    let mut said = String::new();
    for _ in 0..600 {
        said = running.get("/v1/model", "");
        if said.contains(expected) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("/v1/model never said {expected}: {said}");
}

#[cfg(unix)]
#[test]
fn a_changed_head_is_served_and_a_bad_one_leaves_the_old_one_serving() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    // The service's process runs the same network as the tests' own.
    for (name, labels) in [("one", ["a", "b"]), ("two", ["c", "d"])] {
        let head = made_up_head(&SERVICE, 1, labels);
        fs::write(at.join(format!("{name}.head")), head).expect("written");
    }
    fs::copy(at.join("one.head"), at.join("served.head")).expect("copied");
    let mut running = Running::start(at, &["--head", "mine=served.head", "--watch-heads"], &[]);
    until_model_says(&running, r#""labels":["a","b"]"#);

    fs::rename(at.join("two.head"), at.join("served.head")).expect("renamed");
    until_model_says(&running, r#""labels":["c","d"]"#);

    fs::write(at.join("served.head"), b"damaged").expect("written");
    until_model_says(&running, r#""stale":true"#);
    until_model_says(&running, r#""labels":["c","d"]"#);
    let metrics = running.get("/metrics", "");
    assert!(
        metrics.contains(r#"imgclass_head_loads_total{head="mine",outcome="failed"} 1"#),
        "{metrics}"
    );

    fs::rename(at.join("one.head"), at.join("served.head")).expect("renamed");
    running.hangup();
    until_model_says(&running, r#""labels":["a","b"]"#);
    until_model_says(&running, r#""stale":false"#);
    assert_eq!(running.terminate(), Some(0));
}

#[cfg(unix)]
#[test]
fn no_request_over_http_fails_while_files_of_heads_change() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let heads = [["a", "b"], ["c", "d"]].map(|labels| made_up_head(&SERVICE, 1, labels));
    fs::write(at.join("served.head"), &heads[0]).expect("written");
    let mut running = Running::start(at, &["--head", "mine=served.head"], &[]);
    let image = base64(&png(40, 30));
    let request = json!({"images": [{"base64": image}], "model": "mine"}).to_string();
    let post = "POST /v1/classify HTTP/1.1\r\nContent-Type: application/json\r\n";
    let loads = r#"imgclass_head_loads_total{head="mine",outcome="ok"}"#;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = || {
            let mut answers = 0;
            while !stop.load(Ordering::Relaxed) {
                let answer = http(running.port, post, &request);
                assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
                let labels = |pair: [&str; 2]| {
                    pair.iter()
                        .all(|label| answer.contains(&format!(r#""label":"{label}""#)))
                };
                // An answer is of one head, never of two.
                assert!(labels(["a", "b"]) != labels(["c", "d"]), "{answer}");
                answers += 1;
            }
            answers
        };
        let askers = [0; 2].map(|_| scope.spawn(asking));
        for swap in 1..=8usize {
            fs::write(at.join("new.head"), &heads[swap % 2]).expect("written");
            fs::rename(at.join("new.head"), at.join("served.head")).expect("renamed");
            running.hangup();
            let loaded = || {
                running
                    .get("/metrics", "")
                    .contains(&format!("{loads} {}", swap + 1))
            };
            while !loaded() && !askers.iter().any(|asker| asker.is_finished()) {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
        stop.store(true, Ordering::Relaxed);
        for asker in askers {
            assert!(asker.join().expect("every answer is right") > 0);
        }
    });
    assert_eq!(running.terminate(), Some(0));
}

#[test]
fn a_merged_checkpoint_answers_as_network_and_head_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let tensors = imgclass_test_support::checkpoints::tensors(&Architecture::RESNET18, 5);
    let network = imgclass_test_support::checkpoints::safetensors(&tensors);
    fs::write(at.join("net.safetensors"), network).expect("written");
    write_classes(&at.join("pictures"), ["moss, wet", "fern \u{1f33f}"], 0..4);
    let weights = ["--weights", "net.safetensors"];
    let succeeds = |arguments: &[&str]| {
        let output = run(at, arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    succeeds(&[&["train", "pictures", "-o", "a.head"], &weights[..]].concat());
    let merge = [
        &[
            "weights",
            "merge",
            "a.head",
            "-o",
            "merged/model.safetensors",
        ],
        &weights[..],
    ]
    .concat();
    assert!(succeeds(&merge).contains("2 classes"));

    let classify = |arguments: &[&str]| -> Vec<Value> {
        let all = [&["classify", "pictures", "--format", "jsonl"], arguments].concat();
        let lines = succeeds(&all);
        let parse = |line| serde_json::from_str(line).expect("a line of JSON");
        lines.lines().map(parse).collect()
    };
    let by_head = classify(&[&["--head", "a.head"], &weights[..]].concat());
    let merged = classify(&["--weights", "merged/model.safetensors"]);
    assert_eq!((by_head.len(), merged.len()), (8, 8));
    for (head, merged) in by_head.iter().zip(&merged) {
        for rank in 0..2 {
            let (head, merged) = (&head["predictions"][rank], &merged["predictions"][rank]);
            assert_eq!(head["label"], merged["label"]);
            let probability = |of: &Value| of["probability"].as_f64().expect("a number");
            assert!(
                (probability(head) - probability(merged)).abs() < 1e-4,
                "{head} {merged}"
            );
        }
    }

    // The head reads the features of the same network in 8-bit integers, too.
    let quantize = [
        "weights",
        "quantize",
        "net.safetensors",
        "-o",
        "int8.safetensors",
        "--layers",
    ];
    let said = succeeds(&quantize);
    assert!(
        said.contains("8-bit integers")
            && said.contains("compared")
            && said.contains("layer4.1.conv2"),
        "{said}"
    );
    let integers = ["--weights", "int8.safetensors"];
    let said = succeeds(&[&["weights", "verify"], &integers[..]].concat());
    for words in [
        "I8",
        "made from net.safetensors, F32, sha256",
        "compared with float32",
    ] {
        assert!(said.contains(words), "{said}: lacks {words}");
    }
    let by_integers = classify(&[&["--head", "a.head"], &integers[..]].concat());
    assert_eq!(by_integers.len(), 8);
    for (arguments, words) in [
        (&quantize[..], "is there already"),
        (
            &[
                "weights",
                "quantize",
                "int8.safetensors",
                "-o",
                "b.safetensors",
            ],
            "it holds 8-bit integers already",
        ),
        (
            &[
                &[
                    "weights",
                    "merge",
                    "a.head",
                    "-o",
                    "of-integers/model.safetensors",
                ],
                &integers[..],
            ]
            .concat(),
            "this needs the float checkpoint that they were made from: net.safetensors",
        ),
    ] {
        let output = run(at, arguments);
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.contains(words), "{said}");
    }

    let again = text(&run(at, &merge).stderr);
    assert!(again.contains("is there already"), "{again}");
    let other = [
        "weights",
        "merge",
        "a.head",
        "-o",
        "other/model.safetensors",
    ];
    let other = [&other[..], &["--weights", "merged/model.safetensors"]].concat();
    let other = text(&run(at, &other).stderr);
    assert!(
        other.contains("reads the features of another network"),
        "{other}"
    );
    assert!(!at.join("other/model.safetensors").exists());
}

#[test]
fn tables_for_programs_say_how_well_a_picture_fits_a_head() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    write_classes(&at.join("pictures"), ["a", "b"], 0..3);
    let trained = train_small(at, &["pictures", "-o", "a.head"]);
    assert!(trained.status.success(), "{}", text(&trained.stderr));
    fs::write(at.join("broken.png"), b"no picture").expect("written");
    let classify = |format: &str, output: &str, more: &[&str]| {
        let arguments = ["classify", "pictures", "broken.png", "--head", "a.head"];
        let output = ["--format", format, "--output", output];
        let weights = ["--weights", "random:resnet18"];
        run(at, &[&arguments[..], &output, &weights, more].concat())
    };
    classify("csv", "a.csv", &[]);
    let table = fs::read_to_string(at.join("a.csv")).expect("a table");
    let mut reader = csv::Reader::from_reader(table.as_bytes());
    assert_eq!(reader.headers().expect("a heading").get(7), Some("known"));
    let rows: Vec<_> = reader.records().map(|row| row.expect("a row")).collect();
    assert_eq!(rows.len(), 13);
    for row in &rows {
        let known = row[7].parse::<f32>();
        if row[0] == *"broken.png" {
            assert!(known.is_err() && !row[6].is_empty(), "{row:?}");
        } else {
            assert!(known.is_ok_and(|known| (0.0..=1.0).contains(&known)));
        }
    }
    classify("csv", "a.csv", &["--resume"]);
    assert_eq!(
        fs::read_to_string(at.join("a.csv")).expect("a table"),
        table
    );

    classify("parquet", "parts", &[]);
    let part = fs::File::open(at.join("parts/part-000000.parquet")).expect("a part");
    let reader = SerializedFileReader::new(part).expect("Parquet");
    let parts = reader.get_row_iter(None).expect("rows");
    let known: Vec<Field> = parts
        .map(|row| {
            let row = row.expect("a row");
            let (_, field) = row
                .get_column_iter()
                .find(|(name, _)| *name == "known")
                .expect("the column");
            field.clone()
        })
        .collect();
    assert_eq!(known.len(), 7);
    // The first row of an image, or its only one.
    let firsts = rows.iter().filter(|row| ["1", ""].contains(&&row[1]));
    for (known, row) in known.iter().zip(firsts) {
        match known {
            Field::Float(known) => assert_eq!(known.to_string(), row[7]),
            other => assert_eq!((other, &row[7]), (&Field::Null, "")),
        }
    }
}

#[test]
fn a_service_does_not_start_with_a_head_that_cannot_be_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    fs::write(at.join("x.head"), b"damaged").expect("written");
    let serve = |head: &str| {
        let arguments = [
            "serve",
            "--weights",
            "random:resnet18",
            "--hostname",
            "127.0.0.1",
            "--port",
            "0",
        ];
        text(&run(at, &[&arguments[..], &["--head", head]].concat()).stderr)
    };
    assert!(serve("x=x.head").contains("it is no safetensors file, or not whole"));
    assert!(serve("resnet50=x.head").contains("is the name of the model itself"));
    assert!(serve("x").contains("expected a name, an equals sign and a file"));
}

#[test]
fn metrics_count_images_by_model() {
    let metrics = Metrics::new().expect("metrics");
    metrics.images_answered("plants", 3);
    let text = metrics.text(None).expect("a text");
    assert!(
        text.contains(r#"imgclass_images_answered_total{model="plants"} 3"#),
        "{text}"
    );
}

#[test]
fn photographs_of_coarse_classes_are_recognised() {
    /// Four of the classes are enough: an unoptimised build takes half a second for a photograph.
    const CLASSES: [&str; 4] = ["bird", "dog", "food", "vehicle"];
    let test = "photographs_of_coarse_classes_are_recognised";
    let Some(images) = imgclass_test_support::shared("images", test) else {
        return;
    };
    let Some(weights) = imgclass_test_support::shared("weights/resnet50.safetensors", test) else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    fs::write(at.join("coarse.tsv"), coarse::table(&images, &CLASSES)).expect("written");
    let weights = weights.display().to_string();
    let root = images.display().to_string();
    let arguments = [
        "train",
        "coarse.tsv",
        "--root",
        &root,
        "-o",
        "coarse.head",
        "--format",
        "json",
        "--weights",
        &weights,
    ];
    let trained = run(at, &arguments);
    assert!(trained.status.success(), "{}", text(&trained.stderr));
    let report: Value = serde_json::from_slice(&trained.stdout).expect("a report");
    let evaluation = &report["evaluation"];
    // docs/own-classes.md has the figures of all 14 classes, and scikit-learn's.
    assert!(evaluation["accuracy"].as_f64() > Some(0.9), "{report}");
    assert!(
        evaluation["unknown"]["auroc"].as_f64() > Some(0.8),
        "{report}"
    );
    let (head, _) = Head::read(&at.join("coarse.head")).expect("a head");
    assert_eq!(head.labels(), CLASSES);
}
