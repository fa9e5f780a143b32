#!/usr/bin/env python3
"""Writes ResNet-50 v1.5 (stride in the 3x3) as ONNX, from a safetensors file or from the formula.

Batch norms are folded into the convolutions before them, in float64: what ONNX Runtime and OpenVINO would do at load
anyway, and what not every peer does. Input `input` [batch, 3, height, width] with all but the channels free, output
`logits` [batch, classes]; --taps adds the outputs `maxpool`, `layer1` to `layer4` and `features`.
This module never runs a network.
"""

import argparse
import sys

import numpy as np
import onnx
import safetensors
import safetensors.numpy
from onnx import TensorProto, helper, numpy_helper

import formula

# Opset 17 and IR 9 are old enough for every peer and new enough for every operator here.
OPSET, IR_VERSION = 17, 9
EPSILON = 1e-5  # torch.nn.BatchNorm2d's default, which torchvision and timm keep
# Extra outputs and their channels.
TAPS = {"maxpool": 64, "layer1": 256, "layer2": 512, "layer3": 1024, "layer4": 2048, "features": 2048}


def load(path: str) -> dict[str, np.ndarray]:
    """The float32 tensors of a ResNet-50 checkpoint; exits with a plain message when the file is something else."""
    try:
        tensors = safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        sys.exit(f"{path}: {error}")
    classes = tensors["fc.bias"].shape[0] if "fc.bias" in tensors else 1000
    wanted = formula.shapes(classes)
    for name, shape in wanted.items():
        if name not in tensors:
            sys.exit(f"{path}: no tensor {name}: not a ResNet-50 with torchvision's names")
        if tensors[name].shape != shape or tensors[name].dtype != np.float32:
            sys.exit(f"{path}: {name} is {tensors[name].dtype} {tensors[name].shape}, expected float32 {shape}")
    return {name: tensors[name] for name in wanted}


def save(path: str, weights: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Writes the weights as a torchvision-named safetensors file, with the batch norms' (unused) counters."""
    counters = {
        name.replace("running_mean", "num_batches_tracked"): np.zeros((), np.int64)
        for name in weights
        if name.endswith(".running_mean")
    }
    safetensors.numpy.save_file({**weights, **counters}, path, metadata=metadata)


class Graph:
    """Nodes and initialisers in the order of their making; a method adds one layer and returns its output's name."""

    def __init__(self, weights: dict[str, np.ndarray]):
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: dict[str, onnx.TensorProto] = {}

    def initialiser(self, name: str, value: np.ndarray) -> str:
        self.initialisers[name] = numpy_helper.from_array(value.astype(np.float32), name)
        return name

    def node(self, op: str, inputs: list[str], out: str, **attributes) -> str:
        self.nodes.append(helper.make_node(op, inputs, [out], name=out, **attributes))
        return out

    def conv_norm(self, x: str, conv: str, norm: str, stride: int) -> str:
        w, gamma, beta, mean, variance = (
            self.weights[name].astype(np.float64)
            for name in (f"{conv}.weight", *(f"{norm}.{part}" for part in formula.NORM_PARTS))
        )
        scale = gamma / np.sqrt(variance + EPSILON)
        folded = self.initialiser(f"{conv}.weight", w * scale[:, None, None, None])
        bias = self.initialiser(f"{conv}.bias", beta - mean * scale)
        k = w.shape[2]
        sizes = {"kernel_shape": [k, k], "strides": [stride, stride], "pads": [k // 2] * 4}
        return self.node("Conv", [x, folded, bias], norm, **sizes)

    def relu(self, x: str, out: str | None = None) -> str:
        return self.node("Relu", [x], out or f"{x}.relu")

    def bottleneck(self, x: str, prefix: str, stride: int, out: str | None) -> str:
        y = self.relu(self.conv_norm(x, f"{prefix}.conv1", f"{prefix}.bn1", 1))
        y = self.relu(self.conv_norm(y, f"{prefix}.conv2", f"{prefix}.bn2", stride))
        y = self.conv_norm(y, f"{prefix}.conv3", f"{prefix}.bn3", 1)
        if f"{prefix}.downsample.0.weight" in self.weights:
            x = self.conv_norm(x, f"{prefix}.downsample.0", f"{prefix}.downsample.1", stride)
        return self.relu(self.node("Add", [y, x], f"{prefix}.add"), out)


def build(weights: dict[str, np.ndarray], taps: bool = False) -> onnx.ModelProto:
    """The network as a checked ONNX model."""
    g = Graph(weights)
    x = g.relu(g.conv_norm("input", "conv1", "bn1", 2))
    x = g.node("MaxPool", [x], "maxpool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for stage, (blocks, _, first_stride) in enumerate(formula.STAGES, start=1):
        for block in range(blocks):
            last = f"layer{stage}" if block == blocks - 1 else None
            x = g.bottleneck(x, f"layer{stage}.{block}", first_stride if block == 0 else 1, last)
    x = g.node("Flatten", [g.node("GlobalAveragePool", [x], "global_pool")], "features", axis=1)
    fc = [g.initialiser(name, weights[name]) for name in ("fc.weight", "fc.bias")]
    g.node("Gemm", [x, *fc], "logits", transB=1)

    classes = weights["fc.bias"].shape[0]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])]
    if taps:
        for name, channels in TAPS.items():
            spatial = [] if name == "features" else [f"{name}_height", f"{name}_width"]
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", channels, *spatial]))
    graph_input = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, "height", "width"])
    graph = helper.make_graph(g.nodes, "resnet50", [graph_input], outputs, list(g.initialisers.values()))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="imgclass peers")
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--weights", metavar="FILE", help="safetensors file with torchvision's tensor names")
    source.add_argument("--formula", metavar="SEED", type=int, help="weights by the formula of formula.py")
    parser.add_argument("--classes", type=int, default=1000, help="classes of the formula's network (default 1000)")
    parser.add_argument("--taps", action="store_true", help="also output " + ", ".join(TAPS))
    parser.add_argument("--onnx", metavar="FILE", help="write the network here")
    parser.add_argument("--write-safetensors", metavar="FILE", help="write the weights here")
    args = parser.parse_args()
    if not args.onnx and not args.write_safetensors:
        parser.error("nothing to write: give --onnx FILE, --write-safetensors FILE or both")

    if args.weights:
        weights, origin = load(args.weights), args.weights.rsplit("/", 1)[-1]
    else:
        weights, origin = formula.weights(args.formula, args.classes), f"formula, seed {args.formula}"
    if args.onnx:
        onnx.save_model(build(weights, args.taps), args.onnx)
    if args.write_safetensors:
        save(args.write_safetensors, weights, {"origin": origin})


if __name__ == "__main__":
    main()
