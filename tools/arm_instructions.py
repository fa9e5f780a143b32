#!/usr/bin/env python3
"""Counts the instructions that 64-bit Arm takes for an image: ResNet-50 at 224 pixels, one thread.

    python3 tools/arm_instructions.py ARM_BINARY BINARY [--peers]

ARM_BINARY is imgclass for 64-bit Arm, BINARY the same for this machine, which makes the 8-bit
weights. qemu runs one pass and two passes with the plugin tools/count_instructions.rs, and the
difference is what one pass takes. Instructions are no time, but they are the same in each run.

--peers adds ONNX Runtime and ncnn. It makes a root of Debian for 64-bit Arm with Python in it
(mmdebstrap, as root), and takes their wheels, onnx and pnnx from PyPI; all of it is kept in
target/arm-peers. Needs qemu-user, libc6-arm64-cross and rustc. A pass takes a minute or more.
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PEERS = ROOT / "target/arm-peers"
PLUGIN = PEERS / "libcount.so"
C_LIBRARY = "/usr/aarch64-linux-gnu"
COUNTS = re.compile(r"^instructions=(\d+) multiply_adds=(\d+) memory=(\d+)$", re.M)
# The processor that qemu shows, our instruction set and our number type.
OURS = [
    ("neoverse-n1", "neon", "f32"),
    ("neoverse-n1", "portable", "f32"),
    ("max", "neon", "int8"),
    ("neoverse-n1", "neon", "int8"),
    ("cortex-a72", "neon", "int8"),
    ("neoverse-n1", "neon", "bf16"),
]
# Neoverse N1 has half precision, which ncnn is told not to take.
PEER_CPU = "neoverse-n1"
# What the peers read of the machine; qemu lets the files of its root come before this machine's.
MACHINE = {
    "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop"
                    " asimddp\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x3\nCPU part\t: 0xd0c\nCPU revision\t: 1\n\n",
    "sys/devices/system/cpu/kernel_max": "0\n",
    "sys/devices/system/cpu/possible": "0\n",
    "sys/devices/system/cpu/present": "0\n",
    "sys/devices/system/cpu/cpu0/topology/physical_package_id": "0\n",
    "sys/devices/system/cpu/cpu0/topology/cluster_cpus_list": "0\n",
}
PEER_WHEELS = ["onnxruntime==1.32.0", "ncnn==1.0.20261020", "numpy==1.26.4"]


def emulate(cpu, library, command, environment=()):
    """Runs a program under qemu and returns (all instructions, multiply-adds, loads and stores)."""
    variables = [word for pair in environment for word in ("-E", pair)]
    # On one core `imgclass bench` does not measure how far cores are apart, for which threads spin.
    done = subprocess.run(["taskset", "--cpu-list", "0", "qemu-aarch64", "-cpu", cpu, "-L", str(library), *variables, "-plugin", str(PLUGIN), *command],
                          capture_output=True, text=True)
    found = COUNTS.search(done.stderr)
    if done.returncode or not found:
        sys.exit(f"{' '.join(map(str, command))} under qemu ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return tuple(map(int, found.groups()))


def row(name, cpu, run):
    """Prints what one pass takes; `run(n)` counts what `n` passes and the rest of the program take."""
    one, two = run(1), run(2)
    every, products, memory = (after - before for before, after in zip(one, two))
    print(f"| {name} | {cpu} | {every / 1e6:.0f} | {products / 1e6:.0f} | {memory / 1e6:.0f} | {products / every:.0%} |", flush=True)


def ours(arm_binary, binary):
    with tempfile.TemporaryDirectory() as folder:
        eighth = pathlib.Path(folder) / "int8.safetensors"
        subprocess.run([binary, "weights", "quantize", "--weights", "random:resnet50", "-o", eighth],
                       check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for cpu, isa, dtype in OURS:
            weights = str(eighth) if dtype == "int8" else "random:resnet50"
            command = [arm_binary, "bench", "--weights", weights, "--dtype", dtype, "--isa", isa, "--threads", "1", "--warm-up", "0"]
            row(f"imgclass, {dtype}, {isa}", cpu, lambda n: emulate(cpu, C_LIBRARY, [*command, "--iterations", str(n)]))


def make_peers():
    """Makes the Arm root with Python, and the network in the form of each peer."""
    python, tools, wheels = PEERS / "root", PEERS / "venv", PEERS / "wheels"
    if not (python / "usr/bin/python3.11").exists():
        subprocess.run(["mmdebstrap", "--quiet", "--variant=extract", "--architectures=arm64",
                        "--include=python3.11,libpython3.11-stdlib,libc6,libgcc-s1,libstdc++6,libgomp1,zlib1g,libexpat1,libffi8",
                        "bookworm", python], check=True)
    for name, text in MACHINE.items():
        (python / name).parent.mkdir(parents=True, exist_ok=True)
        (python / name).write_text(text)
    pip = [tools / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]
    if not tools.exists():
        subprocess.run([sys.executable, "-m", "venv", tools], check=True)
    if not wheels.exists():
        subprocess.run([*pip, "--target", wheels, "--no-deps", "--python-version", "3.11", "--implementation", "cp",
                        "--platform", "manylinux_2_28_aarch64", "--platform", "manylinux_2_17_aarch64", *PEER_WHEELS], check=True)
    if not (PEERS / "resnet50.ncnn.bin").exists():
        # pnnx's package asks for PyTorch; its program, which is taken here, does without.
        subprocess.run([*pip, "--no-deps", "numpy", "onnx", "protobuf", "ml_dtypes", "typing_extensions", "safetensors", "pnnx"], check=True)
        onnx = PEERS / "resnet50.onnx"
        subprocess.run([tools / "bin/python", ROOT / "benches/peers/resnet50_onnx.py", "--formula", "0", "--onnx", onnx], check=True)
        pnnx = next(tools.glob("lib/python*/site-packages/pnnx/pnnx"))
        pnnx.chmod(0o755)
        subprocess.run([pnnx, onnx, "inputshape=[1,3,224,224]", "fp16=0"], check=True, cwd=PEERS,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return python, wheels


def peers():
    python, wheels = make_peers()
    environment = [f"PYTHONPATH={wheels}", f"PYTHONHOME={python}/usr", "OMP_NUM_THREADS=1"]
    for engine in ("onnxruntime", "ncnn"):
        command = [python / "usr/bin/python3.11", __file__, "--worker", engine]
        row(engine, PEER_CPU, lambda n: emulate(PEER_CPU, python, [*command, str(n)], environment))


def worker(engine, passes):
    """What the emulated Python runs: a peer, with as many passes."""
    import numpy

    image = numpy.linspace(-2, 2, 3 * 224 * 224, dtype=numpy.float32).reshape(1, 3, 224, 224)
    if engine == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(PEERS / "resnet50.onnx", options, providers=["CPUExecutionProvider"])
        logits = [session.run(["logits"], {"input": image})[0] for _ in range(passes)]
    else:
        import ncnn

        net = ncnn.Net()
        net.opt.num_threads = 1
        net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
        net.load_param(str(PEERS / "resnet50.ncnn.param"))
        net.load_model(str(PEERS / "resnet50.ncnn.bin"))
        logits = []
        for _ in range(passes):
            extractor = net.create_extractor()
            extractor.input("in0", ncnn.Mat(image[0]))
            logits.append(numpy.array(extractor.extract("out0")[1]))
    print(engine, logits[-1].ravel()[:4])
    assert logits[-1].size == 1000 and numpy.isfinite(logits[-1]).all()


def main():
    arguments = sys.argv[1:]
    if arguments[:1] == ["--worker"]:
        return worker(arguments[1], int(arguments[2]))
    wants_peers = "--peers" in arguments
    binaries = [argument for argument in arguments if argument != "--peers"]
    if len(binaries) != 2:
        sys.exit(__doc__)
    PEERS.mkdir(parents=True, exist_ok=True)
    subprocess.run(["rustc", "--edition", "2024", "-O", "--crate-type", "cdylib", "-o", PLUGIN, ROOT / "tools/count_instructions.rs"], check=True)
    print("| program | processor | instructions, millions | multiply-adds | loads and stores | share of multiply-adds |")
    print("|---|---|---|---|---|---|", flush=True)
    ours(*binaries)
    if wants_peers:
        peers()


if __name__ == "__main__":
    main()
