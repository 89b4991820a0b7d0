"""Fixtures of the tests of reinforcement learning."""

import pytest
import torch


@pytest.fixture(params=[1, 2], ids=["one thread, compiled", "two threads"])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Either implementation: which one it is depends on torch's threads."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)
    return int(request.param)
