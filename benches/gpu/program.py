"""Our program as this benchmark uses it: logits, speed, memory, the service, the sanitizer.

Nothing of ours is computed in Python: every figure comes from the binary's own commands.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import process

ROOT = Path(__file__).resolve().parents[2]
TOOLKIT = ROOT / "target" / "cuda-toolkit" / "wheels" / "nvidia" / "cu13" / "lib"
# Where NVIDIA's installers put what is not always on the PATH.
USUAL_FOLDERS = "/usr/local/nvidia/bin:/usr/local/cuda/bin:/opt/cuda/bin"
# Ways through the network on a device, by name, with the options that choose each.
PATHS = {path: ["--gpu-path", path] for path in ["candle", "fixed", "fused"]}
# The types that a path does not compute in.
NOT_IN = {"fixed": ["f32", "bf16"], "fused": ["f32"]}
# Paths that only show what another one gains: their logits and speed are measured, and no more.
COMPARED = ["fixed"]
# Our kernels on the CPU, which every path is compared with.
KERNELS = "kernels"


def environment() -> dict:
    """Returns this process's environment with CUDA's libraries on the loader's path.

    They are looked for in this checkout's toolkit, in the wheels that PyTorch or TensorRT brought,
    and in /usr/local/cuda. What LD_LIBRARY_PATH names already goes first: whoever set it knows why.
    """
    folders = [TOOLKIT]
    nvidia = importlib.util.find_spec("nvidia")
    for root in nvidia.submodule_search_locations if nvidia else []:
        folders += sorted(Path(root).glob("**/lib"))
    tensorrt = importlib.util.find_spec("tensorrt_libs")
    folders += map(Path, tensorrt.submodule_search_locations if tensorrt else [])
    folders.append(Path("/usr/local/cuda/lib64"))
    known = [os.environ["LD_LIBRARY_PATH"]] if os.environ.get("LD_LIBRARY_PATH") else []
    found = known + [str(folder) for folder in folders if folder.is_dir()]
    # Settings of the user's own service would change what is measured.
    kept = {
        name: value for name, value in os.environ.items() if not re.match(r"IMGCLASS_|PORT$", name)
    }
    return kept | {"LD_LIBRARY_PATH": ":".join(found)}


def tool(name: str) -> str | None:
    """Returns the path of one of NVIDIA's tools, or None where it is not installed."""
    return shutil.which(name) or shutil.which(name, path=USUAL_FOLDERS)


def card(device: str) -> str:
    """Returns the name of the card, or of the processor where the device is none."""
    if device.startswith("cuda"):
        return query_card(device, "name")
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return "unknown processor"


