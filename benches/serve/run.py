#!/usr/bin/env python3
"""The service under load: prints each figure of "what it must reach", with the command that made it.

    cargo build --release
    python3 benches/serve/run.py --weights weights/resnet50.safetensors --images PHOTOGRAPHS [PART...]

PART is any of: start lone saturated overload memory stop batching resources allocators versus fastdecode (default: all but the last five,
which compare settings or builds). Everything runs on this machine and dials nothing but 127.0.0.1; the load comes from
`imgclass bench --url`, which also serves the photographs. --quick shortens everything to see that it works: its figures mean nothing. Exit
code 1 if a figure misses its mark. Needs Python 3.8 and nothing else.
"""

import argparse
import base64
import contextlib
import glob
import http.client
import itertools
import json
import os
import pathlib
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PARTS = ["start", "lone", "saturated", "overload", "memory", "stop", "batching", "resources", "allocators", "versus", "fastdecode"]
# Those that run only if they are named.
COMPARING = 5
# By number type: resident memory at rest, and the share of `imgclass bench`'s best that a saturated service should reach.
MARKS = {"f32": (400e6, 0.90), "bf16": (180e6, 0.88), "int8": (120e6, 0.80)}
# Debian's libmimalloc2.0 and libjemalloc2.
PRELOADS = {"system": None, "mimalloc": "libmimalloc.so.2*", "jemalloc": "libjemalloc.so.2"}

missed = []


def figure(what, value, mark, holds):
    """One line: what was measured, what it should be."""
    verdict = "ok" if holds else "MISSED"
    if not holds:
        missed.append(what)
    print(f"  {what}: {value} (mark: {mark}) {verdict}", flush=True)


def note(what, value):
    print(f"  {what}: {value}", flush=True)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def clean_environment(preload=None):
    ours = re.compile(r"IMGCLASS_|HF_|OTEL_|RUST_LOG$|PORT$")
    environment = {name: value for name, value in os.environ.items() if not ours.match(name)}
    if preload:
        environment["LD_PRELOAD"] = preload
    return environment


def shown(command):
    print(f"$ {shlex.join(map(str, command))}", flush=True)
    return command


