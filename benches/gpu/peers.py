"""Lists the other engines and the ways in which each runs, and starts their workers."""

import importlib.metadata
import json
import os
import sys
from pathlib import Path

import process
import program

WORKER = Path(__file__).resolve().with_name("peer_worker.py")
# The ways in which each engine is measured, in the table's order.
WAYS = {
    "pytorch": ["eager", "graph", "compiled", "compiled, graphs"],
    "onnxruntime": ["CUDA provider"],
    "tensorrt": ["fp16"],
}

# Ways that have no counterpart on a CPU.
GPU_ONLY = {"graph", "compiled, graphs", "fp16"}
# The package whose version counts, by the names that it may be installed under.
PACKAGES = {
    "pytorch": ["torch"],
    "onnxruntime": ["onnxruntime-gpu", "onnxruntime"],
    "tensorrt": ["tensorrt", "tensorrt-cu13", "tensorrt-cu12"],
}


def version(engine: str) -> str:
    """Returns the installed version of an engine, or "not installed"."""
    for package in PACKAGES[engine]:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not installed"


def measure(engine: str, device: str, dtype: str, wanted: list, timeout: float, report) -> None:
    """Measures one engine in a process of its own, whose memory is free again when ours runs.

    `wanted` lists [way, batch size, timed passes] in the order of measuring. `report(line)` gets
    each line of the worker as a dictionary; peer_worker.py says what they hold. Raises what
    `process.run` raises.
    """
    work = {
        "engine": engine,
        "device": device if device.startswith("cuda") else "cpu",
        "dtype": dtype,
        "wanted": wanted,
    }
    # PyTorch finds its own libraries; ONNX Runtime has to be shown them.
    environment = dict(os.environ) if engine == "pytorch" else program.environment()
    command = [sys.executable, WORKER, json.dumps(work)]

    def on_line(line: str) -> None:
        # Libraries print lines of their own.
        if line.startswith("{"):
            report(json.loads(line))

    process.run(command, timeout=timeout, environment=environment, on_line=on_line)
