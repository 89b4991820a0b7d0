"""Fine-tuning under masks: dropped weights are exactly zero after every step, whatever the schedule and the average."""

import copy
import dataclasses
import functools
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from common import data
from common.device import autocast, stream_seed
from common.experiment import Run
from common.files import load_state, save_weights
from common.training import TrainState
from pruning import train as training
from pruning.allocation import Allocation, uniform
from pruning.masks import Masks, apply_masks, magnitude_masks, random_masks
from pruning.run import choose, masks_due
from pruning.settings import Settings
from pruning.train import distillation_loss, fine_tune, train_dense
from pruning.vgg import VGG11, prunable_layers, prunable_weights

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    whole = data.load("digits", task_default="cifar10", shape=(3, 32, 32), data_dir=None, device=CPU)
    few = whole.train.head(64)
    return data.Dataset(
        "digits", "", None, whole.classes, few, whole.validation.head(10), whole.test.head(10), whole.mean, whole.std
    )


def settings(folder: Path, **more: object) -> Settings:
    base = {"results_dir": folder, "batch_size": 16, "finetune_epochs": 2, "precision": "float32"}
    return Settings(**{**base, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("schedule", "ema_decay", "regrow"), [("one-shot", 0.0, 0.0), ("gradual", 0.9, 0.0), ("gradual", 0.9, 0.5)]
)
def test_dropped_weights_stay_exactly_zero(
    tmp_path: Path,
    digits: data.Dataset,
    monkeypatch: pytest.MonkeyPatch,
    schedule: str,
    ema_decay: float,
    regrow: float,
) -> None:
    torch.manual_seed(0)
    model = VGG11()
    wanted = uniform(prunable_weights(model), 0.9)
    chosen = settings(tmp_path, schedule=schedule, ema_decay=ema_decay, regrow=regrow)
    run = Run(chosen, "pruning", "x", CPU)
    seen: list[Masks] = []
    original = training.fit

    def watched_fit(*arguments, after_step, **more):  # type: ignore[no-untyped-def]
        def watch(state: TrainState) -> None:
            after_step(state)
            for network in (state.model, state.average):
                for name, weight in prunable_weights(network).items() if isinstance(network, VGG11) else ():
                    assert not weight[~state.carried[name]].any()
                    if seen and network is state.model:
                        back = state.carried[name] & ~seen[-1][name]
                        assert not weight[back].any()
                        assert not state.optimizer.state[weight]["momentum_buffer"][back].any()
            seen.append({name: mask.clone() for name, mask in state.carried.items()})

        return original(*arguments, after_step=watch, **more)

    monkeypatch.setattr(training, "fit", watched_fit)

    def masks_at(share: float, weights: Mapping[str, Tensor], kept: Masks) -> Masks:
        assert not any(weights[name][~mask].any() for name, mask in kept.items())  # what it judges by
        return magnitude_masks(weights, {n: share * s for n, s in wanted.items()}, kept)

    masks = fine_tune(run, chosen, digits, model, magnitude_masks(prunable_weights(model), wanted), masks_at)
    for name, weight in prunable_weights(model).items():
        assert int((~masks[name]).sum()) == round(wanted[name] * weight.numel())
        assert not weight[~masks[name]].any()
        assert weight[masks[name]].any()
    kept = [sum(int(mask.sum()) for mask in step.values()) for step in seen]
    assert len(kept) == 8
    if schedule == "gradual":
        assert kept == sorted(kept, reverse=True)
        assert kept[-3] == kept[-1] < kept[0]  # fine-tuning goes on after the last pruning
        assert len(set(kept)) > 3  # also where gradual_every is more than there are steps
        came_back = [any((b[n] & ~a[n]).any() for n in wanted) for a, b in itertools.pairwise(seen)]
        assert came_back[0] == bool(regrow)
        assert not any(came_back[-3:])  # neither after the last pruning nor at it
        assert regrow or not any(came_back)
    else:
        assert len(set(kept)) == 1


def test_a_filter_without_weights_means_the_same_in_every_precision(tmp_path: Path, digits: data.Dataset) -> None:
    """Trained in bfloat16 and judged in float32, its bias less its mean would be rounding, over a variance of 0."""
    torch.manual_seed(0)
    model = VGG11()
    convolution, normalisation = model.features[0], model.features[1]
    assert isinstance(convolution, torch.nn.Conv2d)
    assert isinstance(normalisation, torch.nn.BatchNorm2d)
    assert convolution.bias is not None
    torch.nn.init.normal_(convolution.bias)
    normalisation.momentum = 0.9  # its statistics settle within the few steps
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable_weights(model).items()}
    masks["features.0"][:40] = False
    chosen = settings(tmp_path, precision="bfloat16")
    fine_tune(Run(chosen, "pruning", "x", CPU), chosen, digits, model, masks, lambda share, weights, kept: kept)
    assert not convolution.bias[:40].any()
    assert convolution.bias[40:].all()
    model.eval()
    with torch.no_grad():
        exact = model(digits.normalise(digits.test.images))
        with autocast(CPU, "bfloat16"):
            rounded = model(digits.normalise(digits.test.images)).float()
    assert (exact - rounded).norm() < 0.05 * exact.norm()


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    "more", [{"allocation": "random"}, {"allocation": "global", "regrow": 0.5, "distillation": 0.5, "ema_decay": 0.9}]
)
def test_stopped_while_pruning_it_ends_with_the_same_masks_and_weights(
    tmp_path: Path,
    digits: data.Dataset,
    network: VGG11,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: dict[str, Any],
) -> None:
    chosen = settings(tmp_path, batch_size=32, schedule="gradual", sparsity=0.9, **more)
    sparsities = choose(chosen, network, {}, 0.9)
    last = masks_due(chosen, sparsities, 1.0, prunable_weights(network))

    def tuned(run: Run) -> tuple[dict[str, Tensor], Masks]:
        model = copy.deepcopy(network)
        masks = fine_tune(run, chosen, digits, model, last, functools.partial(masks_due, chosen, sparsities))
        return model.state_dict(), masks

    weights, masks = tuned(Run(chosen, "pruning", "unbroken", CPU))
    broken = Run(chosen, "pruning", "broken", CPU)
    original = training.fit

    def fit_until_killed(*arguments, after_step, **rest):  # type: ignore[no-untyped-def]
        def kill(state: TrainState) -> None:
            after_step(state)
            if state.step == 3:  # of 4, in the second epoch, at the last pruning
                raise Killed

        return original(*arguments, after_step=kill, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(training, "fit", fit_until_killed)
        with pytest.raises(Killed):
            tuned(broken)
    half = load_state(broken.checkpoints / "finetuned.state.pt")["carried"]
    resumed = Run(dataclasses.replace(chosen, resume=broken.path), "pruning", "", CPU)
    for ours, theirs in zip(tuned(resumed), (weights, masks), strict=True):
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert "finetuned: going on after epoch 1" in capsys.readouterr().err
    kept, total = (sum(count) for count in zip(*((int(m.sum()), m.numel()) for m in masks.values()), strict=True))
    assert kept / total == pytest.approx(0.1, abs=1e-4)
    for name, mask in masks.items():
        assert mask.sum() < half[name].sum() < mask.numel()
        if chosen.allocation == "random":
            final = random_masks(prunable_weights(network), sparsities, stream_seed(0, "random masks"))
            assert torch.equal(mask, final[name])
            assert (half[name] | ~mask).all()  # what is kept at the end was never dropped


def test_distillation_is_the_divergence_of_the_softened_predictions() -> None:
    logits, taught = torch.randn(2, 7, 10, generator=torch.Generator().manual_seed(0))
    for temperature in (1.0, 4.0):
        teacher, network = (torch.distributions.Categorical(logits=x / temperature) for x in (taught, logits))
        expected = temperature**2 * torch.distributions.kl_divergence(teacher, network).mean()
        assert distillation_loss(logits, taught, temperature) == pytest.approx(float(expected), rel=1e-5)
    assert distillation_loss(taught, taught, 4.0) == pytest.approx(0.0, abs=1e-5)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(distillation_loss(logits, taught, 1e4), logits)
    centred = logits - logits.mean(1, keepdim=True) - taught + taught.mean(1, keepdim=True)
    assert torch.allclose(gradient, centred / 10 / 7, atol=1e-4)  # Hinton et al. 2015, Eq. 4: matching the logits


def test_the_dense_network_teaches(tmp_path: Path, digits: data.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was before pruning, in every step; where its predictions are all of the loss, labels play no part."""
    torch.manual_seed(0)
    dense = VGG11()
    masks = magnitude_masks(prunable_weights(dense), uniform(prunable_weights(dense), 0.9))
    heard: list[Tensor] = []

    def listen(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
        heard.append(teacher_logits)
        return distillation_loss(logits, teacher_logits, temperature)

    monkeypatch.setattr(training, "distillation_loss", listen)
    outcomes = []
    for labels in (digits.train.labels, digits.train.labels.roll(1)):
        model = copy.deepcopy(dense)
        chosen = settings(tmp_path, distillation=1.0, translate=0, flip=False, run_name=f"run{len(outcomes)}")
        run = Run(chosen, "pruning", "x", CPU)
        images = dataclasses.replace(digits, train=dataclasses.replace(digits.train, labels=labels))
        fine_tune(run, chosen, images, model, masks, lambda share, weights, kept: kept)
        outcomes.append(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(weights.values() for weights in outcomes), strict=True))
    dense.eval()
    with torch.no_grad():
        expected = dense(digits.normalise(digits.train.images))
    for epoch in torch.cat(heard).view(4, 64, 10):  # in another order
        assert (torch.cdist(expected, epoch, compute_mode="donot_use_mm_for_euclid_dist").amin(1) < 1e-3).all()


def test_given_weights_are_taken_and_others_refused(tmp_path: Path, digits: data.Dataset) -> None:
    from common.errors import RunError

    given = VGG11()
    save_weights(tmp_path / "given.safetensors", given.state_dict())
    chosen = settings(tmp_path, dense_weights=tmp_path / "given.safetensors")
    model = train_dense(Run(chosen, "pruning", "x", CPU), chosen, digits)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), given.state_dict().values(), strict=True))
    save_weights(tmp_path / "other.safetensors", {"x": torch.zeros(1)})
    chosen = settings(tmp_path, dense_weights=tmp_path / "other.safetensors")
    with pytest.raises(RunError, match="not a VGG11 with 10 classes"):
        train_dense(Run(chosen, "pruning", "y", CPU), chosen, digits)


@pytest.mark.parametrize("allocation", sorted({*get_args(Allocation)} - {"reference"}))  # a new rule as well
@pytest.mark.parametrize("sparsity", [None, 0.95])
def test_every_allocation_reaches_its_target(network: VGG11, allocation: str, sparsity: float | None) -> None:
    curves = {n: {str(s / 10): 0.9 - 0.08 * s for s in range(1, 10)} for n in prunable_layers(network)}
    sparsities = choose(Settings(allocation=allocation, sparsity=sparsity), network, curves, 0.9)  # type: ignore[arg-type]
    weights = prunable_weights(network)
    overall = sum(sparsities[n] * w.numel() for n, w in weights.items()) / sum(w.numel() for w in weights.values())
    if allocation == "scan" and sparsity is None:
        assert all(s == pytest.approx(0.0125, abs=1e-3) for s in sparsities.values())  # 1 % of accuracy on these lines
    else:
        assert overall == pytest.approx(sparsity or 1 - 2_117_548 / 9_217_728, abs=1e-6)


@pytest.mark.parametrize("allocation", ["global", "lamp", "erk"])
def test_one_threshold_follows_the_weights(network: VGG11, allocation: str) -> None:
    """Between two prunings one layer grows: one threshold spares it, a layer's own sparsity does not."""
    chosen = Settings(allocation=allocation, sparsity=0.9, schedule="gradual")  # type: ignore[arg-type]
    model = copy.deepcopy(network)
    weights = {name: torch.nn.init.normal_(weight.detach()) for name, weight in prunable_weights(model).items()}
    sparsities = choose(chosen, model, {}, 0.9)
    dense = masks_due(chosen, sparsities, 1.0, weights)
    assert {name: int((~mask).sum()) / mask.numel() for name, mask in dense.items()} == sparsities
    half = masks_due(chosen, sparsities, 0.5, weights)
    apply_masks(weights, half)
    grown = "features.22"
    weights[grown] *= 3 if allocation == "global" else weights[grown].abs()  # LAMP's score is blind to a layer's scale
    after = masks_due(chosen, sparsities, 1.0, weights, half)
    assert all(not (after[name] & ~half[name]).any() for name in after)
    total = sum(mask.numel() for mask in after.values())
    assert sum(int((~mask).sum()) for mask in after.values()) == pytest.approx(0.9 * total, abs=len(after))
    moved = int(after[grown].sum()) != int(dense[grown].sum())
    assert moved == (allocation != "erk")