class Service:
    """A running `imgclass serve`."""

    def __init__(self, args, *options, preload=None, quiet=False, imgclass=None):
        self.image_port = free_port()
        command = [imgclass or args.imgclass, "serve", "--hostname", "127.0.0.1", "--port", "0", "--json-logs", "--weights", args.weights,
                   "--fetch-allow-cidr", "127.0.0.0/8", "--fetch-allow-port", str(self.image_port), *args.type_options, *options]
        if preload:
            print(f"$ export LD_PRELOAD={preload}")
        if not quiet:
            shown(command)
        environment = dict(clean_environment(preload), RUST_LOG="warn,imgclass::cli=info")
        self.started = time.monotonic()
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.port = None
        self.ready = threading.Event()
        threading.Thread(target=self._read_log, daemon=True).start()
        if not self.ready.wait(120) or self.port is None:
            self.process.kill()
            sys.exit("the service did not get ready")

    def _read_log(self):
        for line in self.process.stderr:
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if entry.get("message") == "ready":
                    self.port = int(entry["address"].rsplit(":", 1)[1])
                    self.ready.set()
        self.ready.set()

    def memory(self, field="VmRSS"):
        """Resident bytes now, or at the most (VmHWM)."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{field}:\s+(\d+) kB", status).group(1)) * 1024

    def workers(self):
        """Resident bytes of each decode worker."""
        children = pathlib.Path(f"/proc/{self.process.pid}").glob("task/*/children")
        statuses = [pathlib.Path(f"/proc/{child}/status").read_text() for file in children for child in file.read_text().split()]
        return [int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) * 1024 for status in statuses]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def megabytes(n):
    return f"{n / 1e6:.0f} MB"


def load(args, service, *options, images=None):
    """Runs the load generator on a service; photographs come by URL from a server in the generator."""
    command = [args.imgclass, "bench", "--url", f"http://127.0.0.1:{service.port}", "--image", images or args.images,
               "--image-port", str(service.image_port), "--format", "json", *map(str, options)]
    done = subprocess.run(shown(command), stdout=subprocess.PIPE, text=True, env=clean_environment(), check=False)
    if not done.stdout:
        sys.exit("the load generator failed")
    return json.loads(done.stdout)


def forward(args, batch_size, passes=1):
    """Median ms and images/s of the forward pass alone, so many passes at one time."""
    command = [args.imgclass, "bench", "--weights", args.weights, "--batch-size", str(batch_size), "--passes", str(passes),
               "--iterations", str(max(2, args.iterations // batch_size)), "--format", "json", *args.type_options]
    done = subprocess.run(shown(command), stdout=subprocess.PIPE, text=True, env=clean_environment(), check=True)
    return json.loads(done.stdout)


def best(args):
    """The batch size and the number of passes at one time that give `imgclass bench` the most images/s, median of three."""
    ways = [(batch_size, passes) for batch_size in (1, 4, 8) for passes in sorted({1, len(os.sched_getaffinity(0))})]
    rates = {way: [] for way in ways}
    for _ in range(3):
        for way in ways:
            rates[way].append(forward(args, *way)["images_per_second"])
    for way in ways:
        note("bench, batch of {}, {} at one time".format(*way), f"{median(rates[way]):.1f} images/s")
    return max(ways, key=lambda way: median(rates[way]))


def median(values):
    return sorted(values)[len(values) // 2]


def ok_row(report):
    return report["statuses"].get("200", {"count": 0, "median_ms": 0.0, "max_ms": 0.0})


def photographs(args):
    path = pathlib.Path(args.images)
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    return [p.read_bytes() for p in files]


def body_of(image):
    url = "data:image/jpeg;base64," + base64.b64encode(image).decode()
    return json.dumps({"user_id": "1", "image_url": url}).encode()


def part_start(args):
    """Start to first answer, and memory at rest."""
    body = body_of(photographs(args)[0])
    times = []
    for i in range(args.starts):
        with Service(args, quiet=i > 0) as service:
            connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
            connection.request("POST", "/classify_image/", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            times.append(time.monotonic() - service.started)
            if answer.status != 200:
                sys.exit(f"status {answer.status}")
            connection.close()
            if i == 0:
                time.sleep(2)
                most = MARKS[args.dtype][0]
                figure("resident memory at rest", megabytes(service.memory()), f"under {megabytes(most)}", service.memory() < most)
    figure(f"start to first answer, median of {len(times)} (the first one may read the weights from disk: {max(times):.2f} s at the most)",
           f"{median(times):.2f} s", "under 1 s", median(times) < 1)


def part_lone(args):
    """A lone client's latency against the forward pass alone."""
    alone = forward(args, 1)["median_ms"]
    with Service(args) as service:
        load(args, service, "--clients", 1, "--duration", "2s")
        total = ok_row(load(args, service, "--clients", 1, "--duration", args.duration))["median_ms"]
    figure("lone client, median", f"{total:.1f} ms, {total - alone:.1f} over the forward pass's {alone:.1f}", "at most 10 ms over",
           total <= alone + 10)


def part_saturated(args):
    """Throughput with all places taken, in turns with `imgclass bench`: machines have better and worse minutes."""
    batch_size, passes = best(args)

    def alone():
        return forward(args, batch_size, passes)["images_per_second"]

    rates, shares = {n: [] for n in args.clients}, {n: [] for n in args.clients}
    with Service(args) as service:
        load(args, service, "--clients", 8, "--duration", "1s")
        before = alone()
        for _ in range(args.rounds):
            for clients in args.clients:
                report = load(args, service, "--clients", clients, "--duration", args.burst)
                after = alone()
                rates[clients].append(report["images_per_second"])
                shares[clients].append(report["images_per_second"] / ((before + after) / 2))
                before = after
                if report["requests"] != ok_row(report)["count"]:
                    figure(f"{clients} clients: answers other than 200", report["statuses"], "none", False)
    for clients in args.clients:
        share = median(shares[clients])
        figure(f"{clients} clients", f"{median(rates[clients]):.1f} images/s, {share:.1%} of `imgclass bench --batch-size {batch_size} --passes {passes}` just before and after, median of {args.rounds}",
               f"at least {MARKS[args.dtype][1]:.0%} of the best", share >= MARKS[args.dtype][1])
    return max(map(median, rates.values()))


