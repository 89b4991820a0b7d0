"""Networks that others saved: what can be read is read to the value, and the rest refused by the tensor's name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import prune

from common.errors import RunError
from common.files import save_weights
from pruning.given import read_network
from pruning.masks import magnitude_masks
from pruning.run import main
from pruning.settings import Settings
from pruning.sparse_file import save_sparse
from pruning.vgg import VGG11, prunable_layers, prunable_weights
from tests.pruning.small import use_narrow_network

Refused = Callable[..., tuple[int, str]]
Weights = dict[str, Tensor]


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> VGG11:
    use_narrow_network(monkeypatch)
    return VGG11(initialisation="default")  # no weight is zero


def same(ours: Weights, theirs: Weights) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("file", ["x.safetensors", "x.pt", "x.pth"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_state_dicts_of_either_format(network: VGG11, tmp_path: Path, file: str, prefix: str) -> None:
    weights = {prefix + name: tensor for name, tensor in network.state_dict().items()}
    (save_weights(tmp_path / file, weights) if file == "x.safetensors" else torch.save(weights, tmp_path / file))
    told: list[str] = []
    before = torch.random.get_rng_state()
    assert same(read_network(tmp_path / file, told.append), network.state_dict())
    assert not told
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float64])
def test_another_precision_is_converted_and_told(network: VGG11, tmp_path: Path, precision: torch.dtype) -> None:
    other = network.to(precision).state_dict()
    torch.save(other, tmp_path / "x.pt")
    told: list[str] = []
    read = read_network(tmp_path / "x.pt", told.append)
    assert same(read, {name: t.float() if t.is_floating_point() else t for name, t in other.items()})
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in read.values())
    assert told == [f"--dense-weights {tmp_path / 'x.pt'}: {str(precision)[6:]} converted to float32"]


def test_every_tensor_may_be_converted_also_the_counters(network: VGG11, tmp_path: Path) -> None:
    weights = network.state_dict()
    torch.save({f"module.{name}": tensor.half() for name, tensor in weights.items()}, tmp_path / "x.pt")
    rounded = {name: t.half().float() if t.is_floating_point() else t for name, t in weights.items()}
    assert same(read_network(tmp_path / "x.pt"), rounded)


def test_pairs_of_torchs_pruning_become_pruned_weights(network: VGG11, tmp_path: Path) -> None:
    network.to(memory_format=torch.contiguous_format)  # torch's pruning takes no other
    for conv in prunable_layers(network).values():
        prune.l1_unstructured(conv, "weight", 0.5)
    torch.save(network.state_dict(), tmp_path / "x.pt")
    for conv in prunable_layers(network).values():
        prune.remove(conv, "weight")
    read = read_network(tmp_path / "x.pt")
    assert same(read, network.state_dict())
    assert int((read["features.4.weight"] == 0).sum()) == read["features.4.weight"].numel() // 2


def test_sparse_files_of_this_project(network: VGG11, tmp_path: Path) -> None:
    weights = prunable_weights(network)
    masks = magnitude_masks(weights, dict.fromkeys(weights, 0.5))
    for name, mask in masks.items():
        weights[name].data.masked_fill_(~mask, 0.0)
    save_sparse(tmp_path / "x.sparse", network.state_dict(), masks, "float32")
    assert same(read_network(tmp_path / "x.sparse"), network.state_dict())


def test_the_counter_of_batches_may_be_missing(network: VGG11, tmp_path: Path) -> None:
    weights = {n: t for n, t in network.state_dict().items() if not n.endswith("num_batches_tracked")}
    save_weights(tmp_path / "x", weights)
    assert same(read_network(tmp_path / "x"), network.state_dict())


def missing(weights: Weights) -> None:
    del weights["features.5.running_var"]


def not_finite(weights: Weights) -> None:
    weights["features.4.weight"][0, 0, 0, 0] = torch.nan


def infinite_in_float32(weights: Weights) -> None:
    weights["features.4.bias"] = weights["features.4.bias"].double() + 1e300


def negative(weights: Weights) -> None:
    weights["features.1.running_var"][0] = -1


def other_classes(weights: Weights) -> None:
    weights["classifier.weight"] = torch.zeros(100, 512)


def whole_numbers(weights: Weights) -> None:
    weights["classifier.bias"] = torch.zeros(10, dtype=torch.int64)


def more(weights: Weights) -> None:
    weights["features.29.weight"] = torch.zeros(3)


def no_mask(weights: Weights) -> None:
    weights["features.8.weight_orig"] = weights.pop("features.8.weight")


def an_object(weights: dict[str, Any]) -> None:
    weights["epoch"] = 3


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (missing, "not a VGG11 with 10 classes: features.5.running_var is missing"),
        (not_finite, "features.4.weight holds values that are not finite numbers"),
        (infinite_in_float32, "features.4.bias holds values that are not finite numbers"),
        (negative, "features.1.running_var holds negative variances"),
        (other_classes, "not a VGG11 with 10 classes: classifier.weight is 100 × 512 and should be 10 × 512"),
        (whole_numbers, "not a VGG11 with 10 classes: classifier.bias holds int64 and should hold float32"),
        (more, "not a VGG11 with 10 classes: it has no tensor features.29.weight"),
        (no_mask, "features.8.weight_orig has no features.8.weight_mask of its shape"),
        (an_object, "not a state dict: epoch is no tensor but a int"),
    ],
)
def test_the_rest_is_refused_before_a_run_folder_is_made(
    network: VGG11, tmp_path: Path, refused: Refused, change: Callable[[Any], None], told: str
) -> None:
    weights = dict(network.state_dict())
    change(weights)
    torch.save(weights, tmp_path / "x.pt")
    arguments = ["--dataset", "digits", "--results-dir", str(tmp_path / "results")]
    status, line = refused(main, Settings, [*arguments, "--dense-weights", str(tmp_path / "x.pt")])
    assert status == 1
    assert f"{tmp_path / 'x.pt'}: {told}" in line
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02", b"text", None])
def test_a_file_that_torch_cannot_read_is_refused_in_one_line(
    network: VGG11, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "x.pt"
    torch.save(network, path)  # an object: reading it would run code
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunError, match="damaged") as refusal:
        read_network(path)
    assert "\n" not in str(refusal.value)
