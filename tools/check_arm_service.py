#!/usr/bin/env python3
"""Runs the release binary for 64-bit Arm under qemu and holds its logits against this machine's.

    python3 tools/check_arm_service.py ARM_BINARY [BINARY]          (default: target/release/imgclass)

Both serve the untrained ResNet-18 in each number type and get the example picture over HTTP. In
bf16 and int8 the logits must be the same bits; in f32, sums of other vectors are rounded otherwise,
and a logit may be off by a hundred-thousandth of the largest. Needs qemu-aarch64 and its C library
(Debian: qemu-user libc6-arm64-cross), Python 3.8 and nothing else.

The 8-bit weights are made by this machine's binary, because that takes dozens of passes.

Pictures are decoded in the service's own process: an emulator starts no second program for the
other processor, and knows neither seccomp nor Landlock. tools/check-arm-machine.sh has both.
"""

import base64
import contextlib
import http.client
import json
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
QEMU = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", "-cpu"]
START_SECONDS = 600
REQUEST_SECONDS = 300
# The largest difference of a float32 logit, as a share of the largest logit.
BOUND = 1e-5
# Processors with and without the instructions that int8 is multiplied by.
RUNS = [("f32", "max"), ("bf16", "max"), ("int8", "max"), ("int8", "cortex-a76"), ("int8", "cortex-a72")]


def weights_of(folder, dtype):
    return str(pathlib.Path(folder) / "int8.safetensors") if dtype == "int8" else "random:resnet18"


@contextlib.contextmanager
def service(command, folder, dtype):
    """Starts the service and yields its port and the log."""
    arguments = ["serve", "--weights", weights_of(folder, dtype), "--dtype", dtype, "--hostname", "127.0.0.1", "--port", "0", "--threads", "2",
                 "--no-decode-sandbox", "--request-timeout", "300s"]
    with open(pathlib.Path(folder) / "log", "w+") as log:
        process = subprocess.Popen([*command, *arguments], stdout=log, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + START_SECONDS
            while True:
                log.seek(0)
                text = log.read()
                if "ready address=127.0.0.1:" in text:
                    break
                if process.poll() is not None or time.monotonic() > end:
                    sys.exit(f"{' '.join(command)} did not start:\n{text}")
                time.sleep(0.2)
            yield int(text.split("ready address=127.0.0.1:")[1].split()[0]), text
        finally:
            process.terminate()
            process.wait(30)


def ask(port, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_SECONDS)
    connection.request("POST" if body else "GET", path, body and json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    text = answer.read().decode()
    if answer.status != 200:
        sys.exit(f"{path} answered {answer.status}: {text[:500]}")
    return json.loads(text)


def logits(command, folder, dtype):
    """Returns the logits, the instruction set and the seconds that one request took."""
    picture = base64.b64encode((ROOT / "web/example.jpg").read_bytes()).decode()
    with service(command, folder, dtype) as (port, log):
        name = ask(port, "/v1/model")["name"]
        start = time.monotonic()
        answer = ask(port, f"/v2/models/{name}/infer", {
            "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [picture]}], "outputs": [{"name": "logits"}]})
        seconds = time.monotonic() - start
        isa = log.split("instruction_set=\"")[1].split("\"")[0] if "instruction_set=\"" in log else "?"
        return answer["outputs"][0]["data"], isa, seconds


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    arm, here = sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else str(ROOT / "target/release/imgclass")
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([here, "weights", "quantize", "--weights", "random:resnet18", "-o", weights_of(folder, "int8")],
                       check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        known = {}
        for dtype, cpu in RUNS:
            if dtype not in known:
                known[dtype] = logits([here], folder, dtype)
            expected, isa, _ = known[dtype]
            got, arm_isa, seconds = logits([*QEMU, cpu, arm], folder, dtype)
            largest = max(abs(x) for x in expected)
            error = max(abs(a - b) for a, b in zip(got, expected)) / largest
            same = got == expected
            holds = len(got) == len(expected) and largest > 0 and (error <= BOUND if dtype == "f32" else same)
            failed |= not holds
            print(f"{'ok  ' if holds else 'WRONG'} {dtype} as {cpu}: {len(got)} logits by {arm_isa} beside {isa}: "
                  f"{'the same bits' if same else f'off by up to {error:.1e} of the largest'}; {seconds:.1f} s a request", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
