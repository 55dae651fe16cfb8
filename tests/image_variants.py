"""Image files of every container, mode, depth and orientation that is read, and the pictures that they hold."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin

WIDTH, HEIGHT = 24, 16
ORIENTATION = 0x0112
ORIENTED = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "TIFF")
CLIPS = "Pillow clips at 255"
SHORT = 0xFFFF


@dataclass(frozen=True)
class Variant:
    """A file, and what is known of it without decoding it.

    Attributes:
        truth: (H, W, 3) uint8, the upright picture, of a file that loses nothing; else None.
        pillow: largest difference from Pillow's conversion; None where Pillow's is another picture, as `note` says.
        torchvision: largest difference from torchvision's, where it reads the file; None as above.
    """

    name: str
    data: bytes
    truth: np.ndarray | None = None
    pillow: int | None = 0
    torchvision: int | None = 0
    note: str = ""


def picture() -> Image.Image:
    """Smooth, and unlike any of its rotations and reflections."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    planes = (10 * x + 5, 15 * y + 7, 5 * x + 6 * y + (x > 16) * (y < 5) * 40)
    return Image.fromarray(np.stack(planes, -1).clip(0, 255).astype(np.uint8))


def grey() -> np.ndarray:
    """(H, W) uint8 from 0 to 255."""
    values = np.linspace(0, 255, WIDTH * HEIGHT).astype(np.uint8)
    return np.random.default_rng(0).permutation(values).reshape(HEIGHT, WIDTH)


