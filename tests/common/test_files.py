"""Files are whole or not there, and a damaged one is told as such."""

import os
from pathlib import Path

import pytest
import torch

from common.errors import RunError
from common.files import load_state, load_weights, read_metrics, save_state, save_weights, write_atomically


def test_a_failed_write_leaves_the_old_file_and_no_debris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_state_round_trip_without_code(tmp_path: Path) -> None:
    state = {"model": {"w": torch.randn(3)}, "step": 7, "rng": torch.Generator().get_state(), "nested": [{"lr": 0.1}]}
    save_state(tmp_path / "s.pt", state)
    back = load_state(tmp_path / "s.pt")
    assert torch.equal(back["model"]["w"], state["model"]["w"])  # type: ignore[index]
    assert (back["step"], back["nested"]) == (7, [{"lr": 0.1}])


class Evil:
    def __reduce__(self):  # type: ignore[no-untyped-def]
        return (os.system, ("true",))


def test_state_with_code_in_it_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path / "s.pt", {"evil": Evil()})
    with pytest.raises(RunError, match="not a readable checkpoint"):
        load_state(tmp_path / "s.pt")


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[:100], lambda b: b"", lambda b: b[:50] + b"x" + b[51:]]
)
def test_damaged_state_is_refused(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "s.pt"
    save_state(path, {"w": torch.arange(100)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunError, match=str(path)):
        load_state(path)


def test_metrics_are_whole_absent_or_damaged(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) is None
    path = tmp_path / "metrics.json"
    path.write_text('{"elbo": -90.5}')
    assert read_metrics(tmp_path) == {"elbo": -90.5}
    for content in (b'{"elbo', b"", b"[]", b"null", b"\xff", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"\w"):
            read_metrics(tmp_path)


def test_weights_round_trip_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    weights = {"a": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), "mask": torch.tensor([True, False])}
    save_weights(path, weights)
    assert all(torch.equal(weights[name], tensor) for name, tensor in load_weights(path).items())
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(RunError, match="not a readable safetensors file"):
        load_weights(path)
    with pytest.raises(RunError, match="not a readable safetensors file"):
        load_weights(tmp_path / "missing")
