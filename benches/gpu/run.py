#!/usr/bin/env python3
"""The network on a GPU beside our CPU kernels and beside PyTorch, in one run: logits, top-1, images per second.

Prints Markdown tables for docs/benchmarks.md; --json FILE also keeps the numbers. Exit code 1 if a logit or a top-1 is
further off than its type allows. Everything but the numbers can be tried without a GPU: --device candle runs a GPU's path
on the CPU, --device cpu our kernels. This module computes no inference of ours itself: it asks the binary.
"""

import argparse
import csv
import importlib.util
import json
import os
import platform
import shlex
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TOOLKIT = ROOT / "target" / "cuda-toolkit" / "wheels" / "nvidia" / "cu13" / "lib"
BATCH_SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256]
# Furthest difference of a logit from our CPU kernels', as a share of the image's largest logit. f32 on Ampere and later is
# TF32 inside cuDNN, with 11 bits of precision, as f16; bf16 has 8.
TOLERANCE = {"f32": 1e-2, "f16": 3e-2, "bf16": 1e-1}
# A photograph may have another top-1 where the reference's own margin between the first two logits is below this.
UNSURE = {"f32": 0.1, "f16": 0.2, "bf16": 0.5}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--imgclass", type=Path, default=ROOT / "target" / "release" / "imgclass", help="a binary built with --features cuda,cudnn")
    parser.add_argument("--device", default="cuda:0", help="cuda:N; or candle, cpu: to try this script")
    parser.add_argument("--dtypes", nargs="+", choices=list(TOLERANCE), help="default: all that the device computes in")
    parser.add_argument("--weights", help="a safetensors file, or random [default: the reference's, else random]")
    parser.add_argument("--shared", type=Path, help="a folder with reference/images.tsv (file, top1, margin) and what it names")
    parser.add_argument("--photographs", type=int, default=200, help="of the reference, at most")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=BATCH_SIZES)
    parser.add_argument("--iterations", type=int, default=50, help="forward passes that are timed for each figure")
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    parser.add_argument("--torch-worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def environment() -> dict:
    """CUDA's libraries from this checkout's toolkit or from PyTorch's wheels, where the loader would not find them by itself."""
    folders = [TOOLKIT] if TOOLKIT.is_dir() else []
    nvidia = importlib.util.find_spec("nvidia")
    for root in nvidia.submodule_search_locations if nvidia else []:
        folders += sorted(Path(root).glob("**/lib"))
    known = [os.environ["LD_LIBRARY_PATH"]] if os.environ.get("LD_LIBRARY_PATH") else []
    # What is set already goes first: whoever set it knows why.
    return os.environ | {"LD_LIBRARY_PATH": ":".join(known + [str(folder) for folder in folders])}


class Binary:
    def __init__(self, options: argparse.Namespace):
        self.path = options.imgclass
        self.weights = options.weights
        self.environment = environment()
        if not self.path.is_file():
            sys.exit(f"there is no binary {self.path}: `cargo build --release --features cuda,cudnn`, or name one with --imgclass")

    def run(self, *words: str) -> str:
        command = [str(self.path), *words, "--weights", self.weights]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False, env=self.environment)
        if done.returncode != 0:
            raise RuntimeError(f"{shlex.join(command[:9])} ... ended with {done.returncode}: {done.stderr.strip()[-600:]}")
        return done.stdout

    def logits(self, pictures: list, device: str, dtype: str) -> dict:
        """Logits of each picture by its path."""
        words = ["classify", "--format", "jsonl", "--top-k", "1", "--logits", "--device", device, "--dtype", dtype]
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as listed:
            listed.write("\n".join(map(str, pictures)))
            listed.flush()
            lines = self.run(*words, "--files-from", listed.name).splitlines()
        rows = [json.loads(line) for line in lines]
        bad = [row for row in rows if "logits" not in row]
        if bad or len(rows) != len(pictures):
            raise RuntimeError(f"{len(rows)} answers to {len(pictures)} pictures, {len(bad)} of them errors: {bad[:1]}")
        return {row["file"]: row["logits"] for row in rows}

    def speed(self, device: str, dtype: str, batch: int, iterations: int) -> dict:
        words = ["bench", "--format", "json", "--device", device, "--dtype", dtype]
        return json.loads(self.run(*words, "--batch-size", str(batch), "--iterations", str(iterations)))


