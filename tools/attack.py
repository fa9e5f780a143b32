#!/usr/bin/env python3
"""Attacks a service with everything at once, and checks what docs/operations.md promises.

    tools/attack.py --imgclass target/release/imgclass --seconds 20

Starts the binary with an untrained network, under a memory limit where the system has cgroups of
version 1 or 2 that may be written. Hostile clients send pictures, bodies and connections that have
exhausted memory or time of services like this one. Good clients send a photograph at the same time.
The exit code is 1 if

- the service ended, or a good request was not answered 200,
- the slowest good request took longer than --slowest,
- the process tree held more memory than the sum in docs/operations.md allows,
- memory did not fall back afterwards.

Needs nothing but Python and Linux. Everything stays on loopback.
"""

import argparse
import base64
import collections
import gzip
import http.client
import http.server
import json
import multiprocessing
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib

MIB = 1 << 20


# ---- Hostile pictures ----------------------------------------------------------------------------


def segment(marker, payload):
    return bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload


def frame(marker, width, height, components):
    parts = b"".join(bytes([i + 1, h << 4 | v, 0]) for i, (h, v) in enumerate(components))
    return segment(marker, struct.pack(">BHHB", 8, height, width, len(components)) + parts)


def scan(components, first, last, high=0, low=0):
    chosen = b"".join(bytes([i, 0]) for i in components)
    return segment(0xDA, bytes([len(components)]) + chosen + bytes([first, last, high << 4 | low]))


# A quantisation table of ones, and Huffman tables of one code.
TABLES = (
    segment(0xDB, bytes([0]) + b"\1" * 64)
    + segment(0xC4, bytes([0x00]) + bytes([1] + [0] * 15) + b"\0")
    + segment(0xC4, bytes([0x10]) + bytes([1] + [0] * 15) + b"\xe0")
)


def jpeg_of_two_sizes(side):
    """One decoder reads a frame of 64x64 in what another one takes for a comment."""
    three = [(2, 2), (1, 1), (1, 1)]
    eaten = b"\xff\xe0\x00\x06abcd"
    return (
        b"\xff\xd8"
        + eaten
        + segment(0xFE, b"xx" + frame(0xC0, 64, 64, three))
        + eaten
        + frame(0xC0, side, side, three)
        + TABLES
        + scan([1, 2, 3], 0, 63)
        + b"\xff\xd9"
    )


def jpeg_of_empty_scans(side, scans):
    head = b"\xff\xd8" + TABLES + frame(0xC2, side, side, [(1, 1)]) + scan([1], 0, 0)
    return head + scan([1], 1, 63, 1, 0) * scans + b"\xff\xd9"


def jpeg_baseline(side):
    head = b"\xff\xd8" + TABLES + frame(0xC0, side, side, [(1, 1)] * 3)
    return head + scan([1, 2, 3], 0, 63) + b"\0" * 64 + b"\xff\xd9"


def webp_with_metadata(announced):
    size = struct.pack("<I", announced)
    extended = b"VP8X" + struct.pack("<I", 10) + bytes([8, 0, 0, 0]) + b"\x3f\0\0\x3f\0\0"
    body = b"WEBP" + extended + b"EXIF" + size + b"x" * 1200
    return b"RIFF" + struct.pack("<I", 0xFFFFFFF0) + body


def png_chunk(kind, data):
    crc = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + crc


