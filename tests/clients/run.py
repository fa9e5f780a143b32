#!/usr/bin/env python3
"""Others' clients against the running binary: the programs of docs/clients.md, a client generated from openapi.json, tritonclient, schemathesis, and
a browser, which comes through a proxy under a prefix too.

    python3 tests/clients/run.py BINARY [SCREENSHOT-FOLDER]     (default: target/release/imgclass, target/screenshots)

Run it by the Python of a virtual environment with what requirements.txt names. The service runs on a free loopback port, with the weights of
../shared or of weights/ if they are there, else with random ones, and says so. What a machine lacks (node, Chromium) is not run, and said
aloud. Exit code 0 if all is well.
"""

import contextlib
import http.client
import http.server
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import urllib.parse
import zlib

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PICTURE = ROOT / "web/example.jpg"
# The key of schemathesis.toml.
KEY = "schemathesis"
LABEL = "balloon"
LABEL_INDEX = 417
START_SECONDS = 120
CLIENT_SECONDS = 300
PREFIX = "/vision"
# Hop by hop, or written by http.server itself.
NOT_FORWARDED = {"connection", "transfer-encoding", "server", "date", "content-length"}


def loud(text):
    print(f"!!! {text}", flush=True)


GENERATED = """
import base64, os, sys
from imgclass_inference_client import Client
from imgclass_inference_client.api.tensorflow_serving_and_kserve_v1 import v1_predict
from imgclass_inference_client.models import PredictRequest

with open(sys.argv[1], "rb") as file:
    instance = {"b64": base64.b64encode(file.read()).decode()}
client = Client(os.environ["IMGCLASS_URL"])
answer = v1_predict.sync("resnet50", client=client, body=PredictRequest(instances=[instance]))
print("class", answer["predictions"][0]["classes"])
"""


def weights():
    for path in (ROOT.parent / "shared/weights/resnet50.safetensors", ROOT / "weights/resnet50.safetensors"):
        if path.is_file():
            return str(path)
    loud("CLIENTS: there are no trained weights: random ones stand in, and no class is expected of the picture")
    return "random"


def png(seed):
    """A PNG of 40x40 pixels with a pattern."""
    rows = (b"\0" + bytes(v for x in range(40) for v in ((x * 7 + seed) % 256, y * 5, x * y % 256)) for y in range(40))
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 40, 40, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts)


def train(binary, chosen, folder):
    """Trains a head of two classes on a few drawn pictures, for the page's choice of heads."""
    for label in ("balloon", "pattern"):
        (folder / "photos" / label).mkdir(parents=True)
    for number in range(3):
        # JPEG reads to its end mark, so that bytes behind it make another file of the same picture.
        (folder / f"photos/balloon/{number}.jpg").write_bytes(PICTURE.read_bytes() + bytes([number]))
        (folder / f"photos/pattern/{number}.png").write_bytes(png(number))
    head = folder / "drawn.head"
    command = [binary, "train", str(folder / "photos"), "-o", str(head), "--weights", chosen]
    done = subprocess.run(command, capture_output=True, text=True, timeout=CLIENT_SECONDS)
    if done.returncode != 0:
        sys.exit(f"clients: no head can be trained: {done.stderr[-2000:]}")
    return head


@contextlib.contextmanager
def service(binary, chosen, *options):
    """Gives the address of a running service."""
    environment = {name: value for name, value in os.environ.items() if not re.match(r"IMGCLASS_|HF_|RUST_LOG$|PORT$", name)}
    command = [binary, "serve", "--hostname", "127.0.0.1", "--port", "0", "--json-logs", "--weights", chosen, *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    address, ready, log = [], threading.Event(), []

    def read():
        for line in process.stderr:
            log.append(line)
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if entry.get("message") == "ready":
                    address.append(f"http://{entry['address']}")
                    ready.set()
        ready.set()

    threading.Thread(target=read, daemon=True).start()
    try:
        ready.wait(START_SECONDS)
        if not address:
            sys.exit(f"the service did not start: {''.join(log[-5:])}")
        yield address[0]
    finally:
        process.kill()
        process.wait()


class Proxy(http.server.BaseHTTPRequestHandler):
    """Passes on what is under PREFIX, without PREFIX, as a reverse proxy would. What is not under it is no part of the service."""

    protocol_version = "HTTP/1.1"
    backend = ""

    def pass_on(self):
        if not self.path.startswith(PREFIX + "/"):
            self.send_error(404)
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        backend = http.client.HTTPConnection(self.backend, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in NOT_FORWARDED}
        backend.request(self.command, self.path.removeprefix(PREFIX), body or None, {**headers, "X-Forwarded-Prefix": PREFIX})
        answer = backend.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in NOT_FORWARDED:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        backend.close()

    do_GET = do_POST = pass_on

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def proxy(address):
    """Gives the address under which a proxy serves what is at `address`."""
    handler = type("ProxyOfOne", (Proxy,), {"backend": urllib.parse.urlsplit(address).netloc})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}{PREFIX}"
    finally:
        server.shutdown()
        server.server_close()


