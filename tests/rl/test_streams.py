"""The agents' random numbers: each agent's own, in the same order whoever is beside it, put back by a checkpoint."""

import torch
from torch import Tensor

from rl.streams import RandomStreams

CPU = torch.device("cpu")


def drawn(streams: RandomStreams, steps: int = 3) -> list[Tensor]:
    """Returns what some training steps draw."""
    parts: list[Tensor] = []
    for _ in range(steps):
        exploration, noise = streams.noise()
        parts += [exploration, *noise, streams.indices(1000)]
    return parts


def test_shapes() -> None:
    streams = RandomStreams(range(3), 16, 2, CPU)
    exploration, noise = streams.noise()
    assert exploration.shape == (3, 2)
    assert noise.next_action.shape == noise.action.shape == (3, 16, 2)
    assert noise.shuffle.shape == (3, 16)
    indices = streams.indices(5)
    assert indices.shape == (3, 16)
    assert set(indices.flatten().tolist()) == set(range(5))


def test_an_agent_draws_the_same_alone_and_beside_others() -> None:
    many, one = drawn(RandomStreams(range(4, 7), 16, 2, CPU)), drawn(RandomStreams([5], 16, 2, CPU))
    for together, alone in zip(many, one, strict=True):
        assert torch.equal(together[1], alone[0])
        assert not torch.equal(together[0], together[1])


def test_numbers_are_normal_and_no_two_parts_are_the_same() -> None:
    exploration, noise = RandomStreams(range(200), 50, 3, CPU).noise()
    for part in (exploration, *noise):
        assert abs(part.mean()) < 0.15
        assert abs(part.std() - 1) < 0.15
    assert not torch.equal(noise.next_action, noise.action)


def test_restored_streams_go_on_as_the_first() -> None:
    first, second = RandomStreams(range(2), 16, 2, CPU), RandomStreams(range(7, 9), 16, 2, CPU)
    drawn(first)
    second.restore(first.state())
    assert all(torch.equal(a, b) for a, b in zip(drawn(first), drawn(second), strict=True))
