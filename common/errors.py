"""The two expected ways a run may fail; `cli.run` prints either as one line, without a traceback."""

from collections.abc import Sequence


class RunError(Exception):
    """Something outside the code is wrong: a damaged file, a missing GPU, a loss that became NaN. Exit status 1."""

    exit_status = 1


class DamagedError(RunError):
    """A file is missing, cut off or changed; an older one may be whole. Exit status 1."""


class UsageError(RunError):
    """The command line or the YAML preset asks for something that does not exist. Exit status 2."""

    exit_status = 2


def require_shape(name: str, found: Sequence[int], expected: Sequence[int], axis: str = "N") -> None:
    """Refuses values of another shape than `(axis, *expected)`, such as one image without the axis of the images.

    Raises:
        UsageError: the shape is another one.
    """
    if len(found) != 1 + len(expected) or tuple(found[1:]) != tuple(expected):
        wanted = ", ".join(map(str, (axis, *expected)))
        raise UsageError(f"{name} must have the shape ({wanted}), not {tuple(found)}")
