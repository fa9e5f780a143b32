//! `imgclass classify` over archives: what is found, what is written, and that a run which ended at any moment is continued without doing
//! an image twice or losing one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::binary::{imgclass, run, text};
use crate::support::pictures::write_picture;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use serde_json::Value;

/// Six pictures in two folders, one of them with a name that CSV must quote, and one file that is no picture.
fn archive() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir_all(folder.path().join("photos/deep")).expect("folders");
    let names = [
        "a.png",
        "b, \"c\".png",
        "d.png",
        "deep/e.png",
        "deep/f.png",
        "deep/g.png",
    ];
    for (seed, name) in names.iter().enumerate() {
        write_picture(&folder.path().join("photos").join(name), seed as u8);
    }
    fs::write(folder.path().join("photos/bad.png"), "no picture").expect("a file");
    folder
}

const FILES: [&str; 7] = [
    "photos/a.png",
    "photos/b, \"c\".png",
    "photos/bad.png",
    "photos/d.png",
    "photos/deep/e.png",
    "photos/deep/f.png",
    "photos/deep/g.png",
];

fn classify(folder: &Path, arguments: &[&str]) -> std::process::Output {
    run(
        folder,
        &[
            &["classify", "--weights", "random:resnet18", "--top-k", "2"],
            arguments,
        ]
        .concat(),
    )
}

fn files_of(jsonl: &str) -> Vec<String> {
    let lines = jsonl
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"));
    lines
        .map(|line: Value| line["file"].as_str().expect("a name").to_owned())
        .collect()
}

#[test]
fn a_folder_gives_the_files_of_every_format_and_no_others() {
    let folder = archive();
    let kinds = folder.path().join("kinds");
    fs::create_dir(&kinds).expect("a folder");
    let formats = [
        "avif", "bmp", "gif", "JPEG", "jpg", "png", "tif", "tiff", "webp",
    ];
    for ending in formats.iter().chain(&["txt", "json", ""]) {
        // What is in them says what they are.
        let file = kinds.join("x").with_extension(ending);
        fs::copy(folder.path().join("photos/a.png"), file).expect("a file");
    }
    let output = classify(folder.path(), &["--format", "jsonl", "kinds"]);
    let mut found = files_of(&text(&output.stdout));
    found.sort_by_key(|name| name.to_ascii_lowercase());
    assert_eq!(found, formats.map(|ending| format!("kinds/x.{ending}")));
}

