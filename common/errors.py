"""The two expected ways a run may fail; `cli.run` prints either as one line, without a traceback."""


class RunError(Exception):
    """Something outside the code is wrong: a damaged file, a missing GPU, a loss that became NaN. Exit status 1."""

    exit_status = 1


class DamagedError(RunError):
    """A file is missing, cut off or changed; an older one may be whole. Exit status 1."""


class UsageError(RunError):
    """The command line or the YAML preset asks for something that does not exist. Exit status 2."""

    exit_status = 2
