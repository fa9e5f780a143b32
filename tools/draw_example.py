#!/usr/bin/env python3
"""Draws web/example.jpg, the project's own picture: a hot-air balloon at dusk, from formulas alone. Needs numpy and Pillow."""

import pathlib

import numpy as np
from PIL import Image

W, H, S = 960, 720, 2
RNG = np.random.default_rng(7)


def smooth(a, b, x):
    t = np.clip((x - a) / (b - a), 0, 1)
    return t * t * (3 - 2 * t)


def mix(a, b, t):
    return a + (b - a) * t[..., None]


def noise(h, w, octaves=6):
    """Value noise from 0 to 1: random grids of doubling fineness, each enlarged smoothly."""
    total, weight = np.zeros((h, w)), 0.0
    for octave in range(octaves):
        cells = 2 ** (octave + 2)
        grid = Image.fromarray((RNG.random((cells, cells * 2)) * 255).astype(np.uint8))
        total += np.asarray(grid.resize((w, h), Image.BICUBIC), float) / 255 * 0.55**octave
        weight += 0.55**octave
    return total / weight


def main():
    h, w = H * S, W * S
    y, x = np.mgrid[0:h, 0:w] / S
    sky = mix(np.array([58, 110, 180.0]), np.array([250, 205, 160.0]), smooth(0, 640, y))
    clouds = smooth(0.52, 0.78, noise(h, w)) * smooth(40, 260, y) * 0.75
    picture = mix(sky, np.array([255, 240, 228.0]), clouds)

    for base, height, near, seed in ((560, 70, 0.25, 3.0), (610, 60, 0.55, 11.0), (660, 50, 1.0, 23.0)):
        ridge = base - height * (0.5 * np.sin(x / 130 + seed) + 0.3 * np.sin(x / 53 + 2 * seed) + 0.1 * np.sin(x / 17 + seed))
        colour = mix(np.array([150, 140, 170.0]), np.array([38, 66, 48.0]), np.full_like(x, near))
        texture = 0.85 + 0.3 * noise(h, w, 7)
        picture = mix(picture, colour * texture[..., None], smooth(-0.7, 0.7, y - ridge))

    # The envelope: a sphere above, drawn in to the mouth below.
    cx, cy, r = 470, 265, 205
    dy = (y - cy) / r
    half = np.where(dy < 0.25, np.sqrt(np.clip(1 - dy**2, 0, 1)), 0)
    taper = np.sqrt(1 - 0.25**2) + (0.13 - np.sqrt(1 - 0.25**2)) * np.clip((dy - 0.25) / 1.05, 0, 1) ** 0.92
    half = np.where((dy >= 0.25) & (dy <= 1.3), taper, half) * r
    inside = smooth(-0.8, 0.8, half - np.abs(x - cx)) * (half > 0)
    across = np.clip((x - cx) / np.maximum(half, 1), -1, 1)
    longitude = np.arcsin(across)
    gore = longitude / np.pi * 16 + 0.5
    palette = np.array([[214, 48, 49], [253, 203, 110], [225, 112, 28], [253, 203, 110]], float)
    cloth = palette[np.floor(gore).astype(int) % 4]
    band = smooth(0.08, 0.1, dy) * (1 - smooth(0.3, 0.32, dy))
    zigzag = ((gore * 2 % 2 - 1) * np.sign(np.sin(gore * np.pi)) * 0.1 + 0.2 - dy) > 0
    cloth = mix(cloth, np.where(zigzag[..., None], np.array([45, 52, 120.0]), np.array([250, 245, 235.0])), band)
    seam = 1 - 0.25 * np.exp(-(((gore + 0.5) % 1 - 0.5) * np.cos(longitude) / 0.03) ** 2)
    bulge = 1 - 0.12 * (2 * ((gore + 0.5) % 1) - 1) ** 2
    nx, ny = across, np.clip(dy, -1, 1)
    nz = np.sqrt(np.clip(1 - nx**2 - 0.6 * ny**2, 0.02, 1))
    light = np.clip(-0.55 * nx - 0.5 * ny + 0.65 * nz, 0, 1)
    glow = np.exp(-(((x - cx) / 70) ** 2) - ((dy - 1.05) / 0.5) ** 2)
    shade = (0.42 + 0.72 * light) * seam * bulge
    cloth = cloth * shade[..., None] + glow[..., None] * np.array([120, 80, 20.0])
    cloth += (np.clip(light, 0, 1) ** 24)[..., None] * 55
    picture = mix(picture, cloth, inside)

    # The mouth, the ropes and the basket.
    mouth = cy + 1.3 * r
    flame = np.exp(-(((x - cx) / 5) ** 2) - ((y - mouth - 10) / 14) ** 2)
    picture = mix(picture, np.array([255, 214, 120.0]), np.clip(flame, 0, 1))
    top, bottom = mouth + 52, mouth + 96
    for side in (-1, -0.35, 0.35, 1):
        t = np.clip((y - mouth) / (top - mouth), 0, 1)
        rope = cx + side * (26 + (21 - 26) * t)
        on = smooth(1.4, 0.4, np.abs(x - rope)) * ((y > mouth - 1) & (y < top))
        picture = mix(picture, np.array([60, 44, 34.0]), on)
    width = 23 - 3 * (y - top) / (bottom - top)
    basket = smooth(-0.7, 0.7, width - np.abs(x - cx)) * smooth(-0.7, 0.7, y - top) * smooth(-0.7, 0.7, bottom - y)
    weave = 0.72 + 0.28 * np.sin(x * 1.15) * np.sin(y * 0.9 + np.floor(x / 2.7) * np.pi)
    weave = weave * (1.1 - 0.5 * np.clip((x - cx) / 23, -1, 1))
    picture = mix(picture, np.array([150, 100, 55.0]) * weave[..., None], basket)
    rim = smooth(-0.7, 0.7, 25 - np.abs(x - cx)) * smooth(-0.7, 0.7, 3 - np.abs(y - top))
    picture = mix(picture, np.array([92, 56, 30.0]), rim)
    for offset, colour in ((-9, (40, 60, 110)), (8, (150, 40, 60))):
        head = smooth(0.7, -0.7, np.hypot(x - cx - offset, y - top + 15) - 5.5)
        body = smooth(0.7, -0.7, np.maximum(np.abs(x - cx - offset) - 7, np.abs(y - top + 4) - 6))
        picture = mix(picture, np.array(colour, float), body)
        picture = mix(picture, np.array([224, 172, 140.0]), head)

    picture += RNG.normal(0, 2.2, (h, w, 1))
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).resize((W, H), Image.LANCZOS)
    image.save(pathlib.Path(__file__).parent.parent / "web/example.jpg", quality=86, optimize=True)


if __name__ == "__main__":
    main()
