"""Writes the seeds of pictures and of checkpoints: small files of each kind that the readers know.

    pip install pillow numpy h5py safetensors
    python fuzz/make_seeds.py

Writes into fuzz/seeds. A target that starts from nothing would spend its time on finding the first
bytes of its format. The seeds of AVIF are some of tests/golden/avif.safetensors, and those of
requests and URLs were written by hand.
"""

import io
import json
import pathlib
import pickle
import struct
import sys
import types
import zipfile

import h5py
import numpy as np
from PIL import Image
from safetensors.numpy import save

SEEDS = pathlib.Path(__file__).parent / "seeds"
WIDTH, HEIGHT = 21, 17


def write(target, name, content):
    folder = SEEDS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def scene(mode):
    """A gradient with a bright disc, in one of Pillow's modes."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    rgb = np.stack([x * 12, y * 15, 255 - x * y % 256], axis=-1)
    rgb[(x - 8) ** 2 + (y - 8) ** 2 < 25] = [250, 240, 30]
    image = Image.fromarray(rgb.astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray((rgb[:, :, 0] * 257).astype(np.uint16))
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray((x * 12).astype(np.uint8)))
    return image.convert("P", palette=Image.Palette.ADAPTIVE, colors=16) if mode == "P" else image.convert(mode)


def encoded(kind, mode="RGB", **options):
    buffer = io.BytesIO()
    scene(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def frames(kind, **options):
    """An animation of three frames."""
    first = scene("RGB")
    others = [first.rotate(90 * turn) for turn in (1, 2)]
    buffer = io.BytesIO()
    first.save(buffer, kind, save_all=True, append_images=others, duration=50, loop=0, **options)
    return buffer.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def bmp_of_runs():
    """A BMP of 8 bits in run-length encoding (BI_RLE8), with each of its codes. Pillow does not write these."""
    palette = bytes(value for i in range(4) for value in (i * 80, 255 - i * 60, i * 20, 0))
    rows = [[5, 1, 7, 2, 0, 0], [0, 3, 1, 2, 3, 0, 9, 0, 0, 0], [0, 2, 1, 1, 11, 3, 0, 0], [12, 2, 0, 1]]
    runs = bytes(sum(rows, []))
    start = 14 + 40 + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, 12, 5, 1, 8, 1, len(runs), 2835, 2835, 4, 0)
    return struct.pack("<2sIHHI", b"BM", start + len(runs), 0, 0, start) + info + palette + runs


def tiff_of_tiles():
    """A TIFF of two tiles of 16x16 grey pixels. Pillow does not write these."""
    tiles = bytes(i * 7 % 256 for i in range(512))
    entries = [(256, 4, 1, 32), (257, 4, 1, 16), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1),
               (322, 4, 1, 16), (323, 4, 1, 16), (324, 4, 2, 520), (325, 4, 2, 528)]
    tables = struct.pack("<4I", 8, 264, 256, 256)
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 536) + tiles + tables + directory + bytes(4)


def pictures():
    jpeg = {
        "grey": encoded("JPEG", "L"),
        "444": encoded("JPEG", subsampling=0),
        "422": encoded("JPEG", subsampling=1),
        "420": encoded("JPEG", subsampling=2),
        "progressive": encoded("JPEG", progressive=True),
        "progressive_420_restarts": encoded("JPEG", progressive=True, subsampling=2, restart_marker_blocks=1),
        "restarts": encoded("JPEG", restart_marker_rows=1, optimize=True),
        "cmyk": encoded("JPEG", "CMYK"),
        "rgb": encoded("JPEG", keep_rgb=True),
        "turned": encoded("JPEG", exif=turned(6)),
        "comment": encoded("JPEG", comment=b"a comment", icc_profile=b"a profile", quality=20),
    }
    png = {mode.lower().replace(";", ""): encoded("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")}
    png["transparent"] = encoded("PNG", "P", transparency=3)
    png["turned"] = encoded("PNG", exif=turned(8), icc_profile=b"a profile")
    png["animated"] = frames("PNG")
    webp = {
        "lossy": encoded("WEBP"),
        "lossless": encoded("WEBP", lossless=True),
        "alpha": encoded("WEBP", "RGBA"),
        "alpha_lossless": encoded("WEBP", "RGBA", lossless=True),
        "turned": encoded("WEBP", exif=turned(3), icc_profile=b"a profile", xmp=b"<x/>"),
        "animated": frames("WEBP"),
    }
    gif = {
        "still": encoded("GIF", "P"),
        "grey": encoded("GIF", "L", interlace=0),
        "interlaced": encoded("GIF", "P", interlace=1),
        "transparent": encoded("GIF", "P", transparency=2, background=1),
        "animated": frames("GIF", disposal=2, comment=b"a comment"),
    }
    bmp = {mode.lower(): encoded("BMP", mode) for mode in ("1", "L", "P", "RGB", "RGBA")} | {"runs": bmp_of_runs()}
    tiff = {mode.lower().replace(";", ""): encoded("TIFF", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F", "LAB")}
    for name in ("packbits", "tiff_lzw", "tiff_adobe_deflate", "zstd", "lzma", "jpeg"):
        tiff[name] = encoded("TIFF", compression=name)
    for name in ("group3", "group4", "tiff_ccitt"):
        tiff[name] = encoded("TIFF", "1", compression=name)
    tiff["predictor"] = encoded("TIFF", compression="tiff_lzw", tiffinfo={317: 2})
    tiff["tiles"] = tiff_of_tiles()
    tiff["pages"] = frames("TIFF")
    tiff["big"] = encoded("TIFF", big_tiff=True)
    for target, files in dict(jpeg=jpeg, png=png, webp=webp, gif=gif, bmp=bmp, tiff=tiff).items():
        for name, content in files.items():
            write(f"picture_{target}", name, content)


def torch_modules():
    """Stand-ins for what PyTorch's pickles name."""
    modules = {name: types.ModuleType(name) for name in ("torch", "torch._utils", "torch.nn", "torch.nn.parameter")}
    for module, name in [("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter"),
                         ("torch", "FloatStorage"), ("torch", "HalfStorage"), ("torch", "LongStorage")]:
        stand_in = type(name, (), {"__module__": module})
        setattr(modules[module], name, stand_in)
    sys.modules.update(modules)
    return modules


