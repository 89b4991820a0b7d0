"""A decoded dataset with its original train/test split, its cache, and its images brought to a task's shape."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import platformdirs
import safetensors
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from common.files import write_atomically

FIELDS = ("train_images", "train_labels", "test_images", "test_labels")
DECODER = 2  # part of the cache's key: raise it when the same files are read differently


@dataclasses.dataclass(frozen=True)
class RawDataset:
    """A decoded dataset: uint8 images `(N, C, H, W)` and int64 labels `(N,)` of the original train/test split.

    `digest` identifies images that no published checksum identifies, see `digest_of`.
    """

    name: str
    source: str
    classes: tuple[str, ...]
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    digest: str | None = None


def with_digest(raw: RawDataset) -> RawDataset:
    """Returns the dataset with the SHA-256 of its class names, pixels and labels as its digest."""
    digest = hashlib.sha256(json.dumps(raw.classes).encode())
    for field in FIELDS:
        tensor: Tensor = getattr(raw, field)
        digest.update(f"{field} {list(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return dataclasses.replace(raw, digest=digest.hexdigest()[:16])


def cached(origin: Path, key: object, decode: Callable[[], RawDataset]) -> RawDataset:
    """Returns `decode()`, cached in the user's cache folder by `key`: the names, sizes and times of its files."""
    text_of_key = json.dumps([DECODER, str(origin.resolve()), key])
    hashed = hashlib.sha256(text_of_key.encode(errors="surrogateescape")).hexdigest()[:16]
    path = platformdirs.user_cache_path("trilab") / f"{origin.name.split('.')[0]}-{hashed}.safetensors"
    try:
        with safetensors.safe_open(path, "pt") as file:
            text = file.metadata()
            tensors = {name: file.get_tensor(name) for name in FIELDS}
        classes = tuple(json.loads(text["classes"]))
        if text["checksum"] != _checksum(tensors):
            raise ValueError("damaged")
        return RawDataset(text["name"], text["source"], classes, **tensors, digest=text["digest"] or None)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError):  # missing, damaged or of an older form
        raw = decode()
    metadata = {"name": raw.name, "source": raw.source, "classes": json.dumps(raw.classes), "digest": raw.digest or ""}
    decoded = {name: getattr(raw, name) for name in FIELDS}
    metadata["checksum"] = _checksum(decoded)
    try:
        write_atomically(path, save(decoded, metadata))
    except OSError as error:
        print(f"the decoded images cannot be cached in {path.parent} ({error.strerror}); continuing", file=sys.stderr)
    return raw


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Returns a CRC of the bytes: of a gigabyte in a second, and enough against damage by accident."""
    checksum = 0
    for name in FIELDS:
        checksum = zlib.crc32(tensors[name].contiguous().numpy().data, checksum)
    return f"{checksum:08x}"


def fit_shape(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Returns uint8 images `(N, c, h, w)` as `(N, *shape)`: resized bilinearly, grey repeated over the channels."""
    channels, *size = shape
    if list(images.shape[2:]) != size:
        resized = F.interpolate(images.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
        images = resized.round().clamp(0, 255).to(torch.uint8)
    return images.expand(-1, channels, -1, -1).contiguous() if images.shape[1] == 1 else images
