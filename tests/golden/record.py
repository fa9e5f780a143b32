#!/usr/bin/env python3
"""Records what ONNX Runtime answers for ResNet-50 with formula weights, into resnet50_formula.safetensors.

The ONNX graph is itself checked first: a second implementation in this file, plain numpy in float64 that shares only
the weights, has to agree with ONNX Runtime on every recorded value. README.md says how to run this and what the
file holds.
"""

import hashlib
import platform
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import safetensors.numpy

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "benches" / "peers"))
import formula  # noqa: E402
import resnet50_onnx  # noqa: E402

SEED, CLASSES = 0, 1000
# [n, height, width]: small with two images, square, wide with odd sizes (no stage divides evenly), and the usual one.
INPUTS = ((2, 64, 64), (1, 96, 96), (1, 97, 130), (1, 224, 224))
STAGES = ("maxpool", "layer1", "layer2", "layer3", "layer4")
# One tensor of each kind that the formula knows; its first eight values are recorded as `formula.<name>`.
SAMPLED = (
    "conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var",
    "layer1.0.conv2.weight", "layer1.0.bn3.weight", "layer4.0.downsample.0.weight", "fc.weight", "fc.bias",
)  # fmt: skip
# float32 against float64, relative to the largest magnitude of the tensor. Float32 leaves about 5e-7.
AGREEMENT = 5e-6


def conv(x: np.ndarray, w: np.ndarray, stride: int, pad: int) -> np.ndarray:
    """Cross-correlation of [n, c, h, w] with [o, c, k, k], one kernel tap at a time."""
    k = w.shape[2]
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    h_out, w_out = (x.shape[2] - k) // stride + 1, (x.shape[3] - k) // stride + 1
    y = np.zeros((x.shape[0], w.shape[0], h_out, w_out))
    for i in range(k):
        for j in range(k):
            window = x[:, :, i : i + stride * h_out : stride, j : j + stride * w_out : stride]
            y += np.einsum("oc,nchw->nohw", w[:, :, i, j], window, optimize=True)
    return y


def max_pool(x: np.ndarray) -> np.ndarray:
    """3x3, stride 2, padding 1."""
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    h_out, w_out = (x.shape[2] - 3) // 2 + 1, (x.shape[3] - 3) // 2 + 1
    windows = [x[:, :, i : i + 2 * h_out : 2, j : j + 2 * w_out : 2] for i in range(3) for j in range(3)]
    return np.max(windows, axis=0)


def reference(p: dict[str, np.ndarray], x: np.ndarray) -> dict[str, np.ndarray]:
    """ResNet-50 v1.5 in float64, every tap by its name."""

    def norm(x, name):
        scale = p[f"{name}.weight"] / np.sqrt(p[f"{name}.running_var"] + 1e-5)
        shift = p[f"{name}.bias"] - p[f"{name}.running_mean"] * scale
        return x * scale[:, None, None] + shift[:, None, None]

    def relu(x):
        return np.maximum(x, 0.0)

    taps = {}
    x = relu(norm(conv(x, p["conv1.weight"], 2, 3), "bn1"))
    x = taps["maxpool"] = max_pool(x)
    for stage, blocks in ((1, 3), (2, 4), (3, 6), (4, 3)):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = relu(norm(conv(x, p[f"{name}.conv1.weight"], 1, 0), f"{name}.bn1"))
            y = relu(norm(conv(y, p[f"{name}.conv2.weight"], stride, 1), f"{name}.bn2"))
            y = norm(conv(y, p[f"{name}.conv3.weight"], 1, 0), f"{name}.bn3")
            if block == 0:
                x = norm(conv(x, p[f"{name}.downsample.0.weight"], stride, 0), f"{name}.downsample.1")
            x = relu(x + y)
        taps[f"layer{stage}"] = x
    taps["features"] = x.mean(axis=(2, 3))
    taps["logits"] = taps["features"] @ p["fc.weight"].T + p["fc.bias"]
    return taps


def digest(weights: dict[str, np.ndarray]) -> str:
    """SHA-256 of every float32 tensor's little-endian bytes, in the names' byte order."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        sha.update(weights[name].astype("<f4").tobytes())
    return sha.hexdigest()


def onnx_runtime(weights: dict[str, np.ndarray]) -> onnxruntime.InferenceSession:
    model = resnet50_onnx.build(weights, taps=True)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def main() -> None:
    weights = formula.weights(SEED, CLASSES)
    exact = {name: w.astype(np.float64) for name, w in weights.items()}
    session = onnx_runtime(weights)
    names = [output.name for output in session.get_outputs()]
    recorded: dict[str, np.ndarray] = {}
    for n, h, w in INPUTS:
        x = formula.network_input(n, h, w, SEED)
        answer = dict(zip(names, session.run(None, {"input": x}), strict=True))
        for name, truth in reference(exact, x.astype(np.float64)).items():
            error = np.abs(answer[name] - truth).max() / np.abs(truth).max()
            print(f"{h}x{w} {name:8} against numpy float64: {error:.1e} of its largest value")
            if not error < AGREEMENT:  # "not <" so that a NaN fails too
                sys.exit(f"{h}x{w} {name}: ONNX Runtime and the float64 reference disagree; nothing recorded")
        recorded[f"{h}x{w}.logits"] = answer["logits"]
        recorded[f"{h}x{w}.features"] = answer["features"]
        for name in STAGES:
            tap = answer[name].astype(np.float64).reshape(n, -1)
            recorded[f"{h}x{w}.{name}.mean"] = tap.mean(axis=1).astype(np.float32)
            recorded[f"{h}x{w}.{name}.rms"] = np.sqrt((tap**2).mean(axis=1)).astype(np.float32)
        print(f"{h}x{w} logits: std {answer['logits'].std():.2f}, largest {np.abs(answer['logits']).max():.2f}")

    for name in SAMPLED:
        recorded[f"formula.{name}"] = weights[name].ravel()[:8]
    recorded["formula.input"] = formula.network_input(1, 64, 64, SEED).ravel()[:8]
    metadata = {
        "weights": f"formula of benches/peers/formula.py, seed {SEED}, {CLASSES} classes",
        "weights sha256": digest(weights),
        "recorded by": "tests/golden/record.py",
        "onnxruntime": onnxruntime.__version__,
        "onnx": resnet50_onnx.onnx.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    path = HERE / "resnet50_formula.safetensors"
    safetensors.numpy.save_file(recorded, path, metadata=metadata)
    path.chmod(0o644)  # safetensors writes for its owner only
    print(f"wrote {path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