def png_with_profile(mib):
    """A colour profile that inflates to this many MiB."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(MIB)) for _ in range(mib)) + packer.flush()
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    profile = png_chunk(b"iCCP", b"p\0\0" + packed)
    pixels = png_chunk(b"IDAT", zlib.compress((b"\0" + b"\x55" * 24) * 8))
    return b"\x89PNG\r\n\x1a\n" + head + profile + pixels + png_chunk(b"IEND", b"")


def png_of_zeros(side):
    packer = zlib.compressobj(9)
    row = bytes(1 + 3 * side)
    packed = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + png_chunk(b"IDAT", packed) + png_chunk(b"IEND", b"")


def tiff_of_jpegs(side, jpeg, strips):
    """A TIFF of which every strip is the same JPEG."""
    jpeg += b"\0" * (len(jpeg) % 2)
    offsets = struct.pack(f"<{strips}I", *[8] * strips)
    counts = struct.pack(f"<{strips}I", *[len(jpeg)] * strips)
    extra = 8 + len(jpeg)
    bits = struct.pack("<HHH", 8, 8, 8) + b"\0\0"
    entries = [
        (256, 4, 1, side),
        (257, 4, 1, side),
        (258, 3, 3, extra),
        (259, 3, 1, 7),
        (262, 3, 1, 2),
        (273, 4, strips, extra + 8 if strips > 1 else 8),
        (277, 3, 1, 3),
        (278, 4, 1, -(-side // strips)),
        (279, 4, strips, extra + 8 + len(offsets) if strips > 1 else len(jpeg)),
    ]
    directory = struct.pack("<H", len(entries))
    for tag, kind, count, value in entries:
        directory += struct.pack("<HHII", tag, kind, count, value)
    blobs = jpeg + bits + (offsets + counts if strips > 1 else b"")
    return b"II*\0" + struct.pack("<I", 8 + len(blobs)) + blobs + directory + b"\0" * 4


def hostile_pictures():
    return {
        "jpeg of two sizes, 20000": jpeg_of_two_sizes(20000),
        "jpeg of two sizes, 65278": jpeg_of_two_sizes(65278),
        "jpeg of 600 scans": jpeg_of_empty_scans(8000, 600),
        "jpeg of 9000 scans": jpeg_of_empty_scans(1024, 9000),
        "jpeg baseline, 9000": jpeg_baseline(9000),
        "webp, exif of 4 GB": webp_with_metadata(0xFFFFFF00),
        "png, profile of 700 MB": png_with_profile(700),
        "png of zeros, 9000": png_of_zeros(9000),
        "tiff with a large jpeg": tiff_of_jpegs(16000, jpeg_baseline(16000), 1),
        "tiff of 20 strips, one jpeg": tiff_of_jpegs(8000, jpeg_baseline(8000), 20),
        "truncated": jpeg_baseline(6000)[:120],
    }


# ---- Hostile bodies and connections --------------------------------------------------------------


def hostile_bodies():
    """Path, encoding and body of requests that a parser could multiply."""
    small = b'{"images":[' + b",".join([b'{"a":{}}'] * 400_000) + b"]}"
    nested = b'{"instances":' + b"[" * 500_000 + b"]" * 500_000 + b"}"
    numbers = b'{"instances":[' + b",".join([b"[0]"] * 1_000_000) + b"]}"
    outputs = b",".join([b'{"name":"probabilities"}'] * 100_000)
    infer = b'{"inputs":[],"outputs":[' + outputs + b"]}"
    expanding = b'{"images":[{"base64":"' + b"A" * (31 * MIB) + b'"}]}'
    skipped = b'{"x":[' + b"[]," * (10 * MIB) + b"0]}"
    members = gzip.compress(b"") * (20 * MIB // 20)
    return [
        ("/v1/classify", "identity", small),
        ("/classify_image/", "identity", b'{"user_id":"' + b"x" * (20 * MIB) + b'","image_url":"data:,"}'),
        ("/v1/models/resnet50:predict", "identity", nested),
        ("/v1/models/resnet50:predict", "identity", numbers),
        ("/v2/models/resnet50/infer", "identity", infer),
        ("/v1/classify", "gzip", gzip.compress(expanding)),
        ("/v1/models/resnet50:predict", "gzip", gzip.compress(skipped)),
        ("/v1/classify", "gzip", members),
    ]


def hpack(name, value):
    """A header field as a literal that is not indexed."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def h2_frame(kind, flags, stream, payload):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


