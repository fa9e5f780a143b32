#!/usr/bin/env python3
"""Others' clients against the running binary: the programs of docs/clients.md, a client generated from openapi.json, tritonclient, and a browser.

    python3 tests/clients/run.py BINARY [SCREENSHOT-FOLDER]     (default: target/release/imgclass, target/screenshots)

Run it by the Python of a virtual environment with what requirements.txt names. The service runs on a free loopback port, with the weights of
../shared or of weights/ if they are there, else with random ones, and says so. What a machine lacks (node, Chromium) is not run, and said
aloud. Exit code 0 if all is well.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PICTURE = ROOT / "web/example.jpg"
LABEL = "balloon"
START_SECONDS = 120
CLIENT_SECONDS = 300


def loud(text):
    print(f"!!! {text}", flush=True)


def weights():
    for path in (ROOT.parent / "shared/weights/resnet50.safetensors", ROOT / "weights/resnet50.safetensors"):
        if path.is_file():
            return str(path)
    loud("CLIENTS: there are no trained weights: random ones stand in, and no class is expected of the picture")
    return "random"


@contextlib.contextmanager
def service(binary, chosen):
    """Gives the address of a running service."""
    environment = {name: value for name, value in os.environ.items() if not re.match(r"IMGCLASS_|HF_|RUST_LOG$|PORT$", name)}
    command = [binary, "serve", "--hostname", "127.0.0.1", "--port", "0", "--json-logs", "--weights", chosen]
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


def generate(folder):
    """A Python package from openapi.json."""
    tool = pathlib.Path(sys.executable).parent / "openapi-python-client"
    command = [str(tool), "generate", "--path", str(ROOT / "openapi.json"), "--output-path", str(folder / "generated"), "--meta", "none"]
    # The generator formats its code by ruff, which stands beside it.
    environment = {**os.environ, "PATH": f"{tool.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    if done.returncode != 0:
        sys.exit(f"clients: no client can be generated: {done.stdout[-3000:]}{done.stderr[-1000:]}")
    (folder / "generated").rename(folder / "imgclass_client")


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
    with tempfile.TemporaryDirectory() as name, service(binary, chosen) as address:
        folder = pathlib.Path(name)
        generate(folder)
        run_examples(address, expected, folder)
        triton = [sys.executable, str(ROOT / "tests/clients/triton.py"), address]
        run("tritonclient", triton, address, "all is well", folder)
        run_browser(address, expected, screenshots)
    print("clients: all is well")


if __name__ == "__main__":
    main()
