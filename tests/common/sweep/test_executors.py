"""How many runs and threads this machine takes. What the local executor does with jobs is tested in test_jobs.py."""

import pytest
from joblib import cpu_count

from common.sweep.executors import runs_at_once, threads_each


def test_on_a_cpu_a_run_a_core_also_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert [runs_at_once(None, "auto"), runs_at_once(3, "auto"), runs_at_once(None, "cpu")] == [1, 3, cpu_count()]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert runs_at_once(None, "auto") == cpu_count()


@pytest.mark.parametrize(("free", "threads"), [(None, cpu_count()), (1, 1)])
def test_the_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch, free: int | None, threads: int) -> None:
    monkeypatch.setattr("common.sweep.executors.free_threads", lambda: free)
    threads_each.cache_clear()
    assert threads_each(None, 1) == threads  # one run at a time beside other processes
    assert threads_each(None, 1000) == 1
    assert threads_each(3, 1000) == 3
    threads_each.cache_clear()