class Attack:
    """Hostile clients of one service, until `until`."""

    def __init__(self, port, until):
        self.port = port
        self.until = until
        self.sent = collections.Counter()

    def going(self):
        return time.monotonic() < self.until

    def post(self, path, kind, body, timeout=60, encoding="identity"):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            headers = {"content-type": kind, "content-encoding": encoding}
            connection.request("POST", path, body, headers)
            return connection.getresponse().status
        except OSError as error:
            return type(error).__name__
        except http.client.HTTPException as error:
            return type(error).__name__
        finally:
            connection.close()

    def pictures(self, pictures):
        names = list(pictures)
        while self.going():
            name = random.choice(names)
            patience = random.choice([0.2, 2, 60])
            status = self.post("/v1/classify", "application/octet-stream", pictures[name], patience)
            self.sent[f"{name}: {status}"] += 1

    def bodies(self, bodies):
        while self.going():
            path, encoding, body = random.choice(bodies)
            status = self.post(path, "application/json", body, encoding=encoding)
            self.sent[f"{path} of {len(body) >> 10} KiB, {encoding}: {status}"] += 1

    def fetches(self, host):
        """Requests that name 32 URLs of a hostile host each."""
        while self.going():
            kind = random.choice(["large", "large", "slow", "hints", "redirect"])
            urls = [{"url": f"http://127.0.0.1:{host}/{kind}/{i}"} for i in range(32)]
            patience = max(0.1, self.until - time.monotonic())
            body = json.dumps({"images": urls})
            status = self.post("/v1/classify", "application/json", body, patience)
            self.sent[f"32 URLs, {kind}: {status}"] += 1

    def announcements(self):
        """Connections that announce a large body and send nothing."""
        while self.going():
            sockets = []
            for _ in range(8):
                try:
                    s = socket.create_connection(("127.0.0.1", self.port), 5)
                    s.sendall(
                        b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
                        b"Content-Length: 33554432\r\n\r\n"
                    )
                    sockets.append(s)
                    self.sent["announced 32 MiB"] += 1
                except OSError:
                    self.sent["announced 32 MiB: refused"] += 1
            time.sleep(min(2, max(0, self.until - time.monotonic())))
            for s in sockets:
                s.close()

    def closed_windows(self):
        """HTTP/2 clients that ask for /docs 64 times and read nothing."""
        ask = b"".join(
            hpack(*field)
            for field in [
                (b":method", b"GET"),
                (b":scheme", b"http"),
                (b":path", b"/docs"),
                (b":authority", b"x"),
            ]
        )
        sockets = []
        while self.going() and len(sockets) < 40:
            try:
                s = socket.create_connection(("127.0.0.1", self.port), 5)
                hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
                hello += h2_frame(4, 0, 0, struct.pack(">HI", 4, 0))
                s.sendall(hello + b"".join(h2_frame(1, 5, 1 + 2 * i, ask) for i in range(64)))
                sockets.append(s)
                self.sent["http/2 without a window"] += 1
            except OSError:
                self.sent["http/2 without a window: refused"] += 1
            time.sleep(0.1)
        while self.going():
            for s in sockets:
                try:
                    s.sendall(h2_frame(6, 0, 0, b"12345678"))
                except OSError:
                    pass
            time.sleep(1)
        for s in sockets:
            s.close()

    def many_heads(self):
        """HTTP/2 clients with 64 requests each, whose heads have hundreds of fields that take a byte."""
        fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/v1/classify"), (b":authority", b"x")]
        ask = b"".join(hpack(*field) for field in fields)
        # A field that enters the table, and its index again and again.
        heads = [ask + (b"" if i else b"\x40\x01a\x00") + b"\xbe" * (440 if i % 2 else 90) for i in range(64)]
        while self.going():
            sockets = []
            for _ in range(60):
                try:
                    s = socket.create_connection(("127.0.0.1", self.port), 5)
                    hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + h2_frame(4, 0, 0, b"")
                    s.sendall(hello + b"".join(h2_frame(1, 4, 1 + 2 * i, head) for i, head in enumerate(heads)))
                    sockets.append(s)
                    self.sent["http/2 with 64 heads"] += 1
                except OSError:
                    self.sent["http/2 with 64 heads: refused"] += 1
            time.sleep(min(10, max(0, self.until - time.monotonic())))
            for s in sockets:
                s.close()

    def slow_senders(self):
        """A picture, byte by byte."""
        while self.going():
            try:
                s = socket.create_connection(("127.0.0.1", self.port), 5)
                s.sendall(
                    b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
                    b"Content-Length: 5000000\r\n\r\n"
                )
                while self.going():
                    s.sendall(b"x")
                    time.sleep(0.2)
            except OSError:
                self.sent["byte by byte: ended"] += 1


class HostileServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """Connections that the service closes are what is wanted."""


