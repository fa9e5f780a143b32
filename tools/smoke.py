#!/usr/bin/env python3
"""Smoke test: starts a built imgclass on a free loopback port and uses it as a stranger would, over HTTP.

    python3 tools/smoke.py [BINARY]          (default: target/release/imgclass)

It dials nothing but 127.0.0.1. The photograph and the trained weights are those of ../shared if it is there; without it, the example
picture of the interface and random weights stand in, and the run says so. Needs Python 3.8 and nothing else. Exit code 0 if all is well.
"""

import base64
import contextlib
import csv
import http.client
import http.server
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
START_SECONDS = 60
STOP_SECONDS = 15
REQUEST_SECONDS = 30

passed = 0


class Failed(Exception):
    """A check that did not hold."""


def check(what, holds, found=""):
    global passed
    if not holds:
        raise Failed(f"{what}; found: {found!r}")
    passed += 1
    print(f"  ok  {what}", flush=True)


def material():
    """(weights, image bytes, class index it must be or None)."""
    weights = next((str(path) for path in (SHARED / "weights/resnet50.safetensors", ROOT / "weights/resnet50.safetensors")
                    if path.is_file()), "random")
    table = SHARED / "reference/images.tsv"
    if not table.is_file():
        loud("SMOKE: there is no ../shared: an example picture stands in for a photograph, and no class is expected of it")
        text = (ROOT / "src/api/example_image.txt").read_text()
        return weights, base64.b64decode(text.split(",", 1)[1]), None
    with open(table, newline="") as lines:
        row = next(csv.DictReader(lines, delimiter="\t"))
    trained = weights.startswith(str(SHARED))
    return weights, (SHARED / row["file"]).read_bytes(), int(row["top1"]) if trained else None


def loud(text):
    print(f"!!! {text}", file=sys.stderr, flush=True)


def media_type(image):
    return "image/jpeg" if image.startswith(b"\xff\xd8") else "image/png"


@contextlib.contextmanager
def file_server(image):
    """Serves the image at /photo, text at /text, and a redirect to the image at /moved; gives the port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/photo")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            # The type is wrong on purpose: what an image is must be told from its bytes.
            body = image if self.path == "/photo" else b"this is no image"
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def clean_environment():
    """Without the variables that would configure the service, so that it is tried as it comes."""
    ours = re.compile(r"IMGCLASS_|HF_|RUST_LOG$|PORT$")
    return {name: value for name, value in os.environ.items() if not ours.match(name)}


class Service:
    """A running `imgclass serve`."""

    def __init__(self, binary, weights, file_port):
        command = [binary, "--hostname", "127.0.0.1", "--port", "0", "--json-logs", "--weights", weights,
                   "--fetch-allow-cidr", "127.0.0.0/8", "--fetch-allow-port", str(file_port)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=clean_environment(), cwd=ROOT)
        self.log = []
        self.ready = threading.Event()
        self.port = None
        threading.Thread(target=self._read_log, daemon=True).start()

    def _read_log(self):
        for line in self.process.stderr:
            self.log.append(line.rstrip())
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if entry.get("message") == "ready":
                    self.port = int(entry["address"].rsplit(":", 1)[1])
                    self.ready.set()
        self.ready.set()

    def wait_until_ready(self):
        self.ready.wait(START_SECONDS)
        check(f"it is ready within {START_SECONDS} s and its log says where", self.port is not None, self.log[-5:])

    def request(self, method, path, body=None):
        """(status, headers in lower case, body)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=REQUEST_SECONDS)
        try:
            data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
            headers = {} if data is None else {"Content-Type": "application/json"}
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def end(self):
        """Whatever happened, nothing is left running."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def check_contract(service, image, file_port, weights):
    """The contract's names, order and headers, by each way an image can come; gives the prediction."""
    data_url = f"data:{media_type(image)};base64,{base64.b64encode(image).decode()}"
    status, headers, body = service.request("POST", "/classify_image/", {"user_id": "123", "image_url": data_url})
    check("a data URL is classified", status == 200, (status, body[:300]))
    answer = json.loads(body)
    check("the answer has the contract's members", set(answer) == {"user_id", "prediction"}, list(answer))
    check("the user's id comes back", answer["user_id"] == "123", answer["user_id"])
    prediction = answer["prediction"]
    check("there are five predictions", len(prediction) == 5, len(prediction))
    check("each is className and probability", all(set(p) == {"className", "probability"} for p in prediction), prediction)
    check("each name is a text", all(isinstance(p["className"], str) and p["className"] for p in prediction), prediction)
    probabilities = [p["probability"] for p in prediction]
    check("probabilities fall", probabilities == sorted(probabilities, reverse=True), probabilities)
    check("probabilities are from 0 to 1 and sum to at most 1",
          all(0 <= p <= 1 for p in probabilities) and sum(probabilities) <= 1 + 1e-5, probabilities)
    check("X-Model says so where the weights are untrained",
          ("untrained" in headers.get("x-model", "")) == (weights == "random"), headers.get("x-model"))
    phases = headers.get("server-timing", "")
    check("Server-Timing names every phase", all(f"{phase};dur=" in phases for phase in
          ("fetch", "decode", "queue", "inference", "total")), phases)
    check("a request has an id", bool(headers.get("x-request-id")), headers)

    url = f"http://127.0.0.1:{file_port}/photo"
    ways = [("without the last slash", "/classify_image", data_url, {}),
            ("by http", "/classify_image/", url, {}),
            ("by http, redirected", "/classify_image/", url.replace("photo", "moved"), {}),
            ("with top_k 2", "/classify_image/", data_url, {"top_k": 2})]
    for name, path, image_url, more in ways:
        status, _, body = service.request("POST", path, {"user_id": "123", "image_url": image_url, **more})
        expected = prediction[:more.get("top_k", 5)]
        check(f"{name}: the same answer", status == 200 and json.loads(body)["prediction"] == expected, (status, body[:300]))
    return prediction


