#!/usr/bin/env python3
"""Quantises the ONNX network for the peers, each by its own tool as its documentation advises.

    quantise.py --onnx resnet50.onnx --calibrate PHOTOGRAPHS --folder target/quantised

It writes `openvino-int8.xml` (NNCF, mixed preset: unsigned activations behind ReLU) and
`onnxruntime-int8.onnx` (QDQ; activations u8, weights s8 with a scale for each channel, ranges from least to most).
The photographs are prepared as the network was trained: shorter side 256, crop of 224. Without photographs the
formula's inputs set the ranges, which is good for timing and for nothing else.
This module never times anything.
"""

import argparse
import os
from pathlib import Path

import numpy as np

import formula

SIDE, SHORTER = 224, 256
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
MOST = 200  # photographs
GENERATED = 16  # inputs by the formula
KINDS = (".jpg", ".jpeg", ".png", ".webp")


def prepared(path: Path) -> np.ndarray:
    """A photograph as [1, 3, 224, 224]."""
    from PIL import Image

    image = Image.open(path).convert("RGB")
    scale = SHORTER / min(image.size)
    image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BILINEAR)
    left, top = ((side - SIDE) // 2 for side in image.size)
    pixels = np.asarray(image.crop((left, top, left + SIDE, top + SIDE)), np.float32) / 255
    return ((pixels - MEAN) / STD).transpose(2, 0, 1)[None].copy()


def inputs(photographs: Path | None) -> list[np.ndarray]:
    if photographs is None:
        return [formula.network_input(1, SIDE, SIDE, seed) for seed in range(GENERATED)]
    files = sorted(path for path in photographs.rglob("*") if path.suffix.lower() in KINDS)[:MOST]
    if not files:
        raise SystemExit(f"{photographs}: no photograph ({', '.join(KINDS)}) in this folder")
    return [prepared(path) for path in files]


def by_nncf(network: Path, samples: list[np.ndarray], out: Path) -> None:
    import nncf
    import openvino

    model = openvino.Core().read_model(network)
    data = nncf.Dataset(samples)
    quantised = nncf.quantize(model, data, preset=nncf.QuantizationPreset.MIXED, subset_size=len(samples))
    openvino.save_model(quantised, out)


def by_onnx_runtime(network: Path, samples: list[np.ndarray], out: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.rest = iter(samples)

        def get_next(self):
            x = next(self.rest, None)
            return None if x is None else {"input": x}

    prepared_network = out.with_suffix(".prepared.onnx")
    quant_pre_process(str(network), str(prepared_network), skip_symbolic_shape=True)
    quantize_static(
        str(prepared_network),
        str(out),
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    prepared_network.unlink()


MAKERS = {"openvino-int8": (by_nncf, ".xml"), "onnxruntime-int8": (by_onnx_runtime, ".onnx")}


def quantise(network: Path, names: list[str], photographs: Path | None, folder: Path) -> dict[str, Path]:
    """Makes the files of the peers `names` that are not there yet, and returns where they are."""
    os.environ.setdefault("OPENVINO_TELEMETRY_DISABLE", "1")
    files = {name: folder / (name + MAKERS[name][1]) for name in names}
    missing = [name for name in names if not files[name].exists()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        samples = inputs(photographs)
        for name in missing:
            MAKERS[name][0](network, samples, files[name])
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--onnx", type=Path, required=True, help="the network, from resnet50_onnx.py")
    parser.add_argument("--calibrate", type=Path, metavar="FOLDER", help="photographs that set the ranges")
    parser.add_argument("--folder", type=Path, required=True, help="where the quantised networks go")
    args = parser.parse_args()
    for name, path in quantise(args.onnx, list(MAKERS), args.calibrate, args.folder).items():
        print(f"{name}: {path}")


if __name__ == "__main__":
    main()