def query_card(device: str, field: str) -> str:
    """Returns one of nvidia-smi's fields of the device `cuda:N`."""
    smi = tool("nvidia-smi")
    if smi is None:
        raise process.Failed("nvidia-smi is not installed")
    number = device.partition(":")[2] or "0"
    words = [smi, f"--id={number}", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    return process.run(words, timeout=20).strip()


class Program:
    def __init__(self, binary: Path, weights: str, device: str):
        self.binary = binary.resolve()
        self.weights = weights
        self.device = device
        self.environment = environment()
        if not self.binary.is_file():
            raise SystemExit(
                f"there is no binary {binary}: `cargo build --release --features cuda,cudnn`, "
                "or name one with --imgclass"
            )
        self.sha256 = hashlib.sha256(self.binary.read_bytes()).hexdigest()
        if device.startswith("cuda"):
            self.require_libraries()

    def require_libraries(self) -> None:
        """Ends the script where the loader would not find a library, and says which."""
        listed = process.run(["ldd", self.binary], timeout=20, environment=self.environment)
        missing = re.findall(r"(\S+) => not found", listed)
        if missing:
            raise SystemExit(
                f"{self.binary} needs {', '.join(missing)}, found neither in {TOOLKIT}, "
                "nor beside PyTorch, nor in /usr/local/cuda/lib64: install them, or set "
                "LD_LIBRARY_PATH"
            )

    def version(self) -> str:
        return process.run(
            [self.binary, "--version"], timeout=20, environment=self.environment
        ).strip()

    def command(self, command: str, path: str, device: str, dtype: str, *words) -> list:
        """Returns a command of the binary that loads the network."""
        chosen = ["--device", device, "--dtype", dtype, "--weights", self.weights]
        return [self.binary, command, *chosen, *([] if path == KERNELS else PATHS[path]), *words]

    def logits(self, pictures: list, path: str, device: str, dtype: str, timeout: float) -> dict:
        """Returns the logits of each picture by its path."""
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as listed:
            listed.write("\n".join(pictures))
            listed.flush()
            words = ["--format", "jsonl", "--top-k", "1", "--logits", "--files-from", listed.name]
            command = self.command("classify", path, device, dtype, *words)
            answer = process.run(command, timeout=timeout, environment=self.environment)
        rows = [json.loads(line) for line in answer.splitlines()]
        bad = [row for row in rows if "logits" not in row]
        if bad or len(rows) != len(pictures):
            raise process.Failed(
                f"{len(rows)} answers to {len(pictures)} pictures, {len(bad)} errors: {bad[:1]}"
            )
        return {row["file"]: row["logits"] for row in rows}

    def speed(self, path: str, dtype: str, batch: int, iterations: int, timeout: float) -> dict:
        """Returns what `imgclass bench` reports of forward passes of one batch size."""
        words = ["--format", "json", "--batch-size", str(batch), "--iterations", str(iterations)]
        command = self.command("bench", path, self.device, dtype, *words)
        return json.loads(process.run(command, timeout=timeout, environment=self.environment))

    def memory(self, path: str, dtype: str, batch: int, iterations: int, timeout: float) -> dict:
        """Returns the card's memory in MiB: before a bench of this batch size and during it.

        The difference is all that the process takes, CUDA's context and libraries included. Another
        process that takes memory meanwhile is counted too.
        """
        before = int(query_card(self.device, "memory.used"))
        samples, ended = [before], threading.Event()

        def sample() -> None:
            while not ended.is_set():
                samples.append(int(query_card(self.device, "memory.used")))

        sampler = threading.Thread(target=sample)
        sampler.start()
        try:
            self.speed(path, dtype, batch, iterations, timeout)
        finally:
            ended.set()
            sampler.join()
        if len(samples) < 3:
            raise process.Failed(
                f"nvidia-smi answered {len(samples) - 1} times during the bench: raise --iterations"
            )
        return {"before_mib": before, "most_mib": max(samples), "ours_mib": max(samples) - before}

    def service(
        self, path: str, dtype: str, clients: int, seconds: float, pictures: list, timeout: float
    ) -> dict:
        """Returns what `imgclass bench --url` reports of a service under so many clients."""
        deadline = time.monotonic() + timeout
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        words = ["--hostname", "127.0.0.1", "--port", str(port)]
        command = self.command("serve", path, self.device, dtype, *words)
        with tempfile.TemporaryFile("w+") as log:
            served = subprocess.Popen(
                list(map(str, command)),
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
            )
            try:
                while not ready(url):
                    if served.poll() is not None:
                        log.seek(0)
                        raise process.Failed(
                            f"the service ended with {served.returncode}: {log.read()[-600:]}"
                        )
                    if time.monotonic() > deadline:
                        raise process.OutOfTime
                    time.sleep(0.1)
                images = [word for picture in pictures for word in ("--image", picture)]
                load = [self.binary, "bench", "--url", url, "--format", "json", *images]
                load += ["--clients", str(clients), "--duration", f"{seconds}s"]
                left = deadline - time.monotonic()
                answer = process.run(load, timeout=left, environment=self.environment)
            finally:
                served.send_signal(signal.SIGTERM)
                try:
                    served.wait(10)
                except subprocess.TimeoutExpired:
                    process.end_group(served)
                    served.wait()
        return json.loads(answer)

    def sanitize(self, path: str, dtype: str, picture: str, timeout: float) -> dict:
        """Returns how many memory errors compute-sanitizer finds in one classification."""
        sanitizer = tool("compute-sanitizer")
        if sanitizer is None:
            raise process.Failed("compute-sanitizer is not installed")
        # cuDNN tries calls that may fail; only wrong memory accesses are counted.
        words = [sanitizer, "--tool", "memcheck", "--report-api-errors", "no"]
        command = words + self.command(
            "classify", path, self.device, dtype, "--top-k", "1", picture
        )
        answer = process.run(command, timeout=timeout, environment=self.environment)
        summary = re.search(r"ERROR SUMMARY: (\d+) error", answer)
        if summary is None:
            raise process.Failed(f"compute-sanitizer gave no summary: {answer.strip()[-600:]}")
        return {
            "errors": int(summary.group(1)),
            "report": answer[-4000:] if int(summary.group(1)) else "",
        }


def ready(url: str) -> bool:
    """Whether the service at this address says that it is ready."""
    try:
        with urllib.request.urlopen(f"{url}/health/ready", timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False
