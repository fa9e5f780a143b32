#!/usr/bin/env python3
"""Counts the instructions of the micro-kernels' inner loops for 64-bit Arm.

    python3 tools/arm_loops.py FILE             (an object, a library or a binary with symbols, as tools/check-arm.sh makes)

It disassembles the binary with aarch64-linux-gnu-objdump. For each product and each stem it prints the inner loop of the tallest tile:
accumulators, multiplications, loads (a load of a pair of registers is one), other instructions, and moves to or from the stack. Exit code
1 if a loop uses the stack, or if a product's loads more than a third as many registers as it multiplies.
"""

import re
import subprocess
import sys

KERNEL = re.compile(r"imgclass_kernels::isa::(?:\w+::)*(\w+)::(dense|indirect|tile)\b")
MULTIPLIES = re.compile(r"(fmla|sdot|sudot|sadalp)$")
INSTRUCTION = re.compile(r"\s+([0-9a-f]+):\s+(\S+)\s*(.*)")


def functions(binary):
    """Yields (name, instructions) of each kernel; an instruction is (address, name, operands)."""
    text = subprocess.run(["aarch64-linux-gnu-objdump", "--disassemble", "--demangle", "--no-show-raw-insn", binary],
                          check=True, capture_output=True, text=True).stdout
    name, instructions = None, []
    for line in text.splitlines():
        if line.endswith(">:"):
            if name:
                yield name, instructions
            found = KERNEL.search(line)
            name, instructions = found and found.groups(), []
        elif name and (found := INSTRUCTION.match(line)):
            instructions.append((int(found[1], 16), found[2], found[3]))
    if name:
        yield name, instructions


def inner_loops(instructions):
    """Returns the loops that hold no other loop."""
    places = {address: index for index, (address, _, _) in enumerate(instructions)}
    loops = []
    for end, (address, name, operands) in enumerate(instructions):
        target = re.search(r"\b([0-9a-f]+) <", operands)
        if name.startswith(("b", "cb", "tb")) and target and int(target[1], 16) <= address:
            start = places.get(int(target[1], 16))
            if start is not None:
                loops.append((start, end))
    inner = [(s, e) for s, e in loops if not any((s, e) != (a, b) and s <= a and b <= e for a, b in loops)]
    return [instructions[start:end + 1] for start, end in inner]


def counts(loop):
    """Returns (accumulators, multiplications, loads, registers loaded, other instructions, moves to and from the stack)."""
    sums = {operands.split(",")[0] for _, name, operands in loop if MULTIPLIES.match(name)}
    names = [name for _, name, _ in loop]
    multiplies = sum(bool(MULTIPLIES.match(name)) for name in names)
    loads = [name for name in names if name.startswith("ld")]
    stack = sum("[sp" in operands for _, _, operands in loop)
    return len(sums), multiplies, len(loads), len(loads) + loads.count("ldp"), len(loop) - multiplies - len(loads), stack


def main():
    tallest = {}
    for (module, kind), instructions in functions(sys.argv[1]):
        for loop in map(counts, inner_loops(instructions)):
            key = (module, kind)
            # Of loops with as many accumulators the one that uses the stack most.
            if loop[0] and (key not in tallest or (loop[0], loop[5]) > (tallest[key][0], tallest[key][5])):
                tallest[key] = loop
    if not tallest:
        sys.exit(f"there are no kernels for NEON in {sys.argv[1]}")
    bad = []
    print(f"{'kernel':32} accumulators  multiplies  loads (registers)  other  stack")
    for (module, kind), (sums, multiplies, loads, registers, other, stack) in sorted(tallest.items()):
        print(f"{module + ' ' + kind:32} {sums:12} {multiplies:11} {loads:6} {registers:11} {other:6} {stack:6}")
        if stack or kind != "tile" and 3 * registers > multiplies:
            bad.append(f"{module} {kind}")
    if bad:
        sys.exit("these loops spill, or load too much: " + ", ".join(bad))


main()
