"""progress.json: what a run remembers, read again only if it is what was written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from common import progress
from common.errors import RunError
from common.files import digest, save_weights

MEMORY: dict[str, Any] = {"seconds": 1.5, "history_rows": 2, "task": "vae", "git_commit": None, "curve": {"0.1": 0.5}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "checkpoints").mkdir()
    progress.write(tmp_path, MEMORY)
    return tmp_path


def test_what_is_written_is_read_in_its_order(run: Path) -> None:
    assert list(progress.read(run).items()) == list(MEMORY.items())


@pytest.mark.parametrize("lacks", ["seconds", "history_rows", "task", "git_commit"])
def test_what_each_run_remembers_must_be_there(run: Path, lacks: str) -> None:
    progress.write(run, {name: value for name, value in MEMORY.items() if name != lacks})
    with pytest.raises(ValueError, match="not a run's progress"):
        progress.read(run)


@pytest.mark.parametrize(
    ("text", "told"),
    [("[1]", "not a run's"), ("[" * 100_000, "nested"), (json.dumps({**MEMORY, "sha256": "0"}), "checksum")],
)
def test_a_damaged_file_is_told(run: Path, text: str, told: str) -> None:
    progress.path_in(run).write_text(text)
    with pytest.raises(ValueError, match=told):
        progress.read(run)
    with pytest.raises(RunError, match=f"progress.json: damaged .*{told}"):
        progress.require_unchanged(run)


def test_a_run_of_another_task_is_told(run: Path) -> None:
    progress.require_task(run, "vae")
    with pytest.raises(RunError, match="a run of vae, not of rl"):
        progress.require_task(run, "rl")
    progress.require_task(run / "elsewhere", "rl")  # which says nothing


def test_weights_that_changed_since_the_run_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    progress.require_unchanged(tmp_path)  # a shared folder has no checksums
    save_weights(folder / "net.safetensors", {"x": torch.arange(9.0)})
    whole = (folder / "net.safetensors").read_bytes()
    memory = {
        "net.safetensors": digest(whole),
        "older.safetensors": True,
        "gone.safetensors": digest(b""),
        **{"seconds": 3, "history_rows": 0, "task": "vae", "git_commit": None},
    }
    progress.write(tmp_path, memory)
    progress.require_unchanged(tmp_path)
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    (folder / "net.safetensors").write_bytes(flipped)
    with pytest.raises(RunError, match=r"net\.safetensors: not what this run wrote there"):
        progress.require_unchanged(tmp_path)
