"""Sparse files: what goes in comes out, in the bytes promised, and damage is refused."""

import json
import math
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common import cli
from common.errors import RunError
from common.files import save_weights
from pruning.masks import Masks, apply_masks, magnitude_masks
from pruning.sparse_file import VALUES, Inspect, load_sparse, main, pack, save_sparse, unpack
from pruning.vgg import VGG11, prunable_weights


def small_network(seed: int = 0, density: float = 0.3) -> tuple[dict[str, Tensor], Masks]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (4, 3, 3, 3), "a.bias": (4,), "b.weight": (6, 4, 3, 3), "n": ()}
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    weights["n"] = torch.tensor(2**40 + 1)
    masks = {n: torch.rand(shapes[f"{n}.weight"], generator=generator) < density for n in ("a", "b")}
    apply_masks({n: weights[f"{n}.weight"] for n in masks}, masks)
    return weights, masks


def equal_bits(one: Tensor, other: Tensor) -> bool:
    same_form = one.dtype == other.dtype and one.shape == other.shape
    return same_form and one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes()


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    density=st.sampled_from([0.0, 0.001, 0.02, 0.5, 1.0]),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([1e-30, 1.0, 1e30]),
)
@settings(deadline=None, max_examples=150)
def test_float32_comes_back_bit_for_bit(shape: list[int], density: float, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < density
    weight = torch.randn(shape, generator=generator) * scale
    weight.masked_fill_(~mask, 0.0)
    network = unpack(pack({"x.weight": weight, "x.bias": weight.sum(0)}, {"x": mask}, "float32"))
    assert equal_bits(network.weights["x.weight"], weight)
    assert equal_bits(network.weights["x.bias"], weight.sum(0))
    assert equal_bits(network.masks["x"], mask)


@given(st.lists(st.integers(0, 3000), min_size=0, max_size=20))
@settings(deadline=None)
def test_gaps_of_every_length(gaps: list[int]) -> None:
    """Gaps around 255 and its multiples are where the escape code could slip."""
    gaps = [*gaps, 0, 254, 255, 256, 509, 510, 511]
    kept = np.zeros(sum(gaps) + len(gaps), bool)
    kept[np.cumsum(np.array(gaps) + 1) - 1] = True
    mask = torch.from_numpy(kept)
    network = unpack(pack({"x.weight": mask.float()}, {"x": mask}, "float32"))
    assert torch.equal(network.masks["x"], mask)


def test_special_values_survive_float32() -> None:
    weight = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, 0.0])
    mask = torch.tensor([True] * 6 + [False])  # a kept weight may be zero: the mask says what is kept
    network = unpack(pack({"x.weight": weight}, {"x": mask}, "float32"))
    assert equal_bits(network.weights["x.weight"], weight)
    assert equal_bits(network.masks["x"], mask)


def test_channels_last_weights() -> None:
    weight = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    mask = weight > 0
    weight.masked_fill_(~mask, 0.0)
    assert torch.equal(unpack(pack({"x.weight": weight}, {"x": mask}, "float32")).weights["x.weight"], weight)


def test_float16_is_within_its_stated_tolerance() -> None:
    weights, masks = small_network()
    network = unpack(pack(weights, masks, "float16"))
    for name, tensor in weights.items():
        tolerance = tensor.double().abs() * 2**-11 + 2**-25
        assert ((network.weights[name].double() - tensor.double()).abs() <= tolerance).all()
        assert network.weights[name].dtype == tensor.dtype
    assert torch.equal(network.weights["n"], weights["n"])


def test_values_too_large_for_float16_stay_float32() -> None:
    weights = {"running_var": torch.tensor([1e6, 1.2345678])}
    assert torch.equal(unpack(pack(weights, {}, "float16")).weights["running_var"], weights["running_var"])


@pytest.mark.parametrize(("values", "entries"), [("codebook8", 256), ("codebook5", 32)])
def test_codebook_shares_few_values_and_each_weight_gets_its_nearest(values: str, entries: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 30, 3, 3, generator=generator)
    masks = magnitude_masks({"x": weight}, {"x": 0.8})
    apply_masks({"x": weight}, masks)
    back = unpack(pack({"x.weight": weight}, masks, values)).weights["x.weight"]  # type: ignore[arg-type]
    shared = back[masks["x"]].unique()
    assert 0.9 * entries <= len(shared) <= entries
    nearest = shared[(weight[masks["x"]].unsqueeze(1) - shared).abs().argmin(1)]
    torch.testing.assert_close(back[masks["x"]], nearest, rtol=0, atol=0)
    assert not back[~masks["x"]].any()
    assert (back - weight).square().mean() < weight.square().mean() * 0.003


