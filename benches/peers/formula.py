"""ResNet-50 weights and inputs made by a formula: the same bits here and in the Rust code, with nothing to download.

For a tensor `name` and a seed S (u64), element i (row-major, from 0):

    s = FNV-1a 64 (UTF-8 bytes of name) xor S
    z = splitmix64's i-th output from state s     (Steele, Lea and Flood 2014; constants of Vigna's reference code)
    u = (z >> 40) / 2^24 in [0, 1),  v = 2u - 1   (exact in float64)

and the value, computed in float64 and rounded once to float32:

    convolution weight [o, i, k, k]   v * sqrt(6 / (i*k*k))   (He uniform: variance 2 / fan-in)
    fc.weight [classes, features]     v * sqrt(3 / features)  (variance 1 / fan-in)
    any *.bias, *.running_mean        0.1 * v
    *.running_var, batch norm weight  0.8 + 0.4 * u
    bn3.weight of a bottleneck        0.2 + 0.2 * u           (keeps the residual sum from growing)
    network input "input"             2 * v

Names and shapes are torchvision's `resnet50`. `num_batches_tracked` (int64, 0) exists in files only.
This module computes; it never reads or writes a file.
"""

import math

import numpy as np

FNV_OFFSET = 0xCBF29CE484222325
FNV_PRIME = 0x100000001B3
MASK64 = (1 << 64) - 1

# (blocks, width of the 3x3, stride of the first block) of layer1 to layer4; a block puts out 4 * width channels.
STAGES = ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2))
EXPANSION = 4
NORM_PARTS = ("weight", "bias", "running_mean", "running_var")


def fnv1a64(name: str) -> int:
    h = FNV_OFFSET
    for byte in name.encode():
        h = ((h ^ byte) * FNV_PRIME) & MASK64
    return h


def unit(name: str, count: int, seed: int) -> np.ndarray:
    """The first `count` values u of the formula, float64 in [0, 1)."""
    state = np.uint64(fnv1a64(name) ^ seed)
    step = np.arange(1, count + 1, dtype=np.uint64)
    z = state + step * np.uint64(0x9E3779B97F4A7C15)  # numpy's array arithmetic wraps modulo 2^64
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float64) / 2.0**24


def value(name: str, u: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """What the formula makes of `u` for the tensor `name`, float64."""
    v = 2.0 * u - 1.0
    if len(shape) == 4:
        return v * math.sqrt(6.0 / (shape[1] * shape[2] * shape[3]))
    if name == "fc.weight":
        return v * math.sqrt(3.0 / shape[1])
    if name.endswith((".bias", ".running_mean")):
        return 0.1 * v
    if name.endswith(".running_var"):
        return 0.8 + 0.4 * u
    if name.endswith(".bn3.weight"):
        return 0.2 + 0.2 * u
    if name.endswith(".weight"):
        return 0.8 + 0.4 * u
    raise ValueError(f"no formula for a tensor named {name!r}")


def tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The tensor `name`, float32."""
    u = unit(name, math.prod(shape), seed)
    return value(name, u, shape).astype(np.float32).reshape(shape)


def network_input(n: int, h: int, w: int, seed: int = 0) -> np.ndarray:
    """A network input [n, 3, h, w], float32 in [-2, 2)."""
    u = unit("input", n * 3 * h * w, seed)
    return (2.0 * (2.0 * u - 1.0)).astype(np.float32).reshape(n, 3, h, w)


def convolutions():
    """(convolution, batch norm, out channels, in channels, kernel) of every convolution, in the network's order."""
    yield "conv1", "bn1", 64, 3, 7
    channels = 64
    for stage, (blocks, width, _) in enumerate(STAGES, start=1):
        out = width * EXPANSION
        for block in range(blocks):
            p = f"layer{stage}.{block}"
            yield f"{p}.conv1", f"{p}.bn1", width, channels, 1
            yield f"{p}.conv2", f"{p}.bn2", width, width, 3
            yield f"{p}.conv3", f"{p}.bn3", out, width, 1
            if block == 0:
                yield f"{p}.downsample.0", f"{p}.downsample.1", out, channels, 1
            channels = out


def shapes(classes: int) -> dict[str, tuple[int, ...]]:
    """Name to shape of every float32 tensor of a ResNet-50 with `classes` outputs."""
    found: dict[str, tuple[int, ...]] = {}
    for conv, norm, c_out, c_in, k in convolutions():
        found[f"{conv}.weight"] = (c_out, c_in, k, k)
        for part in NORM_PARTS:
            found[f"{norm}.{part}"] = (c_out,)
    found["fc.weight"] = (classes, STAGES[-1][1] * EXPANSION)
    found["fc.bias"] = (classes,)
    return found


def weights(seed: int = 0, classes: int = 1000) -> dict[str, np.ndarray]:
    """Every float32 tensor of the formula's ResNet-50."""
    return {name: tensor(name, shape, seed) for name, shape in shapes(classes).items()}