def check_refusals(service, file_port):
    """Errors are problem documents with the right status and code."""
    of_url = lambda url: {"user_id": "123", "image_url": url}
    table = [("a body that is not JSON", "POST", "/classify_image/", b"{", 400, "malformed-json"),
             ("a missing field", "POST", "/classify_image/", {"user_id": "123"}, 422, "invalid-request"),
             ("top_k 0", "POST", "/classify_image/", {**of_url("data:,"), "top_k": 0}, 422, "invalid-request"),
             ("what is not an image", "POST", "/classify_image/", of_url(f"http://127.0.0.1:{file_port}/text"), 415, None),
             ("a port that is not allowed", "POST", "/classify_image/", of_url("http://127.0.0.1:9/"), 422, "image-unavailable"),
             ("a scheme that is not fetched", "POST", "/classify_image/", of_url("file:///etc/passwd"), 422, "image-unavailable"),
             ("an unknown route", "GET", "/nowhere", None, 404, None),
             ("a wrong method", "GET", "/classify_image/", None, 405, None)]
    for name, method, path, body, status, code in table:
        found, headers, text = service.request(method, path, body)
        problem = headers.get("content-type", "").startswith("application/problem+json") and json.loads(text)
        check(f"{name} is refused with {status}",
              found == status and problem and problem["status"] == status and code in (None, problem["code"]), (found, headers, text[:300]))


def check_about(service, binary):
    """What the service says about itself."""
    for path in ("/health/live", "/health/ready", "/docs", "/v1/labels", "/v1/model"):
        status, _, body = service.request("GET", path)
        check(f"GET {path}", status == 200 and body, (status, body[:200]))
    _, _, specification = service.request("GET", "/openapi.json")
    committed = json.loads((ROOT / "openapi.json").read_text())
    check("GET /openapi.json equals the committed file", json.loads(specification) == committed, specification[:200])
    health = subprocess.run([binary, "health", "--port", str(service.port)], env=clean_environment(), capture_output=True, text=True)
    check("`imgclass health` finds it ready", health.returncode == 0, health)


def check_metrics(service):
    """What Prometheus reads, judged by Prometheus's own tool where it is installed."""
    status, headers, text = service.request("GET", "/metrics")
    check("GET /metrics", status == 200 and headers.get("content-type", "").startswith("text/plain"), (status, headers))
    for name in (b"imgclass_http_requests_total{", b"imgclass_phase_duration_seconds_bucket{", b"imgclass_ready 1\n", b"imgclass_model_info{"):
        check(f"/metrics has {name.decode().strip()}", name in text, text[:300])
    if shutil.which("promtool") is None:
        return loud("SMOKE: NOT RUN: promtool check metrics: promtool is not installed (Debian: apt-get install prometheus)")
    promtool = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
    check("promtool check metrics finds nothing", promtool.returncode == 0 and not promtool.stderr, promtool.stderr)


def check_command_line(binary, weights, image, prediction):
    """`classify` on the command line says the same; gives the first prediction."""
    command = [binary, "classify", "--weights", weights, "--format", "jsonl", "-"]
    run = subprocess.run(command, input=image, capture_output=True, env=clean_environment(), cwd=ROOT)
    check("`imgclass classify -` reads the image", run.returncode == 0, run.stderr[-300:])
    found = json.loads(run.stdout)["predictions"]
    check("`imgclass classify` gives the same classes",
          [p["label"] for p in found] == [p["className"] for p in prediction], found)
    return found[0]


def check_stop(service):
    """SIGTERM ends it, well."""
    service.process.send_signal(signal.SIGTERM)
    try:
        code = service.process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        code = "still running"
    check(f"SIGTERM ends it within {STOP_SECONDS} s with exit code 0", code == 0, code)


def main():
    binary = str(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "target/release/imgclass").resolve())
    weights, image, expected = material()
    print(f"smoke test of {binary} with weights {os.path.relpath(weights, ROOT) if weights != 'random' else weights}")
    with file_server(image) as file_port:
        service = Service(binary, weights, file_port)
        try:
            service.wait_until_ready()
            prediction = check_contract(service, image, file_port, weights)
            check_refusals(service, file_port)
            check_about(service, binary)
            check_metrics(service)
            top = check_command_line(binary, weights, image, prediction)
            if expected is not None:
                check(f"the photograph is class {expected}, as the reference says", top["index"] == expected, top)
            check_stop(service)
        except Exception:
            loud("the service's log ends:")
            print("\n".join(service.log[-20:]), file=sys.stderr)
            raise
        finally:
            service.end()
    print(f"smoke: {passed} checks passed; {prediction[0]['className']} {prediction[0]['probability']:.4f}")


if __name__ == "__main__":
    try:
        main()
    except Failed as failure:
        loud(f"SMOKE FAILED: {failure}")
        sys.exit(1)
