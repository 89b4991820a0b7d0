"""The bonus variants by hand, against plain numpy, and what the centred one does to values."""

from typing import Any

import numpy as np
import pytest
import torch

from rl.bonus import share, weight_at
from tests.rl.test_sac import batch_and_noise, sac


@pytest.mark.parametrize("kind", ["plain", "centred"])
def test_the_bonus_against_numpy(kind: Any) -> None:
    """Mean and mean square of each batch, averaged over the batches so far; after `horizon` they fade."""
    agents, horizon = sac(range(2), icm="single", bonus=kind, deviation_horizon=3), 3
    errors = np.random.default_rng(0).gamma(1.0, 2.0, (6, 2, 16))
    mean, square = np.zeros((2, 1)), np.zeros((2, 1))
    for count, error in enumerate(errors, 1):
        rate = 1 / min(count, horizon)
        mean = (1 - rate) * mean + rate * error.mean(1, keepdims=True)
        square = (1 - rate) * square + rate * (error**2).mean(1, keepdims=True)
        deviation = np.sqrt(square - mean**2)
        expected = error / deviation if kind == "plain" else np.clip((error - mean) / deviation, -1, 1)
        bonus = agents.intrinsic_reward(torch.tensor(error, dtype=torch.float32), torch.zeros(2, 16))
        np.testing.assert_allclose(bonus, expected, rtol=1e-4, atol=1e-5)
        assert (bonus.min() < 0) == (kind == "centred")


def test_the_weight_falls_to_nothing_over_its_share_of_the_training() -> None:
    assert [weight_at(step, 0.2, 0.5, 8) for step in range(1, 9)] == pytest.approx([0.2, 0.15, 0.1, 0.05, 0, 0, 0, 0])
    assert {weight_at(step, 0.2, 0, 8) for step in range(1, 9)} == {0.2}
    agents = sac(range(1), icm="single", bonus_decay=0.5, env_steps=8, random_steps=1, intrinsic_weight=0.2)
    batch, noise = batch_and_noise(1, 0)
    for step in (2, 8):
        agents.weigh_bonus(step)
        rewards = agents.rewards(batch, noise.shuffle)
        bonus = (agents.total_reward(rewards) - batch.reward).mean()
        torch.testing.assert_close(bonus, weight_at(step, 0.2, 0.5, 8) * rewards.measured["intrinsic_reward"].mean())


def test_the_bonus_as_a_share_of_the_reward() -> None:
    bonus, reward = torch.tensor([[1.0, -1.0], [0.0, 0.0]]), torch.tensor([[-3.0, 3.0], [0.0, 0.0]])
    assert share(bonus, reward).tolist() == [0.25, 0.0]


def test_a_centred_bonus_is_one_that_goes_on_after_the_end() -> None:
    """Values of b − b̄ that end at the termination, plus b̄/(1 − γ), are those of b followed by b̄ for ever."""
    bonuses, discount = np.random.default_rng(1).uniform(0, 2, 7), 0.9
    mean = bonuses.mean()
    ends, goes_on = 0.0, mean / (1 - discount)
    for bonus in bonuses[::-1]:
        ends, goes_on = bonus - mean + discount * ends, bonus + discount * goes_on
        assert ends + mean / (1 - discount) == pytest.approx(goes_on)
