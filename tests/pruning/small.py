"""A narrow network and few images, on which the whole experiment takes seconds.

`python -m tests.pruning.small` is `python pruning/run.py` with both, for tests that kill it.
"""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from common import cli, data
from pruning import vgg
from pruning.run import main
from pruning.settings import Settings

# VGG11's layers with few channels, but for the 512 features of the classifier.
NARROW = (8, None, 16, None, 16, 16, None, 16, 16, None, 16, 512, None)


def use_narrow_network(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(vgg, "LAYERS", NARROW)


def use_few_images(patch: pytest.MonkeyPatch) -> None:
    whole = data.load

    def load(*arguments: Any, **more: Any) -> data.Dataset:
        dataset = whole(*arguments, **more)
        train, held_out, test = dataset.train.head(256), dataset.validation.head(32), dataset.test.head(64)
        return dataclasses.replace(dataset, train=train, validation=held_out, test=test)

    patch.setattr(data, "load", load)


def few_digits() -> data.Dataset:
    """Returns 64 training images of the digits, and 10 of each other split."""
    whole = data.load("digits", task_default="cifar10", shape=(3, 32, 32), data_dir=None, device=torch.device("cpu"))
    few, held_out, test = whole.train.head(64), whole.validation.head(10), whole.test.head(10)
    return dataclasses.replace(whole, train=few, validation=held_out, test=test)


def settings(folder: Path, **more: object) -> Settings:
    """Returns settings for them: small batches, 2 epochs of fine-tuning, float32."""
    base = {"results_dir": folder, "batch_size": 16, "finetune_epochs": 2, "precision": "float32"}
    return Settings(**{**base, **more})  # type: ignore[arg-type]


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        use_narrow_network(patch)
        use_few_images(patch)
        cli.run(main, Settings)
