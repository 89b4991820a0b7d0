"""A pruned network in a small file: positions as compressed gaps, values in float32, float16 or from a codebook.

`python pruning/sparse_file.py FILE` checks a file and lists its layers.

Layout of the file: magic, version (u16), header length (u32), header (JSON, zstd), sections (zstd frames, whose lengths
the header gives), SHA-256 of everything before it. A pruned tensor has two sections: the gaps between the kept
positions, and the values. With a codebook it has three: the gaps, the codebook, and the code of each value. Every other
tensor has one section.

A gap takes one byte; 255 means "255, and more follows". zstandard at level 19 compresses the gaps to within 1.5 % of
the entropy of the mask, at every sparsity from 50 to 98 %. LZMA needs 2 to 13 % more than the entropy; the range coder
of constriction needs under 0.2 % more, but it is a dependency with few users and no stable format. From Python 3.14 on,
zstandard is in the standard library. Other sections of more than a megabyte are compressed at level 1: level 19 takes
seconds and makes them 1.5 % smaller at best.

Codebooks of shared values, found by k-means, follow Han et al. 2016, "Deep Compression", section 3.
"""

from __future__ import annotations

import common.stopping  # noqa: F401 — a signal during the imports below ends the script in one line

import dataclasses
import functools
import hashlib
import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import tyro
import zstandard
from torch import Tensor

from common import cli
from common.errors import RunError, UsageError
from common.files import write_atomically
from pruning.codebook import shared_values
from pruning.masks import Masks

Values = Literal["float32", "float16", "codebook8", "codebook5"]
VALUES: tuple[Values, ...] = get_args(Values)
MAGIC, VERSION = b"TRISPARS", 1
PREFIX = struct.Struct("<8sHI")
MOST_WEIGHTS, MOST_HEADER = 100_000_000, 1 << 20  # of a file; VGG11 has 9,231,114, and its header 6 kB
STORED = {name: np.dtype(name) for name in ("<f2", "<f4", "<i8")}
DTYPES: dict[str, np.dtype[Any]] = {"torch.float32": np.dtype("<f4"), "torch.int64": np.dtype("<i8")}


@dataclasses.dataclass(frozen=True)
class SparseNetwork:
    """The content of a sparse file: the state dict, the masks of the pruned layers, and the format of the values.

    `origin` says what the network was trained on, if the file says it: `dataset`, `classes` and `normalisation`
    (`mean` and `std` of each channel), as metrics.json has them.
    """

    weights: dict[str, Tensor]
    masks: Masks
    values: Values
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def save_sparse(
    path: Path, weights: Mapping[str, Tensor], masks: Masks, values: Values, origin: Mapping[str, Any] | None = None
) -> int:
    """Writes a state dict whose tensors `<layer>.weight` are pruned by `masks[layer]`; returns the size in bytes.

    `float32` restores everything bit for bit. `float16` rounds every value to the nearest half-precision number: the
    error is at most 2⁻¹¹ of the value, or 2⁻²⁵ for the smallest values. `codebook8` and `codebook5` give each layer 256
    or 32 shared values, and keep all other tensors as float16. `origin` is kept in the header, see `SparseNetwork`.

    Raises:
        ValueError: a dropped weight is not zero, or a tensor has another type than float32 or int64.
    """
    content = pack(weights, masks, values, origin)
    write_atomically(path, content)
    return len(content)


