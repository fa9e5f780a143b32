#!/usr/bin/env python3
"""Times another engine's ResNet-50 v1.5 on this machine. Started by run.py, one process for each.

The one argument is a JSON object: `engine`, `device` ("cuda:N" or "cpu"), `dtype`, and
`wanted`, a list of [way, batch size, timed passes] in the order of measuring. A line of JSON is
printed for each: {"way", "batch", "images_per_second"}, or {"way", "batch", "failed"}. Before them
comes {"version"}, or {"missing"} where the engine is not installed, which ends the worker.

Each engine does the work that ours does: bytes on the host in, float32 logits on the host out. Each
gets its best: batch norms folded, channels last where it has the choice, pinned memory.
"""

import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path

SIDE, CLASSES = 224, 1000
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Blocks, width and first stride of the four stages.
STAGES = ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2))
WARM_UP = 5


def say(**line) -> None:
    print(json.dumps(line), flush=True)


def missing(*packages: str) -> bool:
    """Whether one of these packages is not installed; says so."""
    absent = [package for package in packages if importlib.util.find_spec(package) is None]
    if absent:
        say(missing=f"{', '.join(absent)} not installed")
    return bool(absent)


def rate(once, batch: int, iterations: int) -> float:
    """Returns images per second by the median time of one call, which ends with the logits here."""
    for _ in range(WARM_UP):
        once()
    times = []
    for _ in range(iterations):
        start = time.perf_counter()
        once()
        times.append(time.perf_counter() - start)
    return batch / statistics.median(times)


def each(work: dict, prepare) -> None:
    """Measures what is wanted; `prepare(way, batch)` returns a function that does one pass."""
    for way, batch, iterations in work["wanted"]:
        try:
            images_per_second = rate(prepare(way, batch), batch, iterations)
        except Exception as error:  # A compiler that does not run here costs its own cells alone.
            first = (str(error).strip() or repr(error)).splitlines()[0]
            say(way=way, batch=batch, failed=f"{type(error).__name__}: {first[:200]}")
        else:
            say(way=way, batch=batch, images_per_second=images_per_second)


def pytorch(work: dict) -> None:
    """Times PyTorch in channels last: eager, in a CUDA graph, compiled, compiled with graphs."""
    if missing("torch"):
        return
    import torch
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    def convolution(inside: int, outside: int, kernel: int, stride: int = 1) -> nn.Module:
        plain = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False)
        return fuse_conv_bn_eval(plain.eval(), nn.BatchNorm2d(outside).eval())

    class Bottleneck(nn.Module):
        def __init__(self, inside: int, width: int, stride: int):
            super().__init__()
            self.a = convolution(inside, width, 1)
            self.b = convolution(width, width, 3, stride)
            self.c = convolution(width, 4 * width, 1)
            widens = stride != 1 or inside != 4 * width
            self.skip = convolution(inside, 4 * width, 1, stride) if widens else nn.Identity()

        def forward(self, x):
            y = torch.relu(self.b(torch.relu(self.a(x))))
            return torch.relu(self.c(y) + self.skip(x))

    class ResNet50(nn.Module):
        """From pixels [batch, 224, 224, 3] in bytes to logits [batch, 1000] in float32."""

        def __init__(self):
            super().__init__()
            blocks, inside = [], 64
            for count, width, stride in STAGES:
                for i in range(count):
                    blocks.append(Bottleneck(inside, width, stride if i == 0 else 1))
                    inside = 4 * width
            stem = [convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
            head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, CLASSES)]
            self.layers = nn.Sequential(*stem, *blocks, *head)
            self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1) * 255)
            self.register_buffer("deviation", torch.tensor(DEVIATION).view(1, 3, 1, 1) * 255)

        def forward(self, pixels):
            # PyTorch calls this permuted view of [batch, height, width, channels] channels last.
            x = (pixels.permute(0, 3, 1, 2).to(self.mean.dtype) - self.mean) / self.deviation
            return self.layers(x).float()

    device = torch.device(work["device"])
    dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[work["dtype"]]
    on_gpu = device.type == "cuda"
    net = ResNet50().eval().to(device=device, dtype=dtype, memory_format=torch.channels_last)
    # In f32 cuDNN takes TF32 for ours as well.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    say(version=torch.__version__)

    def prepare(way: str, batch: int):
        pixels = torch.randint(0, 256, (batch, SIDE, SIDE, 3), dtype=torch.uint8)
        if on_gpu:
            pixels = pixels.pin_memory()
        if way == "graph":
            return captured(pixels)
        called = net
        if way.startswith("compiled"):
            torch.compiler.reset()
            called = torch.compile(
                net, mode="reduce-overhead" if way == "compiled, graphs" else None
            )
        return lambda: called(pixels.to(device, non_blocking=True)).cpu()

    def captured(pixels):
        given = pixels.to(device)
        # PyTorch asks for some passes on a stream of their own before a capture.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                net(given)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = net(given)

        def once():
            given.copy_(pixels, non_blocking=True)
            graph.replay()
            return logits.cpu()

        return once

    if on_gpu:
        torch.cuda.set_device(device)
    with torch.inference_mode():
        each(work, prepare)