class Storage:
    """Storage NUMBER of as many numbers."""

    def __init__(self, kind, number, count):
        self.kind, self.number, self.count = kind, number, count


class Tensor:
    def __init__(self, rebuild, storage, shape, parameter=None):
        stride = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
        self.parts = (rebuild, (storage, 0, tuple(shape), tuple(stride), False, {}))
        self.parameter = parameter

    def __reduce__(self):
        rebuild, arguments = self.parts
        if self.parameter:
            return self.parameter, (Tensor(rebuild, arguments[0], arguments[2]), True, {})
        return rebuild, arguments


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        if isinstance(value, Storage):
            return "storage", value.kind, str(value.number), "cpu", value.count


def pickled(state, protocol=2):
    buffer = io.BytesIO()
    Pickler(buffer, protocol).dump(state)
    return buffer.getvalue()


def checkpoints():
    modules = torch_modules()
    utilities, torch = modules["torch._utils"], modules["torch"]
    rebuild = utilities._rebuild_tensor_v2
    tensors = {
        "conv1.weight": Tensor(rebuild, Storage(torch.FloatStorage, 0, 12), [2, 3, 2, 1]),
        "bn1.num_batches_tracked": Tensor(rebuild, Storage(torch.LongStorage, 1, 1), []),
        "fc.weight": Tensor(rebuild, Storage(torch.HalfStorage, 2, 6), [3, 2], utilities._rebuild_parameter),
    }
    training = {"epoch": 3, "lr": 0.1, "name": "resnet18", "best": (0.5, None, True), "model": tensors, "args": [1, 2.5]}
    for name, state in {"state": tensors, "training": training}.items():
        write("checkpoint_convert", f"{name}.pkl", pickled(state))
        write("checkpoint_convert", f"{name}_protocol_4.pkl", pickled(state, 4))
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as members:
            members.writestr("archive/data.pkl", pickled(state))
            members.writestr("archive/byteorder", "little")
            for number, size in enumerate((48, 8, 12)):
                members.writestr(f"archive/data/{number}", bytes(size))
            members.writestr("archive/version", "3\n")
        write("checkpoint_convert", f"{name}.pth", archive.getvalue())
    for name, options in {"plain": {}, "chunked": {"chunks": True}, "deflated": {"compression": "gzip", "shuffle": True}}.items():
        buffer = io.BytesIO()
        with h5py.File(buffer, "w", libver="earliest") as file:
            file.attrs["backend"] = b"tensorflow"
            file.attrs["layer_names"] = np.array([b"conv1_conv", b"predictions"])
            for layer, shapes in {"conv1_conv": {"kernel:0": (2, 2, 3, 4), "bias:0": (4,)}, "predictions": {"kernel:0": (4, 3)}}.items():
                group = file.create_group(layer)
                group.attrs["weight_names"] = np.array([f"{layer}/{name}".encode() for name in shapes])
                for weight, shape in shapes.items():
                    group.create_dataset(f"{layer}/{weight}", data=np.ones(shape, np.float32), **options)
        write("checkpoint_convert", f"{name}.h5", buffer.getvalue())

    small = {name: np.ones(shape, kind) for name, shape, kind in
             [("conv1.weight", (2, 3, 1, 1), np.float32), ("bn1.running_var", (2,), np.float16), ("fc.weight", (3, 2), np.float32)]}
    write("checkpoint_safetensors", "small", save(small, {"format": "pt"}))
    write("checkpoint_safetensors", "empty", save({}))
    write("checkpoint_safetensors", "transformers", save({"resnet.embedder.embedder.convolution.weight": small["conv1.weight"],
                                                          "classifier.1.weight": small["fc.weight"]}))
    mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    timm = {"architecture": "resnet50", "num_classes": 3, "num_features": 2048, "label_names": ["a", "b", "c"],
            "pretrained_cfg": {"tag": "tv2_in1k", "input_size": [3, 224, 224], "test_input_size": [3, 288, 288], "interpolation": "bicubic",
                               "crop_pct": 0.95, "crop_mode": "center", "mean": mean, "std": deviation, "num_classes": 3,
                               "first_conv": "conv1", "classifier": "fc", "label_descriptions": {"a": "an a"}}}
    transformers = {"architectures": ["ResNetForImageClassification"], "model_type": "resnet", "depths": [3, 4, 6, 3], "embedding_size": 64,
                    "hidden_sizes": [256, 512, 1024, 2048], "hidden_act": "relu", "layer_type": "bottleneck", "downsample_in_first_stage": False,
                    "downsample_in_bottleneck": False, "id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}, "num_labels": 2}
    preprocessor = {"image_processor_type": "ConvNextImageProcessor", "crop_pct": 0.875, "do_normalize": True, "do_rescale": True, "do_resize": True,
                    "image_mean": mean, "image_std": deviation, "resample": 3, "rescale_factor": 1 / 255, "size": {"shortest_edge": 224}}
    for name, value in {"timm": timm, "transformers": transformers, "preprocessor": preprocessor}.items():
        write("checkpoint_config", name, json.dumps(value))

    files = ["README.md", "config.json", "model.safetensors", "pytorch_model.bin", "onnx/model.onnx"]
    write("checkpoint_hub", "revision", json.dumps({"id": "timm/resnet50.a1_in1k", "sha": "a" * 40, "private": False, "tags": ["timm"],
                                                    "siblings": [{"rfilename": name} for name in files]}))
    write("checkpoint_hub", "two_weights", json.dumps({"sha": "b" * 40, "siblings": [{"rfilename": "a.safetensors"}, {"rfilename": "b.safetensors"}]}))
    write("checkpoint_hub", "etag", "c" * 64)
    write("checkpoint_labels", "names", "tench, Tinca tinca\ngoldfish, Carassius auratus\n")
    write("checkpoint_labels", "ids", "n01440764\ttench, Tinca tinca\nn01443537\tgoldfish\n")
    write("checkpoint_labels", "odd", "\ufeffcat\r\nна́звание\r\n=1+1, \u202eabc\n")


pictures()
checkpoints()
