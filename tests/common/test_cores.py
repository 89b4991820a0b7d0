"""How many threads a run takes beside other processes, and that it keeps its number."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from common import cores
from common.cli import RunSettings
from common.device import free_threads, set_up
from common.experiment import Run


def test_free_cores_are_those_that_others_did_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "allowed", lambda: {0, 1, 2, 3})
    # In 10 seconds 25 CPU seconds were used, 8 of them by this process: others kept 1.7 of 4 cores busy.
    assert cores.free((100.0, 1000.0, 2.0), (110.0, 1025.0, 10.0)) == pytest.approx(2.3)
    # The clocks of both sums differ by hundredths: never more free cores than there are.
    assert cores.free((100.0, 1000.0, 2.0), (110.0, 1008.0, 10.5)) == 4
    assert cores.free((100.0, 1000.0, 2.0), (100.1, 1000.2, 2.1)) is None
    assert cores.free(None, (110.0, 1025.0, 10.0)) is None


def test_times_are_those_of_the_allowed_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "allowed", lambda: {1, 12})
    text = "cpu 9 9 9 9 9 9 9 9 0 0\n" + "".join(
        f"cpu{core} {100 * core} 1 2 5000 6000 3 4 5 0 0\n" for core in (0, 1, 2, 11, 12)
    )
    (tmp_path / "stat").write_text(text + "intr 1 2 3\nctxt 5\n")
    times = cores.cpu_times(str(tmp_path / "stat"))
    assert times is not None
    assert times[1] == pytest.approx((100 + 1200 + 2 * (1 + 2 + 3 + 4 + 5)) / os.sysconf("SC_CLK_TCK"))
    assert cores.cpu_times(str(tmp_path / "none")) is None


@pytest.mark.parametrize(("free", "expected"), [(4.0, None), (3.6, None), (3.4, 3), (1.2, 1), (-0.1, 1), (None, None)])
def test_threads_are_as_many_as_free_cores(
    free: float | None, expected: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cores, "allowed", lambda: {0, 1, 2, 3})
    monkeypatch.setattr(cores, "free", lambda: free)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert free_threads() == expected
    said = capsys.readouterr().err
    assert said.startswith(f"{expected} of 4 CPU threads, since other processes keep" if expected else "")
    assert bool(said) == bool(expected)


def test_a_chosen_number_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(cores, "free", lambda: 1.0)
    set_up("cpu", 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    set_up("cpu")
    monkeypatch.delenv("OMP_NUM_THREADS")
    set_up("cpu")
    assert chosen == [3, 1]


def test_a_resumed_run_keeps_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = [2]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: threads.__setitem__(0, count))
    run = Run(RunSettings(results_dir=tmp_path, run_name="a"), "task", "name", torch.device("cpu"))
    run._lock_file.close()  # type: ignore[union-attr]
    assert json.loads((run.checkpoints / "progress.json").read_text())["threads"] == 2
    threads[0] = 1  # the machine is busy now
    Run(RunSettings(resume=run.path), "task", "name", torch.device("cpu"))
    assert threads == [2]
