"""A clock that jumps, a locale that writes commas, a home that nobody may write, and a path with spaces and umlauts."""

import locale
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common import cli
from tests.faults.test_kills import outcome
from tests.faults.work import SCRIPTS, ended, entry, errors, finished, fork

pytestmark = pytest.mark.faults
TASK = "rl"


def jumping_clock() -> None:
    """Years back and forth at every look; the monotonic clocks go on as they do when somebody sets the time."""
    jumps, now = random.Random(0), time.time
    time.time = lambda: now() + jumps.choice([-1, 1]) * jumps.uniform(0, 3e8)


def commas() -> None:
    """A German or French locale; one that is not installed is made below LOCPATH, if the machine has its source."""
    for name in ("de_DE.UTF-8", "fr_FR.UTF-8"):
        try:
            locale.setlocale(locale.LC_ALL, name)
        except locale.Error:
            continue
        assert locale.localeconv()["decimal_point"] == ","
        return
    raise SystemExit(77)


def no_home() -> None:
    os.environ.update(HOME="/proc/none", XDG_CACHE_HOME="/proc/none/cache")


@pytest.fixture(scope="module", autouse=True)
def locales(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Makes a locale with commas where none is installed, in a folder of its own."""
    installed = subprocess.run(["locale", "-a"], capture_output=True, text=True).stdout.lower()
    with pytest.MonkeyPatch.context() as patch:
        if "de_de.utf" not in installed and "fr_fr.utf" not in installed and shutil.which("localedef"):
            folder = tmp_path_factory.mktemp("locales")
            subprocess.run(["localedef", "-i", "de_DE", "-f", "UTF-8", str(folder / "de_DE.UTF-8")], check=False)
            patch.setenv("LOCPATH", str(folder))
        yield


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(TASK, tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("surrounding", [jumping_clock, commas, no_home])
@pytest.mark.parametrize("folder", ["results", "Ergebnisse für später [1] %s {x}"])
def test_the_figures_do_not_change(surrounding: Callable[[], None], folder: str, plain: Path, tmp_path: Path) -> None:
    main, settings = entry(TASK)
    words = ["--threads", "1", *SCRIPTS[TASK], "--results-dir", str(tmp_path / folder), "--run-name", "run"]

    def work() -> None:
        surrounding()
        cli.run(main, settings, words)

    status = ended(fork(work, tmp_path / "log"))
    if status == 77:
        pytest.skip("no locale with commas on this machine")
    assert status == 0, (tmp_path / "log").read_text()
    assert not errors(tmp_path / "log")
    assert outcome(tmp_path / folder / TASK / "run") == outcome(plain)


def test_a_vae_without_a_home_is_told_and_goes_on(tmp_path: Path) -> None:
    main, settings = entry("vae")
    words = ["--threads", "1", *SCRIPTS["vae"], "--results-dir", str(tmp_path / "r"), "--run-name", "run"]

    def work() -> None:
        no_home()
        cli.run(main, settings, words)

    assert ended(fork(work, tmp_path / "log")) == 0, (tmp_path / "log").read_text()
    assert "the classifier cannot be cached" in (tmp_path / "log").read_text()
