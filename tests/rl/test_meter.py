"""What is counted while training: returns of episodes, averages of the updates, the clock, and its state."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rl.meter import RECENT, Meter

CPU = torch.device("cpu")


def step(meter: Meter, rewards: list[float], ended: list[bool], loss: list[float] | None = None) -> None:
    if loss is not None:
        meter.update({"loss": torch.tensor(loss)})
    meter.step(torch.tensor(rewards), torch.tensor(ended))


def row(meter: Meter) -> tuple[dict[str, list[float]], float]:
    with meter.paused():
        return meter.row()


def test_return_is_the_mean_of_recent_episodes_or_what_the_first_has_so_far() -> None:
    meter = Meter(2, CPU)
    for episode in range(RECENT + 3):
        step(meter, [1.0, 0.5], [False, False])
        step(meter, [float(episode), 0.5], [True, False], [0.0, 0.0])
    values, _ = row(meter)
    assert values["return"] == pytest.approx([1 + sum(range(3, RECENT + 3)) / RECENT, RECENT + 3])


def test_length_of_recent_episodes_and_the_steps_that_paid() -> None:
    """A reward of 0 or below does not pay; the count is of the whole training, the length of finished episodes."""
    meter = Meter(2, CPU)
    for t in range(1, 13):
        step(meter, [float(t % 3 == 0), -1.0], [t in (4, 6), False], [0.0, 0.0])
    assert row(meter)[0]["episode_length"] == [3.0, 12.0]
    step(meter, [1.0, 0.5], [True, False], [0.0, 0.0])
    values, _ = row(meter)
    assert values["episode_length"] == [pytest.approx((4 + 2 + 7) / 3), 13.0]
    assert values["steps_paid"] == [5.0, 1.0]


def test_a_row_averages_over_the_updates_since_the_row_before() -> None:
    meter = Meter(2, CPU)
    assert meter.updates == 0
    step(meter, [0.0, 0.0], [False, False])
    for losses in ([1.0, 10.0], [2.0, 30.0]):
        step(meter, [0.0, 0.0], [False, False], losses)
    assert meter.updates == 2
    assert row(meter)[0]["loss"] == [1.5, 20.0]
    assert meter.updates == 0
    step(meter, [0.0, 0.0], [False, False], [7.0, 8.0])
    assert row(meter)[0]["loss"] == [7.0, 8.0]


def test_each_measurement_is_averaged_over_the_updates_that_have_it() -> None:
    """With a delayed policy, or several updates a step; and a checkpoint of before has one count for all."""
    meter = Meter(1, CPU)
    for number in range(1, 5):
        meter.update({"critic": torch.tensor([float(number)])})
        if number % 2 == 0:
            meter.update({"actor": torch.tensor([10.0 * number])})
    meter.step(torch.zeros(1), torch.zeros(1, dtype=torch.bool))
    assert meter.updates == 4
    earlier = Meter(1, CPU)
    earlier.restore(meter.state() | {"summed": 4})
    counted = {"return": [0.0], "episode_length": [1.0], "steps_paid": [0.0]}
    assert row(meter)[0] == counted | {"critic": [2.5], "actor": [30.0]}
    assert row(earlier)[0]["critic"] == [2.5]


def test_measurements_may_be_overwritten_after_the_call() -> None:
    """As those of a CUDA graph are."""
    meter, loss = Meter(1, CPU), torch.zeros(1)
    for value in (1.0, 3.0):
        loss.fill_(value)
        meter.update({"loss": loss})
        meter.step(torch.zeros(1), torch.zeros(1, dtype=torch.bool))
    assert row(meter)[0]["loss"] == [2.0]


def test_the_rate_is_that_of_steps_with_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("rl.meter.time", SimpleNamespace(perf_counter=lambda: now[0]))
    meter = Meter(3, CPU)

    def after(seconds: float, loss: list[float] | None) -> None:
        now[0] += seconds
        step(meter, [0.0] * 3, [False] * 3, loss)

    after(100, None)
    after(2, [0.0] * 3)
    with meter.paused():
        now[0] += 1000
    after(4, [0.0] * 3)
    with meter.paused():
        now[0] += 1000
        assert meter.row()[1] == pytest.approx(3 * 2 / 6)
        now[0] += 1000
    after(1, [0.0] * 3)
    assert row(meter)[1] == pytest.approx(3 * 1 / 1)


def test_a_restored_meter_goes_on_as_the_first() -> None:
    first, second = Meter(2, CPU), Meter(2, CPU)
    for k in range(25):
        step(first, [1.0, 2.0], [k % 3 == 0, k % 4 == 0], [float(k), 1.0])
    state: dict[str, Any] = first.state()
    second.restore(state)
    for meter in (first, second):
        step(meter, [5.0, 5.0], [True, False], [3.0, 4.0])
    assert row(first)[0] == row(second)[0]
