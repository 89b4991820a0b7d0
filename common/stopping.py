"""Ctrl-C and SIGTERM end a script with one line, also in the seconds in which its imports run.

`common/__init__.py` imports this file, which watches where a script of this project was started. A script that
imports torch before `common` imports this file first of all. `import common` in somebody's notebook changes nothing.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` takes longer to import than this file
    from types import FrameType
    from typing import Any

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}  # 128 + the signal's number, as a shell reports it
_ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))  # pathlib takes longer to import
_received: list[int] = []
going_on = ""  # how a person goes on with what this process has begun, once there is something


class Terminated(KeyboardInterrupt):
    """SIGTERM: what a batch system sends before it kills, and `kill` without a number."""


def watch() -> None:
    """From now on a signal ends this process at once, with one line: nothing has begun that could be half done."""
    _set(_quit)


def begin_work() -> None:
    """From now on the first signal raises KeyboardInterrupt or Terminated, so that what is open can be closed.

    A second one ends the process at once. Does nothing in a process that does not `watch`.
    """
    if signal.getsignal(signal.SIGTERM) is _quit:
        _set(_raise)


def end_work() -> None:
    """Back to `watch`: nothing is open any more. Does nothing where `begin_work` did nothing."""
    if signal.getsignal(signal.SIGTERM) is _raise:
        _set(_quit)


def status_of(error: BaseException) -> int | None:
    """Returns the exit status that a signal asks for, if `error` is the end of work that a signal stopped, else None.

    A library may turn the exception of a signal into its own: an import that was under way, for instance.
    """
    if _received:
        return STATUS[signal.Signals(_received[0])]
    if isinstance(error, KeyboardInterrupt):
        return STATUS[signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT]
    return None


def word(status: int) -> str:
    """Returns what the one line calls a stop with this exit status."""
    return "terminated" if status == STATUS[signal.SIGTERM] else "interrupted"


def _set(handler: Any) -> None:
    for number in STATUS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell's background jobs ask for
            signal.signal(number, handler)


def _quit(number: int, frame: FrameType | None) -> None:
    status = STATUS[signal.Signals(number)]
    os.write(2, f"error: {word(status)}\n".encode())
    os._exit(status)


def _raise(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    _set(_quit)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def is_script() -> bool:
    """Whether this process was started as a script of this checkout, or as `python -m common.…`."""
    if sys.argv[:1] == ["-m"]:  # so it is called until the module of `python -m` is found, which is below `common`
        return True
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    if file is None:
        return False
    folder = os.path.relpath(os.path.realpath(file), _ROOT).split(os.sep)[0]
    return folder in ("common", "pruning", "rl", "vae")


if is_script():
    watch()
