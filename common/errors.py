"""The expected ways a run may fail, and the one line that `cli.run` prints of them, without a traceback."""

from collections.abc import Sequence

import torch


class RunError(Exception):
    """Something outside the code is wrong: a damaged file, a missing GPU, a loss that became NaN. Exit status 1."""

    exit_status = 1


class DamagedError(RunError):
    """A file is missing, cut off or changed; an older one may be whole. Exit status 1."""


class UsageError(RunError):
    """The command line or the YAML preset asks for something that does not exist. Exit status 2."""

    exit_status = 2


def in_one_line(error: BaseException) -> str | None:
    """Returns what the user is told of a failure that is expected; None for any other: a bug keeps its traceback."""
    match error:
        case RunError():
            return str(error)
        case torch.OutOfMemoryError():
            return f"out of memory on the device: {str(error).splitlines()[0]} Lower --batch-size."
        case MemoryError():
            return "out of memory. Ask for less: a smaller batch, say."
        case RuntimeError() if "DefaultCPUAllocator" in str(error):  # torch has no class for a lack of CPU memory
            reason = str(error).splitlines()[0].split("] ")[-1]
            return f"out of memory: {reason} Ask for less: a smaller batch, say."
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            return f"{where}{error.strerror or error}. What was already written is intact."
    return None


def require_shape(name: str, found: Sequence[int], expected: Sequence[int], axis: str = "N") -> None:
    """Refuses values of another shape than `(axis, *expected)`, such as one image without the axis of the images.

    Raises:
        UsageError: the shape is another one.
    """
    if len(found) != 1 + len(expected) or tuple(found[1:]) != tuple(expected):
        wanted = ", ".join(map(str, (axis, *expected)))
        raise UsageError(f"{name} must have the shape ({wanted}), not {tuple(found)}")