class HostileHost(http.server.BaseHTTPRequestHandler):
    """The host that URLs of hostile requests name."""

    protocol_version = "HTTP/1.1"
    # Slow to decode, and large.
    picture = jpeg_of_empty_scans(8000, 600) + bytes(12 * MIB)

    def log_message(self, *_):
        pass

    def do_GET(self):
        try:
            if self.path.startswith("/large"):
                self.send_response(200)
                self.send_header("Content-Length", str(len(self.picture)))
                self.end_headers()
                self.wfile.write(self.picture)
            elif self.path.startswith("/slow"):
                self.send_response(200)
                self.send_header("Content-Length", str(len(self.picture)))
                self.end_headers()
                for start in range(0, len(self.picture), 64 << 10):
                    self.wfile.write(self.picture[start : start + (64 << 10)])
                    time.sleep(0.05)
            elif self.path.startswith("/hints"):
                while True:
                    self.wfile.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 100)
            else:
                self.send_response(302)
                self.send_header("Location", self.path + "x")
                self.send_header("Content-Length", "0")
                self.end_headers()
        except OSError:
            self.close_connection = True


# ---- The service, and what it holds --------------------------------------------------------------


class Tree:
    """A process and its children, as /proc shows them."""

    def __init__(self, process):
        self.process = process
        self.peak = 0
        self.peaks = {}
        self.done = threading.Event()
        threading.Thread(target=self.watch, daemon=True).start()

    def members(self):
        found = [self.process]
        try:
            for task in os.listdir(f"/proc/{self.process}/task"):
                with open(f"/proc/{self.process}/task/{task}/children") as children:
                    found += [int(child) for child in children.read().split()]
        except OSError:
            pass
        return found

    def resident(self):
        """Bytes that the tree holds for itself: pages that several processes map count once."""
        total = 0
        for member in self.members():
            try:
                with open(f"/proc/{member}/statm") as statm:
                    _, resident, shared, *_ = map(int, statm.read().split())
            except (OSError, ValueError):
                continue
            own = resident if member == self.process else resident - shared
            total += own * os.sysconf("SC_PAGE_SIZE")
        return total

    def watch(self):
        while not self.done.wait(0.01):
            self.peak = max(self.peak, self.resident())


class Good:
    """A client whose requests must succeed."""

    def __init__(self, port, picture, until):
        self.port, self.picture, self.until = port, picture, until
        self.times, self.failures = [], []

    def run(self):
        while time.monotonic() < self.until:
            began = time.monotonic()
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            try:
                connection.request("POST", "/v1/classify", self.picture, {"content-type": "image/jpeg"})
                answer = connection.getresponse()
                text = answer.read()
                if answer.status != 200:
                    self.failures.append(f"{answer.status} {text[:200]!r}")
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
            finally:
                connection.close()
            self.times.append(time.monotonic() - began)
            time.sleep(0.02)


def limit_by_cgroup(limit):
    """Makes a cgroup of this limit and returns the file that takes process ids, or None."""
    for root, name in [
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        ("/sys/fs/cgroup", "memory.max"),
    ]:
        folder = f"{root}/imgclass-attack-{os.getpid()}"
        try:
            os.mkdir(folder)
            if not os.path.exists(f"{folder}/{name}"):
                os.rmdir(folder)
                continue
            with open(f"{folder}/{name}", "w") as file:
                file.write(str(limit))
            return folder
        except OSError:
            continue
    return None


def start(arguments, limit, host):
    options = [
        *["serve", "--weights", "random", "--hostname", "127.0.0.1", "--port", "0"],
        *["--max-decoded-bytes", str(arguments.max_decoded_mib * MIB)],
        *["--max-body-bytes", str(arguments.max_body_mib * MIB)],
        *["--fetch-memory", str(arguments.fetch_memory_mib * MIB)],
        *["--max-connections", str(arguments.max_connections)],
        *["--fetch-allow-cidr", "127.0.0.0/8", "--fetch-allow-port", str(host)],
    ]
    group = limit_by_cgroup(limit)

    def enter():
        if group:
            with open(f"{group}/cgroup.procs", "w") as file:
                file.write(str(os.getpid()))

    log = tempfile.NamedTemporaryFile("w+", suffix=".log", delete=False)
    process = subprocess.Popen(
        [arguments.imgclass, *options], stderr=log, stdout=log, preexec_fn=enter
    )
    for _ in range(300):
        time.sleep(0.1)
        with open(log.name) as file:
            ready = re.search(r"ready.*127\.0\.0\.1:(\d+)", re.sub(r"\x1b\[[0-9;]*m", "", file.read()))
        if ready:
            return process, int(ready[1]), log.name, group
        if process.poll() is not None:
            break
    process.kill()
    sys.exit(f"the service did not start; its log is {log.name}")