def load_sparse(path: Path) -> SparseNetwork:
    """Returns the network in a sparse file.

    Raises:
        RunError: the file is missing, truncated, damaged, or of another format or version.
    """
    try:
        return unpack(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise RunError(f"{path}: {error}") from None


def pack(weights: Mapping[str, Tensor], masks: Masks, values: Values, origin: Mapping[str, Any] | None = None) -> bytes:
    """Returns the content of a sparse file, see `save_sparse`."""
    sections: list[bytes] = []
    entries: list[dict[str, Any]] = []

    def section(content: bytes) -> int:
        sections.append(_compress(content, 1 if len(content) > 1 << 20 else 19))
        return len(sections[-1])

    def gaps_section(kept: np.ndarray) -> int:
        sections.append(_compressed_gaps(_gap_bytes(np.flatnonzero(kept))))
        return len(sections[-1])

    for name, tensor in weights.items():
        if str(tensor.dtype) not in DTYPES:
            raise ValueError(
                f"{name} holds {tensor.dtype}: a sparse file takes {' and '.join(DTYPES)}; convert it first"
            )
        array = tensor.detach().cpu().contiguous().numpy().ravel()
        entry: dict[str, Any] = {"name": name, "shape": list(tensor.shape), "dtype": str(tensor.dtype)}
        layer = name.removesuffix(".weight")
        if name.endswith(".weight") and layer in masks:
            kept = masks[layer].cpu().contiguous().numpy().ravel()
            if np.any(array[~kept]):
                raise ValueError(f"{name} has values other than zero under its mask")
            entry |= {"kept": int(kept.sum()), "gaps": gaps_section(kept)}
            array = array[kept]
            if values.startswith("codebook"):
                codebook, codes = shared_values(array, 2 ** int(values.removeprefix("codebook")))
                entry |= {
                    "codebook": section(_planes(codebook)),
                    "entries": len(codebook),
                    "codes": section(codes.tobytes()),
                }
                entries.append(entry)
                continue
        if array.dtype == np.float32 and values != "float32":
            with np.errstate(over="ignore"):
                halved = array.astype(np.float16)
            array = halved if np.isfinite(halved).all() else array
        entries.append(entry | {"stored": array.dtype.str, "values": section(_planes(array))})

    said = {"values": values, "tensors": entries, **({"origin": dict(origin)} if origin else {})}
    header = _compress(json.dumps(said).encode(), 19)
    content = PREFIX.pack(MAGIC, VERSION, len(header)) + header + b"".join(sections)
    return content + hashlib.sha256(content).digest()


def unpack(content: bytes) -> SparseNetwork:
    """Returns the network in the bytes of a sparse file.

    Raises:
        ValueError: the bytes are not a complete sparse file of this version.
    """
    if len(content) < PREFIX.size + 32 or not content.startswith(MAGIC):
        raise ValueError("not a sparse network file")
    _, version, header_bytes = PREFIX.unpack_from(content)
    if version != VERSION:
        raise ValueError(f"format version {version}, this code reads version {VERSION}")
    if hashlib.sha256(content[:-32]).digest() != content[-32:]:
        raise ValueError("truncated or damaged (its checksum does not match)")
    # The checksum is right, so only a forged file can be inconsistent from here on. It is refused too.
    try:
        return _read_sections(content, header_bytes)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, MemoryError, RuntimeError) as error:
        raise ValueError(f"inconsistent contents ({error})") from None
    except zstandard.ZstdError as error:
        raise ValueError(f"inconsistent contents ({error})") from None


def _read_sections(content: bytes, header_bytes: int) -> SparseNetwork:
    start = PREFIX.size + header_bytes
    header = json.loads(_decompress(content[PREFIX.size : start], limit=MOST_HEADER))
    _require_bounded(header["tensors"])

    def section(entry: Mapping[str, Any], kind: str, limit: int) -> bytes:
        nonlocal start
        start += entry[kind]
        return _decompress(content[start - entry[kind] : start], limit)

    weights: dict[str, Tensor] = {}
    masks: Masks = {}
    for entry in header["tensors"]:
        dtype, size = DTYPES[entry["dtype"]], math.prod(entry["shape"])
        count = entry.get("kept", size)
        positions = _positions(section(entry, "gaps", size + count), size, count) if "kept" in entry else None
        if "codebook" in entry:
            codebook = _from_planes(section(entry, "codebook", 4 * entry["entries"]), np.dtype("<f2"), entry["entries"])
            array = codebook[np.frombuffer(section(entry, "codes", count), np.uint8, count)].astype(dtype)
        else:
            stored = STORED[entry["stored"]]
            array = _from_planes(section(entry, "values", stored.itemsize * count), stored, count).astype(dtype)
        if positions is not None:
            kept, full = np.zeros(size, bool), np.zeros(size, dtype)
            kept[positions], full[positions] = True, array
            masks[entry["name"].removesuffix(".weight")] = torch.from_numpy(kept.reshape(entry["shape"]))
            array = full
        weights[entry["name"]] = torch.from_numpy(array.reshape(entry["shape"]))
    if start != len(content) - 32 or header["values"] not in VALUES:
        raise ValueError("lengths or value format")
    origin = header.get("origin", {})
    if not isinstance(origin, dict):
        raise ValueError("origin")
    return SparseNetwork(weights, masks, header["values"], origin)


