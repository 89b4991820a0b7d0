"""Locks on folders, between processes."""

import os
from pathlib import Path

from common.locks import is_locked, lock


def in_another_process(folder: Path) -> bool:
    """Returns whether another process finds the folder locked."""
    process = os.fork()
    if not process:
        os._exit(10 if is_locked(folder) and lock(folder) is None else 20)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 10


def test_a_lock_is_seen_by_others_until_it_is_closed(tmp_path: Path) -> None:
    assert not in_another_process(tmp_path)
    held = lock(tmp_path)
    assert held is not None
    assert in_another_process(tmp_path)
    held.close()
    assert not in_another_process(tmp_path)
