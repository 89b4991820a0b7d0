"""SIGKILL, SIGTERM and Ctrl-C at any moment: a run goes on, and ends with the figures of one that never stopped."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from common import cli
from tests.faults.work import ROOT, SCRIPTS, ended, ended_or_signalled, entry, errors, folder_of, fork, script, trials

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("ctrl_c")]
KILLS_OF_A_RUN = 4
NOT_REPEATED = {
    *("seconds", "peak_memory_bytes", "latency", "latency_quartiles", "images_per_second", "agent_steps_per_second"),
    "git_commit",
}


def outcome(run: Path) -> dict[str, Any]:
    """Returns what must not depend on interruptions: figures, rows of the history but for their speeds, weights."""
    metrics = json.loads((run / "metrics.json").read_text())
    rows = (run / "history.csv").read_text().splitlines()
    names = rows[0].split(",")
    kept = [i for i, name in enumerate(names) if name not in NOT_REPEATED]
    files = [*(run / "checkpoints").glob("*.safetensors"), *(run / "checkpoints").glob("*.sparse")]
    return {
        "metrics": {name: value for name, value in metrics.items() if name not in NOT_REPEATED},
        # Whether a VAE's classifier is trained or comes from the cache is no matter of the run.
        "history": [[row.split(",")[i] for i in kept] for row in rows if not row.startswith("classifier,")],
        "weights": {path.name: path.read_bytes() for path in files},
    }


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def which(run: Path) -> list[str]:
    """Returns the words that go on with a run, or begin it where it has no settings yet."""
    if (run / "config.yaml").exists():
        return ["--resume", str(run)]
    shutil.rmtree(run, ignore_errors=True)
    return ["--run-name", run.name]


def killed(folder: Path, start: Callable[[list[str], Path], int], seconds: float, seed: str) -> Iterator[Path]:
    """Kills runs in `folder` at random moments of the `seconds` that one lasts; yields them when they have ended.

    `start` starts a process with the words that say which run, and a file for what it says.
    """
    left, number, moments = trials(20), 0, random.Random(seed)
    while left > 0:
        run, log = folder / f"killed{number}", folder / f"killed{number}.log"

        for _ in range(min(left, KILLS_OF_A_RUN)):
            status = ended_or_signalled(start(which(run), log), moments.uniform(0, seconds), signal.SIGKILL)
            assert status in (0, -signal.SIGKILL), log.read_text()
            left -= 1
        assert ended(start(which(run), log)) == 0, log.read_text()
        assert not errors(log), log.read_text()
        yield run
        number += 1


def unbroken(folder: Path, start: Callable[[list[str], Path], int]) -> tuple[Path, float]:
    """Returns a run that nobody stopped and how many seconds it took; one before it fills the caches."""
    for name in ("first", "unbroken"):
        begun = time.monotonic()
        folder.mkdir(exist_ok=True)
        assert ended(start(["--run-name", name], folder / f"{name}.log")) == 0, (folder / f"{name}.log").read_text()
        seconds = time.monotonic() - begun
    return folder / "unbroken", seconds


@pytest.mark.parametrize("task", SCRIPTS)
def test_sigkill_at_random_moments(task: str, tmp_path: Path, cache: None) -> None:
    entry(task)

    def start(which: list[str], log: Path) -> int:
        return script(
            task, which if "--resume" in which else [*SCRIPTS[task], "--results-dir", str(tmp_path), *which], log
        )

    expected, seconds = unbroken(tmp_path / folder_of(task), start)
    for run in killed(tmp_path / folder_of(task), start, seconds, task):
        assert outcome(run) == outcome(expected)
        assert not [path for path in run.rglob(".*") if path.name != ".lock"], "left by a write that was killed"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("task", SCRIPTS)
def test_signals_in_the_work(task: str, number: signal.Signals, tmp_path: Path, cache: None) -> None:
    words = [*SCRIPTS[task], "--results-dir", str(tmp_path)]
    run, log = tmp_path / folder_of(task) / "run", tmp_path / "log"
    begun = time.monotonic()
    assert ended(script(task, [*words, "--run-name", "unbroken"], tmp_path / "unbroken.log")) == 0
    duration, moments = time.monotonic() - begun, random.Random(task)
    said = 0
    for share in (0.05, 0.3, 0.5, 0.7, 0.9)[: trials(5)]:
        one = which(run) if (run / "config.yaml").exists() else [*words, *which(run)]
        status = ended_or_signalled(script(task, one, log), share * duration * moments.uniform(0.5, 1), number)
        said += status != 0
        assert status in (0, 128 + number), log.read_text()
        assert len(errors(log)) == said, log.read_text()
    one = which(run) if (run / "config.yaml").exists() else [*words, *which(run)]
    assert ended(script(task, one, log)) == 0
    assert outcome(run) == outcome(tmp_path / folder_of(task) / "unbroken")


TYPED = {
    "pruning": ["pruning/run.py", *SCRIPTS["pruning"]],
    "rl": ["rl/train_sac_icm.py", *SCRIPTS["rl"]],
    "dqn": ["rl/train_dqn.py", *SCRIPTS["dqn"]],
    "vae": ["vae/train.py", *SCRIPTS["vae"]],
    "study": ["vae/study.py", "--config", "configs/vae/sweeps/study_claims.yaml", "--smoke-test"],
    "sweep": ["-m", "common.sweep", "configs/pruning/sweeps/study.yaml", "--smoke-test"],
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("task", TYPED)
def test_signals_in_the_first_second(task: str, number: signal.Signals, tmp_path: Path) -> None:
    """As typed. Python itself needs up to a tenth of a second before it runs a line of ours."""
    for moment in (0.3, 0.5, 0.7, 0.9, 1.1)[: trials(5)]:
        command = [sys.executable, *TYPED[task], "--results-dir", str(tmp_path)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(moment)
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 128 + number, said
        assert [line.split(":")[0] for line in said.splitlines()] == ["error"], said
        assert not list(tmp_path.rglob("*"))


def sweep_file(folder: Path) -> Path:
    settings = {word.lstrip("-").replace("-", "_"): value for word, value in zip(RL[::2], RL[1::2], strict=True)}
    settings = {name: yaml.safe_load(value) for name, value in settings.items()} | {"hidden": [8], "device": "cpu"}
    file = {"script": "rl/train_sac_icm.py", "seeds": 1, "shared": settings}
    file["arms"] = {"plain": {}, "decaying": {"bonus_decay": 0.5}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(file))
    return folder / "sweep.yaml"


RL = SCRIPTS["rl"]


def sweep(file: Path, results: Path, log: Path) -> int:
    """Starts the sweep in a process of its own, whose runs are started as typed."""
    from common.sweep.command import Sweep, main

    words = [str(file), "--results-dir", str(results), "--processes", "2"]
    return fork(lambda: cli.command(main, Sweep, words), log)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_sweep_that_is_stopped(number: signal.Signals, tmp_path: Path) -> None:
    file = sweep_file(tmp_path)
    begun = time.monotonic()
    assert ended(sweep(file, tmp_path / "unbroken", tmp_path / "unbroken.log")) == 0
    duration, moments = time.monotonic() - begun, random.Random(int(number))
    arms = [path.name for path in (tmp_path / "unbroken" / "rl").iterdir() if path.is_dir()]
    assert len(arms) == 2
    expected = {name: outcome(tmp_path / "unbroken" / "rl" / name) for name in arms}
    results, log = tmp_path / "out", tmp_path / "log"
    stopped = 0
    for _ in range(trials(20 if number == signal.SIGKILL else 5)):
        status = ended_or_signalled(sweep(file, results, log), moments.uniform(0.02, 1) * duration, number)
        assert status in (0, -number if number == signal.SIGKILL else 128 + number), log.read_text()
        if number != signal.SIGKILL and status:
            assert (results / "table.csv").exists() or not (results / "rl").exists(), log.read_text()
            stopped += 1
        assert len(errors(log)) == stopped, log.read_text()
        assert all(line.endswith("; the same command does what is missing") for line in errors(log)), log.read_text()
        if status == 0:
            shutil.rmtree(results)
    assert ended(sweep(file, results, log)) == 0, log.read_text()
    assert {name: outcome(results / "rl" / name) for name in arms} == expected
    rows = [line.split(",")[:3] for line in (results / "table.csv").read_text().splitlines()[1:]]
    assert {row[2] for row in rows} == {"finished"}


def study_file(folder: Path) -> Path:
    shared = {"arch": "fc", "hidden": [16], "epochs": 1, "latent": 2, "generated": 100, "nll_samples": 1}
    file = {"script": "vae/train.py", "dataset": "digits", "seeds": 1, "processes": 2, "shared": shared}
    (folder / "study.yaml").write_text(yaml.safe_dump(file | {"arms": {"plain": {}, "beta": {"beta": 4}}}))
    return folder / "study.yaml"


def test_a_study_that_is_killed(tmp_path: Path, cache: None) -> None:
    """Its runs are started as typed; the first study trains the classifier."""
    from vae.study import main
    from vae.study_settings import StudySettings

    words = ["--config", str(study_file(tmp_path)), "--results-dir", str(tmp_path), "--threads", "2"]

    def start(which: list[str], log: Path) -> int:
        return fork(lambda: cli.run(main, StudySettings, which if "--resume" in which else [*words, *which]), log)

    expected, seconds = unbroken(tmp_path / "vae", start)
    for study in killed(tmp_path / "vae", start, seconds, "study"):
        assert study_outcome(study) == study_outcome(expected)


def study_outcome(study: Path) -> dict[str, Any]:
    """Returns the study's figures and tables, and what its runs ended with."""
    metrics = json.loads((study / "metrics.json").read_text())
    runs = {path.parent.name: outcome(path.parent) for path in study.glob("runs/vae/*/metrics.json")}
    assert sorted(runs) == ["beta-seed0", "plain-seed0"]
    kept = {name: value for name, value in metrics.items() if name not in NOT_REPEATED}
    return {"metrics": kept, "tables": (study / "tables.md").read_text(), "runs": runs}
