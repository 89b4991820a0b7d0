"""The committed models are small, and are loaded right after the clone."""

from pathlib import Path

import numpy as np
import pytest
import torch

import pruning
import rl
import vae
from common.errors import UsageError
from rl.evaluate import Evaluator
from rl.policy import loaded

MODELS = Path("models")


def test_together_they_are_under_4_megabytes() -> None:
    sizes = [path.stat().st_size for path in MODELS.rglob("*") if path.is_file()]
    assert 0 < sum(sizes) < 4_000_000


def test_the_network_keeps_the_share_of_its_weights_that_its_run_says() -> None:
    network = pruning.load(MODELS / "vgg11-cifar10")
    assert network.classes[0] == "airplane"
    weights = [weight for weight in network.state_dict().values() if weight.dim() == 4]
    kept = sum(int(weight.count_nonzero()) for weight in weights) / sum(weight.numel() for weight in weights)
    assert abs(kept - 0.2297) < 1e-3
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    assert network(images).isfinite().all()


def test_the_vae_draws_strokes_on_black() -> None:
    model = vae.load(MODELS / "vae-mnist")
    for sampler in ("prior", "mixture"):
        images = model.sample(64, sampler=sampler, seed=0)
        assert images.shape == (64, 1, 28, 28)
        assert 0.05 < float(images.mean()) < 0.25  # of MNIST 0.13
        assert images[:, :, :2].max() < 0.5  # the edge is empty
        assert (images.flatten(1).amax(1) > 0.7).all()


def test_the_hopper_hops_on() -> None:
    _, actor, seed = loaded(MODELS / "sac-hopper", "best")
    assert seed == 2
    (returns,) = Evaluator("Hopper-v4", "dense", 1, 1).returns(actor)
    assert returns[0] > 2000  # 3358; an untrained policy falls at 20
    action = rl.load(MODELS / "sac-hopper").act(np.zeros(11))
    assert action.shape == (3,)
    assert np.abs(action).max() <= 1


def test_inputs_of_another_shape_are_refused_in_words() -> None:
    digits = vae.load(MODELS / "vae-mnist")
    with pytest.raises(UsageError, match=r"images must have the shape \(N, 1, 28, 28\), not \(28, 28\)"):
        digits.encode(torch.zeros(28, 28))
    with pytest.raises(UsageError, match=r"codes must have the shape \(N, 16\), not \(2, 3\)"):
        digits.decode(torch.zeros(2, 3))
    with pytest.raises(UsageError, match=r"images must have the shape \(N, 3, 32, 32\), not \(3, 32, 32\)"):
        pruning.load(MODELS / "vgg11-cifar10")(torch.zeros(3, 32, 32))
    with pytest.raises(UsageError, match=r"an axis of 11 numbers, its shape is \(2, 12\)"):
        rl.load(MODELS / "sac-hopper").act(np.zeros((2, 12)))
