"""Sides of a comparison as processes that wait for their turn: each has its own memory and its own warm state."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn


class Side:
    """A process that runs one round of one side each time it is told to."""

    def __init__(self, command: Sequence[str], *, quiet: bool = False) -> None:
        """Starts `command`, whose process calls `serve`; `quiet` drops what it says on standard error."""
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else None,
            text=True,
            env={**os.environ, "TQDM_DISABLE": "1"},  # the progress bars of others
        )

    def start(self) -> None:
        """Tells the process to run a round."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self._stopped()

    def result(self) -> dict[str, float]:
        """Waits for the round's end and returns its figures."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):
                return dict(json.loads(line))
        return self._stopped()

    def _stopped(self) -> NoReturn:
        command = " ".join(map(str, self.process.args))
        raise SystemExit(
            f"error: a side of the comparison stopped: {command}\n"
            "run it alone to see why; pip install -e '.[bench]' brings the other libraries"
        )

    def round(self) -> dict[str, float]:
        """Returns the figures of one more round."""
        self.start()
        return self.result()

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve(measure: Callable[[], dict[str, float]]) -> None:
    """In a side's own process: one `measure()` for every line on standard input, its figures to standard output."""
    for _ in sys.stdin:
        print(json.dumps(measure()), flush=True)
