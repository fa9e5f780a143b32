#!/usr/bin/env python3
"""Measures the network on a GPU beside our CPU kernels and beside other engines, in one run.

    benches/gpu/run.py --shared REFERENCE

The parts run in the order of what is most worth knowing, so that a run that is cut off has still
answered the first question: logits and top-1; speed of ours; speed of PyTorch, ONNX Runtime and
TensorRT; memory; the service under load; compute-sanitizer. Each figure is kept in --json as soon
as it is measured. A second start with the same program on the same card measures only what is
missing.
Markdown tables for docs/benchmarks.md go to stdout, progress to stderr.

Exit code 1 if a logit or a top-1 is further off than its type allows, or if a part of ours failed;
2 if the budget left something unmeasured. `--dry-run` tries every part that needs no GPU, with any
binary: a GPU's path computes on the CPU (`--device candle`) in float32, one pass each. `--device
cpu` takes our kernels in its place.
"""

import argparse
import hashlib
import shlex
import signal
import sys
import tempfile
import time
from pathlib import Path

import peers
import photographs
import process
import tables
from program import COMPARED, KERNELS, NOT_IN, PATHS, ROOT, Program, card, query_card
from store import Store

PARTS = ["logits", "speed", "peers", "memory", "service", "sanitizer"]
# In the order of measuring: first the sizes that the goals name.
BATCH_SIZES = [64, 1, 8, 256]
# The furthest difference of a logit from our CPU kernels', as a share of the image's largest logit.
# f32 on Ampere and later is TF32 inside cuDNN, with 11 bits of precision, as f16; bf16 has 8.
TOLERANCE = {"f16": 3e-2, "bf16": 1e-1, "f32": 1e-2}
# A photograph may have another top-1 where the reference's own margin is below this.
UNSURE = {"f32": 0.1, "f16": 0.2, "bf16": 0.5}
MEMORY_BATCH = 64
CLIENTS = 64
SERVICE_S = 10
# What the parts behind the other engines take on a GPU, by estimate: they are kept free for them.
RESERVED_S = 100
NOT_RUN = "not run within the budget"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--imgclass",
        type=Path,
        default=ROOT / "target" / "release" / "imgclass",
        help="a binary built with --features cuda,cudnn",
    )
    parser.add_argument(
        "--device", default="cuda:0", help="cuda:N; or candle, cpu: to try this script"
    )
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=list(TOLERANCE),
        help="default: all of the device; memory, service and sanitizer take the first",
    )
    parser.add_argument("--peer-dtypes", nargs="+", choices=list(TOLERANCE), default=["f16"])
    parser.add_argument(
        "--weights", help="a safetensors file, or random [default: the reference's, else random]"
    )
    parser.add_argument(
        "--shared",
        type=Path,
        help="a folder with reference/images.tsv (file, top1, margin) and what it names",
    )
    parser.add_argument("--photographs", type=int, default=200, help="of the reference, at most")
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", default=BATCH_SIZES, help="in the order of measuring"
    )
    parser.add_argument(
        "--iterations", type=int, default=50, help="forward passes that are timed for each figure"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="try the script without a GPU: --device candle --dtypes f32 --peer-dtypes f32 "
        "--batch-sizes 1 --iterations 1 --photographs 3, and nothing is kept",
    )
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    parser.add_argument(
        "--budget", type=float, default=480, metavar="SECONDS", help="for everything [default: 480]"
    )
    parser.add_argument(
        "--json",
        type=Path,
        default=Path("gpu.json"),
        help="where figures are kept [default: gpu.json]",
    )
    options = parser.parse_args()
    if options.dry_run:
        options.device, options.dtypes, options.peer_dtypes = "candle", ["f32"], ["f32"]
        options.batch_sizes, options.iterations, options.photographs = [1], 1, 3
    if (
        min([*options.batch_sizes, options.iterations, options.photographs]) < 1
        or options.budget <= 0
    ):
        parser.error("--batch-sizes, --iterations, --photographs and --budget have to be above 0")
    return options


