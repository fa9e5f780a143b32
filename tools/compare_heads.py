#!/usr/bin/env python3
"""Compares `imgclass train`'s classifier with scikit-learn's LogisticRegressionCV, on pictures that neither has seen.

    imgclass classify --embeddings --format jsonl PICTURES... > features.jsonl
    cargo build --release -p imgclass-heads --example train_features
    python3 tools/compare_heads.py features.jsonl classes.tsv target/release/examples/train_features [ROUNDS]

classes.tsv has the columns `file` and `class`, as `imgclass train` reads them. In each round the pictures are dealt into four parts; each part is
judged by classifiers of the other three. Both choose C there, on the same five inner folds, by one thread each. It needs numpy and scikit-learn.
"""

import csv
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import warnings

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import PredefinedSplit, StratifiedKFold

warnings.filterwarnings("ignore")


def read(features, table):
    """The features and the class of each picture that has both."""
    with open(table, encoding="utf-8") as file:
        classes = {pathlib.Path(row["file"]).name: row["class"] for row in csv.DictReader(file, delimiter="\t")}
    with open(features, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    rows = [(line["embedding"], classes.get(pathlib.Path(line["file"]).name)) for line in lines if "embedding" in line]
    rows = [row for row in rows if row[1]]
    return numpy.array([row[0] for row in rows], dtype=numpy.float32), numpy.array([row[1] for row in rows])


def ours(program, x, y):
    """What imgclass-heads makes of the features: its C, its temperature, its folds and the seconds that it took."""
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as file:
        for features, label in zip(x, y):
            file.write(label + "\t" + " ".join(repr(float(v)) for v in features) + "\n")
        file.flush()
        return json.loads(subprocess.run([program, file.name, "1"], capture_output=True, check=True, text=True).stdout)


def loss(logits, classes, y):
    """The sum of the logistic losses."""
    logits = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = logits - numpy.log(numpy.exp(logits).sum(axis=1, keepdims=True))
    index = {label: i for i, label in enumerate(classes)}
    return -log_probabilities[range(len(y)), [index[label] for label in y]].sum()


def main():
    features, table, program = sys.argv[1:4]
    rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 6
    x, y = read(features, table)
    print(f"{len(y)} pictures, {len(set(y))} classes, {x.shape[1]} features, {rounds} rounds")
    totals = {"imgclass": numpy.zeros(3), "scikit-learn": numpy.zeros(3)}
    for seed in range(rounds):
        for train, test in StratifiedKFold(4, shuffle=True, random_state=seed).split(x, y):
            result = ours(program, x[train], y[train])
            # Both minimise the same function, which a test of the crate checks; so scikit-learn finds our classifier by our C.
            same = LogisticRegression(C=result["c"], max_iter=2000).fit(x[train], y[train])
            logits = same.decision_function(x[test]) / result["temperature"]
            totals["imgclass"] += [(same.predict(x[test]) == y[test]).sum(), loss(logits, same.classes_, y[test]), result["seconds"]]

            start = time.monotonic()
            folds = PredefinedSplit(numpy.array(result["folds"]))
            theirs = LogisticRegressionCV(Cs=10, cv=folds, max_iter=1000, use_legacy_attributes=False).fit(x[train], y[train])
            seconds = time.monotonic() - start
            logits = theirs.decision_function(x[test])
            totals["scikit-learn"] += [(theirs.predict(x[test]) == y[test]).sum(), loss(logits, theirs.classes_, y[test]), seconds]
    judged = rounds * len(y)
    for name, (right, lost, seconds) in totals.items():
        print(f"{name:<13} accuracy {100 * right / judged:.2f} %  log loss {lost / judged:.3f}  {seconds / (4 * rounds):.2f} s a training")


if __name__ == "__main__":
    main()