def examples():
    """The programs of docs/clients.md: heading, language, code."""
    text = (ROOT / "docs/clients.md").read_text()
    for section in re.split(r"^## ", text, flags=re.M)[1:]:
        heading = section.splitlines()[0]
        for language, code in re.findall(r"^```(\w+)\n(.*?)^```", section, flags=re.M | re.S):
            yield heading, language, code


def run(what, command, address, expected, folder, picture=PICTURE):
    """Runs a client; its output must name the label."""
    environment = {**os.environ, "IMGCLASS_URL": address}
    done = subprocess.run([*command, str(picture)], capture_output=True, text=True, env=environment, cwd=folder, timeout=CLIENT_SECONDS)
    if done.returncode != 0 or (expected and expected not in done.stdout) or not done.stdout.strip():
        sys.exit(f"clients: {what} failed: {done.stdout[-500:]}{done.stderr[-2000:]}")
    print(f"  ok  {what}: {done.stdout.strip()[:100]}", flush=True)


def generate(folder, specification, package):
    """A Python package from a specification."""
    tool = pathlib.Path(sys.executable).parent / "openapi-python-client"
    command = [str(tool), "generate", "--path", str(ROOT / specification), "--output-path", str(folder / "generated"), "--meta", "none"]
    # The generator formats its code by ruff, which stands beside it.
    environment = {**os.environ, "PATH": f"{tool.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    if done.returncode != 0:
        sys.exit(f"clients: no client can be generated: {done.stdout[-3000:]}{done.stderr[-1000:]}")
    (folder / "generated").rename(folder / package)


def run_examples(address, expected, folder):
    commands = {
        "sh": ["bash"],
        "python": [sys.executable],
        "javascript": ["node"],
        "rust": ["cargo", "run", "--quiet", "--locked", "--manifest-path", str(ROOT / "Cargo.toml"), "--example", "client", "--"],
    }
    for number, (heading, language, code) in enumerate(examples()):
        if "pip install" in code:
            continue
        tool = commands[language]
        if shutil.which(tool[0]) is None:
            loud(f"NOT RUN: {heading}: there is no {tool[0]}")
            continue
        if language == "rust":
            if code not in (ROOT / "examples/client.rs").read_text():
                sys.exit("clients: examples/client.rs is not what docs/clients.md shows")
            run(heading, tool, address, expected, folder)
            continue
        suffix = {"sh": "sh", "python": "py", "javascript": "mjs"}[language]
        program = folder / f"example_{number}.{suffix}"
        program.write_text(code)
        run(heading, [*tool, str(program)], address, expected, folder)


def run_schemathesis(address, folder, names):
    """Requests that the specifications allow, and some that they do not, each answer held against them. Every run makes the same requests."""
    tool = pathlib.Path(sys.executable).parent / "schemathesis"
    for name in names:
        command = [str(tool), "--no-color", "--config-file", str(ROOT / "tests/clients/schemathesis.toml"), "run", f"{address}/{name}",
                   "--url", address, "--checks", "all", "--seed", "1", "--max-examples", "20", "--generation-database", "none",
                   "--suppress-health-check", "all", "--no-shrink"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests/clients"), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=CLIENT_SECONDS)
        if done.returncode != 0:
            sys.exit(f"clients: schemathesis has findings in {name}: {done.stdout[-6000:]}{done.stderr[-1000:]}")
        generated = re.search(r"(\d+) generated", done.stdout)
        print(f"  ok  schemathesis, all checks, {name}: {generated[0] if generated else done.stdout[-200:]}", flush=True)


def run_browser(address, expected, screenshots):
    browser = ROOT / "tests/browser"
    if shutil.which("node") is None or not (browser / "node_modules/playwright-core").exists():
        loud("NOT RUN: the browser test: it needs node and `npm ci` in tests/browser")
        return
    command = ["node", str(browser / "page.mjs"), address, str(PICTURE), expected, str(screenshots)]
    if subprocess.run(command, timeout=CLIENT_SECONDS).returncode != 0:
        sys.exit("clients: the browser test failed")


def main():
    binary = str(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "target/release/imgclass").resolve())
    screenshots = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else ROOT / "target/screenshots").resolve()
    chosen = weights()
    expected = "" if chosen == "random" else LABEL
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        head = train(binary, chosen, folder)
        address = stack.enter_context(service(binary, chosen, "--head", f"drawn={head}"))
        generate(folder, "openapi.json", "imgclass_client")
        generate(folder, "src/api/inference/openapi.json", "imgclass_inference_client")
        run_examples(address, expected, folder)
        predicted = f"class {LABEL_INDEX}" if expected else "class"
        run("a client generated for the inference protocols", [sys.executable, "-c", GENERATED], address, predicted, folder)
        triton = [sys.executable, str(ROOT / "tests/clients/triton.py"), address]
        run("tritonclient", triton, address, "all is well", folder)
        run_schemathesis(address, folder, ["openapi.json", "openapi-inference.json"])
        run_browser(address, expected, screenshots)
        with proxy(address) as prefixed:
            run_browser(prefixed, expected, screenshots / "prefixed")
    # With keys, the answers to wrong ones are judged too.
    with tempfile.TemporaryDirectory() as name, service(binary, "random:resnet18", "--api-key", KEY) as address:
        run_schemathesis(address, pathlib.Path(name), ["openapi.json"])
    print("clients: all is well")


if __name__ == "__main__":
    main()