def part_overload(args, capacity=None):
    """Ten times the capacity."""
    with Service(args) as service:
        if capacity is None:
            capacity = load(args, service, "--clients", 16, "--duration", args.duration)["images_per_second"]
        report = load(args, service, "--rate", round(10 * capacity), "--duration", args.overload, "--timeout", "120s")
        peak = service.memory("VmHWM")
    statuses = report["statuses"]
    figure("statuses", {s: row["count"] for s, row in statuses.items()}, "200 and 503 alone", set(statuses) <= {"200", "503"})
    figure("without an answer", report["errors"] or "none", "none", not report["errors"])
    refused = statuses.get("503", {"median_ms": 0.0, "p99_ms": 0.0})
    figure("refusals, median", f"{refused['median_ms']:.1f} ms, p99 {refused['p99_ms']:.1f}", "within 50 ms", refused["median_ms"] <= 50)
    row = ok_row(report)
    figure("slowest accepted request", f"{row['max_ms'] / 1e3:.1f} s", "within the deadline of 30 s", row["max_ms"] <= 30e3)
    rate = report["images_per_second"]
    figure("throughput (to the last answer)", f"{rate:.1f} images/s, {rate / capacity:.0%} of the saturated", "at least 90 %", rate >= 0.9 * capacity)
    note("resident memory at the most", megabytes(peak))


def png(width, height, declared=None):
    """A grey picture; `declared` lies about its size."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", *(declared or (width, height)), 8, 2, 0, 0, 0)
    rows = (b"\0" + b"\x80" * (3 * width)) * height
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def mixed_requests(args):
    """Endless (body, whether the client waits for the answer): good, bad, huge and disconnecting."""
    good = [body_of(image) for image in photographs(args)[:50]]
    large = body_of(png(4000, 3000))
    bad = [b"{", b"[]", b'{"user_id": "1"}', body_of(b"no image"), body_of(photographs(args)[0][:1000]),
           json.dumps({"user_id": "1", "image_url": "http://10.0.0.1/a.jpg"}).encode()]
    too_much = [body_of(png(8, 8, declared=(60000, 60000))), b"x" * (33 << 20)]
    for i in itertools.count():
        if i % 500 == 0:
            yield too_much[i // 500 % 2], True
        elif i % 100 == 0:
            yield large, True
        elif i % 4 == 1:
            yield bad[i // 4 % len(bad)], True
        elif i % 4 == 2:
            yield good[i // 4 % len(good)], False
        else:
            yield good[i // 4 % len(good)], True


def send(port, body, waits):
    """One request on a connection of its own. A connection that ends early is a part of the game."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        try:
            connection.request("POST", "/classify_image/", body, {"Content-Type": "application/json"})
            if waits:
                connection.getresponse().read()
        finally:
            connection.close()


def part_memory(args, preload=None):
    """Memory after a day's worth of bad and good requests."""
    first, last = args.requests
    with Service(args, preload=preload) as service:
        requests, lock = mixed_requests(args), threading.Lock()

        def client(until, count):
            while True:
                with lock:
                    if count[0] >= until:
                        return
                    count[0] += 1
                    body, waits = next(requests)
                send(service.port, body, waits)

        def up_to(until, count):
            threads = [threading.Thread(target=client, args=(until, count)) for _ in range(8)]
            [t.start() for t in threads]
            [t.join() for t in threads]
            time.sleep(2)
            return service.memory()

        count = [0]
        note("mixed requests", "8 clients; of each 100 about 49 good, 25 bad, 25 leaving at once, 1 of 12 megapixels; every 500th far too large")
        early, late = up_to(first, count), up_to(last, count)
        figure(f"resident memory after {first} and {last} mixed requests", f"{megabytes(early)} and {megabytes(late)}, {late / early - 1:+.1%}",
               "within 10 %", late <= 1.1 * early)
        note("at the most", megabytes(service.memory("VmHWM")))
    return late


