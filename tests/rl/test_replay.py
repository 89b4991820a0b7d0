"""Replay against a list of everything that happened: what is sampled, windows, the ring, and the files."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.errors import RunError
from rl.replay import Replay

CPU = torch.device("cpu")


def filled(ends: list[list[bool]], capacity: int) -> tuple[Replay, list[list[tuple[int, float]]]]:
    """Returns a replay of `ends[k][t]` (did agent k's episode end at step t?) and for each agent (episode, state).

    The state of agent k at step t is the number 1000k + t, so that a sampled row says where it comes from.
    """
    agents, steps = len(ends), len(ends[0])
    replay = Replay(agents, capacity, 1, 1, CPU)
    told: list[list[tuple[int, float]]] = [[] for _ in range(agents)]
    episode = [0] * agents
    for t in range(steps):
        state = torch.tensor([[1000.0 * k + t] for k in range(agents)])
        ended = torch.tensor([row[t] for row in ends])
        replay.add(state, state + 0.5, -state, 2 * state[:, 0], ended.float(), ended)
        for k in range(agents):
            told[k].append((episode[k], state[k, 0].item()))
            episode[k] += ends[k][t]
    return replay, told


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_windows_never_cross_an_episode(data: st.DataObject) -> None:
    agents, steps = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 25))
    capacity, stack = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 6))
    flags = st.lists(st.booleans(), min_size=steps, max_size=steps)
    replay, told = filled(data.draw(st.lists(flags, min_size=agents, max_size=agents)), capacity)
    everything = torch.arange(replay.size).expand(agents, -1)
    batch = replay.sample(everything, stack)
    assert batch.window.shape == (agents, replay.size, stack, 1)
    for k in range(agents):
        held = told[k][-capacity:]  # what the ring still has, oldest first
        seen = set()
        for index in range(replay.size):
            now = batch.observation[k, index, 0].item()
            place = next(i for i, (_, state) in enumerate(held) if state == now)
            seen.add(place)
            same_episode = [state for e, state in held[: place + 1] if e == held[place][0]]
            expected = ([same_episode[0]] * stack + same_episode)[-stack:]
            assert batch.window[k, index, :, 0].tolist() == expected
            assert batch.next_observation[k, index, 0] == now + 0.5
            assert batch.action[k, index, 0] == -now
            assert batch.reward[k, index] == 2 * now
        assert seen == set(range(len(held)))  # every transition that is kept can be drawn


def test_terminated_is_kept_apart_from_ended() -> None:
    """A time limit ends the window but does not count as terminated."""
    replay = Replay(1, 10, 1, 1, CPU)
    for t in range(3):
        state = torch.tensor([[float(t)]])
        replay.add(state, state, state, state[:, 0], torch.tensor([0.0]), torch.tensor([t == 1]))
    batch = replay.sample(torch.tensor([[0, 1, 2]]), 3)
    assert batch.terminated.tolist() == [[0, 0, 0]]
    assert batch.window[0, 2, :, 0].tolist() == [2, 2, 2]


def contents(replay: Replay) -> Tensor:
    return replay.rows[:, : replay.size]


@pytest.mark.parametrize("capacity", [3, 4, 5, 7, 12, 100])
def test_segments_bring_back_the_ring(capacity: int, tmp_path: Path) -> None:
    """Saved every 4 steps over 30 steps and read at any of them, then filled on: the same as never having stopped."""
    for stop in (4, 8, 16, 28):
        folder, saved = tmp_path / f"{stop}", 0
        replay = Replay(2, capacity, 1, 1, CPU)
        whole = Replay(2, capacity, 1, 1, CPU)
        for t in range(30):
            if t == stop:
                replay = Replay(2, capacity, 1, 1, CPU)
                replay.load_segments(folder, stop)
                assert torch.equal(contents(replay), contents(whole))
            state = torch.tensor([[float(t)], [100.0 + t]])
            ended = torch.tensor([t % 3 == 2, t % 5 == 4])
            for ring in (replay, whole):
                ring.add(state, state, state, state[:, 0], ended.float(), ended)
            if t < stop and (t + 1) % 4 == 0:
                replay.save_segment(folder, saved)
                saved = t + 1
        assert torch.equal(contents(replay), contents(whole))


def test_a_checkpoint_writes_what_is_new_and_drops_what_is_forgotten(tmp_path: Path) -> None:
    replay, state = Replay(1, 8, 1, 1, CPU), torch.zeros(1, 1)
    sizes = []
    for t in range(1, 25):
        replay.add(state, state, state, state[:, 0], torch.zeros(1), torch.zeros(1, dtype=torch.bool))
        if t % 4 == 0:
            replay.save_segment(tmp_path, t - 4)
            assert t <= 8 or (tmp_path / f"{t - 8:012d}.pt").exists()  # until the checkpoint is written
            replay.forget_segments(tmp_path, replay.steps)
            sizes.append((tmp_path / f"{t:012d}.pt").stat().st_size)
    assert len(set(sizes)) == 1  # not more, however much there is
    assert [int(file.stem) for file in sorted(tmp_path.iterdir())] == [20, 24]


@pytest.mark.parametrize("damage", ["missing", "truncated", "one bit", "another shape"])
def test_damaged_segments_are_told(damage: str, tmp_path: Path) -> None:
    replay, state = Replay(1, 100, 1, 1, CPU), torch.zeros(1, 1)
    for t in range(1, 9):
        replay.add(state, state, state, state[:, 0], torch.zeros(1), torch.zeros(1, dtype=torch.bool))
        if t % 4 == 0:
            replay.save_segment(tmp_path, t - 4)
    first = tmp_path / f"{4:012d}.pt"
    if damage == "missing":
        first.unlink()
    if damage == "truncated":
        first.write_bytes(first.read_bytes()[:-3])
    if damage == "one bit":
        content = bytearray(first.read_bytes())
        content[len(content) // 2] ^= 1
        first.write_bytes(content)
    fresh = Replay(1, 100, 3 if damage == "another shape" else 1, 1, CPU)
    with pytest.raises(RunError, match=r"missing or damaged|damaged checkpoint"):
        fresh.load_segments(tmp_path, 8)


def test_segments_after_the_checkpoint_are_ignored(tmp_path: Path) -> None:
    """A crash between a segment and its checkpoint leaves a file of steps that will be taken again."""
    replay, state = Replay(1, 100, 1, 1, CPU), torch.ones(1, 1)
    for t in range(1, 9):
        replay.add(t * state, state, state, state[:, 0], torch.zeros(1), torch.zeros(1, dtype=torch.bool))
        if t % 4 == 0:
            replay.save_segment(tmp_path, t - 4)
    fresh = Replay(1, 100, 1, 1, CPU)
    fresh.load_segments(tmp_path, 4)
    assert fresh.steps == 4
    assert contents(fresh)[0, :, 0].tolist() == [1, 2, 3, 4]


def test_a_ring_that_begins_empty_after_some_steps(tmp_path: Path) -> None:
    """It gives what a new ring with the same transitions gives, also when it is full, and from its files."""
    late, new = (Replay(2, 5, 3, 1, torch.device("cpu")) for _ in range(2))
    late.begin_after(7)
    for step in range(1, 9):
        row = (torch.randn(2, 3), torch.randn(2, 3), torch.randn(2, 1), torch.randn(2), torch.ones(2))
        for ring in (late, new):
            ring.add(*row, ended=torch.tensor([step == 4, step == 6]))
        if step in (3, 8):
            late.save_segment(tmp_path, {3: 7, 8: 10}[step])
        assert (late.steps, late.size) == (new.steps + 7, new.size)
        indices = torch.arange(new.size).expand(2, -1)
        upcoming = torch.randn(2, 3)
        for ours, expected in zip(late.sample(indices, 3, upcoming), new.sample(indices, 3, upcoming), strict=True):
            assert torch.equal(ours, expected)
        trajectories = (ring.sample_trajectories(indices, 1, 3) for ring in (late, new))
        for ours, expected in zip(*trajectories, strict=True):
            assert torch.equal(ours, expected)
        assert torch.equal(late.newest(3), new.newest(3))
    loaded = Replay(2, 5, 3, 1, torch.device("cpu"))
    loaded.load_segments(tmp_path, 15, begun=7)
    assert torch.equal(loaded.rows, late.rows)
    assert (loaded.steps, loaded.begun) == (15, 7)
