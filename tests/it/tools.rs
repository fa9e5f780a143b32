//! The smaller commands of the binary: eval, explain, bench, completions, man.

use std::fs;

use crate::support::binary::{run, text};
use crate::support::pictures::write_picture;
use serde_json::Value;

/// Pictures in folders named by a WordNet id, an index and a name.
fn labelled() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (seed, class) in ["n02504458", "417", "tusker"].iter().enumerate() {
        let class = folder.path().join("labelled").join(class);
        fs::create_dir_all(&class).expect("folders");
        for i in 0..=seed as u8 {
            write_picture(&class.join(format!("{i}.png")), seed as u8 * 7 + i);
        }
    }
    folder
}

#[test]
fn eval_counts_the_same_from_folders_and_from_a_table() {
    let folder = labelled();
    let eval = |arguments: &[&str]| {
        let output = run(
            folder.path(),
            &[&["eval", "--weights", "random:resnet18"], arguments].concat(),
        );
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let (code, from_folders, said) = eval(&["--format", "json", "labelled"]);
    assert_eq!(code, Some(0), "{said}");
    let report: Value = serde_json::from_str(&from_folders).expect("JSON");
    assert_eq!(report["images"], 6);
    let sizes: Vec<(u64, u64)> = report["classes"]
        .as_array()
        .expect("classes")
        .iter()
        .map(|class| {
            (
                class["index"].as_u64().expect("an index"),
                class["images"].as_u64().expect("a number"),
            )
        })
        .collect();
    let mut sorted = sizes.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, [(101, 3), (386, 1), (417, 2)]);
    let in_bins: u64 = report["calibration"]
        .as_array()
        .expect("bins")
        .iter()
        .map(|bin| bin["images"].as_u64().expect("a number"))
        .sum();
    assert_eq!(in_bins, 6);
    let confused: u64 = report["confusions"]
        .as_array()
        .expect("pairs")
        .iter()
        .map(|pair| pair["images"].as_u64().expect("a number"))
        .sum();
    let right = (report["top1"].as_f64().expect("a share") * 6.0).round() as u64;
    assert_eq!(confused + right, 6);

    let table = "class\tfile\nAfrican elephant\tn02504458/0.png\nn02782093\t417/0.png\n417\t417/1.png\n101\ttusker/0.png\n101\ttusker/1.png\n101\ttusker/2.png\n";
    fs::write(folder.path().join("list.tsv"), table).expect("a table");
    let (code, from_table, said) = eval(&["--format", "json", "--root", "labelled", "list.tsv"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(from_table, from_folders);

    let (_, page, _) = eval(&["--format", "html", "labelled"]);
    assert!(
        page.starts_with("<!DOCTYPE html>") && page.matches("<svg").count() == 3,
        "{page}"
    );
    for outside in ["http", "src=", "<link", "<script", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
    let compared = ["--dtype", "bf16", "--compare", "f32", "labelled"];
    let (_, report, said) = eval(&[&["--format", "json"], &compared[..]].concat());
    let report: Value = serde_json::from_str(&report).unwrap_or_else(|_| panic!("{said}"));
    let comparison = &report["comparison"];
    assert_eq!(comparison["images"], 6);
    assert_eq!(comparison["compared_with"], "f32");
    let largest = comparison["largest_probability_difference"].as_f64();
    assert!(
        largest.is_some_and(|largest| largest < 0.05),
        "{comparison}"
    );
    let (_, page, _) = eval(&[&["--format", "html"], &compared[..]].concat());
    assert!(page.contains("bf16 compared with f32"), "{page}");
    let (_, summary, said) = eval(&["--dtype", "f32", "--compare", "f32", "labelled"]);
    assert!(
        summary.is_empty() && said.contains("name another one"),
        "{said}"
    );

    let (_, summary, _) = eval(&["labelled"]);
    assert!(
        summary.contains("top-5") && summary.contains("expected calibration error"),
        "{summary}"
    );
}

#[test]
fn eval_says_what_it_cannot_judge_and_what_it_cannot_read() {
    let folder = labelled();
    fs::write(folder.path().join("labelled/417/bad.png"), "no picture").expect("a file");
    fs::write(folder.path().join("wrong.tsv"), "name\tkind\na\tb\n").expect("a table");
    fs::write(
        folder.path().join("list.tsv"),
        "file\tclass\nlabelled/417/0.png\tno such class\n",
    )
    .expect("a table");
    fs::create_dir_all(folder.path().join("unknown/no such class")).expect("folders");
    let cases = [
        (["--format", "table", "labelled"], "bad.png"),
        (["--format", "table", "wrong.tsv"], "column `file`"),
        (["--format", "table", "list.tsv"], "no such class"),
        (["--format", "table", "unknown"], "no such class"),
        (["--format", "table", "nowhere.tsv"], "nowhere.tsv"),
    ];
    for (arguments, part) in cases {
        let output = run(
            folder.path(),
            &[&["eval", "--weights", "random:resnet18"], &arguments[..]].concat(),
        );
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(
            output.status.code() == Some(1) && said.contains(part),
            "{arguments:?}: {said}"
        );
    }
}

#[test]
fn eval_finds_the_references_accuracy_on_200_photographs() {
    let test = "the accuracy on 200 photographs";
    let (Some(table), Some(weights)) = (
        imgclass_test_support::shared("reference/images.tsv", test),
        imgclass_test_support::shared("weights/resnet50.safetensors", test),
    ) else {
        return;
    };
    let root = table
        .parent()
        .and_then(|folder| folder.parent())
        .expect("a folder")
        .to_owned();
    let path = |path: &std::path::Path| {
        fs::canonicalize(path)
            .expect("a path")
            .to_string_lossy()
            .into_owned()
    };
    let folder = tempfile::tempdir().expect("a folder");
    let arguments = [
        "eval",
        "--weights",
        &path(&weights),
        "--root",
        &path(&root),
        "--format",
        "json",
        &path(&table),
    ];
    let output = run(folder.path(), &arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let right = report["top1"].as_f64().expect("a share") * 200.0;
    assert!((right - 170.0).abs() <= 2.0, "{right} of 200");
}

#[test]
fn explain_writes_a_picture_and_says_of_what() {
    let folder = tempfile::tempdir().expect("a folder");
    write_picture(&folder.path().join("a.png"), 3);
    let cases: [(&[&str], &str); 2] = [
        (&[], "class "),
        (&["--class", "tusker", "--heatmap"], "tusker (class 101)"),
    ];
    for (arguments, said) in cases {
        let arguments = [
            &[
                "explain",
                "--weights",
                "random:resnet18",
                "a.png",
                "-o",
                "out.png",
            ],
            arguments,
        ]
        .concat();
        let output = run(folder.path(), &arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(
            text(&output.stdout).contains(said),
            "{}",
            text(&output.stdout)
        );
        let drawn = image::open(folder.path().join("out.png")).expect("a PNG");
        assert_eq!((drawn.width(), drawn.height()), (50, 40));
    }
    let cases: [(&[&str], i32, &str); 5] = [
        (&["a.png"], 2, "--output"),
        (
            &["a.png", "-o", "x.png", "--opacity", "2"],
            2,
            "from 0 to 1",
        ),
        (
            &["a.png", "-o", "x.png", "--class", "nonsense"],
            1,
            "nonsense",
        ),
        (&["missing.png", "-o", "x.png"], 1, "No such file"),
        (
            &["a.png", "-o", "no/such/folder.png"],
            1,
            "no/such/folder.png",
        ),
    ];
    for (arguments, code, part) in cases {
        let output = run(
            folder.path(),
            &[&["explain", "--weights", "random:resnet18"], arguments].concat(),
        );
        let said = text(&output.stderr);
        assert!(
            output.status.code() == Some(code) && said.contains(part),
            "{arguments:?}: {said}"
        );
    }
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    let folder = tempfile::tempdir().expect("a folder");
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let output = run(folder.path(), &["completions", shell]);
        let script = text(&output.stdout);
        assert!(
            output.status.success() && script.contains("classify") && script.contains("top-k"),
            "{shell}"
        );
    }
    let page = text(&run(folder.path(), &["man"]).stdout);
    assert!(
        page.contains(".TH imgclass 1") && page.contains("eval"),
        "{page}"
    );
    assert!(run(folder.path(), &["man", "pages"]).status.success());
    for name in [
        "imgclass",
        "imgclass-serve",
        "imgclass-classify",
        "imgclass-weights-fetch",
    ] {
        assert!(
            folder.path().join(format!("pages/{name}.1")).is_file(),
            "{name}"
        );
    }
}

#[test]
fn bench_times_forward_passes_one_after_the_other_side_by_side_and_layer_by_layer() {
    let folder = tempfile::tempdir().expect("a folder");
    let bench = |arguments: &[&str]| {
        let common = ["bench", "--weights", "random:resnet18", "--iterations", "2"];
        let output = run(folder.path(), &[&common, arguments].concat());
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    for (arguments, iterations, images) in [
        (&["--batch-size", "3"][..], 2, 3.0),
        (&["--threads", "2", "--passes", "2"], 4, 2.0),
        // More at one time than there are threads for: they take turns.
        (&["--threads", "1", "--passes", "3"], 6, 3.0),
    ] {
        let (code, report, said) = bench(&[arguments, &["--format", "json"]].concat());
        assert_eq!(code, Some(0), "{said}");
        let report: Value = serde_json::from_str(&report).expect("JSON");
        assert_eq!(report["iterations"], iterations, "{report}");
        let number = |field: &str| report[field].as_f64().expect("a number");
        assert!(number("min_ms") > 0.0 && number("min_ms") <= number("median_ms"));
        assert!(number("median_ms") <= number("p99_ms"), "{report}");
        let rate = images * 1e3 / number("median_ms");
        assert!(
            (number("images_per_second") / rate - 1.0).abs() < 1e-3,
            "{report}"
        );
    }
    let (code, table, said) = bench(&["--per-layer", "--warm-up", "0"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        table.contains("layer4.1.conv2") && table.contains("images/s"),
        "{table}"
    );
    let (code, _, said) = bench(&["--per-layer", "--passes", "2"]);
    assert_eq!(code, Some(2), "{said}");
}