def rgb(image: Image.Image | np.ndarray) -> np.ndarray:
    return np.asarray((Image.fromarray(image) if isinstance(image, np.ndarray) else image).convert("RGB"))


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(size: tuple[int, int], depth: int, colour: int, rows: Sequence[bytes], *before: tuple[bytes, bytes]) -> bytes:
    """A PNG file; `before` are chunks between header and pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    others = b"".join(chunk(*each) for each in before)
    return b"\x89PNG\r\n\x1a\n" + header + others + pixels + chunk(b"IEND", b"")


def tiff(
    pixels: bytes, *, bits: int, sample: int = 1, photometric: int = 1, samples: int = 1, order: str = "<"
) -> bytes:
    """An uncompressed TIFF file of one strip."""
    tags = {
        256: WIDTH,
        257: HEIGHT,
        258: bits,
        259: 1,
        262: photometric,
        273: 8,
        277: 1,
        278: HEIGHT,
        279: len(pixels),
        339: sample,
    }
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(pixels))
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    return head + pixels + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def variants() -> dict[str, Variant]:
    made = (
        each for make in (_oriented, _png, _jpeg, _webp, _gif, _plain, _tiff, _wide_tiff, _other) for each in make()
    )
    return {variant.name: variant for variant in made}


def _oriented() -> Iterator[Variant]:
    turn: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: np.rot90,
    }
    options: dict[str, dict[str, Any]] = {
        "MPO": {"save_all": True, "append_images": [picture()]},
        "WEBP": {"lossless": True},
        "JPEG": {"subsampling": 0},
        "AVIF": {"quality": 90},
    }
    for form in ORIENTED:
        for value, upright in turn.items():
            exif = Image.Exif()
            exif[ORIENTATION] = value
            data = saved(picture(), form, exif=exif, **options.get(form, {}))
            lossless = form in ("PNG", "TIFF", "WEBP")
            note = "torchvision turns JPEG and PNG only" if form == "WEBP" and value > 1 else ""
            yield Variant(
                f"{form}, orientation {value}",
                data,
                upright(rgb(picture())) if lossless else None,
                torchvision=None if note else 0,
                note=note,
            )


def _png() -> Iterator[Variant]:
    image, values = picture(), grey()
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        yield Variant(f"PNG, {mode}", saved(image.convert(mode), "PNG"), rgb(image.convert(mode)))
    half = image.convert("RGBA")
    half.putalpha(Image.fromarray(values))
    yield Variant("PNG, RGBA half transparent", saved(half, "PNG"), rgb(image))
    palette = image.quantize(16)
    yield Variant("PNG, P of 4 bits, one colour clear", saved(palette, "PNG", transparency=3), rgb(palette))
    yield Variant("PNG, P, alpha of each colour", saved(palette, "PNG", transparency=bytes(range(16))), rgb(palette))
    yield Variant("PNG, RGB, one colour clear", saved(image, "PNG", transparency=(5, 7, 0)), rgb(image))
    size = (WIDTH, HEIGHT)
    for depth in (2, 4):
        small = (values >> (8 - depth)).astype(np.uint8)
        full = rgb(small * np.uint8(255 // (2**depth - 1)))
        bits = np.unpackbits(small[..., None], axis=-1)[..., 8 - depth :].reshape(HEIGHT, -1)
        rows = [np.packbits(row).tobytes() for row in bits]
        yield Variant(f"PNG, grey of {depth} bits", png(size, depth, 0, rows), full)
    wide = values.astype(">u2") * np.uint16(257)
    rows = [row.astype(">u2").tobytes() for row in wide]
    yield Variant("PNG, grey of 16 bits", png(size, 16, 0, rows), rgb(values), pillow=None, note=CLIPS)
    twelve = png(size, 16, 0, rows, (b"sBIT", b"\x0c"))
    yield Variant("PNG, grey of 16 bits, 12 of which count", twelve, rgb(values), pillow=None, note=CLIPS)
    linear = png(size, 8, 0, [row.tobytes() for row in values], (b"gAMA", struct.pack(">I", 100_000)))
    yield Variant("PNG, linear light", linear, rgb(values))
    both = np.stack([wide, wide[::-1]], -1).astype(">u2")
    yield Variant("PNG, grey and alpha of 16 bits", png(size, 16, 4, [row.tobytes() for row in both]), rgb(values))
    colour = (rgb(image).astype(">u2") * np.uint16(257)).astype(">u2")
    yield Variant("PNG, RGB of 16 bits", png(size, 16, 2, [row.tobytes() for row in colour]), rgb(image))
    odd = (colour + np.arange(WIDTH, dtype=np.uint16)[:, None]).astype(">u2")
    data = png(size, 16, 2, [row.tobytes() for row in odd])
    yield Variant("PNG, RGB of 16 bits, odd", data, torchvision=1, note="Pillow keeps the high byte, unrounded")
    four = np.concatenate([colour, wide[..., None]], -1).astype(">u2")
    yield Variant("PNG, RGBA of 16 bits", png(size, 16, 6, [row.tobytes() for row in four]), rgb(image))
    frames = [image.transpose(Image.Transpose.ROTATE_180)]
    yield Variant("PNG, animated", saved(image, "PNG", save_all=True, append_images=frames), rgb(image))
    text = zlib.compress(bytes(3_000_000))
    large = png(size, 8, 2, [row.tobytes() for row in rgb(image)], (b"zTXt", b"Comment\0\0" + text))
    yield Variant("PNG, 3 MB of text", large, rgb(image), pillow=None, note="Pillow refuses the text")


def _jpeg() -> Iterator[Variant]:
    image = picture()
    yield Variant("JPEG, L", saved(image.convert("L"), "JPEG"))
    yield Variant("JPEG, progressive", saved(image, "JPEG", progressive=True, subsampling=0))
    yield Variant("JPEG, colour halved", saved(image, "JPEG", subsampling=2))
    yield Variant("JPEG, RGB kept", saved(image, "JPEG", keep_rgb=True))
    yield Variant("JPEG, CMYK", saved(image.convert("CMYK"), "JPEG"))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield Variant("JPEG, with a colour profile", saved(image, "JPEG", icc_profile=profile))


def _webp() -> Iterator[Variant]:
    image, values = picture(), grey()
    half = image.convert("RGBA")
    half.putalpha(Image.fromarray(values))
    frames = [image.transpose(Image.Transpose.ROTATE_180)]
    yield Variant("WEBP, lossy", saved(image, "WEBP", quality=80))
    yield Variant("WEBP, RGBA half transparent", saved(half, "WEBP", lossless=True, exact=True), rgb(image))
    animated = saved(image, "WEBP", save_all=True, append_images=frames, lossless=True)
    yield Variant("WEBP, animated", animated, rgb(image), torchvision=None, note="torchvision reads no animated WebP")


def _gif() -> Iterator[Variant]:
    image = picture().quantize(64)
    frames = [picture().transpose(Image.Transpose.ROTATE_180).quantize(64)]
    yield Variant("GIF, P", saved(image, "GIF"), rgb(image))
    yield Variant("GIF, L", saved(picture().convert("L"), "GIF"), rgb(picture().convert("L")))
    yield Variant("GIF, 1", saved(picture().convert("1"), "GIF"), rgb(picture().convert("1")))
    yield Variant("GIF, interlaced", saved(image, "GIF", interlace=True), rgb(image))
    clear = saved(image, "GIF", transparency=3)
    yield Variant("GIF, one colour clear", clear, rgb(image), torchvision=None, note="torchvision paints it white")
    yield Variant("GIF, animated", saved(image, "GIF", save_all=True, append_images=frames), rgb(image))


def _plain() -> Iterator[Variant]:
    image, values, full = picture(), grey(), rgb(grey())
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield Variant(f"BMP, {mode}", saved(image.convert(mode), "BMP"), rgb(image.convert(mode)))
    yield Variant("DIB, RGB", saved(image, "DIB"), rgb(image))
    for mode, name in (("1", "PBM"), ("L", "PGM"), ("RGB", "PPM")):
        yield Variant(name, saved(image.convert(mode), "PPM"), rgb(image.convert(mode)))
    head = f"{WIDTH} {HEIGHT}\n".encode()
    wide = (values.astype(">u2") * np.uint16(257)).astype(">u2")
    dim = (values // 86).astype(">u2")  # 16 bits though no value needs more than 2
    yield Variant("PGM of 16 bits", b"P5 " + head + b"65535\n" + wide.tobytes(), rgb(values), pillow=None, note=CLIPS)
    yield Variant("PGM of 16 bits, dark", b"P5 " + head + b"65535\n" + dim.tobytes(), full * 0, pillow=None, note=CLIPS)
    plain = b"P2 " + head + b"255\n" + b" ".join(b"%d" % value for value in values.ravel())
    yield Variant("PGM as text", plain, rgb(values))
    share = (values[::-1] / np.float32(255)).astype("<f4")
    yield Variant("PFM", b"Pf\n" + head + b"-1.0\n" + share.tobytes(), rgb(values), pillow=None, note=CLIPS)


def _tiff() -> Iterator[Variant]:
    image = picture()
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "LAB"):
        converted = image.convert(mode)
        yield Variant(f"TIFF, {mode}", saved(converted, "TIFF"), rgb(converted))
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "lzma"):
        yield Variant(f"TIFF, {compression}", saved(image, "TIFF", compression=compression), rgb(image))
    yield Variant("TIFF, group4", saved(image.convert("1"), "TIFF", compression="group4"), rgb(image.convert("1")))
    yield Variant("TIFF, JPEG in YCbCr", saved(image.convert("YCbCr"), "TIFF", compression="jpeg"))
    tiles = TiffImagePlugin.ImageFileDirectory_v2()
    tiles[322], tiles[323] = 16, 16
    yield Variant("TIFF, tiled", saved(image, "TIFF", tiffinfo=tiles, compression="tiff_lzw"), rgb(image))
    pages = [image.convert("L")]
    yield Variant("TIFF, two pages", saved(image, "TIFF", save_all=True, append_images=pages), rgb(image))


def _wide_tiff() -> Iterator[Variant]:
    values, full = grey(), rgb(grey())
    shorts = values.astype(np.uint16) * np.uint16(257)

    def scaled(name: str, pixels: np.ndarray, truth: np.ndarray = full, note: str = CLIPS, **tags: Any) -> Variant:
        return Variant(f"TIFF, {name}", tiff(pixels.tobytes(), **tags), truth, pillow=None, note=note)

    yield scaled("16 bits", shorts, bits=16)
    yield scaled("16 bits, big-endian", shorts.astype(">u2"), bits=16, order=">")
    inverted = "Pillow does not invert these"
    yield scaled("16 bits, white is zero", SHORT - shorts, bits=16, photometric=0, note=inverted)
    dark = values // 86
    yield scaled("16 bits, dark", dark.astype(np.uint16), truth=full * 0, bits=16)
    signed = (values.astype(np.int32) * 257 - 32768).astype(np.int16)
    yield scaled("16 bits, signed", signed, bits=16, sample=2)
    yield scaled(
        "8 bits, signed", (values.astype(np.int16) - 128).astype(np.int8), bits=8, sample=2, note="Pillow wraps"
    )
    yield scaled("32 bits, signed, all of 31", (values.astype(np.int64) * 8421504).astype(np.int32), bits=32, sample=2)
    yield scaled("32 bits, unsigned, all of 32", (values.astype(np.int64) * 16843009).astype(np.uint32), bits=32)
    yield Variant("TIFF, 32 bits, up to 255", tiff(values.astype(np.int32).tobytes(), bits=32, sample=2), full)
    yield scaled("32 bits, up to 65535", shorts.astype(np.int32), bits=32, sample=2)
    yield scaled("32 bits, 1000 to 256000", values.astype(np.int32) * 1000 + 1000, bits=32, sample=2)
    share = values / np.float32(255)
    yield scaled("float, up to 1", share, bits=32, sample=3)
    yield Variant("TIFF, float, up to 255", tiff(values.astype(np.float32).tobytes(), bits=32, sample=3), full)
    yield scaled("float, up to 65535", shorts.astype(np.float32), bits=32, sample=3)
    yield scaled("float, -3 to 7", share * np.float32(10) - np.float32(3), bits=32, sample=3)
    twelve = np.rint(values / 17).astype(np.uint16) * 273
    first, second = twelve[:, ::2], twelve[:, 1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1).astype(np.uint8)
    yield scaled("12 bits", packed, truth=rgb((twelve // 273 * 17).astype(np.uint8)), bits=12)


def _other() -> Iterator[Variant]:
    image, values = picture(), grey()
    for mode in ("L", "LA", "RGB", "RGBA"):
        converted = image.convert(mode)
        yield Variant(f"JPEG 2000, {mode}", saved(converted, "JPEG2000"), rgb(converted))
    yield Variant("JPEG 2000, bare codestream", saved(image, "JPEG2000", no_jp2=True), rgb(image))
    yield Variant("JPEG 2000, lossy", saved(image, "JPEG2000", quality_layers=[8], irreversible=True))
    wide = Image.fromarray(values.astype(np.uint16) * np.uint16(257))
    yield Variant("JPEG 2000, 16 bits", saved(wide, "JPEG2000"), rgb(values), pillow=None, note=CLIPS)
    yield Variant("AVIF, lossy", saved(image, "AVIF", quality=60))
    yield Variant("AVIF, L", saved(image.convert("L"), "AVIF"))
    yield Variant("AVIF, RGBA", saved(image.convert("RGBA"), "AVIF"))
    frames = [image.transpose(Image.Transpose.ROTATE_180)]
    yield Variant("AVIF, animated", saved(image, "AVIF", save_all=True, append_images=frames))
    square = image.resize((48, 48))
    largest, sizes = rgb(square), [(16, 16), (48, 48)]
    yield Variant("ICO, one size", saved(square, "ICO", sizes=[(48, 48)]), largest)
    yield Variant("ICO, two sizes", saved(square, "ICO", sizes=sizes), largest)
    bitmap = saved(square.convert("RGBA"), "ICO", sizes=sizes, bitmap_format="bmp")
    yield Variant("ICO, two sizes as bitmaps", bitmap, largest)