def most_memory(arguments):
    """The sum of docs/operations.md, "Memory", in bytes, for the options of `start`."""
    threads = len(os.sched_getaffinity(0))
    model = 350 + 10 * 4 * min(threads, 8) + 0.6 * 64
    decoding = arguments.max_decoded_mib + 100 * max(2, threads)
    received = 2.5 * arguments.max_body_mib + arguments.fetch_memory_mib
    connections = 0.25 * arguments.max_connections
    answers = 128
    return int(MIB * (1.2 * (model + decoding) + received + connections + answers))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--imgclass", default="target/release/imgclass")
    parser.add_argument("--picture", default="web/example.jpg", help="what good clients send")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--slowest", type=float, default=2.0, help="seconds")
    parser.add_argument("--max-decoded-mib", type=int, default=256)
    parser.add_argument("--max-body-mib", type=int, default=128)
    parser.add_argument("--fetch-memory-mib", type=int, default=64)
    parser.add_argument("--max-connections", type=int, default=256)
    parser.add_argument("--kinds", default="pictures,bodies,fetches,announcements,windows,heads,slow")
    arguments = parser.parse_args()
    limit = most_memory(arguments)
    with open(arguments.picture, "rb") as file:
        picture = file.read()
    pictures, bodies = hostile_pictures(), hostile_bodies()
    host = HostileServer(("127.0.0.1", 0), HostileHost)
    # A process of its own, so that good clients here do not wait for it.
    multiprocessing.get_context("fork").Process(target=host.serve_forever, daemon=True).start()
    process, port, log, group = start(arguments, limit, host.server_port)
    tree = Tree(process.pid)
    calm = Good(port, picture, time.monotonic() + 2)
    calm.run()
    before = tree.resident()
    until = time.monotonic() + arguments.seconds
    attack = Attack(port, until)
    good = [Good(port, picture, until) for _ in range(3)]
    kinds = arguments.kinds.split(",")
    work = [client.run for client in good]
    work += [lambda: attack.pictures(pictures)] * 8 * ("pictures" in kinds)
    work += [lambda: attack.bodies(bodies)] * 2 * ("bodies" in kinds)
    work += [lambda: attack.fetches(host.server_port)] * 20 * ("fetches" in kinds)
    work += [attack.announcements] * ("announcements" in kinds)
    work += [attack.closed_windows] * ("windows" in kinds)
    work += [attack.many_heads] * ("heads" in kinds)
    work += [attack.slow_senders] * 4 * ("slow" in kinds)
    threads = [threading.Thread(target=one, daemon=True) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until + 5 - time.monotonic()))
    alive = process.poll() is None
    peak = tree.peak
    settled = Good(port, picture, time.monotonic() + 3)
    if alive:
        time.sleep(2)
        settled.run()
    after = tree.resident()
    # The service gives free memory back when it has been idle for five seconds.
    idle_until = time.monotonic() + 12
    while alive and after > 1.5 * before and time.monotonic() < idle_until:
        time.sleep(0.5)
        after = tree.resident()
    tree.done.set()
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
    if group:
        time.sleep(0.2)
        try:
            os.rmdir(group)
        except OSError:
            pass
    times = sorted(time for client in good for time in client.times)
    failures = [failure for client in [calm, *good, settled] for failure in client.failures]
    for what, count in sorted(attack.sent.items()):
        print(f"{count:7} {what}")
    show = lambda size: f"{size / MIB:.0f} MiB"
    print(f"memory limit: {show(limit)}, {'held by a cgroup' if group else 'NOT held: no cgroup'}")
    print(f"memory before {show(before)}, at most {show(peak)}, afterwards {show(after)}")
    print(
        f"good requests: {len(times)}, median {times[len(times) // 2] * 1000:.0f} ms, "
        f"slowest {times[-1] * 1000:.0f} ms (calm: {max(calm.times) * 1000:.0f} ms)"
    )
    checks = {
        "the service lives": alive,
        "no good request failed": not failures,
        "the slowest good request was quick enough": times[-1] < arguments.slowest,
        "memory stayed below the limit": peak <= limit,
        "memory fell back": after <= 1.5 * before,
    }
    for check, holds in checks.items():
        print(f"{'ok    ' if holds else 'FAILED'} {check}")
    for failure in failures[:5]:
        print(f"       {failure}")
    if not all(checks.values()):
        print(f"the service's log: {log}")
        sys.exit(1)
    os.unlink(log)


if __name__ == "__main__":
    main()
