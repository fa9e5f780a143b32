"""Records what Pillow makes of small AVIF pictures, for crates/image/tests/it/avif.rs.

    apt-get install libavif-bin          # avifenc, for depths, matrices and grids that Pillow does not write
    pip install pillow==13.0.0 numpy==2.4.6 safetensors==0.8.0
    python tests/golden/make_avif.py

Writes `avif.safetensors` next to itself: per picture `<name>.file` (its bytes) and `<name>.rgb` (uint8 [h, w, 3]:
opened, EXIF-transposed, converted to RGB).
"""

import io
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import PIL
from make_preprocess import encoded, rgb_of, scene
from PIL import Image
from safetensors.numpy import save_file

HERE = Path(__file__).parent
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="{}"/></x:xmpmeta>'


def picture(width=33, height=21, alpha=False):
    image = Image.fromarray(scene(width, height))
    if alpha:
        image.putalpha(Image.linear_gradient("L").resize((width, height)))
    return image


def avifenc(images, *options):
    with tempfile.TemporaryDirectory() as folder:
        names = []
        for index, image in enumerate(images):
            names.append(f"{folder}/{index}.png")
            image.save(names[-1])
        out = f"{folder}/out.avif"
        command = ["avifenc", "-j", "1", "-s", "10", "--min", "20", "--max", "30", *options, *names, out]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return Path(out).read_bytes()


def pictures():
    for layout in ["4:4:4", "4:2:2", "4:2:0", "4:0:0"]:
        for range_ in ["full", "limited"]:
            name = f"{layout.replace(':', '')}_{range_}"
            yield name, encoded(picture(), "AVIF", quality=60, subsampling=layout, range=range_)
    for width, height in [(1, 1), (2, 2), (1, 9), (9, 1), (32, 20)]:
        yield f"{width}x{height}", encoded(picture(width, height), "AVIF", quality=60)
    for depth in ["10", "12"]:
        for layout in ["444", "422", "420", "400"]:
            options = ["-d", depth, "-y", layout, "-r", "limited"]
            yield f"{layout}_{depth}_bits", avifenc([picture()], *options)
            yield f"{layout}_{depth}_bits_alpha", avifenc([picture(alpha=True)], *options)
    yield "400_alpha", avifenc([picture(alpha=True)], "-y", "400")
    for matrix in [1, 2, 4, 5, 7, 9, 12]:
        yield f"matrix_{matrix}", avifenc([picture()], "-y", "420", "--cicp", f"9/13/{matrix}")
    yield "matrix_12_of_p3", avifenc([picture()], "-y", "444", "--cicp", "12/13/12")
    yield "matrix_8", avifenc([picture()], "-y", "444", "-r", "full", "--cicp", "1/13/8")
    yield "matrix_0", avifenc([picture()], "-l")
    yield "matrix_0_limited", avifenc([picture()], "-y", "444", "-r", "limited", "--cicp", "1/13/0")
    yield "grid", avifenc([picture(64, 64)] * 4, "--grid", "2x2", "-y", "420")
    yield "film_grain", avifenc([picture(64, 48)], "-a", "film-grain-test=1")
    yield "tiles", encoded(picture(160, 136), "AVIF", quality=1, tile_rows=1, tile_cols=1, autotiling=False)
    frames = [picture(), picture().transpose(Image.Transpose.ROTATE_180)]
    yield "sequence", encoded(frames[0], "AVIF", quality=60, save_all=True, append_images=frames[1:])
    options = {"save_all": True, "append_images": frames[1:], "xmp": XMP.format(5).encode()}
    yield "sequence_xmp_5", encoded(frames[0], "AVIF", quality=60, **options)
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x112] = orientation
        yield f"turned_{orientation}", encoded(picture(), "AVIF", quality=60, exif=exif)
    yield "xmp_6", encoded(picture(), "AVIF", quality=60, xmp=XMP.format(6).encode())
    exif[0x112] = 3
    yield "exif_3_xmp_6", encoded(picture(), "AVIF", quality=60, exif=exif, xmp=XMP.format(6).encode())
    exif[0x112] = 1
    yield "exif_1_xmp_6", encoded(picture(), "AVIF", quality=60, exif=exif, xmp=XMP.format(6).encode())


def main():
    tensors = {}
    for name, data in pictures():
        tensors[f"{name}.file"] = np.frombuffer(data, np.uint8)
        tensors[f"{name}.rgb"] = rgb_of(data)
    meta = {"made_by": "tests/golden/make_avif.py", "pillow": PIL.__version__}
    save_file(tensors, HERE / "avif.safetensors", metadata=meta)


if __name__ == "__main__":
    main()
