"""Records what Pillow makes of small pictures, for tests/decode.rs and tests/preprocess.rs.

    apt-get install libjpeg-turbo-progs
    pip install pillow==11.3.0 numpy==2.4.6 safetensors==0.8.0
    python tests/golden/make_preprocess.py

Writes next to itself, well under 300 KB in all:
  preprocess_decode.safetensors   per picture `<name>.file` (its bytes) and `<name>.rgb` (uint8 [h, w, 3]: opened,
                                  EXIF-transposed, converted to RGB)
  preprocess_resize.safetensors   per case `<filter> <width>x<height> <shorter side> <crop> <step>`: uint8, torchvision's
                                  Resize and CenterCrop of `scene(width, height)`, every step-th row and column
The scene is a formula that the Rust tests repeat. Pillow 13 and later make the vertical pass first for some tall
pictures, which differs by 1/255 here and there; the cases are recorded with the order of all versions before it.
"""

import io
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageOps
from safetensors.numpy import save_file

HERE = Path(__file__).parent
META = {"made_by": "tests/golden/make_preprocess.py", "pillow": PIL.__version__}


def scene(width, height):
    """Smooth bowls, a fine texture and hard edges, in whole numbers: uint8 [height, width, 3]."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    channels = []
    for c in range(3):
        bowl = (x * x * (c + 2) + y * y * (4 - c) + 3 * x * y) // 97
        edge = ((x // 7 + y // 5 + c) % 3 == 0) * 90
        texture = (x * 31 + y * 17 + c * 11) % 29
        channels.append((bowl + edge + texture) % 256)
    return np.stack(channels, axis=2).astype(np.uint8)


def rgb_of(data):
    image = Image.open(io.BytesIO(data))
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips everything over 255 to white; the high byte is what it does for RGB of 16 bits.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.ascontiguousarray(np.asarray(ImageOps.exif_transpose(image).convert("RGB")))


def encoded(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def jpeg_in_scans(image, sampling, scans):
    """A JPEG with a scan script, which Pillow cannot write: libjpeg's `cjpeg` can."""
    with tempfile.NamedTemporaryFile("w", suffix=".scans") as script:
        script.write(scans)
        script.flush()
        command = ["cjpeg", "-quality", "90", "-sample", sampling, "-scans", script.name]
        return subprocess.run(command, input=encoded(image, "PPM"), stdout=subprocess.PIPE, check=True).stdout


def gif_on_canvas(data, canvas, at):
    """Moves a one-frame GIF's frame to `at` on a canvas of another size."""
    data = bytearray(data)
    data[6:10] = np.array(canvas, "<u2").tobytes()
    position = 13 + (3 * (2 << (data[10] & 7)) if data[10] & 0x80 else 0)
    while data[position] == 0x21:
        position += 2
        while data[position]:
            position += data[position] + 1
        position += 1
    data[position + 1 : position + 5] = np.array(at, "<u2").tobytes()
    return bytes(data)


