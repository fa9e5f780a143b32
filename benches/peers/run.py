#!/usr/bin/env python3
"""Times `imgclass bench` against other engines on the same weights, alternating, and prints a Markdown table.

One alternation is one burst of every engine, in an order that turns round each time, with a rest between bursts. The
figure is the median over alternations of (peer's median) / (our median): a machine that changes speed slows both sides.
Ours is a fresh process each time (its own warm-up; only the median it reports counts). A peer is one process that loads
once and is stopped (SIGSTOP) while others run, since its threads may keep spinning; before it is timed its logits have
to agree with the first peer's.
This module never computes an inference.
"""

import argparse
import contextlib
import datetime
import json
import math
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnx

import formula
import quantise
import resnet50_onnx

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RUST_WORKER = ROOT / "target" / "peers-rust" / "release" / "peer-worker"
# Each with the number type in which it computes.
PYTHON_PEERS = {
    "onnxruntime": "f32",
    "openvino": "f32",
    "openvino-default": "as it comes",
    "onnxruntime-int8": "int8",
    "openvino-int8": "int8",
}
# Whom each of our types is compared with.
DEFAULT_PEERS = {
    "f32": ["onnxruntime", "openvino"],
    "bf16": ["openvino", "openvino-default"],
    "int8": ["openvino", "openvino-int8", "onnxruntime-int8"],
}
RUST_PEERS = ("candle-transformers", "rten", "tract")
SIDE = 224
REST_S = 0.05  # ONNX Runtime's idle threads spin for some milliseconds after a run
BURST_S = 1.0  # the machine's own phases last about as long
FEWEST, MOST = 3, 200  # inferences in a burst
AGREEMENT = 1e-3  # largest difference of a logit between two peers in float32, on logits up to about 25
# Cosine of the angle between the logits of a peer with shorter numbers and those of the first peer, at least. It finds
# another network, not a poor quantisation.
ALIKE = 0.9


# What the kernel calls the instructions for shorter numbers.
SHORT_NUMBERS = {"avx512_bf16": "bfloat16", "avx512_vnni": "VNNI", "avx_vnni": "AVX-VNNI", "amx_tile": "AMX"}


class Ours:
    """Our engine: a process for each burst."""

    name = "imgclass"

    def __init__(self, binary: Path, weights: Path, dtype: str, batch: int, threads: int):
        self.command = [str(binary), "bench", "--weights", str(weights), "--batch-size", str(batch)]
        self.command += ["--dtype", dtype] if dtype != "f32" else []
        self.command += ["--threads", str(threads), "--format", "json", "--iterations"]

    def burst(self, count: int) -> float:
        """Median milliseconds of one inference."""
        done = subprocess.run([*self.command, str(count)], stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"{shlex.join(done.args)} ended with {done.returncode}")
        return float(json.loads(done.stdout)["median_ms"])


class Peer:
    """Another engine: a worker process (protocol in peer_worker.py), stopped whenever it is not its turn."""

    def __init__(self, name: str, command: list[str], threads: int):
        self.name = name
        environment = {**os.environ, "RAYON_NUM_THREADS": str(threads)}  # candle has no other way to be told
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        ready = self.answer()
        self.version, self.logits = ready["version"], ready["logits"]
        self.stop()

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name}: its worker ended with {self.process.wait()}; its own message is above")
        return json.loads(line)

    def stop(self) -> None:
        time.sleep(REST_S)
        self.process.send_signal(signal.SIGSTOP)

    def burst(self, count: int) -> float:
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(f"run {count}\n")
        self.process.stdin.flush()
        times = self.answer()["ms"]
        self.stop()
        return statistics.median(times)

    def close(self) -> None:
        """Kills: a stopped process would see neither a closed stdin nor a polite signal."""
        self.process.kill()
        self.process.wait()


class Files:
    """What the workers read: the network as ONNX, as it is and quantised, and an input for each batch size."""

    def __init__(self, folder: Path, args: argparse.Namespace):
        self.folder, self.weights = folder, args.weights
        self.onnx = folder / "resnet50.onnx"
        onnx.save_model(resnet50_onnx.build(resnet50_onnx.load(str(args.weights))), self.onnx)
        names = [name for name in args.peers if PYTHON_PEERS.get(name) == "int8"]
        self.quantised = quantise.quantise(self.onnx, names, args.calibrate, args.quantised or folder) if names else {}

    def worker(self, name: str, batch: int, threads: int) -> list[str]:
        x = self.folder / f"input_{batch}.f32"
        if not x.exists():
            formula.network_input(batch, SIDE, SIDE).astype("<f4").tofile(x)
        network = self.quantised.get(name, self.onnx)
        common = ["--onnx", str(network), "--input", str(x), "--batch-size", str(batch), "--threads", str(threads)]
        if name in PYTHON_PEERS:
            engine = name.split("-")[0]
            chooses = ["--as-it-comes"] if PYTHON_PEERS[name] != "f32" and engine == "openvino" else []
            return [sys.executable, str(HERE / "peer_worker.py"), engine, *common, *chooses]
        return [str(RUST_WORKER), name, "--weights", str(self.weights), *common]


