"""Fine-tuning under masks: dropped weights are exactly zero after every step, whatever the schedule and the average."""

import copy
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common import data
from common.device import autocast, stream_seed
from common.experiment import Run
from common.files import load_state
from common.training import TrainState
from pruning import train as training
from pruning.allocation import choose, uniform
from pruning.calibration import batches, recalibrated
from pruning.masks import Masks, apply_masks, magnitude_masks, random_masks
from pruning.schedule import MaskSchedule
from pruning.train import distillation_loss, fine_tune
from pruning.vgg import VGG11, prunable_weights
from tests.pruning.small import few_digits, settings, use_narrow_network

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test trains a narrow network, where it does not ask for the whole VGG11."""
    if getattr(request, "param", "narrow") == "narrow":
        use_narrow_network(monkeypatch)


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return few_digits()


@pytest.mark.parametrize(
    ("schedule", "ema_decay", "regrow", "width"),
    [
        ("one-shot", 0.0, 0.0, "narrow"),
        ("gradual", 0.9, 0.0, "narrow"),
        ("gradual", 0.9, 0.5, "narrow"),
        pytest.param("gradual", 0.9, 0.5, "whole", marks=pytest.mark.slow),
    ],
    indirect=["width"],
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
    chosen = settings(tmp_path, allocation="uniform", schedule=schedule, ema_decay=ema_decay, regrow=regrow)
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
    masks_at = MaskSchedule.masks_at

    def watched_masks_at(self, step, total_steps, weights, kept):  # type: ignore[no-untyped-def]
        assert not any(weights[name][~mask].any() for name, mask in kept.items())  # the schedule sees pruned weights
        return masks_at(self, step, total_steps, weights, kept)

    monkeypatch.setattr(MaskSchedule, "masks_at", watched_masks_at)
    masks = fine_tune(run, chosen, digits, model, MaskSchedule.from_settings(chosen, wanted))
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
    filters = len(convolution.bias)
    empty = filters // 2
    normalisation.momentum = 0.9  # its statistics settle within the few steps
    with torch.no_grad():
        convolution.weight[:empty] = 0.0  # the smallest weights of all, which the schedule drops
    sparsities = {name: empty / filters if name == "features.0" else 0.0 for name in prunable_weights(model)}
    chosen = settings(tmp_path, precision="bfloat16")
    schedule = MaskSchedule.from_settings(chosen, sparsities)
    masks = fine_tune(Run(chosen, "pruning", "x", CPU), chosen, digits, model, schedule)
    assert not masks["features.0"][:empty].any()
    assert masks["features.0"][empty:].all()
    assert not convolution.bias[:empty].any()
    assert convolution.bias[empty:].all()
    model.eval()
    with torch.no_grad():
        exact = model(digits.normalise(digits.test.images))
        with autocast(CPU, "bfloat16"):
            rounded = model(digits.normalise(digits.test.images)).float()
    assert (exact - rounded).norm() < 0.05 * exact.norm()


class Killed(Exception):
    pass


EVERYTHING = {"allocation": "global", "regrow": 0.5, "distillation": 0.5, "ema_decay": 0.9}


@pytest.mark.parametrize(
    ("more", "width"),
    [
        ({"allocation": "random"}, "narrow"),
        (EVERYTHING, "narrow"),
        pytest.param(EVERYTHING, "whole", marks=pytest.mark.slow),
    ],
    indirect=["width"],
)
def test_stopped_while_pruning_it_ends_with_the_same_masks_and_weights(
    tmp_path: Path,
    digits: data.Dataset,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: dict[str, Any],
) -> None:
    chosen = settings(tmp_path, batch_size=32, schedule="gradual", sparsity=0.9, **more)
    torch.manual_seed(0)
    network = VGG11()
    for weight in prunable_weights(network).values():
        torch.nn.init.normal_(weight, std=0.05)  # so one threshold for all layers prunes every layer
    sparsities = choose(chosen.allocation, prunable_weights(network), 0.9, {}, 0.9, chosen.accuracy_budget)
    schedule = MaskSchedule.from_settings(chosen, sparsities)

    def tuned(run: Run) -> tuple[dict[str, Tensor], Masks]:
        model = copy.deepcopy(network)
        masks = fine_tune(run, chosen, digits, model, schedule)
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
    assert kept / total == pytest.approx(0.1, abs=len(masks) / total)  # a weight a layer
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
    sparsities = uniform(prunable_weights(dense), 0.9)
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
        dataset = dataclasses.replace(digits, train=dataclasses.replace(digits.train, labels=labels))
        fine_tune(run, chosen, dataset, model, MaskSchedule.from_settings(chosen, sparsities))
        outcomes.append(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(weights.values() for weights in outcomes), strict=True))
    dense.eval()
    with torch.no_grad():
        expected = dense(digits.normalise(digits.train.images))
    for epoch in torch.cat(heard).view(4, 64, 10):  # in another order
        assert (torch.cdist(expected, epoch, compute_mode="donot_use_mm_for_euclid_dist").amin(1) < 1e-3).all()


def test_recalibration_is_of_the_pruned_network_before_the_first_step(
    tmp_path: Path, digits: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    dense = VGG11()
    sparsities = uniform(prunable_weights(dense), 0.5)
    started: list[dict[str, Tensor]] = []

    def no_fit(run: Run, stage: str, network: VGG11, *rest: object, **more: object) -> VGG11:
        started.append(copy.deepcopy(network.state_dict()))
        return network

    monkeypatch.setattr(training, "fit", no_fit)
    for recalibrate in (False, True):
        chosen = settings(tmp_path, recalibrate=recalibrate)
        schedule = MaskSchedule.from_settings(chosen, sparsities)
        fine_tune(Run(chosen, "pruning", "x", CPU), chosen, digits, copy.deepcopy(dense), schedule)
    pruned = copy.deepcopy(dense)
    apply_masks(prunable_weights(pruned), magnitude_masks(prunable_weights(dense), sparsities))
    for network, start in zip((pruned, recalibrated(pruned, batches(digits))), started, strict=True):
        assert all(torch.equal(start[name], tensor) for name, tensor in network.state_dict().items())
