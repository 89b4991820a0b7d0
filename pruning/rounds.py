"""The rounds of a run's training under masks: what they are called, what they logged, and what each came to.

A run that prunes once or gradually has one round. The last round of all has the names of that one.
"""

from __future__ import annotations

import copy
from pathlib import Path

from common.data import Dataset
from common.experiment import Run
from common.files import load_weights
from pruning import measures
from pruning.vgg import VGG11

LAST = "finetuned"


def stages(rounds: int) -> list[str]:
    """Returns the name of each round's training, in history.csv and among the checkpoints."""
    return [*(f"round{number}" for number in range(1, rounds)), LAST]


def masks_file(run: Run, stage: str) -> Path:
    """Returns the file with the masks that a round ended with."""
    return run.checkpoints / ("masks.safetensors" if stage == LAST else f"{stage}.masks.safetensors")


def history(run: Run, rounds: int) -> dict[str, list[float]]:
    """Returns the logged columns of all rounds, one after the other; the epochs count on."""
    columns: dict[str, list[float]] = {}
    for stage in stages(rounds):
        done = columns["step"][-1] if columns else 0.0
        for name, values in run.history(stage).items():
            columns.setdefault(name, []).extend(value + done * (name == "step") for value in values)
    return columns


def outcomes(run: Run, network: VGG11, dataset: Dataset, rounds: int) -> list[dict[str, float]]:
    """Returns for each round the fraction of convolution weights that it kept and its test accuracy."""
    measured = copy.deepcopy(network)
    result = []
    for stage in stages(rounds):
        measured.load_state_dict(load_weights(run.checkpoints / f"{stage}.safetensors"))
        masks = load_weights(masks_file(run, stage)).values()
        kept = sum(int(mask.count_nonzero()) for mask in masks) / sum(mask.numel() for mask in masks)
        result.append({"conv_weights_kept": kept, "accuracy": measures.accuracy(measured, dataset, dataset.test)})
    return result
