"""Files are whole or not there, and a damaged one is told as such."""

import fcntl
import os
from pathlib import Path

import pytest
import torch

from common.errors import RunError
from common.files import (
    forget_state,
    last_whole,
    load_state,
    load_weights,
    older,
    read_metrics,
    remove_unfinished,
    save_state,
    save_weights,
    write_atomically,
)


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
    with pytest.raises(RunError, match="no such file"):
        load_weights(tmp_path / "missing")


def test_the_older_checkpoint_stands_in_for_a_damaged_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "vae.state.pt"
    found: list[int] = []

    def last() -> int:
        assert last_whole(path, lambda state: found.append(state["step"]))
        return found[-1]

    assert not last_whole(path, lambda state: found.append(0))
    for step in (1, 2, 3):
        save_state(path, {"step": step}, keep_older=True)
    assert last() == 3
    path.write_bytes(path.read_bytes()[:-1])
    assert last() == 2
    assert "vae.state.pt: damaged checkpoint" in capsys.readouterr().err
    path.unlink()  # killed between the two renames
    assert last() == 2
    older(path).write_bytes(b"")
    with pytest.raises(RunError, match=r"vae\.older\.state\.pt"):
        last()
    forget_state(path)
    assert not list(tmp_path.iterdir())


def test_what_killed_writes_left_is_removed_and_what_one_writes_now_is_not(tmp_path: Path) -> None:
    theirs = {".lock", "history.csv", ".hidden", ".config.yaml.trilab-toolong_9", ".env.template", ".bashrc.20240105"}
    for name in (".history.csv.trilab-abcd_123", *theirs):
        (tmp_path / name).touch()
    writing = (tmp_path / ".metrics.json.trilab-efgh4567").open("wb")
    fcntl.flock(writing, fcntl.LOCK_EX)
    remove_unfinished(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*theirs, ".metrics.json.trilab-efgh4567"}


def test_a_folder_that_was_removed_is_not_made_again(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="was removed"):
        save_state(tmp_path / "gone" / "x.state.pt", {})
    assert not (tmp_path / "gone").exists()
