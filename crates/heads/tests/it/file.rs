use std::collections::HashMap;

use imgclass_heads::{Head, train};
use proptest::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::data::{balanced, options};

fn head() -> Head {
    train(balanced(30, 3, 8, 0.5), &options(), &|_| {})
        .unwrap()
        .head
}

/// The parts of a head's file, for tests that change them.
struct Parts {
    json: String,
    tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)>,
}

impl Parts {
    fn of(bytes: &[u8]) -> Self {
        let (_, metadata) = SafeTensors::read_metadata(bytes).unwrap();
        let tensors = SafeTensors::deserialize(bytes).unwrap();
        Self {
            json: metadata.metadata().as_ref().unwrap()["imgclass.head"].clone(),
            tensors: tensors
                .iter()
                .map(|(name, view)| {
                    (
                        name.to_owned(),
                        view.dtype(),
                        view.shape().to_vec(),
                        view.data().to_vec(),
                    )
                })
                .collect(),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let views = self.tensors.iter().map(|(name, dtype, shape, bytes)| {
            (
                name.clone(),
                TensorView::new(*dtype, shape.clone(), bytes).unwrap(),
            )
        });
        let metadata = HashMap::from([("imgclass.head".to_owned(), self.json.clone())]);
        safetensors::serialize(views, Some(metadata)).unwrap()
    }

    fn tensor(&mut self, name: &str) -> &mut (String, Dtype, Vec<usize>, Vec<u8>) {
        self.tensors
            .iter_mut()
            .find(|tensor| tensor.0 == name)
            .unwrap()
    }
}

/// JSON keeps all but the last digit of the evaluation's numbers.
fn without_evaluation(mut head: Head) -> Head {
    head.evaluation = Default::default();
    head.recipe = Default::default();
    head
}

#[test]
fn a_head_comes_back_from_its_file() {
    let head = head();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plants.head");
    std::fs::write(&path, head.to_bytes().unwrap()).unwrap();
    let (read, digest) = Head::read(&path).unwrap();
    assert_eq!(digest.len(), 64);
    assert_eq!(
        without_evaluation(read.clone()),
        without_evaluation(head.clone())
    );
    let (found, expected) = (read.evaluation, head.evaluation);
    assert!((found.log_loss - expected.log_loss).abs() < 1e-12);
    assert_eq!(found.confusions, expected.confusions);
}

#[test]
fn every_damage_is_refused_with_its_reason() {
    type Change = fn(&mut Parts);
    let cases: [(Change, &str); 13] = [
        (
            |p| p.json = p.json.replace("\"version\":1", "\"version\":2"),
            "a head of version 2",
        ),
        (|p| p.json = "{".to_owned(), "its description is damaged"),
        (
            |p| p.json = p.json.replace("\"class 1\",\"class 2\"]", "\"class 1\"]"),
            "2 labels for 3 classes",
        ),
        (
            |p| p.json = p.json.replacen("\"class 1\"", "\"class 0\"", 1),
            "the label \"class 0\" twice",
        ),
        (
            |p| p.json = p.json.replacen("\"class 1\"", "\" \"", 1),
            "label 1 is empty",
        ),
        (
            |p| p.json = p.json.replace("\"network\"", "\"net\""),
            "missing field `network`",
        ),
        (
            |p| p.tensors.retain(|t| t.0 != "weight"),
            "there is no tensor `weight`",
        ),
        (
            |p| p.tensors.retain(|t| t.0 != "familiarity.mean"),
            "there is no tensor `familiarity.mean`",
        ),
        (|p| p.tensor("bias").2 = vec![1, 3], "expected F32 [3]"),
        (|p| p.tensor("weight").1 = Dtype::I32, "expected F32"),
        (
            |p| p.tensor("weight").3[..4].copy_from_slice(&f32::NAN.to_le_bytes()),
            "is NaN, expected a finite number",
        ),
        (
            |p| p.tensor("familiarity.quantiles").3[..4].copy_from_slice(&9f32.to_le_bytes()),
            "rising numbers",
        ),
        (
            |p| {
                p.tensors
                    .push(("extra".to_owned(), Dtype::U8, vec![1], vec![0]))
            },
            "a tensor \"extra\"",
        ),
    ];
    let bytes = head().to_bytes().unwrap();
    for (change, expected) in cases {
        let mut parts = Parts::of(&bytes);
        change(&mut parts);
        let error = Head::from_bytes(&parts.bytes()).unwrap_err();
        assert!(error.contains(expected), "{error}: expected {expected}");
    }
}

#[test]
fn files_of_other_kinds_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.head");
    let missing = Head::read(&path).unwrap_err().to_string();
    assert!(missing.contains("x.head"), "{missing}");
    let other = {
        let view = TensorView::new(Dtype::U8, vec![1], &[0]).unwrap();
        safetensors::serialize([("weight", view)], None).unwrap()
    };
    for (bytes, expected) in [
        (b"".to_vec(), "no safetensors file, or not whole"),
        (
            b"\xff\xd8\xff picture".to_vec(),
            "no safetensors file, or not whole",
        ),
        (other, "but no head"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let error = Head::read(&path).unwrap_err().to_string();
        assert!(
            error.contains(expected) && error.contains("x.head"),
            "{error}"
        );
    }
}

#[cfg(unix)]
#[test]
fn folders_and_fifos_are_refused_without_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo.head");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(made.unwrap().success());
    for path in [folder.path(), &fifo, std::path::Path::new("/dev/zero")] {
        let error = Head::read(path).unwrap_err().to_string();
        assert!(error.contains("no regular file"), "{error}");
    }
}

proptest! {
    #[test]
    fn no_cut_and_no_changed_byte_panics(at in 0usize..10_000, value: u8, cut: bool) {
        static BYTES: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| head().to_bytes().unwrap());
        let mut bytes = BYTES.clone();
        let at = at % bytes.len();
        if cut {
            bytes.truncate(at);
            prop_assert!(Head::from_bytes(&bytes).is_err());
        } else {
            bytes[at] = value;
            if let Ok(head) = Head::from_bytes(&bytes) {
                let _ = head.answer(&[0.5; 8]);
            }
        }
    }
}
