#!/usr/bin/env python3
"""Writes a float32 safetensors file anew with its convolutions and linear layers in f16.

    tools/half_checkpoint.py IN.safetensors OUT.safetensors

A ResNet-50 of 102 MB becomes one of 51 MB. Tensors of one dimension stay float32: batch norms'
variances can be too small or too large for f16, and all of them together have 0.2 MB. Needs nothing
but Python; numpy makes it faster where it is installed.
"""

import json
import struct
import sys

# The most that one struct.pack call converts, to bound the memory of its arguments.
CHUNK = 1 << 16


def halves(numbers: memoryview) -> bytes:
    """Returns little-endian float32 numbers as f16, rounded to the nearest.

    Raises OverflowError where one is above 65504, the largest number of f16.
    """
    try:
        import numpy
    except ImportError:
        made = []
        for start in range(0, len(numbers), 4 * CHUNK):
            part = numbers[start : start + 4 * CHUNK]
            count = len(part) // 4
            made.append(struct.pack(f"<{count}e", *struct.unpack(f"<{count}f", part)))
        return b"".join(made)
    with numpy.errstate(over="ignore"):
        found = numpy.frombuffer(numbers, "<f4").astype("<f2")
    if numpy.isinf(found).any():
        raise OverflowError("a number is above 65504")
    return found.tobytes()


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: tools/half_checkpoint.py IN.safetensors OUT.safetensors")
    source, target = sys.argv[1:]
    with open(source, "rb") as opened:
        content = memoryview(opened.read())
    try:
        (length,) = struct.unpack_from("<Q", content)
        header = json.loads(bytes(content[8 : 8 + length]))
    except (struct.error, ValueError) as error:
        sys.exit(f"{source} is not a safetensors file: {error}")
    data = content[8 + length :]
    metadata = header.pop("__metadata__", None)
    parts, made, offset = [], {}, 0
    # In the order of the data, as safetensors wants the offsets without holes.
    for name, tensor in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = tensor["data_offsets"]
        part, dtype = bytes(data[begin:end]), tensor["dtype"]
        if dtype == "F32" and len(tensor["shape"]) > 1:
            try:
                part, dtype = halves(data[begin:end]), "F16"
            except OverflowError as error:
                sys.exit(f"{source}: {name} does not fit into f16: {error}")
        made[name] = {
            "dtype": dtype,
            "shape": tensor["shape"],
            "data_offsets": [offset, offset + len(part)],
        }
        parts.append(part)
        offset += len(part)
    if metadata is not None:
        made["__metadata__"] = metadata
    head = json.dumps(made, separators=(",", ":")).encode()
    # The data begins at a multiple of eight.
    head += b" " * (-len(head) % 8)
    with open(target, "wb") as opened:
        opened.write(struct.pack("<Q", len(head)) + head)
        opened.writelines(parts)
    print(f"{target}: {offset / 1e6:.1f} MB of {len(data) / 1e6:.1f}")


if __name__ == "__main__":
    main()