def part_stop(args):
    """SIGTERM while clients ask as fast as they can on kept connections."""
    bodies = [body_of(image) for image in photographs(args)[:20]]
    lost, late, answered, codes = [], [], 0, []
    for round_number in range(args.stops):
        with Service(args, quiet=round_number > 0) as service:
            told = threading.Event()
            counts = [0] * 16

            def client(i):
                # A connection that the service closed after an answer is made anew; nobody there after the signal is the end.
                while True:
                    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
                    try:
                        connection.connect()
                    except OSError:
                        return
                    while True:
                        sent_before = not told.is_set()
                        try:
                            connection.request("POST", "/classify_image/", bodies[i % len(bodies)], {"Content-Type": "application/json"})
                            answer = connection.getresponse()
                            answer.read()
                        except (OSError, http.client.HTTPException) as error:
                            (lost if sent_before else late).append(repr(error))
                            connection.close()
                            if told.is_set():
                                return
                            break
                        counts[i] += 1
                        if answer.will_close:
                            connection.close()
                            break

            threads = [threading.Thread(target=client, args=(i,)) for i in range(len(counts))]
            [t.start() for t in threads]
            while sum(counts) < 2 * len(counts):
                time.sleep(0.01)
            told.set()
            service.process.send_signal(signal.SIGTERM)
            [t.join() for t in threads]
            codes.append(service.process.wait(60))
            answered += sum(counts)
    figure(f"SIGTERM under load, {args.stops} times: requests sent before the signal and not answered", f"{len(lost)} of {answered + len(lost)} {lost[:3]}",
           "none", not lost)
    note("sent after it, on connections that were open, and not answered", f"{len(late)} {late[:3]}")
    figure("exit codes", sorted(set(codes)), "0 alone", set(codes) == {0})


def part_batching(args):
    """What `--max-batch-size` is worth with 4 and 16 clients. Rounds alternate between the sizes; medians."""
    sizes, clients = [1, 2, 4, 8], [4, 16]
    rows = {(size, n): [] for size in sizes for n in clients}
    for _ in range(args.rounds):
        for size in sizes:
            with Service(args, "--max-batch-size", str(size), quiet=True) as service:
                load(args, service, "--clients", 4, "--duration", "1s")
                for n in clients:
                    report = load(args, service, "--clients", n, "--duration", args.burst)
                    rows[size, n].append((report["images_per_second"], ok_row(report)["median_ms"], service.memory("VmHWM")))
    for (size, n), measured in rows.items():
        rate, latency, memory = map(median, zip(*measured))
        note(f"batches of at most {size}, {n} clients", f"{rate:.1f} images/s, {latency:.0f} ms at the median, {megabytes(memory)} at the most")


def part_resources(args):
    """Memory in some states of each number type, each of a new service: now and at the most so far."""
    photos = [body_of(image) for image in photographs(args)[:50]]
    large = body_of(png(6000, 4000))
    states = [("ready, idle", [], 1, []),
              ("50 photographs, one at a time", photos, 1, []),
              ("400 photographs, 32 at a time", 8 * photos, 32, []),
              ("400 photographs, 64 at a time, --max-batch-size 32", 8 * photos, 64, ["--max-batch-size", "32"]),
              ("48 PNGs of 24 megapixels, 16 at a time", 48 * [large], 16, [])]
    for dtype in MARKS:
        args.type_options = ["--dtype", dtype]
        warm(args)
        for what, bodies, clients, options in states:
            with Service(args, *options) as service:
                waiting, lock = iter(bodies), threading.Lock()

                def client():
                    while True:
                        with lock:
                            body = next(waiting, None)
                        if body is None:
                            return
                        send(service.port, body, True)

                threads = [threading.Thread(target=client) for _ in range(clients)]
                [t.start() for t in threads]
                [t.join() for t in threads]
                time.sleep(2)
                now, most = service.memory() / 2**20, service.memory("VmHWM") / 2**20
                workers = ", ".join(f"{worker / 2**20:.0f}" for worker in sorted(service.workers()))
            note(f"{dtype}, {what}", f"{now:.0f} MiB now, {most:.0f} MiB at the most, workers {workers or 'none'}")


def part_versus(args):
    """This build against another one (--other): both services are up, and 16 clients ask them in turns."""
    if not args.other:
        sys.exit("versus needs --other BINARY")
    ratios = []
    # The service that is started second has a few per cent less or more, so each is started first in half of the rounds.
    for first in range(2):
        order = [args.imgclass, args.other][::1 if first == 0 else -1]
        with Service(args, imgclass=order[0]) as one, Service(args, imgclass=order[1]) as two:
            services = dict(zip(order, (one, two)))
            for service in services.values():
                load(args, service, "--clients", 16, "--duration", "1s")
            rates = {binary: [] for binary in order}
            for _ in range(args.rounds):
                for binary in order:
                    rates[binary].append(load(args, services[binary], "--clients", 16, "--duration", args.burst)["images_per_second"])
            ratios.append(median([ours / other for ours, other in zip(rates[args.imgclass], rates[args.other])]))
            note(f"{order[0]} started first", f"{median(rates[args.imgclass]):.1f} against {median(rates[args.other]):.1f} images/s, ratio {ratios[-1]:.3f}")
    ratio = sum(ratios) / 2
    figure("throughput against the other build", f"{ratio:.3f} of it, mean of both orders", "at least 0.99", ratio >= 0.99)