class Setting:
    """One batch size and thread count: the engines, and what they measured."""

    def __init__(self, args: argparse.Namespace, files: Files, batch: int, threads: int, cleanup: contextlib.ExitStack):
        self.batch, self.threads = batch, threads
        self.ours = Ours(args.imgclass.resolve(), args.weights, args.dtype, batch, threads)
        self.peers = []
        for name in args.peers:
            peer = Peer(name, files.worker(name, batch, threads), threads)
            cleanup.callback(peer.close)
            self.peers.append(peer)
        self.ms: dict[str, list[float]] = {}

    def assert_agreement(self) -> None:
        for peer in self.peers[1:]:
            first = self.peers[0]
            types = {PYTHON_PEERS.get(name, "f32") for name in (first.name, peer.name)}
            if types != {"f32"}:
                if "f32" in types and cosine(first.logits, peer.logits) < ALIKE:
                    sys.exit(f"{peer.name} and {first.name} give other logits: they do not run the same network")
                continue
            gap = max(abs(a - b) for a, b in zip(first.logits, peer.logits, strict=True))
            if not gap < AGREEMENT:
                sys.exit(f"{peer.name} and {first.name} differ by {gap} in a logit: they do not run the same network")

    def measure(self, alternations: int) -> None:
        engines = [self.ours, *self.peers]
        counts = {}
        for engine in engines:
            estimate = engine.burst(FEWEST) / 1e3
            counts[engine.name] = min(max(round(BURST_S / estimate), FEWEST), MOST)
            self.ms[engine.name] = []
        for _ in range(alternations):
            for engine in engines:
                self.ms[engine.name].append(engine.burst(counts[engine.name]))
                time.sleep(REST_S)
            engines.reverse()

    def rows(self) -> list[str]:
        ours = self.ms[self.ours.name]
        rows = []
        for peer in self.peers:
            ratios = sorted(p / o for p, o in zip(self.ms[peer.name], ours, strict=True))
            low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
            rows.append(
                f"| {self.batch} | {self.threads} | {statistics.median(ours):.2f} | {peer.name} "
                f"| {statistics.median(self.ms[peer.name]):.2f} | **{middle:.2f}** | {low:.2f} to {high:.2f} |"
            )
        return rows


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        flags = fields.get("flags", "").split()
        wide = "AVX-512" if "avx512f" in flags else "no AVX-512"
        wide += "".join(f", {name}" for flag, name in SHORT_NUMBERS.items() if flag in flags)
        family = f"family {fields.get('cpu family', '?')}, model {fields.get('model', '?')}"
        return f"{fields.get('model name', 'unknown')} ({family}, {wide})"
    except OSError:
        return platform.processor() or platform.machine()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="safetensors file with torchvision's names")
    parser.add_argument("--imgclass", type=Path, default=ROOT / "target" / "release" / "imgclass", help="our binary")
    parser.add_argument("--dtype", choices=DEFAULT_PEERS, default="f32", help="our number type (default f32)")
    choices = (*PYTHON_PEERS, *RUST_PEERS)
    parser.add_argument("--peers", nargs="+", choices=choices, help="default: by the number type, those that are built")
    parser.add_argument("--calibrate", type=Path, metavar="FOLDER", help="photographs for the peers' int8")
    parser.add_argument("--quantised", type=Path, metavar="FOLDER", help="keeps the peers' networks of these weights")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 4, 8], metavar="B")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="T")
    parser.add_argument("--alternations", type=int, default=12, metavar="N", help="at least 2 (default 12)")
    args = parser.parse_args()
    if args.peers is None:
        rust = RUST_PEERS if args.dtype == "f32" and RUST_WORKER.exists() else ()
        args.peers = [*DEFAULT_PEERS[args.dtype], *rust]
    if args.alternations < 2:
        parser.error("--alternations: quartiles need at least 2")
    if not args.imgclass.exists():
        parser.error(f"{args.imgclass} does not exist: build it with `cargo build --release`, or name another")
    if set(args.peers) & set(RUST_PEERS) and not RUST_WORKER.exists():
        parser.error("the Rust peers are not built: benches/peers/setup.sh --rust")
    return args


def main() -> None:
    args = arguments()
    rows: list[str] = []
    versions: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="imgclass-peers-") as folder:
        files = Files(Path(folder), args)
        for threads in args.threads:
            for batch in args.batch_sizes:
                print(f"batch {batch}, threads {threads} ...", file=sys.stderr, flush=True)
                with contextlib.ExitStack() as cleanup:
                    setting = Setting(args, files, batch, threads, cleanup)
                    setting.assert_agreement()
                    setting.measure(args.alternations)
                versions |= {peer.name: peer.version for peer in setting.peers}
                rows += setting.rows()

    ours = subprocess.check_output([args.imgclass.resolve(), "--version"], text=True).strip()
    command = shlex.join(["benches/peers/run.py", *sys.argv[1:]])
    print(f"{datetime.date.today()}, {cpu_model()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}")
    print("; ".join([ours, *(f"{name} {version}" for name, version in versions.items())]))
    print(f"`{command}`: {args.alternations} alternations, bursts of about {BURST_S:g} s, {SIDE}x{SIDE}, ours in {args.dtype}\n")
    print("| batch | threads | ours ms | peer | peer ms | ours is times as fast | middle half |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
