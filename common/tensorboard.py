"""A run's event file for TensorBoard."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter


def _thread_ended(args: threading.ExceptHookArgs, otherwise: Any = threading.excepthook) -> None:
    """Says nothing of a file that TensorBoard's own thread cannot write: the next call of the writer raises it."""
    if not (issubclass(args.exc_type, OSError) and type(args.thread).__module__.startswith("tensorboard.")):
        otherwise(args)


threading.excepthook = _thread_ended


class EventFile:
    """TensorBoard's writer. Where the disk is full, its own error names no file: here it names the run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.writer = folder, SummaryWriter(str(folder))

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.filename is None and error.errno is not None:
                error.filename = str(self.folder)
            raise

    def scalars(self, stage: str, step: int, scalars: Mapping[str, float]) -> None:
        """Adds the scalars as `<stage>/<name>`."""
        with self._named():
            for name, value in scalars.items():
                self.writer.add_scalar(f"{stage}/{name}", value, step)

    def flush(self) -> None:
        """Writes to the disk what was added."""
        with self._named():
            self.writer.flush()

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        """Adds a histogram of all the values."""
        with self._named():
            self.writer.add_histogram(tag, values.detach().float().cpu().numpy(), step)

    def image(self, name: str, pixels: NDArray[np.uint8], step: int | None = None) -> None:
        """Adds an image of `(H, W, C)` pixels."""
        with self._named():
            self.writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self, settings: Mapping[str, Any], headline: Mapping[str, float]) -> None:
        """Adds hparams, the settings beside the `headline` metrics, and ends the file."""
        plain = {k: v if isinstance(v, bool | int | float) else str(v) for k, v in settings.items()}
        with self._named():
            self.writer.add_hparams(plain, dict(headline), run_name=".")
            self.writer.close()
