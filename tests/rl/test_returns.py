"""n-step returns against a naive loop over the stored episodes, and the state that follows a termination."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rl.icm import Surprise
from rl.replay import Batch, Replay
from rl.returns import at_the_end, discounted_sum, sampled, whole
from rl.sac import SAC
from rl.settings import Settings
from rl.streams import Noise
from tests.rl.test_sac import sac

CPU = torch.device("cpu")
ENDS = ["goes on", "terminates", "time limit"]


def filled(ends: list[list[str]], capacity: int) -> Replay:
    """Returns a replay; the state of agent k at step t is 100k + t, the one it leads to that + 0.5, the reward t²."""
    replay = Replay(len(ends), capacity, 1, 1, CPU)
    for t in range(len(ends[0])):
        state = torch.tensor([[100.0 * k + t] for k in range(len(ends))])
        terminated = torch.tensor([float(row[t] == "terminates") for row in ends])
        ended = torch.tensor([row[t] != "goes on" for row in ends])
        replay.add(state, state + 0.5, -state, torch.full((len(ends),), float(t * t)), terminated, ended)
    return replay


def naive(ends: list[str], start: int, n: int, discount: float) -> tuple[float, int, float, float]:
    """Returns the sum of rewards from step `start`, their number, d and the state to bootstrap from, step by step."""
    total, t = 0.0, start
    while True:
        total += discount ** (t - start) * t * t
        if t - start + 1 == n or ends[t] != "goes on" or t == len(ends) - 1:
            return total, t - start + 1, float(ends[t] == "terminates"), t + 0.5
        t += 1


@hypothesis_settings(deadline=None, max_examples=100)
@given(st.data())
def test_n_step_targets_against_a_loop_over_the_episodes(data: st.DataObject) -> None:
    """In a ring that has wrapped or not; never across an end, a time limit bootstraps, a termination does not."""
    agents, steps = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 25))
    capacity, n = data.draw(st.integers(1, 30)), data.draw(st.integers(2, 6))
    flags = st.lists(st.sampled_from(ENDS), min_size=steps, max_size=steps)
    ends = data.draw(st.lists(flags, min_size=agents, max_size=agents))
    replay = filled(ends, capacity)
    drawn = replay.sample_trajectories(torch.arange(replay.size).expand(agents, -1), 2, n)
    transition, reward, discount = whole(drawn, drawn.reward, 0.9)
    assert isinstance(discount, Tensor)
    for k in range(agents):
        for index in range(replay.size):
            start = int(transition.observation[k, index, 0]) - 100 * k
            total, length, terminated, reached = naive(ends[k], start, n, 0.9)
            assert float(reward[k, index]) == pytest.approx(total, rel=1e-5)
            assert float(discount[k, index]) == pytest.approx(0.9**length)
            assert float(transition.terminated[k, index]) == terminated
            assert float(transition.following[k, index, 0]) == 100 * k + reached
            assert float(transition.next_observation[k, index, 0]) == 100 * k + start + 0.5


def test_sums_and_ends_by_hand() -> None:
    rewards, steps = torch.tensor([[[1.0, 2.0, 4.0], [1.0, 2.0, 4.0]]]), torch.tensor([[3, 2]])
    assert discounted_sum(rewards, steps, 0.5).tolist() == [[3.0, 2.0]]
    assert at_the_end(rewards, steps).tolist() == [[4.0, 2.0]]
    assert at_the_end(rewards[..., None], steps).tolist() == [[[4.0], [2.0]]]


class Moved(nn.Module):
    """A bonus without memory: how far the state has moved."""

    def forward(self, batch: Batch) -> Surprise:
        moved = (batch.next_observation - batch.observation).square().sum(-1) + batch.action.square().sum(-1)
        return Surprise(moved.new_zeros(len(moved)), moved, {})


@pytest.mark.parametrize("icm", ["single", "random"])
def test_the_bonuses_of_all_n_transitions_count(icm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """r + w·b summed by a loop; with `random`, the bonuses of another trajectory, in their order."""
    monkeypatch.setattr("rl.agents.build_curiosity", lambda *_: Moved())
    agents = SAC(Settings(icm=icm, n_step=3, hidden=(4,)), 1, 1, [torch.Generator()] * 2, CPU)  # type: ignore[arg-type]
    ends = [["goes on"] * 4 + ["terminates"] + ["goes on"] * 3] * 2
    replay, shuffle = filled(ends, 8), torch.randn(2, 8)
    drawn = replay.sample_trajectories(torch.arange(8).expand(2, -1), 1, 3)
    _, reward, _ = whole(drawn, agents.total_reward(agents.rewards(drawn, shuffle)), 0.9)
    deviation = agents.intrinsic.deviation[:, 0]
    for k in range(2):
        for t in range(8):
            length = naive(ends[k], t, 3, 0.9)[1]
            other = int(shuffle[k].argsort()[t]) if icm == "random" else t
            last = other + naive(ends[k], other, 3, 0.9)[1] - 1
            states = [100 * k + min(other + i, last) for i in range(length)]
            bonus = [(0.25 + state**2) / float(deviation[k]) for state in states]
            expected = sum(0.9**i * ((t + i) ** 2 + 0.1 * bonus[i]) for i in range(length))
            assert float(reward[k, t]) == pytest.approx(expected, rel=1e-4)


def test_two_agents_with_n_step_returns_are_those_alone() -> None:
    chosen: dict[str, Any] = {"icm": "stacked", "n_step": 3, "feature_size": 6, "icm_width": 10}
    together, alone = sac(range(2), **chosen), sac(range(1, 2), **chosen)
    generator = torch.Generator().manual_seed(0)
    replays = [Replay(2, 40, 5, 2, CPU), Replay(1, 40, 5, 2, CPU)]
    for t in range(40):
        states, actions = torch.randn(2, 2, 5, generator=generator), torch.rand(2, 2, generator=generator)
        ended = torch.tensor([t % 7 == 6, t % 5 == 4])
        row = (states[0], states[1], actions, actions[:, 0], ended.float(), ended)
        replays[0].add(*row)
        replays[1].add(*(part[1:2] for part in row))
    for _ in range(10):
        noise = Noise(*(torch.randn(2, 16, *shape, generator=generator) for shape in ((2,), (2,), ())))
        indices = torch.randint(0, 40, (2, 16), generator=generator)
        upcoming = torch.zeros(2, 5)
        together.update(sampled(replays[0], indices, together.settings, upcoming), noise)
        own = Noise(*(part[1:2] for part in noise))
        alone.update(sampled(replays[1], indices[1:2], alone.settings, upcoming[1:2]), own)
    own_weights = alone.state_dict()
    for name, tensor in together.state_dict().items():
        per_agent = tensor if tensor.ndim == 0 else tensor[1::2]
        torch.testing.assert_close(per_agent, own_weights[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("capacity", [4, 30])
def test_after_a_termination_follows_the_first_state_of_the_next_episode(capacity: int) -> None:
    """After a time limit, and within an episode, the state reached; after the newest row the one to act on."""
    ends = ["goes on", "terminates", "goes on", "time limit", "terminates", "terminates"]
    replay, upcoming = filled([ends], capacity), torch.tensor([[77.0]])
    settings = Settings(icm="single", bonus_episodic=False)
    batch = sampled(replay, torch.arange(replay.size)[None], settings, upcoming)
    assert isinstance(batch, Batch)
    after = {0: 0.5, 1: 2.0, 2: 2.5, 3: 3.5, 4: 5.0, 5: 77.0}
    starts = batch.observation[0, :, 0].tolist()
    assert sorted(starts) == list(range(6 - replay.size, 6))
    assert batch.following[0, :, 0].tolist() == [after[int(t)] for t in starts]
    assert batch.next_observation[0, :, 0].tolist() == [t + 0.5 for t in starts]
    episodic = sampled(replay, torch.arange(replay.size)[None], Settings(icm="single"))
    assert isinstance(episodic, Batch)
    assert episodic.following is episodic.next_observation
