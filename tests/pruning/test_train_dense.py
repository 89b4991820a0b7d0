"""The dense training: what the network sees, and a given network in its place."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from common import data
from common.errors import RunError
from common.experiment import Run
from common.files import save_weights
from pruning import measures
from pruning.train import train_dense
from pruning.vgg import VGG11
from tests.pruning.small import few_digits, settings, use_narrow_network

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    use_narrow_network(monkeypatch)


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return few_digits()


def test_cutout_covers_part_of_what_the_network_sees(
    tmp_path: Path, digits: data.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr(
        VGG11, "forward", lambda self, images: seen.append(images) or self.classifier.bias.expand(16, 10)
    )
    monkeypatch.setattr(measures, "accuracy", lambda *of: 0.0)
    plain = {image.numpy().tobytes() for image in digits.normalise(digits.train.images)}
    untouched = []
    for cutout in (0, 12):
        seen.clear()
        chosen = settings(tmp_path, epochs=1, translate=0, flip=False, cutout=cutout, run_name=f"run{cutout}")
        train_dense(Run(chosen, "pruning", "x", CPU), chosen, digits)
        untouched.append(sum(image.contiguous().numpy().tobytes() in plain for image in torch.cat(seen)))
    assert untouched[0] == len(digits.train)
    assert untouched[1] < len(digits.train) / 2  # a digit's border has the colour of no square


def test_given_weights_are_taken_and_others_refused(tmp_path: Path, digits: data.Dataset) -> None:
    given = VGG11()
    save_weights(tmp_path / "given.safetensors", given.state_dict())
    chosen = settings(tmp_path, dense_weights=tmp_path / "given.safetensors")
    model = train_dense(Run(chosen, "pruning", "x", CPU), chosen, digits)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), given.state_dict().values(), strict=True))
    save_weights(tmp_path / "other.safetensors", {"x": torch.zeros(1)})
    chosen = settings(tmp_path, dense_weights=tmp_path / "other.safetensors")
    with pytest.raises(RunError, match="not a VGG11 with 10 classes"):
        train_dense(Run(chosen, "pruning", "y", CPU), chosen, digits)
