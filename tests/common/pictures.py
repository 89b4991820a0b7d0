"""Made-up image files for tests."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def encoded(pixels: np.ndarray[Any, Any], form: str = "PNG", **options: Any) -> bytes:
    """Returns pixels `(H, W)` or `(H, W, C)` as the content of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def grey(seed: int, size: int = 28) -> np.ndarray[Any, Any]:
    """Returns random grey pixels `(size, size)`."""
    return np.random.default_rng(seed).integers(0, 256, (size, size), np.uint8)


def colour(seed: int, size: int = 32) -> np.ndarray[Any, Any]:
    """Returns random pixels `(size, size, 3)`."""
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def sixteen_bits(size: int = 28) -> bytes:
    """Returns a PNG of 16-bit grey, nearly all of it above 255."""
    pixels = np.random.default_rng(0).integers(0, 65536, (size, size)).astype(np.uint16)
    return encoded(pixels)


def claims(width: int, height: int) -> bytes:
    """Returns a PNG whose header claims this size, with no pixels behind it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """Writes files below a folder and returns it."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder
