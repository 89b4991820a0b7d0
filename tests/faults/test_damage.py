"""Full disks, folders that nobody may write or that are gone, and files that were cut off or changed."""

import contextlib
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common import cli
from tests.faults.test_kills import outcome
from tests.faults.work import SCRIPTS, ended, entry, errors, finished, fork, script, trials

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts file systems, which needs root"),
]
TASK = "rl"  # it has every kind of file: history, checkpoints, segments of transitions, weights


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(TASK, tmp_path_factory.mktemp("unbroken"))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed after its second checkpoint."""
    from rl.checkpoint import Checkpoint

    results = tmp_path_factory.mktemp("stopped")
    main, settings = entry(TASK)
    words = ["--threads", "1", *SCRIPTS[TASK], "--results-dir", str(results), "--run-name", "run"]

    def until_the_fourth() -> None:
        save, saves = Checkpoint.save, []

        def saved(checkpoint: Checkpoint) -> None:
            save(checkpoint)
            saves.append(checkpoint.replay.steps)
            if len(saves) == 4:
                os._exit(9)

        Checkpoint.save = saved  # type: ignore[method-assign]
        cli.run(main, settings, words)

    assert ended(fork(until_the_fourth, results / "log")) == 9, (results / "log").read_text()
    return results / TASK / "run"


def test_a_full_disk_is_told_and_the_run_goes_on_elsewhere(unbroken: Path, tmp_path: Path) -> None:
    """The disk fills at another moment each time: with the settings, a checkpoint, the history, a figure."""
    sizes = [64, 128, 160, 200, 260, 320, 400, 500, 700, 1000]
    for size in random.Random(0).sample(sizes, trials(len(sizes))):
        with mounted(tmp_path / "disk", "-o", f"size={size}k") as disk:
            log = tmp_path / f"{size}.log"
            words = [*SCRIPTS[TASK], "--results-dir", str(disk), "--run-name", "run"]
            status = ended(script(TASK, words, log))
            assert status in (0, 1), log.read_text()
            assert len(errors(log)) == status, log.read_text()
            if status:
                assert str(disk) in errors(log)[0]
                assert "No space left" in errors(log)[0]
            shutil.copytree(disk, tmp_path / f"moved{size}")
        run = tmp_path / f"moved{size}" / TASK / "run"
        if (run / "config.yaml").exists():  # else nothing had begun
            assert ended(script(TASK, ["--resume", str(run)], log)) == 0, log.read_text()
            assert outcome(run) == outcome(unbroken)


def test_a_folder_that_cannot_be_written(stopped: Path, tmp_path: Path) -> None:
    with mounted(tmp_path / "closed") as folder:
        shutil.copytree(stopped, folder / TASK / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        for words in ([*SCRIPTS[TASK], "--results-dir", str(folder)], ["--resume", str(folder / TASK / "run")]):
            log = tmp_path / f"{len(words)}.log"
            assert ended(script(TASK, words, log)) == 1
            (line,) = errors(log)
            assert str(folder) in line
            assert "Read-only" in line
    assert not list((tmp_path / "closed").iterdir())


def test_a_folder_that_is_removed_meanwhile(tmp_path: Path) -> None:
    from common.experiment import Run

    main, settings = entry(TASK)
    words = ["--threads", "1", *SCRIPTS[TASK], "--results-dir", str(tmp_path), "--run-name", "run"]

    def removed() -> None:
        log = Run.log

        def remove(run: Run, stage: str, step: int, scalars: object) -> None:
            shutil.rmtree(tmp_path / TASK)
            log(run, stage, step, scalars)  # type: ignore[arg-type]

        Run.log = remove  # type: ignore[assignment]
        cli.run(main, settings, words)

    assert ended(fork(removed, tmp_path / "log")) == 1
    (line,) = errors(tmp_path / "log")
    assert "was removed" in line
    assert not (tmp_path / TASK).exists()


def cut(content: bytes, moments: random.Random) -> bytes:
    return content[: moments.randrange(len(content))]


def flip(content: bytes, moments: random.Random) -> bytes:
    place = moments.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << moments.randrange(8)]) + content[place + 1 :]


FILES = ("history.csv", "checkpoints/progress.json", "checkpoints/agents.state.pt", "checkpoints/replay/*60.pt")


@pytest.mark.parametrize("damage", [cut, flip])
@pytest.mark.parametrize("file", FILES)
def test_damaged_files_of_a_run(
    file: str, damage: Callable[[bytes, random.Random], bytes], stopped: Path, unbroken: Path, tmp_path: Path
) -> None:
    """Either the older checkpoint is used and the run ends as the unbroken one, or one line names the file."""
    moments = random.Random(file)
    for trial in range(trials(5)):
        run, log = tmp_path / str(trial) / "run", tmp_path / f"{trial}.log"
        shutil.copytree(stopped, run)
        (path,) = run.glob(file)
        path.write_bytes(damage(path.read_bytes(), moments))
        before = {one: one.read_bytes() for one in run.rglob("*") if one.is_file() and "events" not in one.name}
        status = ended(script(TASK, ["--resume", str(run)], log))
        if "checkpoints/" in file and "progress" not in file:
            assert status == 0, log.read_text()
            assert "agents.older.state.pt" in log.read_text()
            assert outcome(run) == outcome(unbroken)
        else:
            assert status == 1, log.read_text()
            (line,) = errors(log)
            assert path.name in line
            assert before == {one: one.read_bytes() for one in before}


@pytest.mark.parametrize("damage", [cut, flip])
def test_damaged_files_of_a_trained_run(
    damage: Callable[[bytes, random.Random], bytes], unbroken: Path, tmp_path: Path
) -> None:
    """Its weights, which a resumed run needs for the rest, and its metrics, which say that it is finished."""
    for trial, name in enumerate(["checkpoints/agents.safetensors", "metrics.json"] * trials(5)):
        run, log = tmp_path / str(trial) / "run", tmp_path / f"{trial}.log"
        shutil.copytree(unbroken, run)
        content = (run / name).read_bytes()
        if "agents" in name:
            (run / "metrics.json").unlink()
            (run / name).write_bytes(damage(content, random.Random(trial)))
        else:  # a changed figure in it is valid: only what is no JSON can be told from it
            (run / name).write_bytes(content[: random.Random(trial).randrange(len(content) - 1)])
        assert ended(script(TASK, ["--resume", str(run)], log)) == 1, log.read_text()
        (line,) = errors(log)
        assert Path(name).name in line
