"""Makes the small pictures beside this file: `python make_fixtures.py` (Pillow 13, numpy).

Every picture shows `base()`, 24x16, which tests/models/image.rs computes again. Where an encoding
loses something, NAME.pillow.png is what Pillow decodes it to. The 800x557 pictures come from the
golden vectors; `chart_800x557.tiles.webp` is Pillow's resize of the chart to its 2x4 tiles.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image

W, H = 24, 16


def base():
    y, x = np.mgrid[0:H, 0:W]
    return np.stack([x * 10, y * 15, 255 - x * 5 - y * 7], axis=-1).astype(np.uint8)


RGB = Image.fromarray(base())
GRAY = Image.fromarray(base()[..., 0])
ALPHA = Image.fromarray(base()[..., 1])
RGBA = RGB.copy()
RGBA.putalpha(ALPHA)


def save(image, name, **options):
    image.save(name, **options)
    if name.endswith(".jpg") or "lossy" in name:
        reference(name)


def reference(name):
    Image.open(name).convert("RGB").save(name + ".pillow.png", optimize=True)


def jpegs():
    save(RGB, "baseline_444.jpg", quality=95, subsampling=0)
    save(RGB, "baseline_420.jpg", quality=90, subsampling=2)
    save(RGB, "baseline_422.jpg", quality=90, subsampling=1)
    save(RGB, "progressive_420.jpg", quality=90, progressive=True)
    save(RGB, "progressive_444.jpg", quality=95, progressive=True, subsampling=0)
    save(RGB, "restarts.jpg", quality=90, restart_marker_blocks=1)
    save(RGB, "rgb_adobe.jpg", quality=95, keep_rgb=True)
    save(GRAY, "gray.jpg", quality=95)
    save(GRAY, "gray_progressive.jpg", quality=95, progressive=True)
    rgb = base().astype(int)
    key = 255 - rgb.max(axis=-1)
    cmy = 255 - rgb - key[..., None]
    cmyk = np.concatenate([cmy, key[..., None]], axis=-1).clip(0, 255).astype(np.uint8)
    save(Image.fromarray(cmyk, "CMYK"), "cmyk_adobe.jpg", quality=97)
    data = open("cmyk_adobe.jpg", "rb").read()
    # The same without its Adobe segment, which still means inverted CMYK.
    at = data.index(b"\xff\xee")
    open("cmyk_plain.jpg", "wb").write(data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4]) :])
    reference("cmyk_plain.jpg")
    # YCCK: luma and chroma of the inks in the first three channels, and the transform byte says so.
    # Pillow inverts what it writes, so undo that here.
    ycc = np.asarray(Image.fromarray(cmyk[..., :3]).convert("YCbCr")).astype(int)
    stored = np.concatenate([255 - ycc, key[..., None]], axis=-1).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(stored, "CMYK").save(out, "JPEG", quality=97)
    data = bytearray(out.getvalue())
    at = data.index(b"Adobe")
    data[at + 11] = 2
    open("ycck_adobe.jpg", "wb").write(data)
    reference("ycck_adobe.jpg")
    filler = open("baseline_444.jpg", "rb").read()
    open("filler.jpg", "wb").write(filler[:20] + b"\0" * 9 + filler[20:])
    reference("filler.jpg")
    # A chart in 4:2:0 for the bench.
    Image.open("chart_800x557.png").convert("RGB").save("chart_800x557.jpg", quality=90)


def orientations():
    turn = Image.Transpose
    undo = {
        1: None, 2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE,
        6: turn.ROTATE_90, 7: turn.TRANSVERSE, 8: turn.ROTATE_270,
    }  # fmt: skip
    for value, transpose in undo.items():
        stored = RGB if transpose is None else RGB.transpose(transpose)
        exif = Image.Exif()
        exif[0x0112] = value
        stored.save(f"orientation_{value}.jpg", quality=95, subsampling=0, exif=exif)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = RGB.transpose(undo[6])
    stored.save("orientation_6.png", exif=exif)
    stored.save("orientation_6.webp", lossless=True, exif=exif)
    stored.save("orientation_6.tiff", tiffinfo={0x0112: 6})
    RGB.save("orientation_bad.jpg", quality=95, subsampling=0, exif=b"Exif\0\0MM\0*\0\0\xff\xff")


def png_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_rgb16():
    # The low bytes are noise that `>> 8` drops; rounding would show.
    wide = (base().astype(np.uint16) * 256 + 0xEE).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    header = struct.pack(">IIBBBBB", W, H, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)
    open("rgb16.png", "wb").write(data)


def others():
    save(RGB, "rgb8.png")
    save(RGBA, "rgba8.png")
    save(GRAY, "gray8.png")
    gray_alpha = GRAY.convert("LA")
    gray_alpha.putalpha(ALPHA)
    save(gray_alpha, "gray_alpha8.png")
    wide = base()[..., 0].astype(np.uint16) * 256 + 0xEE
    save(Image.fromarray(wide), "gray16.png")
    save(Image.fromarray(wide), "gray16.tiff")
    bilevel = GRAY.point(lambda v: 255 if v >= 120 else 0).convert("1")
    save(bilevel, "bilevel.png")
    save(bilevel, "bilevel.tiff")
    # 24 colors, one per column, so that a palette holds the picture's top row.
    columns = Image.fromarray(np.repeat(base()[:1], H, axis=0)).quantize(24)
    save(columns, "palette.png")
    save(columns, "palette_transparent.png", transparency=bytes(range(0, 240, 10)))
    save(columns, "palette.bmp")
    save(columns, "palette.gif")
    save(columns, "transparent.gif", transparency=3)
    frames = [columns, columns.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    frames[0].save("animated.gif", save_all=True, append_images=frames[1:], duration=100)
    png_rgb16()
    save(RGB, "rgb8.webp", lossless=True)
    save(RGBA, "rgba8.webp", lossless=True, exact=True)
    save(RGB, "rgb8_lossy.webp", quality=90)
    flipped = RGB.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    RGB.save("animated.webp", save_all=True, append_images=[flipped], duration=100, lossless=True)
    save(RGB, "rgb8.bmp")
    save(RGBA, "rgba8.bmp")
    save(RGB, "rgb8.tiff")
    save(RGB, "rgb8_lzw.tiff", compression="tiff_lzw")
    save(RGB, "rgb8_deflate.tiff", compression="tiff_adobe_deflate")
    save(RGBA, "rgba8.tiff")
    save(GRAY, "gray8.tiff")
    cmyk = np.concatenate([255 - base(), np.zeros((H, W, 1), np.uint8)], axis=-1)
    save(Image.fromarray(cmyk, "CMYK"), "cmyk.tiff")


def tiles():
    chart = Image.open("chart_800x557.png").convert("RGB")
    large = chart.resize((4 * 266 + 112, 2 * 266 + 112), Image.Resampling.LANCZOS)
    large.save("chart_800x557.tiles.webp", lossless=True, quality=100, method=6)


jpegs()
orientations()
others()
tiles()
