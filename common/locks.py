"""A lock on a folder, so that two processes never write one run or one sweep."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO


def lock(folder: Path) -> IO[str] | None:
    """Returns a lock on `folder` against other processes, until it is closed or this process ends, however it ends.

    None where another process has it.

    Raises:
        OSError: the folder is not writable.
    """
    file = (folder / ".lock").open("a")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        return None
    except OSError:
        pass  # a file system without locks
    return file


def is_locked(folder: Path) -> bool:
    """Whether another process has a lock on `folder`."""
    if not (folder / ".lock").exists():
        return False
    try:
        held = lock(folder)
    except OSError:
        return False
    if held is not None:
        held.close()
    return held is None
