"""Timing in turn: each work once to warm up, then once a round, and quartiles against numpy's."""

import numpy as np
import pytest
import torch

from common.timing import in_turn, quartiles


def test_works_take_turns_and_each_has_a_time_for_every_round() -> None:
    done: list[str] = []
    works = {name: lambda name=name: done.append(name) for name in ("one", "other")}
    times = in_turn(works, torch.device("cpu"), 0.0)  # as many rounds as there are at least
    assert done == ["one", "other"] * 4  # the first to warm up
    assert {name: len(of) for name, of in times.items()} == {"one": 3, "other": 3}
    assert all(second > 0 for of in times.values() for second in of)


def test_quartiles_are_numpys() -> None:
    values = torch.rand(7).tolist()
    assert quartiles(values) == pytest.approx(np.quantile(values, [0.25, 0.75]).tolist())
