"""Rounds that rewind: the bits of the early step come back, training goes on from it, and a killed run ends alike."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common import data
from common.errors import RunError, UsageError
from common.experiment import Run
from common.files import load_weights, save_weights
from common.training import TrainState
from pruning import rounds
from pruning import train as training
from pruning.allocation import uniform
from pruning.criteria import Scorer, by_magnitude, scorer
from pruning.masks import Masks
from pruning.rewind import STEP, require_learning, rewind_step
from pruning.schedule import MaskSchedule
from pruning.settings import EARLY, Settings
from pruning.train import fine_tune, train_dense
from pruning.vgg import VGG11, prunable_weights
from tests.pruning.small import few_digits, use_narrow_network

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    use_narrow_network(monkeypatch)


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return few_digits()


def settings(folder: Path, **more: object) -> Settings:
    """Dense training of 2 epochs of 4 steps, rewound to step 3, in the middle of the first epoch."""
    base = {"results_dir": folder, "batch_size": 16, "epochs": 2, "precision": "float32", "rewind_fraction": 0.4}
    base |= {"schedule": "iterative", "rounds": 2, "rewind": "weights", "allocation": "uniform"}
    return Settings(**{**base, **more})  # type: ignore[arg-type]


def experiment(
    run: Run, chosen: Settings, digits: data.Dataset, score: Scorer = by_magnitude
) -> tuple[dict[str, Tensor], Masks]:
    network = train_dense(run, chosen, digits)
    schedule = MaskSchedule.from_settings(chosen, uniform(prunable_weights(network), 0.9))
    masks = fine_tune(run, chosen, digits, network, schedule, score)
    return network.state_dict(), masks


@pytest.mark.parametrize("rewind", ["none", "weights", "rate"])
def test_rounds_begin_with_the_bits_and_the_rate_that_they_rewind_to(
    rewind: str, tmp_path: Path, digits: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(tmp_path, rewind=rewind, finetune_epochs=2)
    run = Run(chosen, "pruning", "x", CPU)
    begun: dict[str, dict[str, Tensor]] = {}
    rates: dict[str, list[float]] = {}
    after: dict[int, dict[str, Tensor]] = {}
    original = training.fit

    def watched_fit(run: Run, stage: str, network: VGG11, *rest: Any, after_step: Any, **more: Any) -> Any:
        begun[stage] = copy.deepcopy(network.state_dict())

        def watch(state: TrainState) -> None:
            after_step(state)
            rates.setdefault(stage, []).append(state.optimizer.param_groups[0]["lr"])
            if stage == "dense":
                after[state.step] = copy.deepcopy(state.model.state_dict())

        return original(run, stage, network, *rest, after_step=watch, **more)

    monkeypatch.setattr(training, "fit", watched_fit)
    _, masks = experiment(run, chosen, digits)
    assert rewind_step(chosen, 64) == 3
    assert list(begun) == ["dense", "round1", "finetuned"]
    if rewind == "none":
        assert len(rates["round1"]) == len(rates["finetuned"]) == 8
        assert max(rates["round1"]) <= chosen.finetune_learning_rate < max(rates["dense"])
    else:
        assert rates["round1"] == rates["finetuned"] == rates["dense"][3:]
    trained = {"round1": load_weights(run.checkpoints / "dense.safetensors")}
    trained["finetuned"] = load_weights(run.checkpoints / "round1.safetensors")
    ends = {stage: load_weights(rounds.masks_file(run, stage)) for stage in trained}
    for stage, start in begun.items():
        if stage != "dense":
            expected = after[3] if rewind == "weights" else trained[stage]
            for name, tensor in expected.items():
                mask = ends[stage].get(name.removesuffix(".weight"), torch.ones_like(tensor, dtype=torch.bool))
                if not name.startswith("features") or "bias" not in name:  # an empty filter loses its bias
                    assert torch.equal(start[name], torch.where(mask, tensor, torch.zeros_like(tensor))), name
    assert (run.checkpoints / EARLY).exists() == (rewind == "weights")
    assert all(torch.equal(masks[name], mask) for name, mask in ends["finetuned"].items())
    steps = rounds.history(run, 2)["step"]
    assert steps == sorted(set(steps))


class Killed(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("criterion", "rewind", "where"),
    [("taylor", "weights", ("dense", 6)), ("taylor", "weights", ("finetuned", 6)), ("random", "rate", ("round1", 7))],
)
def test_stopped_in_any_round_it_ends_with_the_same_masks_and_weights(
    criterion: Any,
    rewind: str,
    where: tuple[str, int],
    tmp_path: Path,
    digits: data.Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = settings(tmp_path, criterion=criterion, rewind=rewind, ema_decay=0.5)
    score = scorer(criterion, digits, 0.2)
    unbroken = experiment(Run(chosen, "pruning", "unbroken", CPU), chosen, digits, score)
    broken = Run(chosen, "pruning", "broken", CPU)
    original = training.fit

    def fit_until_killed(run: Run, stage: str, *rest: Any, after_step: Any, **more: Any) -> Any:
        def kill(state: TrainState) -> None:
            after_step(state)
            if (stage, state.step) == where:
                raise Killed

        return original(run, stage, *rest, after_step=kill, **more)

    with monkeypatch.context() as patch:
        patch.setattr(training, "fit", fit_until_killed)
        with pytest.raises(Killed):
            experiment(broken, chosen, digits, score)
    resumed = Run(dataclasses.replace(chosen, resume=broken.path), "pruning", "", CPU)
    for ours, theirs in zip(experiment(resumed, chosen, digits, score), unbroken, strict=True):
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_early_weights_come_with_the_given_network_and_are_of_the_right_step(
    tmp_path: Path, digits: data.Dataset
) -> None:
    chosen = settings(tmp_path, rewind_fraction=0.0, rounds=1)
    first = Run(chosen, "pruning", "first", CPU)
    weights, masks = experiment(first, chosen, digits)
    early = load_weights(first.checkpoints / EARLY)
    assert int(early[STEP]) == 0
    given = dataclasses.replace(chosen, dense_weights=first.checkpoints / "dense.safetensors")
    given.check()
    again, same = experiment(Run(given, "pruning", "again", CPU), given, digits)
    assert all(torch.equal(same[name], mask) for name, mask in masks.items())
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())
    other = dataclasses.replace(given, rewind_fraction=0.4)
    with pytest.raises(RunError, match="the weights after step 0, and this run goes back to step 3"):
        experiment(Run(other, "pruning", "other", CPU), other, digits)
    save_weights(tmp_path / "alone.safetensors", load_weights(first.checkpoints / "dense.safetensors"))
    with pytest.raises(UsageError, match=f"there is no {EARLY} beside it"):
        dataclasses.replace(given, dense_weights=tmp_path / "alone.safetensors").check()


def test_a_training_of_one_step_is_refused(tmp_path: Path) -> None:
    """The rate of a first step is 0, so a training of one step learns nothing."""
    once = {"epochs": 2, "finetune_epochs": 1, "rewind": "none", "schedule": "one-shot", "rounds": 5}
    with pytest.raises(
        UsageError, match=r"--finetune-epochs 1 with --batch-size 100: of 64 .* 1 step, .* --batch-size 32,"
    ):
        require_learning(settings(tmp_path, **{**once, "batch_size": 100}), 64)
    require_learning(settings(tmp_path, **{**once, "batch_size": 32}), 64)
    with pytest.raises(UsageError, match="--epochs 1 with --batch-size 40: of 64"):
        require_learning(settings(tmp_path, batch_size=40, epochs=1), 64)