def png(path: Path, step: int) -> Path:
    """A picture of coloured ramps, where there is no photograph."""
    side = 256
    rows = [bytes([0]) + bytes(v & 255 for x in range(side) for v in (x * step + y, x // 3 + 2 * y, (x ^ y) * step)) for y in range(side)]
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b""))
    return path


def reference(options: argparse.Namespace) -> list:
    """The reference's photographs: path, top-1, margin."""
    if options.shared is None:
        return []
    with (options.shared / "reference" / "images.tsv").open(newline="") as table:
        rows = list(csv.DictReader(table, delimiter="\t"))[: options.photographs]
    return [(str(options.shared / row["file"]), int(row["top1"]), float(row["margin"])) for row in rows]


def argmax(logits: list) -> int:
    return max(range(len(logits)), key=logits.__getitem__)


def accuracy(binary: Binary, options: argparse.Namespace, photographs: list, pictures: list) -> tuple:
    """Logits against our CPU kernels and top-1 against the reference, for each type."""
    expected = binary.logits(pictures, "cpu", "f32")
    print("\n| type | furthest logit, share of the largest | allowed | same top-1 as our CPU | as the reference |\n|---|---|---|---|---|")
    results, good = {}, True
    for dtype in options.dtypes:
        try:
            found = binary.logits(pictures, options.device, dtype)
        except RuntimeError as error:
            print(f"| {dtype} | failed: {error} | | | |")
            results[dtype], good = {"error": str(error)}, False
            continue
        furthest = max(
            max(abs(a - b) for a, b in zip(found[path], logits)) / max(map(abs, logits)) for path, logits in expected.items()
        )
        same = sum(argmax(found[path]) == argmax(logits) for path, logits in expected.items())
        wrong = [(path, top1, margin) for path, top1, margin in photographs if argmax(found[path]) != top1]
        agree = f"{len(photographs) - len(wrong)} of {len(photographs)}" if photographs else "no reference"
        print(f"| {dtype} | {furthest:.2e} | {TOLERANCE[dtype]:.0e} | {same} of {len(expected)} | {agree} |")
        for path, top1, margin in wrong:
            print(f"{dtype}: {Path(path).name}: {argmax(found[path])} instead of {top1}, whose margin is {margin}", file=sys.stderr)
        # Random weights spread their logits too little for a share of the largest to mean much more than that nothing is broken.
        good &= furthest <= TOLERANCE[dtype] and all(margin < UNSURE[dtype] for _, _, margin in wrong)
        results[dtype] = {"furthest": furthest, "same_top1": same, "images": len(expected), "reference_wrong": len(wrong)}
    return results, good


def speeds(binary: Binary, options: argparse.Namespace) -> dict:
    """Images per second of ours and of PyTorch, for each type and batch."""
    torch = "left out by --no-torch" if options.no_torch else None if importlib.util.find_spec("torch") else "not installed"
    if torch:
        print(f"\nPyTorch: {torch}")
    print("\n| type | batch | ours, images/s | PyTorch eager | compiled | ours as a share of compiled |\n|---|---|---|---|---|---|")
    results = {}
    for dtype in options.dtypes:
        peers = {} if torch else torch_speeds(options, dtype)
        for batch in options.batch_sizes:
            try:
                ours = binary.speed(options.device, dtype, batch, options.iterations)["images_per_second"]
            except RuntimeError as error:
                print(f"{dtype}, batch of {batch}: {error}", file=sys.stderr)
                ours = None
            row = {"imgclass": ours} | {kind: peers.get(kind, {}).get(str(batch)) for kind in ("eager", "compiled")}
            share = f"{ours / row['compiled']:.2f}" if ours and row["compiled"] else ""
            cells = [f"{value:.0f}" if value else "" for value in row.values()]
            print(f"| {dtype} | {batch} | {' | '.join(cells)} | {share} |", flush=True)
            results.setdefault(dtype, {})[batch] = row
    return results


def torch_speeds(options: argparse.Namespace, dtype: str) -> dict:
    """In a process of its own, whose memory is free again when ours runs."""
    device = options.device if options.device.startswith("cuda") else "cpu"
    work = {"device": device, "dtype": dtype, "batches": options.batch_sizes, "iterations": options.iterations}
    done = subprocess.run([sys.executable, __file__, "--torch-worker", json.dumps(work)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        print(f"PyTorch in {dtype} ended with {done.returncode}: {done.stderr.strip()[-600:]}", file=sys.stderr)
        return {}
    sys.stderr.write("".join(f"PyTorch: {line}\n" for line in done.stderr.splitlines() if line.startswith("note:")))
    return json.loads(done.stdout.splitlines()[-1])


def torch_worker(work: dict) -> None:
    """ResNet-50 v1.5 in PyTorch, channels last, from bytes on the host to logits on the host: the work that ours does too."""
    import statistics
    import time

    import torch
    from torch import nn

    class Bottleneck(nn.Module):
        def __init__(self, inside: int, width: int, stride: int):
            super().__init__()
            conv = lambda i, o, k, s=1: nn.Sequential(nn.Conv2d(i, o, k, s, k // 2, bias=False), nn.BatchNorm2d(o))
            self.a, self.b, self.c = conv(inside, width, 1), conv(width, width, 3, stride), conv(width, 4 * width, 1)
            self.skip = conv(inside, 4 * width, 1, stride) if stride != 1 or inside != 4 * width else nn.Identity()

        def forward(self, x):
            return torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x))))) + self.skip(x))

    stages, inside = [], 64
    for blocks, width, stride in ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2)):
        for i in range(blocks):
            stages.append(Bottleneck(inside, width, stride if i == 0 else 1))
            inside = 4 * width
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    device, dtype = work["device"], {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[work["dtype"]]
    net = nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))
    net = net.eval().to(device=device, dtype=dtype, memory_format=torch.channels_last)
    # As cuDNN computes ours in f32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    mean = torch.tensor([0.485, 0.456, 0.406], device=device).view(1, 3, 1, 1) * 255
    std = torch.tensor([0.229, 0.224, 0.225], device=device).view(1, 3, 1, 1) * 255

    def measure(net, batch: int) -> float:
        pixels = (torch.arange(batch * 224 * 224 * 3) % 255).to(torch.uint8).view(batch, 224, 224, 3)
        def once():
            x = (pixels.to(device).permute(0, 3, 1, 2).float() - mean) / std
            return net(x.to(dtype, memory_format=torch.channels_last)).float().cpu()
        for _ in range(5):
            once()
        times = []
        for _ in range(work["iterations"]):
            start = time.perf_counter()
            once()
            times.append(time.perf_counter() - start)
        return batch / statistics.median(times)

    results = {"eager": {}, "compiled": {}}
    with torch.inference_mode():
        for batch in work["batches"]:
            results["eager"][batch] = measure(net, batch)
            try:
                torch.compiler.reset()
                results["compiled"][batch] = measure(torch.compile(net), batch)
            except Exception as error:  # a compiler that does not run here costs its column alone
                print(f"note: not compiled at batch {batch}: {str(error).splitlines()[0]}", file=sys.stderr)
    print(json.dumps(results))


