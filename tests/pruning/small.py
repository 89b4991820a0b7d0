"""A narrow network and few images, on which the whole experiment takes seconds.

`python -m tests.pruning.small` is `python pruning/run.py` with both, for tests that kill it.
"""

import dataclasses
from typing import Any

import pytest

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


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        use_narrow_network(patch)
        use_few_images(patch)
        cli.run(main, Settings)
