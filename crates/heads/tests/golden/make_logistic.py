"""Records what scikit-learn's LogisticRegression finds for data made by a formula.

    pip install scikit-learn numpy
    python3 crates/heads/tests/golden/make_logistic.py > crates/heads/tests/golden/logistic.json

The data are made by the same formula in tests/it/data.rs, so they are not recorded.
"""

import json
import sys

import numpy
import sklearn
from sklearn.linear_model import LogisticRegression

ROWS, DIMS, CLASSES = 90, 12, 3


def mix(x):
    """The finaliser of splitmix64, from an integer to a number from 0 to 1."""
    mask = (1 << 64) - 1
    z = (x + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return ((z ^ (z >> 31)) >> 40) / (1 << 24)


def features():
    rows = []
    for i in range(ROWS):
        label = label_of(i)
        rows.append([mix(1000 * i + j) + (0.4 if j % CLASSES == label else 0.0) for j in range(DIMS)])
    return numpy.array(rows, dtype=numpy.float64)


def label_of(i):
    """Class 0 has half of the pictures, class 1 a third, class 2 a sixth."""
    return [0, 1, 0, 2, 0, 1][i % 6]


x, y = features(), numpy.array([label_of(i) for i in range(ROWS)])
cases = []
for c in (0.05, 1.0, 20.0):
    for weights in (None, "balanced"):
        model = LogisticRegression(C=c, class_weight=weights, tol=1e-10, max_iter=10000).fit(x, y)
        cases.append({
            "c": c,
            "class_weights": weights or "none",
            "weights": model.coef_.tolist(),
            "bias": model.intercept_.tolist(),
        })
json.dump({"scikit_learn": sklearn.__version__, "cases": cases}, sys.stdout, indent=1)
print()
