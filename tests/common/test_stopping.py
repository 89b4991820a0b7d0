"""Signals: one line from the first import on, and the exit status that a shell expects."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from common import cli, stopping
from common.cli import RunSettings
from common.experiment import Run

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (stopping.Terminated(), 143)])
def test_the_work_ends_with_one_line(
    error: BaseException, status: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "going_on", "")

    def work() -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        cli.guarded(work)
    assert stop.value.code == status
    assert capsys.readouterr().err == (f"error: {'interrupted' if status == 130 else 'terminated'}; no run was begun\n")


def test_the_line_names_the_run_that_has_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "going_on", "")

    def work() -> None:
        Run(RunSettings(results_dir=tmp_path, run_name="a"), "task", "name", torch.device("cpu"))
        raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        cli.guarded(work)
    run = tmp_path / "task" / "a"
    expected = f"error: interrupted; --resume {run} goes on from its last checkpoint, if it has one\n"
    assert capsys.readouterr().err == expected


@pytest.mark.slow
@pytest.mark.usefixtures("ctrl_c")
def test_a_notebook_keeps_its_handlers() -> None:
    """A process of its own: in this one another test's library, Ray, may have set a handler."""
    notebook = (
        "import signal\n"
        "from common import cli, stopping\n"
        "from pruning import load\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
        "assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL\n"
    )
    subprocess.run([sys.executable, "-c", notebook], cwd=ROOT, check=True)


@pytest.mark.slow
@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_while_the_imports_run(number: signal.Signals, tmp_path: Path) -> None:
    """Stopped at its first import of torch, which it cannot finish: a folder of that name hides it and waits."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        f"import time, pathlib\npathlib.Path({str(tmp_path / 'here')!r}).touch()\ntime.sleep(600)\n"
    )
    command = [sys.executable, "vae/train.py"]
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "here").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == 128 + number
    assert said == f"error: {'interrupted' if number == signal.SIGINT else 'terminated'}\n"