def test_codebook_of_few_distinct_values_is_exact() -> None:
    weight = torch.tensor([0.5, -0.25, 0.5, 0.0, 2.0])
    assert torch.equal(unpack(pack({"x.weight": weight}, {"x": weight != 0}, "codebook5")).weights["x.weight"], weight)


@pytest.mark.slow
def test_98_percent_file_is_50_and_90_times_smaller(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = VGG11()
    for weight in prunable_weights(model).values():
        torch.nn.init.normal_(weight, std=0.02)  # trained weights look like this, fresh ones are mostly zeros
    masks = magnitude_masks(prunable_weights(model), dict.fromkeys(prunable_weights(model), 0.98))
    apply_masks(prunable_weights(model), masks)
    save_weights(tmp_path / "dense.safetensors", model.state_dict())
    dense = (tmp_path / "dense.safetensors").stat().st_size
    sizes = {v: save_sparse(tmp_path / v, model.state_dict(), masks, v) for v in VALUES}
    assert {v: (tmp_path / v).stat().st_size for v in VALUES} == sizes
    assert dense / sizes["float16"] >= 50
    assert dense / sizes["codebook5"] >= 90
    assert dense > sizes["float32"] > sizes["float16"] > sizes["codebook8"] > sizes["codebook5"]
    back = load_sparse(tmp_path / "float32")
    assert all(equal_bits(back.weights[name], tensor) for name, tensor in model.state_dict().items())


@given(data=st.data())
@settings(deadline=None, max_examples=200)
def test_every_damaged_byte_and_every_truncation_is_refused(data: st.DataObject) -> None:
    content = pack(*small_network(), "float16")
    if data.draw(st.booleans()):
        damaged = bytearray(content)
        damaged[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        damaged = bytearray(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(ValueError, match=r"not a sparse|version|damaged"):
        unpack(bytes(damaged))


def forge(change: dict[str, object]) -> bytes:
    """A file with a changed header and a correct checksum."""
    import hashlib

    content = pack(*small_network(), "float32")
    magic, version, length = struct.unpack_from("<8sHI", content)
    header = json.loads(zstandard.ZstdDecompressor().decompress(content[14 : 14 + length]))
    header["tensors"][0] |= change
    packed = zstandard.ZstdCompressor().compress(json.dumps(header).encode())
    body = struct.pack("<8sHI", magic, version, len(packed)) + packed + content[14 + length : -32]
    return body + hashlib.sha256(body).digest()


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [4, 3, 3, 2]},
        {"shape": [10**9, 10**9]},
        {"kept": 3},
        {"dtype": "torch.float8"},
        {"stored": "|O"},
        {"stored": "V1000000000"},
        {"shape": [-2, -54]},
        {"kept": -1},
        {"gaps": 5},
        {"values": 10**9},
    ],
)
def test_forged_header_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="inconsistent"):
        unpack(forge(change))


def test_other_version_is_named() -> None:
    content = bytearray(pack(*small_network(), "float32"))
    content[8] = 9
    with pytest.raises(ValueError, match="version 9"):
        unpack(bytes(content))


def test_refuses_to_lose_a_weight_outside_the_mask() -> None:
    with pytest.raises(ValueError, match="under its mask"):
        pack({"x.weight": torch.ones(3)}, {"x": torch.tensor([True, False, True])}, "float32")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_a_type_that_could_not_be_read_again_is_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "x.sparse"
    with pytest.raises(ValueError, match=f"x.weight holds {dtype}: a sparse file takes torch.float32"):
        save_sparse(path, {"x.weight": torch.ones(3).to(dtype)}, {}, "float32")
    assert not path.exists()


def test_command_lists_a_file_and_refuses_a_damaged_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.sparse"
    save_sparse(path, *small_network(), "float16")
    cli.command(main, Inspect, [str(path)])
    listed = capsys.readouterr().out
    assert "float16" in listed
    assert "(6, 4, 3, 3)" in listed
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(SystemExit) as stop:
        cli.command(main, Inspect, [str(path)])
    assert stop.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: {path}: truncated or damaged")


@pytest.mark.slow
def test_command_line_lists_a_file_and_refuses_a_damaged_one(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.sparse", tmp_path / "bad.sparse"
    save_sparse(good, *small_network(), "float16")
    bad.write_bytes(good.read_bytes()[:-40])
    command = [sys.executable, "pruning/sparse_file.py"]
    listed = subprocess.run([*command, str(good)], capture_output=True, text=True, check=True).stdout
    assert "float16" in listed
    assert "(6, 4, 3, 3)" in listed
    for path, status in ((bad, 1), (tmp_path / "missing.sparse", 2)):
        refused = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
        assert refused.returncode == status
        assert refused.stderr.startswith(f"error: {path}")
        assert refused.stderr.count("\n") == 1
    with pytest.raises(RunError, match="damaged"):
        load_sparse(bad)