def onnx_runtime(work: dict, provider: str, options: dict) -> None:
    """Times ONNX Runtime with one of its providers, on benches/peers' graph and formula weights."""
    if missing("numpy", "onnx", "safetensors", "onnxruntime"):
        return
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "peers"))
    import formula
    import numpy as np
    import onnx
    import onnxruntime
    import resnet50_onnx
    from onnx import TensorProto, helper, numpy_helper

    if provider not in onnxruntime.get_available_providers():
        say(missing=f"onnxruntime {onnxruntime.__version__} has no {provider}: onnxruntime-gpu has")
        return
    kinds = {"f32": (TensorProto.FLOAT, np.float32), "f16": (TensorProto.FLOAT16, np.float16)}
    if work["dtype"] not in kinds:
        say(missing=f"not measured in {work['dtype']}: numpy has no such type")
        return
    element, scalar = kinds[work["dtype"]]
    say(version=onnxruntime.__version__)

    def from_bytes(model, batch: int) -> bytes:
        """Returns the model in the wanted type, from pixels in bytes to float32 logits."""
        graph = model.graph
        for tensor in graph.initializer:
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor).astype(scalar), tensor.name)
            )
        constants = {"mean": np.array(MEAN) * 255, "deviation": np.array(DEVIATION) * 255}
        graph.initializer.extend(
            numpy_helper.from_array(value.astype(scalar), name) for name, value in constants.items()
        )
        before = [
            helper.make_node("Cast", ["pixels"], ["numbers"], to=element),
            helper.make_node("Sub", ["numbers", "mean"], ["centred"]),
            helper.make_node("Div", ["centred", "deviation"], ["normalised"]),
            helper.make_node("Transpose", ["normalised"], ["input"], perm=[0, 3, 1, 2]),
        ]
        nodes = [
            *before,
            *graph.node,
            helper.make_node("Cast", ["logits"], ["answer"], to=TensorProto.FLOAT),
        ]
        pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, [batch, SIDE, SIDE, 3])
        answer = helper.make_tensor_value_info("answer", TensorProto.FLOAT, [batch, CLASSES])
        whole = helper.make_graph(nodes, "resnet50", [pixels], [answer], graph.initializer)
        made = helper.make_model(whole, opset_imports=model.opset_import)
        made.ir_version = model.ir_version
        onnx.checker.check_model(made)
        return made.SerializeToString()

    weights = formula.weights(0, CLASSES)
    given = (
        [(provider, options)]
        if provider == "CPUExecutionProvider"
        else [(provider, options | device_id(work))]
    )

    def prepare(_way: str, batch: int):
        model = from_bytes(resnet50_onnx.build(weights), batch)
        session = onnxruntime.InferenceSession(model, providers=given)
        if session.get_providers()[0] != provider:
            raise RuntimeError(
                f"{provider} did not load: its libraries are missing or of another version"
            )
        pixels = np.random.default_rng(0).integers(0, 256, (batch, SIDE, SIDE, 3), np.uint8)
        return lambda: session.run(["answer"], {"pixels": pixels})

    each(work, prepare)


def device_id(work: dict) -> dict:
    return {"device_id": work["device"].partition(":")[2] or "0"}


def onnx_runtime_cuda(work: dict) -> None:
    """Times ONNX Runtime's CUDA provider; on the CPU, to try this, its CPU provider."""
    if work["device"] == "cpu":
        onnx_runtime(work, "CPUExecutionProvider", {})
    else:
        onnx_runtime(work, "CUDAExecutionProvider", {"prefer_nhwc": "1"})


def tensorrt(work: dict) -> None:
    """Times TensorRT, which ONNX Runtime's provider of that name calls."""
    if work["device"] == "cpu":
        say(missing="TensorRT computes on GPUs only")
    elif not missing("tensorrt"):
        half = {"trt_fp16_enable": "1"} if work["dtype"] == "f16" else {}
        onnx_runtime(work, "TensorrtExecutionProvider", half)


ENGINES = {"pytorch": pytorch, "onnxruntime": onnx_runtime_cuda, "tensorrt": tensorrt}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    ENGINES[given["engine"]](given)