def pictures():
    rgb = Image.fromarray(scene(23, 17))
    grey, cmyk = rgb.convert("L"), rgb.convert("CMYK")
    alpha = Image.fromarray(scene(17, 23)[:, :, 0].T.copy())
    rgba, grey_alpha = rgb.copy(), grey.copy()
    rgba.putalpha(alpha)
    grey_alpha.putalpha(alpha)
    palette = rgb.quantize(64, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few = rgb.quantize(13, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    bits = grey.point(lambda v: 255 * (v > 120)).convert("1", dither=Image.Dither.NONE)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 200 + np.asarray(alpha).astype(np.uint16))

    yield "jpeg_444", encoded(rgb, "JPEG", quality=90, subsampling="4:4:4")
    yield "jpeg_422", encoded(rgb, "JPEG", quality=90, subsampling="4:2:2")
    yield "jpeg_420", encoded(rgb, "JPEG", quality=90, subsampling="4:2:0")
    yield "jpeg_progressive", encoded(rgb, "JPEG", quality=90, subsampling="4:2:0", progressive=True)
    # Each component in a scan of its own, and progressive ones whose first scan holds all components or one.
    for name, sampling in ("444", "1x1"), ("422", "2x1"), ("440", "1x2"), ("420", "2x2"), ("410", "4x2"):
        yield f"jpeg_scans_{name}", jpeg_in_scans(rgb, sampling, "0;\n1;\n2;\n")
        rest = "".join(f"{component}: 1-63, 0, 0;\n" for component in range(3))
        yield f"jpeg_progressive_{name}", jpeg_in_scans(rgb, sampling, "0 1 2: 0-0, 0, 0;\n" + rest)
        yield f"jpeg_progressive_apart_{name}", jpeg_in_scans(rgb, sampling, "0: 0-0, 0, 0;\n1 2: 0-0, 0, 0;\n" + rest)
    yield "jpeg_restarts", encoded(rgb, "JPEG", quality=90, subsampling="4:4:4", restart_marker_blocks=1)
    yield "jpeg_rgb", encoded(rgb, "JPEG", quality=90, keep_rgb=True)
    yield "jpeg_grey", encoded(grey, "JPEG", quality=90)
    yield "jpeg_cmyk", encoded(cmyk, "JPEG", quality=90)
    yield "png_bits", encoded(bits, "PNG")
    yield "png_grey", encoded(grey, "PNG")
    yield "png_grey16", encoded(deep, "PNG")
    yield "png_grey_alpha", encoded(grey_alpha, "PNG")
    yield "png_grey_transparent", encoded(grey, "PNG", transparency=100)
    yield "png_palette", encoded(palette, "PNG")
    yield "png_palette_4bit", encoded(few, "PNG")
    yield "png_palette_transparent", encoded(palette, "PNG", transparency=bytes(range(64)))
    yield "png_rgb", encoded(rgb, "PNG")
    yield "png_rgba", encoded(rgba, "PNG")
    yield "png_animated", encoded(rgb, "PNG", save_all=True, append_images=[ImageOps.invert(rgb)])
    yield "webp_lossy", encoded(rgb, "WEBP", quality=80)
    yield "webp_lossy_alpha", encoded(rgba, "WEBP", quality=80, exact=True)
    yield "webp_lossless", encoded(rgb, "WEBP", lossless=True)
    yield "webp_lossless_alpha", encoded(rgba, "WEBP", lossless=True, exact=True)
    yield "webp_animated", encoded(rgb, "WEBP", lossless=True, save_all=True, append_images=[ImageOps.invert(rgb)])
    plain = encoded(palette, "GIF", interlace=0)
    clear = encoded(palette, "GIF", interlace=0, transparency=5)
    yield "gif_still", plain
    yield "gif_interlaced", encoded(palette, "GIF", interlace=1)
    yield "gif_transparent", clear
    yield "gif_animated", encoded(palette, "GIF", save_all=True, append_images=[few])
    yield "gif_frame_inside_canvas", gif_on_canvas(plain, (40, 30), (9, 4))
    yield "gif_transparent_frame_inside_canvas", gif_on_canvas(clear, (40, 30), (9, 4))
    yield "gif_frame_over_the_edge", gif_on_canvas(plain, (10, 10), (3, 2))
    yield "bmp_bits", encoded(bits, "BMP")
    yield "bmp_grey", encoded(grey, "BMP")
    yield "bmp_palette", encoded(palette, "BMP")
    yield "bmp_rgb", encoded(rgb, "BMP")
    yield "bmp_rgba", encoded(rgba, "BMP")
    yield "tiff_bits", encoded(bits, "TIFF")
    yield "tiff_fax", encoded(bits, "TIFF", compression="group4")
    yield "tiff_grey", encoded(grey, "TIFF")
    yield "tiff_grey16", encoded(deep, "TIFF")
    yield "tiff_rgb", encoded(rgb, "TIFF")
    yield "tiff_rgba", encoded(rgba, "TIFF")
    yield "tiff_cmyk", encoded(cmyk, "TIFF")
    yield "tiff_lzw", encoded(rgb, "TIFF", compression="tiff_lzw")
    yield "tiff_deflate", encoded(rgb, "TIFF", compression="tiff_adobe_deflate")
    yield "tiff_packbits", encoded(rgb, "TIFF", compression="packbits")
    yield "tiff_strips", encoded(rgb, "TIFF", compression="tiff_lzw", strip_size=200)
    yield "tiff_pages", encoded(rgb, "TIFF", save_all=True, append_images=[ImageOps.invert(rgb)])
    yield "tiff_big", encoded(rgb, "TIFF", big_tiff=True)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield f"jpeg_turned_{orientation}", encoded(rgb, "JPEG", quality=90, subsampling="4:4:4", exif=exif)
        yield f"png_turned_{orientation}", encoded(rgb, "PNG", exif=exif)
        yield f"webp_turned_{orientation}", encoded(rgb, "WEBP", lossless=True, exif=exif)
        yield f"tiff_turned_{orientation}", encoded(rgb, "TIFF", compression="tiff_lzw", tiffinfo={0x0112: orientation})
    yield "one_pixel", encoded(rgb.crop((0, 0, 1, 1)), "PNG")


def resized(image, side, crop, kernel):
    """torchvision's Resize(side) and CenterCrop(crop) of a PIL image, in its own arithmetic."""
    width, height = image.size
    short, long = min(width, height), max(width, height)
    other = int(side * long / short)
    width, height = (side, other) if width <= height else (other, side)
    pixels = np.asarray(image.resize((width, height), kernel))
    wide, tall = max(crop - width, 0), max(crop - height, 0)
    pixels = np.pad(pixels, ((tall // 2, (tall + 1) // 2), (wide // 2, (wide + 1) // 2), (0, 0)))
    top = int(round((pixels.shape[0] - crop) / 2.0))
    left = int(round((pixels.shape[1] - crop) / 2.0))
    return pixels[top : top + crop, left : left + crop]


def resizes():
    kernels = {
        "bilinear": Image.Resampling.BILINEAR,
        "bicubic": Image.Resampling.BICUBIC,
        "lanczos": Image.Resampling.LANCZOS,
    }
    sizes = [(1, 1), (2, 3), (37, 37), (36, 50), (61, 40), (90, 33), (33, 70), (200, 131), (640, 480), (500, 1), (1, 500)]
    cases = [(name, *size, 37, 32, 2) for name in kernels for size in sizes]
    # A crop larger than what was resized is surrounded by black.
    cases += [(name, 61, 40, 29, 32, 2) for name in kernels]
    cases += [("bilinear", 500, 375, 256, 224, 7), ("bicubic", 500, 375, 235, 224, 7), ("bicubic", 375, 500, 224, 224, 7)]
    for name, width, height, side, crop, step in cases:
        pixels = resized(Image.fromarray(scene(width, height)), side, crop, kernels[name])
        yield f"{name} {width}x{height} {side} {crop} {step}", np.ascontiguousarray(pixels[::step, ::step])


def main():
    decode = {}
    for name, data in pictures():
        decode[f"{name}.file"] = np.frombuffer(data, np.uint8)
        decode[f"{name}.rgb"] = rgb_of(data)
    save_file(decode, HERE / "preprocess_decode.safetensors", META)
    save_file(dict(resizes()), HERE / "preprocess_resize.safetensors", META)


if __name__ == "__main__":
    main()
