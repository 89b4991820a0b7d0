"""Accounting: multiply-adds and ratios by hand, and a sparse layer that computes what it stands for."""

import copy

import pytest
import torch
from torch import nn

from pruning import account, allocation
from pruning.masks import apply_masks, magnitude_masks
from pruning.vgg import VGG11, prunable_weights

# out·in·9·height·width of the eight layers on a 32×32 image
MULTIPLY_ADDS = [
    64 * 3 * 9 * 32 * 32,
    128 * 64 * 9 * 16 * 16,
    256 * 128 * 9 * 8 * 8,
    256 * 256 * 9 * 8 * 8,
    512 * 256 * 9 * 4 * 4,
    512 * 512 * 9 * 4 * 4,
    512 * 512 * 9 * 2 * 2,
    512 * 512 * 9 * 2 * 2,
]


def test_table_and_totals_at_the_reference_sparsities() -> None:
    model = VGG11()
    masks = magnitude_masks(prunable_weights(model), allocation.reference(prunable_weights(model)))
    table = account.layer_table(model, masks, torch.randn(1, 3, 32, 32))
    assert [row["multiply_adds"] for row in table] == MULTIPLY_ADDS
    for row, mask, macs in zip(table, masks.values(), MULTIPLY_ADDS, strict=True):
        assert row["nonzero"] == int(mask.sum())
        assert row["multiply_adds_after"] == pytest.approx(macs * (1 - row["sparsity"]))
    totals = account.totals(model, table)
    assert totals["conv_weights_kept"] == pytest.approx(0.2297, abs=5e-5)
    assert totals["compression_ratio"] == pytest.approx(9_231_114 / (9_231_114 - 9_217_728 + 2_117_548))
    after = sum(row["multiply_adds_after"] for row in table)
    assert totals["theoretical_speedup"] == pytest.approx((sum(MULTIPLY_ADDS) + 5120) / (after + 5120))


def test_nothing_pruned_is_ratio_one_although_fresh_biases_are_zero() -> None:
    model = VGG11()
    assert sum(int((p == 0).sum()) for p in model.parameters()) > 2000  # the trap: batch norm starts at zero
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable_weights(model).items()}
    totals = account.totals(model, account.layer_table(model, masks, torch.randn(1, 3, 32, 32)))
    assert totals["compression_ratio"] == totals["theoretical_speedup"] == totals["conv_weights_kept"] == 1


def test_counting_leaves_statistics_untouched() -> None:
    model = VGG11().train()
    before = copy.deepcopy(model.state_dict())
    account.output_positions(model, torch.randn(1, 3, 32, 32))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_zeros_are_filled_with_the_other_weights_in_turn() -> None:
    """So the file of an unpruned network of the same weights can be told where a run began with a sparse one."""
    model = VGG11(initialisation="default")
    weight = prunable_weights(model)["features.0"]
    with torch.no_grad():
        weight.zero_()[0, :, 0, 0] = torch.tensor([1.0, 2.0, 3.0])
    filled = account.without_zeros(model)
    values, counts = filled["features.0.weight"].unique(return_counts=True)
    assert values.tolist() == [1, 2, 3]
    assert counts.tolist() == [576, 576, 576]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor[tensor != 0], filled[name][tensor != 0])
    assert int(weight.count_nonzero()) == 3  # the network stays as it is


def test_sparse_layer_equals_the_convolution() -> None:
    conv = nn.Conv2d(5, 7, 3, padding=1)
    apply_masks({"": conv.weight}, magnitude_masks({"": conv.weight}, {"": 0.8}))
    images = torch.randn(3, 5, 6, 4)
    torch.testing.assert_close(account.SparseConv2d(conv)(images), conv(images))


def test_latencies_time_all_three(network: VGG11) -> None:
    record = account.latencies(network, network, torch.randn(2, 3, 32, 32), seconds=0)
    assert list(record) == ["latency", "latency_quartiles"]
    times, spread = record["latency"], record["latency_quartiles"]
    assert list(times) == list(spread) == ["batch_1", "batch_2"]
    assert all(list(t) == ["dense", "pruned", "pruned_csr"] and min(t.values()) > 0 for t in times.values())
    assert all(low <= times[b][name] <= high for b, of in spread.items() for name, (low, high) in of.items())