def about(binary: Binary, options: argparse.Namespace) -> dict:
    """The machine and the versions, for the table's heading."""
    smi = None
    if options.device.startswith("cuda"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        try:
            smi = subprocess.run(query, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError) as error:
            smi = f"nvidia-smi: {error}"
    version = subprocess.run([str(binary.path), "--version"], stdout=subprocess.PIPE, text=True, check=False, env=binary.environment).stdout.strip()
    torch = None
    if importlib.util.find_spec("torch"):
        import torch as module

        torch = module.__version__
    return {"command": shlex.join(sys.argv), "machine": smi or platform.processor() or platform.machine(), "imgclass": version, "torch": torch}


def main() -> None:
    options = arguments()
    if options.torch_worker:
        return torch_worker(json.loads(options.torch_worker))
    if options.weights is None:
        held = options.shared / "weights" / "resnet50.safetensors" if options.shared else None
        options.weights = str(held) if held and held.is_file() else "random"
    options.dtypes = options.dtypes or (["f32"] if options.device == "cpu" else list(TOLERANCE))
    binary = Binary(options)
    heading = about(binary, options)
    print(f"`{heading['command']}` on {heading['machine']}; {heading['imgclass']}, PyTorch {heading['torch'] or 'not installed'}; weights: {Path(options.weights).name}")
    photographs = reference(options)
    with tempfile.TemporaryDirectory() as folder:
        drawn = [ROOT / "web" / "example.jpg"] + [png(Path(folder) / f"{step}.png", step) for step in (1, 3, 5, 7, 11, 13, 17)]
        pictures = [path for path, _, _ in photographs] or [str(path) for path in drawn]
        logits, good = accuracy(binary, options, photographs, pictures)
    images_per_second = speeds(binary, options)
    if options.json:
        options.json.write_text(json.dumps({"about": heading, "logits": logits, "images_per_second": images_per_second}, indent=1))
    if not good:
        sys.exit("some logits or classes are further off than their type allows: see above")


if __name__ == "__main__":
    main()
