#!/usr/bin/env python3
"""One peer, loaded once: times bursts of inference when told to. Started by run.py, one process for each engine.

Protocol, a line each way: on start it prints {"version": ..., "logits": [...]} for the given input; then, for every
line `run N`, it does WARM_UP untimed and N timed inferences and prints {"ms": [...]}. It ends when stdin closes.
Every engine gets what its documentation advises for latency: static shapes, all graph optimisations. OpenVINO
computes in float32 where --as-it-comes is not given, and else in the type that it chooses for this CPU.
This module never compares or judges.
"""

import argparse
import json
import sys
import time

import numpy as np

WARM_UP = 2  # after a pause threads sleep and caches hold another engine's data
CHANNELS, SIDE = 3, 224


def onnx_runtime(args: argparse.Namespace):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    for name, size in (("batch", args.batch_size), ("height", SIDE), ("width", SIDE)):
        options.add_free_dimension_override_by_name(name, size)
    session = onnxruntime.InferenceSession(args.onnx, options, providers=["CPUExecutionProvider"])
    return onnxruntime.__version__, lambda x: session.run(["logits"], {"input": x})[0]


def openvino(args: argparse.Namespace):
    import openvino

    core = openvino.Core()
    model = core.read_model(args.onnx)
    model.reshape([args.batch_size, CHANNELS, SIDE, SIDE])
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(args.threads),
    }
    if not args.as_it_comes:
        # Without the hint a CPU that has bfloat16 instructions would compute in bfloat16.
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    compiled = core.compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()

    def infer(x: np.ndarray) -> np.ndarray:
        request.infer({0: x}, share_inputs=True, share_outputs=True)
        return request.get_output_tensor(0).data

    return openvino.__version__.split("-")[0], infer


ENGINES = {"onnxruntime": onnx_runtime, "openvino": openvino}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("--onnx", required=True, help="the network, from resnet50_onnx.py or quantise.py")
    parser.add_argument("--input", required=True, help="the input [batch, 3, 224, 224], raw little-endian float32")
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--as-it-comes", action="store_true", help="OpenVINO chooses its number type itself")
    args = parser.parse_args()

    x = np.fromfile(args.input, "<f4").reshape(args.batch_size, CHANNELS, SIDE, SIDE)
    version, infer = ENGINES[args.engine](args)
    print(json.dumps({"version": version, "logits": infer(x).ravel().tolist()}), flush=True)
    for line in sys.stdin:
        _, count = line.split()
        for _ in range(WARM_UP):
            infer(x)
        times = []
        for _ in range(int(count)):
            start = time.perf_counter()
            infer(x)
            times.append((time.perf_counter() - start) * 1e3)
        print(json.dumps({"ms": times}), flush=True)


if __name__ == "__main__":
    main()