class Run:
    """One start of this script: what it measures with, and what became of each measurement."""

    def __init__(
        self, options: argparse.Namespace, program: Program, pictures: list, reference: list
    ):
        self.options = options
        self.program = program
        self.pictures = pictures
        self.reference = reference
        self.store = Store(None if options.dry_run else options.json)
        self.deadline = time.monotonic() + options.budget
        self.card = card(options.device)
        self.weights = digest(options.weights)
        self.failures, self.not_run = {}, []
        # Images per second by (column, type, batch size), or the reason why there are none.
        self.speeds = {}
        # Without a GPU there is one path.
        others = {"cpu": [KERNELS], "candle": ["candle"]}
        self.paths = others.get(options.device, list(PATHS))
        # Logits of our CPU kernels, which every path and type is compared with.
        self.expected = None

    @property
    def dtype(self) -> str:
        """The type of the parts that measure only one."""
        return self.options.dtypes[0]

    def paths_of(self, dtype: str) -> list:
        """The paths that compute in a type."""
        return [path for path in self.paths if dtype not in NOT_IN.get(path, [])]

    def main_paths(self) -> list:
        """The paths of the parts that measure only one type."""
        return [path for path in self.paths_of(self.dtype) if path not in COMPARED]

    def reason(self, name: str) -> str:
        """Returns why a measurement has no figure."""
        return NOT_RUN if name in self.not_run else "failed, see below"

    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.deadline - time.monotonic()

    def key(self, measurement: str, path: str, dtype: str, **parameters) -> dict:
        """Returns the key of a figure of ours."""
        ours = {"binary": self.program.sha256, "path": path, "weights": self.weights}
        return self.about(measurement, dtype) | ours | parameters

    def peer_key(self, engine: str, way: str, dtype: str, batch: int) -> dict:
        """Returns the key of a figure of another engine."""
        theirs = {"engine": engine, "version": peers.version(engine), "way": way}
        return (
            self.about("peer", dtype)
            | theirs
            | {"batch": batch, "iterations": self.iterations(batch)}
        )

    def about(self, measurement: str, dtype: str) -> dict:
        return {
            "measurement": measurement,
            "card": self.card,
            "device": self.options.device,
            "dtype": dtype,
        }

    def iterations(self, batch: int) -> int:
        """Timed passes: fewer at large batches, whose passes are long and vary little."""
        return max(1, self.options.iterations * 64 // max(batch, 64))

    def measure(self, name: str, key: dict, function) -> dict | None:
        """Returns the figure from the store, or measures it: `function(timeout)`.

        Returns None where it failed or the budget ended first, and remembers why.
        """
        found = self.store.get(key)
        if found is not None:
            progress(f"{name}: measured before")
            return found
        progress(f"{name} ({self.left():.0f} s left)")
        try:
            value = function(self.left())
        except process.OutOfTime:
            self.not_run.append(name)
            return None
        except process.Failed as error:
            self.failures[name] = str(error)
            progress(f"{name}: {error}")
            return None
        self.store.put(key, value, shlex.join(sys.argv))
        return value


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def digest(weights: str) -> str:
    """Returns the SHA-256 of a file of weights; `random` stays itself."""
    path = Path(weights)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else weights


def argmax(logits: list) -> int:
    return max(range(len(logits)), key=logits.__getitem__)


def part_logits(run: Run) -> None:
    """Compares each path and type with our CPU kernels, and top-1 with the reference."""
    rows = []
    for path in run.paths:
        for dtype in run.options.dtypes:
            if path not in run.paths_of(dtype):
                continue
            given = {"photographs": len(run.reference), "pictures": len(run.pictures)}
            key = run.key("logits", path, dtype, **given)
            value = run.measure(
                f"logits, {path}, {dtype}", key, lambda timeout: compare(run, path, dtype, timeout)
            )
            rows.append((path, dtype, value or run.reason(f"logits, {path}, {dtype}")))
            if value and not within(value, dtype):
                run.failures[f"logits, {path}, {dtype}"] = (
                    f"off by {value['furthest']:.2e}; top-1 {value['wrong']}"
                )
    tables.logits(rows, TOLERANCE)


def compare(run: Run, path: str, dtype: str, timeout: float) -> dict:
    """Returns the furthest logit and the classes that differ."""
    started = time.monotonic()
    if run.expected is None:
        run.expected = run.program.logits(run.pictures, KERNELS, "cpu", "f32", timeout)
    left = timeout - (time.monotonic() - started)
    found = run.program.logits(run.pictures, path, run.options.device, dtype, left)
    shares = [
        max(abs(a - b) for a, b in zip(found[picture], logits)) / max(map(abs, logits))
        for picture, logits in run.expected.items()
    ]
    # NaN compares as no maximum.
    furthest = max(shares) if all(share == share for share in shares) else float("inf")
    same = sum(argmax(found[picture]) == argmax(logits) for picture, logits in run.expected.items())
    wrong = [
        {
            "file": Path(row.path).name,
            "found": argmax(found[row.path]),
            "top1": row.top1,
            "margin": row.margin,
        }
        for row in run.reference
        if argmax(found[row.path]) != row.top1
    ]
    counts = {"pictures": len(run.pictures), "same_top1": same, "photographs": len(run.reference)}
    return {"furthest": furthest, **counts, "wrong": wrong}


def within(value: dict, dtype: str) -> bool:
    """Whether logits and classes are as near as the type allows."""
    return value["furthest"] <= TOLERANCE[dtype] and all(
        row["margin"] < UNSURE[dtype] for row in value["wrong"]
    )


def part_speed(run: Run) -> None:
    """Measures images per second of every path, type and batch size of ours."""
    for dtype in run.options.dtypes:
        for path in run.paths_of(dtype):
            for batch in run.options.batch_sizes:
                value = speed(run, path, dtype, batch)
                cell = (
                    value["images_per_second"]
                    if value
                    else run.reason(speed_name(path, dtype, batch))
                )
                run.speeds[f"ours: {path}", dtype, batch] = cell
    if "peers" not in run.options.parts:
        tables.speeds(run.speeds)


def speed(run: Run, path: str, dtype: str, batch: int) -> dict | None:
    """Returns what `imgclass bench` reports, from the store if it was measured before."""
    iterations = run.iterations(batch)
    return run.measure(
        speed_name(path, dtype, batch),
        run.key("speed", path, dtype, batch=batch, iterations=iterations),
        lambda timeout: run.program.speed(path, dtype, batch, iterations, timeout),
    )


def speed_name(path: str, dtype: str, batch: int) -> str:
    return f"speed, {path}, {dtype}, batch of {batch}"


def part_peers(run: Run) -> None:
    """Measures other engines on the same card, then prints the table of all speeds."""
    engines = [
        engine for engine in peers.WAYS if not (run.options.no_torch and engine == "pytorch")
    ]
    later = {"memory", "service", "sanitizer"} & set(run.options.parts)
    reserved = RESERVED_S if later and run.options.device.startswith("cuda") else 0
    for dtype in run.options.peer_dtypes:
        for engine in engines:
            peer(run, engine, dtype, run.left() - reserved)
    tables.speeds(run.speeds)


def peer(run: Run, engine: str, dtype: str, timeout: float) -> None:
    """Measures what is missing of one engine; every cell of the table gets a figure or a reason."""

    on_gpu = run.options.device.startswith("cuda")

    def cell(way: str, batch: int) -> tuple:
        # ONNX Runtime takes its other provider where there is no GPU, so that it can be tried.
        shown = way if on_gpu else way.replace("CUDA", "CPU")
        return f"{engine}: {shown}", dtype, batch

    wanted = []
    for way, batch in (
        (way, batch) for way in peers.WAYS[engine] for batch in run.options.batch_sizes
    ):
        found = run.store.get(run.peer_key(engine, way, dtype, batch))
        if found is not None:
            run.speeds[cell(way, batch)] = found["images_per_second"]
        elif way in peers.GPU_ONLY and not on_gpu:
            run.speeds[cell(way, batch)] = "needs a GPU"
        else:
            # Its place in the table, until there is a figure.
            run.speeds[cell(way, batch)] = None
            wanted.append([way, batch])
    if not wanted:
        return
    progress(f"{engine}, {dtype}: {len(wanted)} figures ({timeout:.0f} s at most)")

    def report(line: dict) -> None:
        if "missing" in line:
            run.speeds.update({cell(way, batch): line["missing"] for way, batch in wanted})
        elif "failed" in line:
            run.speeds[cell(line["way"], line["batch"])] = line["failed"]
        elif "images_per_second" in line:
            value = {"images_per_second": line["images_per_second"]}
            run.speeds[cell(line["way"], line["batch"])] = value["images_per_second"]
            run.store.put(
                run.peer_key(engine, line["way"], dtype, line["batch"]), value, shlex.join(sys.argv)
            )
            progress(
                f"{engine}, {line['way']}, {dtype}, batch of {line['batch']}: "
                f"{value['images_per_second']:.1f} images/s"
            )

    why = "the worker gave no figure"
    try:
        # What compiles comes last and one batch size after the other: each takes tens of seconds.
        sizes = run.options.batch_sizes
        order = sorted(wanted, key=lambda w: (w[0].startswith("compiled"), sizes.index(w[1])))
        passes = [[way, batch, run.iterations(batch)] for way, batch in order]
        peers.measure(engine, run.options.device, dtype, passes, timeout, report)
    except process.OutOfTime:
        why = NOT_RUN
    except process.Failed as error:
        progress(f"{engine}, {dtype}: {error}")
        # A Python traceback ends with the error itself.
        why = f"failed: {str(error).splitlines()[-1]}"
    left_out = [[way, batch] for way, batch in wanted if run.speeds[cell(way, batch)] is None]
    run.speeds.update({cell(way, batch): why for way, batch in left_out})
    if why == NOT_RUN:
        run.not_run += [f"{engine}, {way}, {dtype}, batch of {batch}" for way, batch in left_out]


def part_memory(run: Run) -> None:
    """Measures what the card's memory holds while ours computes batches of 64."""
    rows = []
    for path in run.main_paths():
        name = f"memory, {path}, {run.dtype}, batch of {MEMORY_BATCH}"
        # nvidia-smi answers about ten times a second: the passes have to last longer than that.
        iterations = 4 * run.options.iterations
        key = run.key("memory", path, run.dtype, batch=MEMORY_BATCH, iterations=iterations)
        value = run.measure(
            name,
            key,
            lambda timeout: run.program.memory(path, run.dtype, MEMORY_BATCH, iterations, timeout),
        )
        rows.append((path, run.dtype, value or run.reason(name)))
    tables.memory(rows, MEMORY_BATCH)


def part_service(run: Run) -> None:
    """Measures a saturated service as a share of `imgclass bench` at the service's batch size."""
    rows = []
    for path in run.main_paths():
        name = f"service, {path}, {run.dtype}"
        key = run.key(
            "service",
            path,
            run.dtype,
            clients=CLIENTS,
            seconds=SERVICE_S,
            pictures=len(run.pictures),
        )
        value = run.measure(
            name,
            key,
            lambda timeout: run.program.service(
                path, run.dtype, CLIENTS, SERVICE_S, run.pictures, timeout
            ),
        )
        alone = (
            speed(run, path, run.dtype, MEMORY_BATCH)
            if MEMORY_BATCH in run.options.batch_sizes
            else None
        )
        rows.append((path, run.dtype, value or run.reason(name), alone))
    tables.service(rows, CLIENTS, MEMORY_BATCH)


def part_sanitizer(run: Run) -> None:
    """Looks for wrong memory accesses in one pass."""
    rows = []
    for path in run.main_paths():
        name = f"sanitizer, {path}, {run.dtype}"
        key = run.key("sanitizer", path, run.dtype)
        value = run.measure(
            name,
            key,
            lambda timeout: run.program.sanitize(path, run.dtype, run.pictures[0], timeout),
        )
        if value and value["errors"]:
            run.failures[name] = f"{value['errors']} memory errors: {value['report'][:600]}"
        rows.append((path, run.dtype, value or run.reason(name)))
    tables.sanitizer(rows)


RUN = {
    "logits": part_logits,
    "speed": part_speed,
    "peers": part_peers,
    "memory": part_memory,
    "service": part_service,
    "sanitizer": part_sanitizer,
}
# What only a GPU has.
GPU_PARTS = {"memory", "sanitizer"}


def heading(run: Run) -> str:
    """Returns the line that says where and with what the figures were made."""
    machine = run.card
    if run.options.device.startswith("cuda"):
        machine = query_card(run.options.device, "name,driver_version,memory.total") + " MiB"
    versions = ", ".join(f"{engine} {peers.version(engine)}" for engine in peers.WAYS)
    return (
        f"`{shlex.join(sys.argv)}` on {machine}; {run.program.version()} "
        f"(SHA-256 {run.program.sha256[:12]}); {versions}; "
        f"weights: {Path(run.options.weights).name}"
    )


def main() -> None:
    # As an exception, so that the commands that run are ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    options = arguments()
    if options.weights is None:
        held = options.shared / "weights" / "resnet50.safetensors" if options.shared else None
        options.weights = str(held) if held and held.is_file() else "random"
    options.dtypes = options.dtypes or (["f32"] if options.device == "cpu" else list(TOLERANCE))
    program = Program(options.imgclass, options.weights, options.device)
    reference = photographs.reference(options.shared, options.photographs)
    with tempfile.TemporaryDirectory() as folder:
        drawn = [] if reference else photographs.drawn(Path(folder), ROOT / "web" / "example.jpg")
        run = Run(options, program, [row.path for row in reference] or drawn, reference)
        print(heading(run), flush=True)
        for part in PARTS:
            if part not in options.parts:
                continue
            if part in GPU_PARTS and not options.device.startswith("cuda"):
                print(f"\n{part}: not measured, {options.device} has no GPU", flush=True)
                continue
            RUN[part](run)
    for name, why in run.failures.items():
        print(f"\nfailed: {name}: {why}")
    if run.not_run:
        print(
            f"\n{NOT_RUN} of {options.budget:.0f} s (start again to go on): "
            + "; ".join(run.not_run)
        )
    sys.exit(1 if run.failures else 2 if run.not_run else 0)


if __name__ == "__main__":
    try:
        main()
    except process.Failed as error:
        # Outside of a measurement: nothing can be measured.
        sys.exit(f"{error} (--device cpu and --device candle need no GPU)")