#[test]
fn folders_patterns_and_lists_name_inputs() {
    let folder = archive();
    fs::write(
        folder.path().join("list.txt"),
        "photos/d.png\n\nphotos/deep\n",
    )
    .expect("a list");
    let deep = [FILES[4], FILES[5], FILES[6]];
    let cases: [(&[&str], Vec<&str>); 5] = [
        (&["photos"], FILES.to_vec()),
        (
            &["photos/*.png"],
            vec![FILES[0], FILES[1], FILES[2], FILES[3]],
        ),
        (&["photos/**/[ef].png"], vec![FILES[4], FILES[5]]),
        (
            &["--files-from", "list.txt"],
            [&["photos/d.png"], &deep[..]].concat(),
        ),
        (
            &["photos/none-*.png", "photos/a.png"],
            vec!["photos/none-*.png", "photos/a.png"],
        ),
    ];
    for (arguments, expected) in cases {
        let output = classify(folder.path(), &[&["--format", "jsonl"], arguments].concat());
        assert_eq!(files_of(&text(&output.stdout)), expected, "{arguments:?}");
    }
    let mut child = imgclass(folder.path())
        .args([
            "classify",
            "--weights",
            "random:resnet18",
            "--format",
            "jsonl",
            "--files-from",
            "-",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary runs");
    let mut input = child.stdin.take().expect("a pipe");
    input
        .write_all(b"photos/a.png\nphotos/d.png")
        .expect("written");
    drop(input);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(
        files_of(&text(&output.stdout)),
        ["photos/a.png", "photos/d.png"]
    );
}

#[test]
#[cfg(unix)]
fn a_pipe_that_a_pattern_matches_is_an_error_and_nothing_waits_for_it() {
    let folder = archive();
    let pipe = folder.path().join("photos/pipe.png");
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo").success());
    let output = classify(folder.path(), &["--format", "jsonl", "photos/?i*.png"]);
    let row: Value = serde_json::from_slice(&output.stdout).expect("a line of JSON");
    assert_eq!(row["file"], "photos/pipe.png");
    assert_eq!(row["error"], "no regular file");
}

#[test]
fn shards_share_the_inputs_between_machines() {
    let folder = archive();
    let mut all: Vec<String> = Vec::new();
    for part in ["1/3", "2/3", "3/3"] {
        let output = classify(
            folder.path(),
            &["--format", "jsonl", "--shard", part, "photos"],
        );
        all.extend(files_of(&text(&output.stdout)));
    }
    all.sort();
    assert_eq!(all, FILES);
}

#[test]
fn an_input_that_fails_is_reported_left_out_or_the_end() {
    let folder = archive();
    let cases = [
        ("report", FILES.to_vec()),
        ("skip", [&FILES[..2], &FILES[3..]].concat()),
        ("stop", FILES[..2].to_vec()),
    ];
    for (on_error, expected) in cases {
        let output = classify(
            folder.path(),
            &["--format", "jsonl", "--on-error", on_error, "photos"],
        );
        assert_eq!(output.status.code(), Some(1), "{on_error}");
        assert_eq!(files_of(&text(&output.stdout)), expected, "{on_error}");
        let said = text(&output.stderr).contains("photos/bad.png: ");
        assert_eq!(
            said,
            on_error != "report",
            "{on_error}: {}",
            text(&output.stderr)
        );
    }
}

#[test]
fn options_that_do_not_go_together_end_with_2_and_say_why() {
    let folder = archive();
    fs::write(folder.path().join("there.jsonl"), "{}\n").expect("a file");
    let cases: [(&[&str], i32, &str); 7] = [
        (&["--format", "parquet", "photos"], 2, "--output"),
        (
            &["--output", "x", "--resume", "photos"],
            2,
            "a table cannot be continued",
        ),
        (&["--resume", "photos"], 2, "--output"),
        (
            &["--format", "csv", "--embeddings", "photos"],
            2,
            "jsonl or parquet",
        ),
        (&["--shard", "4/3", "photos"], 2, "1/4"),
        (
            &["--format", "jsonl", "--output", "there.jsonl", "photos"],
            1,
            "--resume continues it",
        ),
        (
            &[
                "--format",
                "jsonl",
                "--output",
                "there.jsonl",
                "--resume",
                "photos",
            ],
            1,
            "not written by `classify`",
        ),
    ];
    for (arguments, code, part) in cases {
        let output = classify(folder.path(), arguments);
        let said = text(&output.stderr);
        assert!(
            output.status.code() == Some(code) && said.contains(part),
            "{arguments:?}: {said}"
        );
    }
}

/// Runs to the end, cuts the output at many places, resumes, and compares.
fn cut_and_resume(format: &str, cuts: impl Fn(&[u8]) -> Vec<usize>) {
    let folder = archive();
    let arguments = ["--format", format, "--output", "out", "--resume", "photos"];
    let output = classify(folder.path(), &arguments);
    assert_eq!(
        output.status.code(),
        Some(1),
        "one input is bad: {}",
        text(&output.stderr)
    );
    let out = folder.path().join("out");
    let whole = fs::read(&out).expect("the output");
    for cut in cuts(&whole) {
        fs::write(&out, &whole[..cut]).expect("written");
        classify(folder.path(), &arguments);
        let resumed = fs::read(&out).expect("the output");
        assert!(
            resumed == whole,
            "{format} cut at {cut} of {}: {}",
            whole.len(),
            text(&resumed)
        );
    }
}

#[test]
fn json_lines_that_end_anywhere_are_continued_without_doubles_or_gaps() {
    cut_and_resume("jsonl", |whole| {
        let line_end = whole.iter().position(|b| *b == b'\n').expect("a line") + 1;
        vec![
            0,
            10,
            line_end - 1,
            line_end,
            line_end + 3,
            whole.len() - 1,
            whole.len(),
        ]
    });
}

#[test]
fn csv_that_ends_anywhere_is_continued_without_doubles_or_gaps() {
    cut_and_resume("csv", |whole| {
        let ends: Vec<usize> = (0..whole.len())
            .filter(|&i| whole[i] == b'\n')
            .map(|i| i + 1)
            .collect();
        // Between two lines of one file, between files, within a name, within the quoted name, at the end.
        vec![
            0,
            ends[0],
            ends[1],
            ends[1] + 4,
            ends[2],
            ends[2] + 12,
            ends[4],
            ends[5] + 9,
            whole.len(),
        ]
    });
}

/// File names with the numbers of predictions and features, over all whole parts.
fn rows_of(folder: &Path) -> BTreeMap<String, (usize, usize)> {
    let mut rows = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let reader =
            SerializedFileReader::new(File::open(&path).expect("a part")).expect("Parquet");
        for row in reader.get_row_iter(None).expect("rows") {
            let row = row.expect("a row");
            let fields: BTreeMap<&String, &Field> = row.get_column_iter().collect();
            let field = |name: &str| fields.get(&name.to_owned()).copied();
            let length = |name: &str| match field(name) {
                Some(Field::ListInternal(list)) => list.len(),
                _ => 0,
            };
            let failed = matches!(field("error"), Some(Field::Str(_)));
            assert_eq!(failed, length("predictions") == 0, "{row}");
            let Some(Field::Str(file)) = field("file") else {
                panic!("{row} has no name");
            };
            let before = rows.insert(file.clone(), (length("predictions"), length("embedding")));
            assert_eq!(before, None, "{row} is there twice");
        }
    }
    rows
}

#[test]
fn parquet_parts_are_whole_or_not_there_and_are_continued() {
    let folder = archive();
    let parquet = |inputs: &[&str]| {
        let arguments = [
            "--format",
            "parquet",
            "--output",
            "table",
            "--embeddings",
            "--resume",
        ];
        classify(folder.path(), &[&arguments, inputs].concat())
    };
    parquet(&["photos/deep"]);
    let table = folder.path().join("table");
    assert_eq!(rows_of(&table).len(), 3);
    // What a crash leaves behind is thrown away.
    fs::write(table.join("part-000001.parquet.unfinished"), "PAR1 half").expect("written");
    let output = parquet(&["photos"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let rows = rows_of(&table);
    assert_eq!(rows.keys().map(String::as_str).collect::<Vec<_>>(), FILES);
    for (file, sizes) in rows {
        let expected = if file == "photos/bad.png" {
            (0, 0)
        } else {
            (2, 512)
        };
        assert_eq!(sizes, expected, "{file}");
    }
    assert!(table.join("part-000001.parquet").is_file());
    let again = classify(
        folder.path(),
        &["--format", "parquet", "--output", "table", "photos"],
    );
    assert!(
        text(&again.stderr).contains("--resume continues it"),
        "{}",
        text(&again.stderr)
    );
}

#[test]
fn embeddings_in_json_lines_are_the_features() {
    let folder = archive();
    let output = classify(
        folder.path(),
        &["--format", "jsonl", "--embeddings", "photos/a.png"],
    );
    let line: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(line["embedding"].as_array().map(Vec::len), Some(512));
    assert_eq!(line["predictions"].as_array().map(Vec::len), Some(2));
}

#[test]
fn logits_in_json_lines_are_what_the_probabilities_are_made_of() {
    let folder = archive();
    let output = classify(
        folder.path(),
        &["--format", "jsonl", "--logits", "photos/a.png"],
    );
    let row: Value = serde_json::from_slice(&output.stdout).expect("one line of JSON");
    let logits = row["logits"].as_array().expect("logits");
    let logits: Vec<f64> = logits
        .iter()
        .map(|x| x.as_f64().expect("a number"))
        .collect();
    assert_eq!(logits.len(), 1000);
    let sum: f64 = logits.iter().map(|x| x.exp()).sum();
    let best = &row["predictions"][0];
    let index = best["index"].as_u64().expect("an index") as usize;
    let probability = best["probability"].as_f64().expect("a number");
    assert!((logits[index].exp() / sum - probability).abs() < 1e-5);
}
