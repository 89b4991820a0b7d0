"""Files from a stranger: no code runs, and no header can make the program take more memory than its file could need."""

import gzip
import io
import json
import os
import pickle
import resource
import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import zstandard

from common import cli
from common.errors import RunError
from common.files import load_state, load_weights
from common.image_folders import cifar10_archive, loose_images
from pruning.given import read_network
from pruning.settings import Settings
from pruning.sparse_file import MAGIC, PREFIX, VERSION, load_sparse
from tests.faults.work import ended, fork

pytestmark = pytest.mark.faults
MIB = 1 << 20


class Code:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.proof}",)


def sparse(header: bytes, sections: bytes = b"") -> bytes:
    import hashlib

    packed = zstandard.compress(header)
    content = PREFIX.pack(MAGIC, VERSION, len(packed)) + packed + sections
    return content + hashlib.sha256(content).digest()


def claim(**entry: object) -> bytes:
    entry = {"name": "a.weight", "shape": [10**6, 10**6], "dtype": "torch.float32", **entry}
    zeros = zstandard.compress(bytes(400 * MIB))
    entry |= {"values": len(zeros)} if "values" not in entry else {}
    return sparse(json.dumps({"values": "float32", "tensors": [entry]}).encode(), zeros)


def png(width: int, height: int, data: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def torch_zip(compressed: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"x": torch.zeros(100 * MIB)}, buffer)
    if not compressed:
        return buffer.getvalue()[:MIB]
    packed = io.BytesIO()
    with zipfile.ZipFile(buffer) as whole, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as small:
        for info in whole.infolist():
            small.writestr(info.filename, whole.read(info.filename))
    return packed.getvalue()


def tar_of_notes() -> bytes:
    """A tar, 1 MB packed, whose member has a name of a gigabyte."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1024 * MIB
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1) as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(64):
            file.write(bytes(16 * MIB))
    return buffer.getvalue()


def zip_of_one(size: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("train/cat/1.png", bytes(size))
    return buffer.getvalue()


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 12))
YAMLS = {
    "code.yaml": "epochs: !!python/object/apply:os.system ['touch PROOF']",
    "module.yaml": "epochs: !!python/module:os",
    "laughs.yaml": LAUGHS + "epochs: *a11\n",
    "merged.yaml": MERGED,
    "cycle.yaml": "epochs: &a [*a]",
    "deep.yaml": "epochs: " + "[" * 20_000,
    "large.yaml": "# " + "x" * (2 * MIB),
    "tag.yaml": "epochs: !!timestamp 99",
}


def yaml_file(path: Path) -> None:
    cli.parse(Settings, ["--config", str(path)])


CASES: dict[str, tuple[Callable[[Path], object], Callable[[], bytes]]] = {
    "claims.sparse": (load_sparse, lambda: claim()),
    "kept.sparse": (load_sparse, lambda: claim(kept=10**12, gaps=9)),
    "kind.sparse": (load_sparse, lambda: claim(shape=[10], stored="V1000000000")),
    "object.sparse": (load_sparse, lambda: claim(shape=[10], stored="O")),
    "codebook.sparse": (load_sparse, lambda: claim(shape=[10], codebook=9, entries=10**12, codes=9)),
    "negative.sparse": (load_sparse, lambda: claim(shape=[-1, -5], stored="<f4")),
    "header.sparse": (load_sparse, lambda: sparse(b" " * (512 * MIB))),
    "deep.sparse": (load_sparse, lambda: sparse(b"[" * 100_000)),
    "bomb.pt": (read_network, lambda: torch_zip(True)),
    "cut.pt": (read_network, lambda: torch_zip(False)),
    "claims.safetensors": (
        load_weights,
        lambda: (lambda header: struct.pack("<Q", len(header)) + header)(
            b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
        ),
    ),
    "header.safetensors": (load_weights, lambda: struct.pack("<Q", 1 << 60)),
    "bomb.png": (lambda path: loose_images(path, (3, 32, 32), True), lambda: png(10**6, 10**6, b"")),
    "zeros.png": (
        lambda path: loose_images(path, (3, 32, 32), True),
        lambda: png(12_000, 12_000, zlib.compress(bytes(12_000 * 36_001))),
    ),
    "cifar10.zip": (cifar10_archive, lambda: zip_of_one(512 * MIB)),
    "cifar10.tar.gz": (cifar10_archive, tar_of_notes),
    **{name: (yaml_file, lambda text=text: text.encode()) for name, text in YAMLS.items()},  # type: ignore[misc]
}


@pytest.mark.parametrize("name", CASES)
def test_nothing_runs_and_memory_is_bounded(name: str, tmp_path: Path) -> None:
    """In a process that may take 400 MiB more than it has."""
    read, make = CASES[name]
    proof = tmp_path / "proof"
    (tmp_path / name).write_bytes(make().replace(b"PROOF", str(proof).encode()))

    def work() -> None:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + 400 * MIB, taken + 400 * MIB))
        try:
            read(tmp_path / name)
        except RunError as error:
            print(f"told: {error}")
        else:
            raise AssertionError("was read")

    begun, log = time.monotonic(), tmp_path / "log"
    assert ended(fork(work, log)) == 0, log.read_text()[-3000:]
    told = log.read_text().split("told: ")[-1]
    assert name in told
    assert "out of memory" not in told.lower()
    assert time.monotonic() - begun < 600
    assert not proof.exists()


@pytest.mark.parametrize("name", ["x.pt", "x.state.pt", "x.safetensors", "x.sparse"])
def test_a_pickle_with_code_is_refused(name: str, tmp_path: Path) -> None:
    import hashlib

    path, proof = tmp_path / name, tmp_path / "proof"
    buffer = io.BytesIO()
    torch.save({"x": Code(proof)}, buffer)
    for content in (buffer.getvalue(), pickle.dumps(Code(proof)), pickle.dumps(Code(proof), 0)):
        signed = content + hashlib.sha256(content).digest() if "state" in name else content
        path.write_bytes(signed)
        with pytest.raises(RunError, match=name):
            load_state(path) if "state" in name else read_network(path)
        assert not proof.exists()