def _require_bounded(entries: Sequence[Mapping[str, Any]]) -> None:
    """Raises ValueError for a header that claims more than a file of this kind can hold, before memory is taken."""
    left = MOST_WEIGHTS
    for entry in entries:
        sizes = [*entry["shape"], entry.get("kept", 0), entry.get("entries", 0)]
        if not all(isinstance(size, int) and 0 <= size <= MOST_WEIGHTS for size in sizes) or len(sizes) > 10:
            raise ValueError(f"{entry['name']}: no shape of a tensor")
        size = math.prod(entry["shape"])
        left -= size
        if left < 0 or entry.get("kept", 0) > size or entry.get("entries", 0) > 256:
            raise ValueError(f"{entry['name']}: more than {MOST_WEIGHTS:,} weights, or more kept than there are")


def _compress(content: bytes, level: int) -> bytes:
    return zstandard.ZstdCompressor(level=level).compress(content)


@functools.lru_cache(maxsize=8)  # the eight layers of a network, whose four files have the same gaps
def _compressed_gaps(gaps: bytes) -> bytes:
    return _compress(gaps, 19)


def _decompress(frame: bytes, limit: int) -> bytes:
    if zstandard.frame_content_size(frame) > limit:
        raise ValueError("a section is larger than its tensor")
    return zstandard.ZstdDecompressor().decompress(frame)


def _gap_bytes(positions: np.ndarray) -> bytes:
    """Returns the number of zeros before each kept position, a byte each; 255 means "255, and more follows"."""
    full, rest = np.divmod(np.diff(positions, prepend=-1) - 1, 255)
    coded = np.full(len(positions) + int(full.sum()), 255, np.uint8)
    coded[np.cumsum(full + 1) - 1] = rest
    return coded.tobytes()


def _positions(gaps: bytes, size: int, count: int) -> np.ndarray:
    coded = np.frombuffer(gaps, np.uint8).astype(np.int64)
    ends = np.flatnonzero(coded != 255)
    positions = np.cumsum(coded)[ends] + np.arange(len(ends))
    if len(positions) != count or (count and positions[-1] >= size):
        raise ValueError("kept positions")
    return positions


def _planes(array: np.ndarray) -> bytes:
    """Returns all first bytes, then all second bytes, and so on.

    The exponents then lie side by side and compress well; whole floats do not.
    """
    return array.view(np.uint8).reshape(-1, array.itemsize).T.tobytes()


def _from_planes(content: bytes, dtype: np.dtype, count: int) -> np.ndarray:
    planes = np.frombuffer(content, np.uint8).reshape(dtype.itemsize, count)
    return np.ascontiguousarray(planes.T).view(dtype).reshape(count)


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Checks a sparse network file and lists its layers."""

    file: tyro.conf.Positional[Path]
    """File to check, such as results/pruning/<run>/checkpoints/network.float16.sparse."""


def main(options: Inspect) -> None:
    """Prints the format and size of the file, and how many weights each layer keeps.

    Raises:
        UsageError: there is no such file.
        RunError: it is damaged.
    """
    if not options.file.exists():
        raise UsageError(f"{options.file}: no such file")
    network = load_sparse(options.file)
    print(f"{options.file}: version {VERSION}, values {network.values}, {options.file.stat().st_size:,} bytes, intact")
    for layer, mask in network.masks.items():
        kept, total = int(mask.sum()), mask.numel()
        print(f"{layer:14} {tuple(mask.shape)!s:22} {kept:>10,} of {total:>10,} kept, sparsity {1 - kept / total:.4f}")


if __name__ == "__main__":
    cli.command(main, Inspect)
