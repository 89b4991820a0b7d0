"""Masks: exact counts, agreement with torch.nn.utils.prune, and nothing that revives a weight."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from torch import nn
from torch.nn.utils import prune

from pruning.masks import (
    apply_masks,
    exchange,
    forget_momentum,
    magnitude_mask,
    magnitude_masks,
    mask_from_scores,
    pruned_count,
    pruned_energy,
    random_mask,
    random_masks,
)


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.77, 0.9, 0.999])
def test_magnitude_mask_equals_torch_prune(sparsity: float) -> None:
    conv = nn.Conv2d(13, 17, 3)
    mask = magnitude_mask(conv.weight, sparsity)
    prune.l1_unstructured(conv, "weight", amount=sparsity)
    assert torch.equal(mask, conv.weight_mask.bool())


@given(st.integers(1, 400), st.floats(0, 1), st.integers(1, 3))
@settings(deadline=None)
def test_count_is_exact_even_among_equal_scores(size: int, sparsity: float, levels: int) -> None:
    scores = torch.randint(levels, (size,), generator=torch.Generator().manual_seed(size)).float()
    mask = mask_from_scores(scores, sparsity)
    assert int((~mask).sum()) == pruned_count(size, sparsity)
    if mask.any() and not mask.all():
        assert scores[mask].min() >= scores[~mask].max()


def test_mask_keeps_the_memory_format() -> None:
    weight = torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)
    assert magnitude_mask(weight, 0.5).is_contiguous(memory_format=torch.channels_last)
    assert random_mask(weight, 0.5, torch.Generator()).is_contiguous(memory_format=torch.channels_last)


def test_masks_of_rising_sparsity_are_nested(generator: torch.Generator) -> None:
    weight = torch.randn(20, 10, 3, 3, generator=generator)
    masks = magnitude_masks({"a": weight}, {"a": 0.3})
    moved = weight + torch.randn(weight.shape, generator=generator)  # trained on: what was dropped may have grown
    for sparsity in (0.5, 0.9):
        after = magnitude_masks({"a": moved}, {"a": sparsity}, kept=masks)
        assert not (after["a"] & ~masks["a"]).any()
        assert int((~after["a"]).sum()) == pruned_count(weight.numel(), sparsity)
        masks = after
    few, many = (random_masks({"a": weight}, {"a": s}, seed=3)["a"] for s in (0.3, 0.8))
    assert not (many & ~few).any()


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.7, 0.9])
def test_pruned_energy_of_known_distributions(sparsity: float) -> None:
    places = torch.linspace(0, 1, 20_001, dtype=torch.float64)[1:-1]
    weights = {"uniform": 2 * places - 1, "normal": torch.from_numpy(norm.ppf(places.numpy()))}
    threshold = norm.ppf((1 + sparsity) / 2)
    closed = {"uniform": sparsity**3, "normal": sparsity - 2 * threshold * norm.pdf(threshold)}
    shares = pruned_energy(weights, magnitude_masks(weights, dict.fromkeys(weights, sparsity)))
    assert shares == pytest.approx(closed, abs=2e-3)


def test_pruned_energy_of_a_layer_without_any() -> None:
    assert pruned_energy({"a": torch.zeros(4)}, {"a": torch.tensor([True, False, True, False])}) == {"a": 0.0}


def test_random_mask_ignores_magnitude(generator: torch.Generator) -> None:
    weight = torch.randn(100_000, generator=generator)
    mask = random_mask(weight, 0.5, generator)
    assert weight[mask].abs().mean().item() == pytest.approx(weight.abs().mean().item(), rel=0.02)
    assert not torch.equal(mask, random_mask(weight, 0.5, generator))


@pytest.mark.parametrize(
    ("sparsity", "share", "leaving"), [(0.9, 0.5, 50), (0.9, 0.0, 0), (0.9, 1.0, 100), (0.3, 1.0, 300)]
)
def test_exchange_agrees_with_a_naive_version(
    sparsity: float, share: float, leaving: int, generator: torch.Generator
) -> None:
    """The smallest kept weights go, no more than there are places; those of the largest gradients come."""
    weight = torch.randn(1000, generator=generator).requires_grad_()
    weight.grad = torch.randn(1000, generator=generator)
    before = magnitude_mask(weight, sparsity)
    apply_masks({"a": weight}, {"a": before})
    after = exchange({"a": before}, {"a": weight}, share)["a"]

    magnitudes, gradients = weight.detach().abs().tolist(), weight.grad.abs().tolist()
    by_magnitude = sorted((i for i in range(1000) if before[i]), key=lambda i: magnitudes[i])
    staying = set(by_magnitude[leaving:])
    others = sorted((i for i in range(1000) if i not in staying), key=lambda i: gradients[i])
    wanted = staying | set(others[len(others) - leaving :])
    assert set(after.nonzero().flatten().tolist()) == wanted
    assert after.sum() == before.sum()
    assert share == 0 or (after & ~before).any()


def test_an_exchange_takes_back_only_what_is_allowed(generator: torch.Generator) -> None:
    """Of 1000 weights 200 are kept, and 100 more may come back: no more than those 100 can be exchanged."""
    weight = torch.randn(1000, generator=generator).requires_grad_()
    weight.grad = torch.randn(1000, generator=generator)
    allowed = magnitude_mask(weight, 0.7)
    before = magnitude_mask(weight, 0.8)
    for share, leaving in ((0.25, 50), (1.0, 100)):
        after = exchange({"a": before}, {"a": weight}, share, {"a": allowed})["a"]
        assert after.sum() == 200
        assert not (after & ~allowed).any()
        assert 0 < (after & ~before).sum() <= leaving


@pytest.mark.parametrize(
    "optimizer_class",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.1),
    ],
)
def test_momentum_cannot_revive_a_weight(optimizer_class) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3)
    optimizer = optimizer_class(conv.parameters())

    def step() -> None:
        optimizer.zero_grad()
        conv(torch.randn(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()

    step()  # builds up momentum before anything is pruned
    weights = {"": conv.weight}
    masks = magnitude_masks(weights, {"": 0.6})
    dropped = ~masks[""]
    for _ in range(5):
        step()
        apply_masks(weights, masks)
        forget_momentum(weights, masks, optimizer)
        assert torch.equal(conv.weight[dropped], torch.zeros(int(dropped.sum())))
        assert not torch.signbit(conv.weight[dropped]).any()  # +0, so that files come back bit for bit
        for memory in optimizer.state[conv.weight].values():
            if memory.shape == dropped.shape:
                assert not memory[dropped].any()
                assert memory[~dropped].any()
    assert conv.weight[~dropped].all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_what_is_dropped_becomes_plus_zero_and_the_rest_keeps_its_bits(
    dtype: torch.dtype, layout: torch.memory_format
) -> None:
    weight = torch.randn(6, 5, 3, 3, dtype=dtype).to(memory_format=layout)
    weight[0, 0] = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 0.0, -1, 1, 1e-7, -1e-7], dtype=dtype).view(3, 3)
    for mask in (torch.rand(weight.shape) < 0.5, torch.zeros(weight.shape, dtype=torch.bool)):
        masked = weight.clone()
        apply_masks({"": masked}, {"": mask})
        expected = torch.where(mask, weight, torch.zeros((), dtype=dtype))
        integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
        assert torch.equal(masked.view(integers), expected.view(integers))


def test_without_masking_the_same_steps_do_revive() -> None:
    """The control of the test above: a mask applied once is not enough."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3)
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.1, momentum=0.9)
    masks = magnitude_masks({"": conv.weight}, {"": 0.6})
    conv(torch.randn(4, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    apply_masks({"": conv.weight}, masks)
    optimizer.zero_grad()
    conv.weight.grad = torch.zeros_like(conv.weight)
    optimizer.step()
    assert conv.weight[~masks[""]].any()
