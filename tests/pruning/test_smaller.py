"""What is left of filter pruning: the same outputs from fewer channels, counted, saved and read again."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn
from torch.optim import SGD

from common import cli
from common.errors import RunError, UsageError
from common.files import save_weights
from common.training import TrainState
from pruning import account, load, smaller
from pruning.filters import clear_filters, ranked, weight_masks
from pruning.given import read_network
from pruning.masks import Masks
from pruning.run import main
from pruning.schedule import MaskSchedule
from pruning.settings import Settings
from pruning.smaller import export_onnx, require_onnx, save_smaller, smaller_network, widened
from pruning.train import Pruner
from pruning.trained import TrainedNetwork
from pruning.vgg import VGG11, full_widths, prunable_weights, widths_of
from tests.pruning.small import use_few_images, use_narrow_network

WIDTH = 6  # of every layer of the network that is pruned
widths = st.lists(st.integers(1, WIDTH), min_size=8, max_size=8)


def masked_network(left: list[int], seed: int = 0) -> tuple[VGG11, Masks]:
    """A network in double precision with `left` filters in each layer, those of random places, and its masks."""
    torch.manual_seed(seed)
    network = VGG11(initialisation="default", widths=[WIDTH] * 8).double()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter.normal_()  # a bias of batch normalisation that stayed would be seen
    network(torch.randn(16, 3, 32, 32, dtype=torch.float64))
    kept = {name: torch.randperm(WIDTH) < count for name, count in zip(prunable_weights(network), left, strict=True)}
    masks = weight_masks(network, kept, "l2")
    clear_filters(network, masks)
    return network.eval(), masks


@given(widths, st.integers(0, 1000))
@settings(deadline=None, max_examples=25)
def test_outputs_are_those_of_the_masked_network(left: list[int], seed: int) -> None:
    network, masks = masked_network(left, seed)
    result = smaller_network(network, masks)
    assert widths_of(result.state_dict()) == tuple(left)
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(result(images), network(images))
    assert not result.training


@given(widths, st.integers(0, 1000))
@settings(deadline=None, max_examples=10)
def test_it_trains_as_the_masked_network_does(left: list[int], seed: int) -> None:
    """The same steps on both, the masked one cleared after each: the same weights and statistics."""
    network, masks = masked_network(left, seed)
    begin = copy.deepcopy(network)
    result = smaller_network(network.train(), masks)
    schedule = MaskSchedule.from_settings(Settings(granularity="filter"), {})
    pruner = Pruner(network, masks, schedule, lambda network: ranked(network, "l2"), "l2")
    images = torch.randn(4, 8, 3, 32, 32, dtype=torch.float64)
    labels = torch.randint(10, (4, 8))
    optimizers = [SGD(of.parameters(), lr=0.02, momentum=0.9, weight_decay=0.01) for of in (network, result)]
    for step in range(4):
        for of, optimizer in zip((network, result), optimizers, strict=True):
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(of(images[step]), labels[step]))
            optimizer.step()
        pruner.after_step(TrainState(network, None, optimizers[0], torch.Generator(), masks, step + 1, 4))
    expected = smaller_network(network, masks).state_dict()
    for name, tensor in result.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-8, msg=name)
    whole = copy.deepcopy(begin)
    whole.load_state_dict(widened(result.state_dict(), begin, masks))
    torch.testing.assert_close(whole.eval()(images[0]), result.eval()(images[0]))
    cleared = copy.deepcopy(whole)
    clear_filters(cleared, masks)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), cleared.parameters(), strict=True))


def test_it_draws_no_random_numbers() -> None:
    network, masks = masked_network([2] * 8)
    before = torch.random.get_rng_state()
    smaller_network(network, masks)
    assert torch.equal(before, torch.random.get_rng_state())


def test_multiply_adds_and_parameters_are_counted_on_the_smaller_network() -> None:
    network, masks = masked_network([1, 2, 3, 4, 5, 6, 2, 3])
    result = smaller_network(network.float(), masks)
    image = torch.zeros(1, 3, 32, 32)
    table = account.layer_table(network, masks, image, filters=True)
    totals = account.totals(network, table, result)
    counted = {"masked": 0, "smaller": 0}

    def counting(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            assert isinstance(module, nn.Conv2d | nn.Linear)
            counted[name] += module.weight.numel() * output.shape[2:].numel()

        return hook

    for name, of in (("masked", network), ("smaller", result)):
        for module in of.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(counting(name))
        of(image)
    assert totals["multiply_adds"] == counted["masked"]
    assert totals["theoretical_speedup"] == counted["masked"] / counted["smaller"]
    assert totals["nonzero_parameters"] == sum(p.numel() for p in result.parameters())
    assert totals["compression_ratio"] == totals["parameters"] / totals["nonzero_parameters"]
    assert [row["filters_left"] for row in table] == [1, 2, 3, 4, 5, 6, 2, 3]
    assert [row["nonzero"] for row in table] == [w.numel() for w in prunable_weights(result).values()]


def test_saved_with_its_widths_and_read_again(tmp_path: Path) -> None:
    left = [3, 1, 4, 1, 5, 2, 6, 5]
    network, masks = masked_network(left)
    result = smaller_network(network.float(), masks)
    size = save_smaller(tmp_path / "x.safetensors", result)
    assert size == (tmp_path / "x.safetensors").stat().st_size
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"network": "VGG11", "widths": "3 1 4 1 5 2 6 5"}
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    loaded = load(tmp_path / "x.safetensors")
    assert widths_of(loaded.network.state_dict()) == tuple(left)
    torch.testing.assert_close(loaded(images), TrainedNetwork(result, loaded.mean, loaded.std, loaded.classes)(images))
    with pytest.raises(RunError, match=r"features.0.weight is 3 × 3 × 3 × 3 and should be 64 × 3 × 3 × 3"):
        read_network(tmp_path / "x.safetensors")  # --dense-weights takes the whole network


@pytest.mark.parametrize("name", ["features.4.weight", "features.25.weight", "features.9.running_var"])
def test_widths_that_do_not_fit_are_told_by_the_tensor(tmp_path: Path, name: str) -> None:
    weights = VGG11(widths=[4] * 8).state_dict()
    weights[name] = torch.zeros(0, *weights[name].shape[1:])
    save_weights(tmp_path / "x.safetensors", weights)
    with pytest.raises(RunError, match="not a VGG11 with 10 classes"):
        read_network(tmp_path / "x.safetensors", any_widths=True)


def test_widths_of_the_network() -> None:
    assert widths_of(VGG11().state_dict()) == full_widths() == (64, 128, 256, 256, 512, 512, 512, 512)
    for wrong in ([4] * 7, [4] * 7 + [0]):
        with pytest.raises(ValueError, match="give 8 numbers of at least 1"):
            VGG11(widths=wrong)


@pytest.mark.slow
def test_onnx_gives_the_same_logits_for_any_batch(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network, masks = masked_network([2, 3, 4, 5, 6, 5, 4, 3])
    trained = TrainedNetwork(smaller_network(network.float(), masks), torch.rand(3), torch.rand(3) + 0.1, ("a",) * 10)
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    record = export_onnx(tmp_path / "x.onnx", trained, images)
    assert record["bytes"] == (tmp_path / "x.onnx").stat().st_size
    assert record["largest_difference"] < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx", providers=["CPUExecutionProvider"])
    (one,) = session.run(None, {"images": (images[:1] / 255).numpy()})
    torch.testing.assert_close(torch.from_numpy(one), trained(images[:1]), rtol=1e-4, atol=1e-4)


def test_a_missing_package_is_told_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smaller, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(UsageError, match=r"--onnx: the package onnxscript is missing; pip install -e '.\[onnx\]'"):
        require_onnx("--onnx")


@pytest.mark.slow
@pytest.mark.parametrize(("schedule", "state"), [("gradual", []), ("one-shot", []), ("one-shot", ["--keep-state"])])
def test_a_whole_run_prunes_filters_and_is_extended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str, state: list[str]
) -> None:
    """Nothing else than `main` and the files it leaves; the network and the images are few and small."""
    use_narrow_network(monkeypatch)
    use_few_images(monkeypatch)
    arguments = ["--smoke-test", "--latency-seconds", "0", "--results-dir", str(tmp_path), "--run-name", "run"]
    arguments += ["--granularity", "filter", "--filter-importance", "batch-norm", "--allocation", "global"]
    cli.run(main, Settings, [*arguments, "--sparsity", "0.5", "--schedule", schedule, *state])
    run = tmp_path / "pruning" / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    left = metrics["smaller"]
    assert metrics["filter_sparsity"] == pytest.approx(0.5, abs=0.01)
    assert metrics["conv_weights_kept"] < 0.5  # inputs go too
    assert sum(left["widths"]) == metrics["filters_left"] == sum(row["filters_left"] for row in metrics["layers"])
    assert left["accuracy"] == pytest.approx(metrics["finetuned_accuracy"], abs=0.02)
    assert left["largest_difference"] < 1e-3
    assert left["bytes"] == (run / "checkpoints" / "smaller.safetensors").stat().st_size < metrics["dense_bytes"]
    assert metrics["nonzero_parameters"] == left["parameters"]
    for batch, times in metrics["latency"].items():
        assert list(times) == ["dense", "pruned", "pruned_csr", "smaller"]
        for name, median in times.items():
            low, high = metrics["latency_quartiles"][batch][name]
            assert low <= median <= high
    assert widths_of(load(run).network.state_dict()) == tuple(left["widths"])
    assert ranked(load(run).network, "l2").keys() == metrics["sensitivity"].keys()
    cli.run(main, Settings, ["--extend", str(run), "--finetune-epochs", "2"])
    longer = json.loads((run.parent / "run-extended" / "metrics.json").read_text())
    assert longer["smaller"]["widths"] == left["widths"]  # nothing comes back
    assert longer["smaller"]["largest_difference"] < 1e-3
