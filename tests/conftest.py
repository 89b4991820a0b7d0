"""Fixtures that several test files share."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from common import cli
from pruning.vgg import VGG11
from tests.browser import CHROMIUM

ROOT = Path(__file__).resolve().parent.parent

# The slowest files first, so that no worker is left with one at the end (--dist loadfile --no-loadscope-reorder).
SLOWEST = [
    *("pruning/test_run.py", "vae/test_train.py", "vae/test_classifier.py", "common/sweep/test_cluster.py"),
    *("pruning/test_train.py", "vae/test_study.py", "vae/test_training.py", "rl/test_train.py", "common/test_data.py"),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {ROOT / "tests" / name: rank for rank, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.fixture(scope="session")
def real_data_dir() -> Path:
    """The folder with the real data sets, or a skip."""
    for folder in (os.environ.get("DATA_DIR"), ROOT.parent / "shared" / "data"):
        if folder and (Path(folder) / "MNIST" / "raw").is_dir():
            return Path(folder)
    pytest.skip("no real data: set DATA_DIR")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in a test whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def network() -> VGG11:
    """A VGG11-BN with batch-norm statistics as after some training, so that every layer carries signal."""
    torch.manual_seed(0)
    model = VGG11()
    model(torch.randn(64, 3, 32, 32))
    return model.eval()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, or a skip where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C is heeded here and in the processes that start here: a shell's background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs a script's `main` on a command line that must fail; returns its exit status and its one line."""

    def run(main: Any, settings: Any, arguments: Sequence[str]) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            cli.run(main, settings, list(arguments))
        (error,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
        return int(str(stop.value.code)), error

    return run


@pytest.fixture
def killed() -> Callable[..., Path]:
    """Runs a command as typed and kills it, `kill -9`, some seconds after its first checkpoint; returns its run."""

    def run(command: Sequence[str], results: Path, checkpoint: str, later: float = 0.5) -> Path:
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 240
        while not (found := list(results.glob(f"*/*/checkpoints/{checkpoint}"))):
            assert process.poll() is None, "ended before its first checkpoint"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(later)
        process.send_signal(signal.SIGKILL)
        process.wait()
        return found[0].parent.parent

    return run


@pytest.fixture
def unchanged_by_resume(capsys: pytest.CaptureFixture[str]) -> Callable[[Any, Any, Path], None]:
    """Resumes a complete run, which must print its folder and touch nothing."""

    def resume(main: Any, settings: Any, run: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
        cli.run(main, settings, ["--resume", str(run)])
        assert capsys.readouterr().out == f"{run}\n"
        assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}

    return resume
