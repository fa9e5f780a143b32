"""Finds the pictures that are classified: a reference's photographs, or else drawn ones."""

import csv
import struct
import zlib
from pathlib import Path
from typing import NamedTuple


class Photograph(NamedTuple):
    """One row of the reference's table."""

    path: str
    top1: int
    # The reference's first logit minus its second.
    margin: float


def reference(shared: Path | None, most: int) -> list:
    """Returns the photographs that `shared/reference/images.tsv` names, at most so many.

    The table's columns `file`, `top1` and `margin` are read; a file's path is relative to `shared`.
    """
    if shared is None:
        return []
    table = shared / "reference" / "images.tsv"
    if not table.is_file():
        raise SystemExit(f"--shared {shared}: there is no {table}, which names the photographs")
    with table.open(newline="") as opened:
        rows = list(csv.DictReader(opened, delimiter="\t"))[:most]
    found = [
        Photograph(str(shared / row["file"]), int(row["top1"]), float(row["margin"]))
        for row in rows
    ]
    missing = [photograph.path for photograph in found if not Path(photograph.path).is_file()]
    if missing:
        raise SystemExit(
            f"{table} names {len(missing)} files that are not there, first {missing[0]}"
        )
    return found


def drawn(folder: Path, example: Path) -> list:
    """Returns the paths of the example, if it is there, and of seven ramps made in `folder`."""
    ramps = [ramp(folder / f"{step}.png", step) for step in (1, 3, 5, 7, 11, 13, 17)]
    return [str(path) for path in [example, *ramps] if path.is_file()]


def ramp(path: Path, step: int) -> Path:
    """Writes a PNG of 256 by 256 coloured ramps."""
    side = 256
    rows = [
        bytes([0])
        + bytes(
            v & 255 for x in range(side) for v in (x * step + y, x // 3 + 2 * y, (x ^ y) * step)
        )
        for y in range(side)
    ]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = zlib.compress(b"".join(rows))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )
    return path
