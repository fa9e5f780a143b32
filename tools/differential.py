#!/usr/bin/env python3
"""Compares what this project sees in generated pictures with what Pillow sees.

    pip install pillow
    cargo build -p imgclass-image --example pixels
    tools/differential.py --binary target/debug/examples/pixels [--count 3000] [--seed 1] [--keep DIR]

It draws pictures over format, mode, size, sampling, predictor, orientation and damage, from a seed.
Each is read by Pillow (first frame, turned upright by EXIF, the high byte of 16 bits, RGB) and by
the example `pixels`. There are five outcomes:

  same      both read it, to the same pixels
  refused   both refuse it
  otherwise both read it, to different pixels: a fault
  ours      only we read it: a fault if it is a damaged JPEG; elsewhere the damage may lie where
            we do not look, as in metadata
  pillow    only Pillow reads it: a gap, listed by our reason

The exit status is 1 if there is a fault, or if more than --gaps percent of what Pillow reads is
refused.
"""

import argparse
import collections
import io
import os
import random
import struct
import subprocess
import sys
import tempfile
import warnings

from PIL import Image, ImageFile, ImageOps

Image.MAX_IMAGE_PIXELS = None
warnings.simplefilter("ignore")

MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"]


def scene(rng, width, height):
    """A smooth picture with some noise and a hard edge."""
    small = Image.frombytes("RGB", (6, 5), bytes(rng.randrange(256) for _ in range(90)))
    picture = small.resize((width, height), Image.Resampling.BICUBIC)
    noise = Image.effect_noise((width, height), rng.choice([0, 8, 40])).convert("L")
    picture = Image.blend(picture, Image.merge("RGB", [noise] * 3), 0.15)
    box = (width // 3, height // 4, width // 3 + max(1, width // 5), height // 4 + max(1, height // 3))
    picture.paste(tuple(rng.randrange(256) for _ in range(3)), box)
    return picture


def exif(rng):
    """An EXIF block with an orientation, in some of its forms."""
    order = rng.choice("<>")
    kind, code = rng.choice([(3, "H"), (3, "H"), (4, "I")])
    value = struct.pack(order + code, rng.randrange(0, 10)).ljust(4, b"\0")
    head = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(order + "HHI", 0x112, kind, 1) + value
    block = head + struct.pack(order + "IH", 8, 1) + entry + bytes(4)
    return b"Exif\0\0" * rng.choice([1, 1, 2]) + block


def jpeg_segment(marker, payload):
    return bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload


def draw_jpeg(rng, picture):
    mode = rng.choice(["L", "RGB", "RGB", "RGB", "RGB", "CMYK"])
    options = {"quality": rng.randrange(5, 100), "progressive": rng.random() < 0.35}
    if mode == "RGB":
        options["subsampling"] = rng.choice(["4:4:4", "4:2:2", "4:2:0", "4:1:1"])
    if rng.random() < 0.3:
        options[rng.choice(["restart_marker_blocks", "restart_marker_rows"])] = rng.randrange(1, 9)
    if rng.random() < 0.3:
        options["optimize"] = True
    data = saved(picture.convert(mode), "JPEG", **options)
    if rng.random() < 0.4:
        data = data[:2] + jpeg_segment(0xE1, exif(rng)) + data[2:]
    if rng.random() < 0.2:
        # Another colour model: none of the markers, or Adobe's.
        at = data.find(b"JFIF")
        if at > 0:
            data = data[: at - 4] + data[at + 14 :]
        if rng.random() < 0.7:
            adobe = b"Adobe\0\x64\0\0\0\0" + bytes([rng.randrange(3)])
            data = data[:2] + jpeg_segment(0xEE, adobe) + data[2:]
    if rng.random() < 0.25 and mode != "L":
        # Other sampling factors than the data have, which makes them nonsense, but the same
        # nonsense for everybody.
        start = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        if start > 0:
            data = bytearray(data)
            for component in range(data[start + 9]):
                factors = rng.choice([0x11, 0x11, 0x21, 0x12, 0x22, 0x31, 0x41, 0x14])
                data[start + 11 + component * 3] = factors
            data = bytes(data)
    return data


def draw_png(rng, picture):
    mode = rng.choice(["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
    options = {}
    if mode == "P":
        colours = rng.choice([2, 4, 16, 256])
        picture = picture.quantize(colours)
        options["bits"] = {2: 1, 4: 2, 16: 4, 256: 8}[colours]
    else:
        picture = in_mode(picture, mode)
    if rng.random() < 0.4:
        options["exif"] = exif(rng)
    return saved(picture, "PNG", **options)


def draw_tiff(rng, picture):
    mode = rng.choice(MODES)
    compressions = [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "tiff_deflate"]
    compressions += ["zstd", "lzma"]
    if mode == "1":
        compressions += ["group3", "group4", "tiff_ccitt"]
    if mode in ("L", "RGB"):
        compressions += ["jpeg", "jpeg"]
    if mode == "P":
        picture = picture.quantize(rng.choice([2, 5, 16, 256]))
    else:
        picture = in_mode(picture, mode)
    tags = {}
    compression = rng.choice(compressions)
    if compression in ("tiff_lzw", "tiff_adobe_deflate", "zstd", "lzma") and mode not in "1P":
        if rng.random() < 0.5:
            tags[317] = 2
    if rng.random() < 0.4:
        tags[274] = rng.randrange(1, 9)
    if rng.random() < 0.4:
        tags[278] = rng.choice([1, 3, 8, 16])
    options = {"compression": compression, "tiffinfo": tags, "big_tiff": rng.random() < 0.2}
    if compression == "jpeg":
        options["quality"] = rng.randrange(20, 100)
    return saved(picture, "TIFF", **options)


def draw_webp(rng, picture):
    mode = rng.choice(["RGB", "RGBA"])
    options = {"lossless": rng.random() < 0.4, "quality": rng.randrange(1, 100), "method": 0}
    if rng.random() < 0.4:
        options["exif"] = exif(rng)
    picture = in_mode(picture, mode)
    if rng.random() < 0.2:
        options.update(save_all=True, append_images=[picture.transpose(Image.Transpose.ROTATE_180)])
    return saved(picture, "WEBP", **options)


def draw_avif(rng, picture):
    mode = rng.choice(["L", "RGB", "RGB", "RGB", "RGBA"])
    options = {"quality": rng.randrange(1, 100), "speed": 10, "range": rng.choice(["full", "limited"])}
    options["subsampling"] = rng.choice(["4:0:0", "4:2:0", "4:2:0", "4:2:2", "4:4:4"])
    if rng.random() < 0.2:
        options.update(autotiling=False, tile_rows=1, tile_cols=1)
    if rng.random() < 0.3:
        block = Image.Exif()
        block[0x112] = rng.randrange(1, 9)
        options["exif"] = block
    if rng.random() < 0.2:
        options["xmp"] = b'<x tiff:Orientation="%d"/>' % rng.randrange(1, 9)
    picture = in_mode(picture, mode)
    # Pillow 13 can crash where it writes sequences with EXIF.
    if rng.random() < 0.2 and "exif" not in options:
        options.update(save_all=True, append_images=[picture.transpose(Image.Transpose.ROTATE_180)])
    elif mode != "L" and rng.random() < 0.1:
        options["advanced"] = {"film-grain-test": str(rng.randrange(1, 17))}
    return saved(picture, "AVIF", **options)


def draw_gif(rng, picture):
    options = {"interlace": rng.random() < 0.5}
    picture = picture.convert("L") if rng.random() < 0.2 else picture.quantize(rng.choice([2, 7, 64, 256]))
    if rng.random() < 0.2:
        options["transparency"] = rng.randrange(2)
    if rng.random() < 0.2:
        options.update(save_all=True, append_images=[picture.transpose(Image.Transpose.ROTATE_180)])
    return saved(picture, "GIF", **options)


def draw_bmp(rng, picture):
    mode = rng.choice(["1", "L", "P", "RGB", "RGBA"])
    picture = picture.quantize(rng.choice([2, 16, 200])) if mode == "P" else in_mode(picture, mode)
    return saved(picture, "BMP")


def in_mode(picture, mode):
    if mode == "I;16":
        grey = picture.convert("L")
        wide = b"".join(bytes([value ^ 0x5A, value]) for value in grey.tobytes())
        return Image.frombytes("I;16", grey.size, wide)
    if mode in ("LA", "RGBA"):
        picture = picture.convert(mode[:-1])
        picture.putalpha(picture.convert("L").point(lambda value: 255 if value > 60 else value * 4))
        return picture
    return picture.convert(mode)


def saved(picture, form, **options):
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def damaged(rng, data):
    """The file cut off, or with some bytes changed, left out, doubled or zeroed."""
    data = bytearray(data)
    kind = rng.randrange(5)
    if kind == 0:
        return bytes(data[: rng.randrange(1, len(data))])
    for _ in range(rng.choice([1, 1, 2, 5])):
        # Mostly behind the headers, whose damage is mostly refused.
        start = rng.randrange(len(data)) if rng.random() < 0.3 else rng.randrange(len(data) // 3, len(data))
        end = min(len(data), start + rng.randrange(1, 12))
        if kind == 1:
            data[start] = rng.randrange(256)
        elif kind == 2 and len(data) > 40:
            del data[start:end]
        elif kind == 3:
            data[start:start] = data[start:end]
        elif kind == 4:
            data[start:end] = bytes(end - start)
    return bytes(data)


DRAWERS = {
    "jpg": draw_jpeg,
    "png": draw_png,
    "tif": draw_tiff,
    "webp": draw_webp,
    "gif": draw_gif,
    "bmp": draw_bmp,
    "avif": draw_avif,
}
WEIGHTS = {"jpg": 8, "png": 3, "tif": 4, "webp": 2, "gif": 2, "bmp": 1, "avif": 2}


def has_usual_sampling(jpeg):
    """Whether all components but the first are sampled once in a group of blocks."""
    start = max(jpeg.find(b"\xff\xc0"), jpeg.find(b"\xff\xc2"))
    if start < 0 or len(jpeg) < start + 10:
        return False
    return all(factors == 0x11 for factors in jpeg[start + 14 : start + 11 + 3 * jpeg[start + 9] : 3])


def seen_by_pillow(data, least=None):
    """Returns width, height and RGB bytes, or None if Pillow refuses the picture. A JPEG of which
    no side needs to be longer than `least` pixels is read at a reduced size."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.format not in ("JPEG", "MPO", "PNG", "TIFF", "WEBP", "GIF", "BMP", "AVIF"):
                return None
            if least:
                picture.draft(None, (least, least))
            picture.load()
            upright = ImageOps.exif_transpose(picture)
            if upright.mode.startswith("I;16"):
                wide = upright.tobytes()
                high = wide[0::2] if upright.mode == "I;16B" else wide[1::2]
                if picture.format == "TIFF" and not picture.tag_v2.get(262):
                    # 0 is white, which Pillow forgets at 16 bits.
                    high = bytes(255 - value for value in high)
                upright = Image.frombytes("L", upright.size, high)
            if upright.mode == "I":
                # Wider integers lose their low byte too.
                values = struct.unpack(f"={len(upright.tobytes()) // 4}i", upright.tobytes())
                high = bytes(min(max(value >> 8, 0), 255) for value in values)
                upright = Image.frombytes("L", upright.size, high)
            rgb = upright.convert("RGB")
            return rgb.width, rgb.height, rgb.tobytes()
    except Exception:  # Whatever it raises, it does not read the picture.
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", required=True, help="the built example `pixels`")
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--damage", type=float, default=0.35, help="the part that is damaged")
    parser.add_argument("--gaps", type=float, default=3.0, help="percent that may be refused")
    parser.add_argument("--only", choices=sorted(DRAWERS), help="one format")
    parser.add_argument("--keep", help="a folder for the pictures that differ")
    options = parser.parse_args()
    ImageFile.LOAD_TRUNCATED_IMAGES = False

    folder = tempfile.mkdtemp(prefix="differential-")
    drawn = []
    for index in range(options.count):
        rng = random.Random(f"{options.seed} {index}")
        form = options.only or rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        width, height = rng.choice([(1, 1), (2, 3), (7, 5), (17, 23), (40, 30), (97, 64), (200, 150)])
        try:
            data = DRAWERS[form](rng, scene(rng, width, height))
        except Exception as error:
            # A combination that Pillow does not write.
            print(f"{index} not drawn: {form}: {error}", file=sys.stderr)
            continue
        is_damaged = rng.random() < options.damage
        if is_damaged:
            data = damaged(rng, data)
        # A third of the JPEGs are decoded at a reduced size, if their sampling is a usual one.
        is_reduced = form == "jpg" and rng.random() < 0.33 and has_usual_sampling(data)
        least = rng.randrange(1, 101) if is_reduced else None
        path = os.path.join(folder, f"{index:06}.{form}")
        with open(path, "wb") as file:
            file.write(data)
        drawn.append((path, is_damaged, data, least))

    paths = "".join(f"{path}\t{least}\n" if least else path + "\n" for path, _, _, least in drawn)
    lines = []
    while len(lines) < len(drawn):
        rest = paths.split("\n", len(lines))[-1]
        done = subprocess.run([options.binary], input=rest, capture_output=True, text=True)
        lines += done.stdout.splitlines()
        if len(lines) < len(drawn):
            # The AV1 decoder aborts on damaged data. In the service that ends a worker.
            path, is_damaged, _, _ = drawn[len(lines)]
            if not path.endswith(".avif") or not is_damaged:
                sys.exit(f"{options.binary} ended early at {path}:\n{done.stderr[-2000:]}")
            lines.append("refused\tthe decoder aborted")

    counts = collections.Counter()
    gaps = collections.Counter()
    for (path, is_damaged, data, least), line in zip(drawn, lines):
        fields = line.split("\t")
        ours = None
        if fields[0] != "refused":
            with open(fields[2], "rb") as file:
                ours = int(fields[0]), int(fields[1]), file.read()
            os.remove(fields[2])
        pillow = seen_by_pillow(data, least)
        if ours is None or pillow is None:
            outcome = "refused" if ours is pillow else "pillow" if ours is None else "ours"
        else:
            outcome = "same" if ours == pillow else "otherwise"
        form = path.rsplit(".", 1)[1]
        counts[form, "damaged" if is_damaged else "sound", outcome] += 1
        if outcome == "pillow":
            gaps[form, is_damaged, fields[1][:70]] += 1
        if outcome in ("otherwise", "ours", "pillow"):
            note = fields[1] if ours is None else ""
            if outcome == "otherwise" and ours[:2] == pillow[:2]:
                apart = [abs(a - b) for a, b in zip(ours[2], pillow[2])]
                note = f"up to {max(apart)} apart, {sum(apart) / len(apart):.3f} on average"
            print(outcome, "damaged" if is_damaged else "sound", os.path.basename(path), note)
            if options.keep:
                os.makedirs(options.keep, exist_ok=True)
                os.replace(path, os.path.join(options.keep, os.path.basename(path)))
        if os.path.exists(path):
            os.remove(path)
    os.rmdir(folder)

    print()
    for (form, state, outcome), count in sorted(counts.items()):
        print(f"{form:5}{state:9}{outcome:10}{count:6}")
    total = collections.Counter()
    for (_, state, outcome), count in counts.items():
        total[state, outcome] += count
    read = sum(count for (_, outcome), count in total.items() if outcome in ("same", "otherwise", "pillow"))
    refused = total["sound", "pillow"] + total["damaged", "pillow"]
    faults = total["sound", "otherwise"] + total["damaged", "otherwise"]
    faults += counts["jpg", "damaged", "ours"]
    print(f"{len(drawn)} pictures, {read} read by Pillow: {refused} of these refused, {faults} faults")
    sys.exit(1 if faults or refused * 100 > options.gaps * max(read, 1) else 0)


if __name__ == "__main__":
    main()