def part_fastdecode(args):
    """Large JPEGs (--large FOLDER) with --fast-decode and without: both services are up, and 16 clients ask them in turns."""
    if not args.large:
        sys.exit("fastdecode needs --large FOLDER")
    with Service(args) as plain, Service(args, "--fast-decode") as fast:
        rates = {service: [] for service in (plain, fast)}
        for _ in range(args.rounds):
            for service in rates:
                report = load(args, service, "--clients", 16, "--duration", args.burst, images=args.large)
                rates[service].append(report["images_per_second"])
                if report["requests"] != ok_row(report)["count"]:
                    figure("answers other than 200", report["statuses"], "none", False)
    ratio = median([a / b for a, b in zip(rates[fast], rates[plain])])
    figure("throughput with --fast-decode", f"{median(rates[fast]):.1f} images/s, {ratio:.2f} times the {median(rates[plain]):.1f} without it",
           "at least 1.6 times in int8", args.dtype != "int8" or ratio >= 1.6)


def part_allocators(args):
    """The system's malloc under our allocator, and two others in its place."""
    for name, pattern in PRELOADS.items():
        preload = None
        if pattern:
            found = sorted(glob.glob(f"/usr/lib/*/{pattern}") + glob.glob(f"/usr/lib/{pattern}"))
            if not found:
                print(f"!!! {name} is not installed: apt-get install libmimalloc2.0 libjemalloc2", file=sys.stderr)
                continue
            preload = found[0]
        print(f"\n-- {name}")
        with Service(args, preload=preload) as service:
            report = load(args, service, "--clients", 16, "--duration", args.duration)
            note("saturated by 16 clients", f"{report['images_per_second']:.1f} images/s")
            note("resident after that", megabytes(service.memory()))
        part_memory(args, preload)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=" ".join(PARTS))
    parser.add_argument("--imgclass", default=str(ROOT / "target/release/imgclass"), help="the binary")
    parser.add_argument("--weights", required=True, help="a safetensors file, or random")
    parser.add_argument("--images", required=True, help="a folder of photographs")
    parser.add_argument("--dtype", choices=MARKS, default="f32", help="the number type; resources measures all of them")
    parser.add_argument("--other", help="versus: the other build's binary")
    parser.add_argument("--large", help="fastdecode: a folder of JPEGs of 12 megapixels or so")
    parser.add_argument("--quick", action="store_true", help="short runs that only show that everything works")
    args = parser.parse_args()
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are {' '.join(PARTS)}")
    args.parts = args.parts or PARTS[:-COMPARING]
    # Builds that know one type only are compared in float32.
    args.type_options = [] if args.dtype == "f32" else ["--dtype", args.dtype]
    if args.quick:
        args.duration, args.overload, args.clients, args.iterations = "1s", "2s", [8], 2
        args.starts, args.stops, args.requests, args.rounds = 2, 2, (20, 60), 1
        args.burst = "1s"
    else:
        args.duration, args.overload, args.clients, args.iterations = "20s", "60s", [8, 16, 32, 64], 160
        args.starts, args.stops, args.requests, args.rounds = 9, 20, (500, 20_000), 8
        args.burst = "12s"
    return args


def warm(args):
    """Has the ranges of 8-bit integers measured and kept, which the first start does."""
    if args.type_options:
        with Service(args, quiet=True):
            pass


def main():
    args = arguments()
    warm(args)
    capacity = None
    for part in args.parts:
        print(f"\n== {part}: {globals()[f'part_{part}'].__doc__}", flush=True)
        if part == "saturated":
            capacity = part_saturated(args)
        elif part == "overload":
            part_overload(args, capacity)
        else:
            globals()[f"part_{part}"](args)
    print(f"\n{len(missed)} missed" + "".join(f"\n  {what}" for what in missed))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
