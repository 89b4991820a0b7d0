"""The best evaluated policy of each agent."""

import math

import torch

from rl.networks import Actor
from rl.selection import Best


def an_actor(seed: int) -> Actor:
    return Actor(3, 2, (4,), (-20.0, 2.0), [torch.Generator().manual_seed(10 * seed + k) for k in range(3)])


def test_each_agent_keeps_the_weights_of_its_highest_return() -> None:
    """Against a search through all evaluations; NaN is never best, and of equal returns the first stays."""
    returns = [[1.0, 5.0, math.nan], [2.0, 5.0, -3.0], [0.0, 4.0, math.nan]]
    actors = [an_actor(k) for k in range(3)]
    actor = an_actor(9)
    best = Best(range(4, 7), actor)
    for step, (now, row) in enumerate(zip(actors, returns, strict=True), 1):
        actor.load_state_dict(now.state_dict())
        best.update(100 * step, row)
    chosen = [1, 0, 1]  # the evaluation of each agent
    assert [agent["step"] for agent in best.record()] == [200, 100, 200]
    assert [agent["return"] for agent in best.record()] == [2.0, 5.0, -3.0]
    assert [agent["seed"] for agent in best.record()] == [4, 5, 6]
    for name, tensor in best.weights.items():
        for k, of in enumerate(chosen):
            assert torch.equal(tensor[k], actors[of].state_dict()[name][k])


def test_an_agent_never_evaluated_is_not_in_the_record() -> None:
    best = Best(range(3), an_actor(0))
    best.update(10, [math.nan, 1.0, math.nan])
    assert best.record() == [{"seed": 1, "step": 10, "return": 1.0}]


def test_goes_on_from_its_state() -> None:
    actor = an_actor(0)
    one, two = Best(range(3), actor), Best(range(3), an_actor(1))
    one.update(10, [3.0, 1.0, 2.0])
    two.restore(one.state())
    two.update(20, [1.0, 1.5, 1.0])
    assert [agent["step"] for agent in two.record()] == [10, 20, 10]
    assert all(torch.equal(tensor[0], one.weights[name][0]) for name, tensor in two.weights.items())
