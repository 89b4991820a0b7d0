"""A decoder small enough to lie in the report page: the file that holds it, how it is written, read and checked.

The page shows the newest models with a decoder that runs in the reader's browser (`vae/plane.js`). A run writes it at
its end to `plane.json`: the layers with weights of 8 bits, codes of test images by class, and the dimensions of the
code that a reader moves. One model takes less than 500 KB of the page, in base64: at most about 350 K weights.

The decoder itself is written where it is fully connected and fits, as that of `--hidden 400`. The default decoders do
not: `fc` has 533 K weights, `conv` 0.8 M and convolutions. At 4 bits `fc` would fit, coarsely, and `conv` would not. So
they are distilled into a fully connected network of a quarter of a million weights, see `vae/distil.py`. The page says
that it shows a copy. In both cases `error` is measured and shown: the mean absolute difference of a pixel in [0, 1]
from the true decoder at fresh codes, the rounding to 8 bits included.
"""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Interval, MaxLen, MinLen
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from common.files import write_atomically
from vae.models import SIDE

FILE = "plane.json"
LIMIT = 480_000  # bytes of the file; the page adds a title and a caption, and stays below 500 KB
LEVELS = 127  # a weight is a whole number from −127 to 127 times its row's scale
POINTS = 2000  # codes of test images that the page draws at most
MOVED = 4  # dimensions of the code that a reader can move at most
PIXELS = SIDE * SIDE

Activation = Literal["relu", "silu", "identity"]
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "identity": lambda values: values,
}
Width = Annotated[int, Interval(ge=1, le=8192)]


@dataclasses.dataclass(frozen=True)
class Layer:
    """y = act(scale · (levels x) + bias). Arrays are base64, little-endian, row by row."""

    inputs: Width
    outputs: Width
    activation: Activation
    levels: str  # int8, (outputs, inputs)
    scales: str  # float32, (outputs,)
    biases: str  # float32, (outputs,)

    def __post_init__(self) -> None:
        """Raises ValueError where an array has another size, or a number that is not finite."""
        _array(self.levels, torch.int8, self.inputs * self.outputs)
        _array(self.scales, torch.float32, self.outputs)
        _array(self.biases, torch.float32, self.outputs)

    @property
    def weight(self) -> Tensor:
        """The weights `(outputs, inputs)` that the layer stands for, in float64."""
        levels = _array(self.levels, torch.int8, self.inputs * self.outputs).double().view(self.outputs, self.inputs)
        return levels * _array(self.scales, torch.float32, self.outputs).double()[:, None]

    def __call__(self, values: Tensor) -> Tensor:
        """Returns `(B, outputs)` for `(B, inputs)`, both float64."""
        bias = _array(self.biases, torch.float32, self.outputs).double()
        return ACTIVATIONS[self.activation](values @ self.weight.T + bias)


@dataclasses.dataclass(frozen=True)
class Dimension:
    """A dimension of the code that a reader can move, counted from 0, and its mean KL in nats."""

    index: Annotated[int, Interval(ge=0, le=8191)]
    kl: float


@dataclasses.dataclass(frozen=True)
class Start:
    """A test image's class, and the mean of its posterior."""

    label: Annotated[int, Interval(ge=0, le=9)]
    code: list[float]


@dataclasses.dataclass(frozen=True)
class Plane:
    """What the page needs of a model."""

    version: Literal[1]
    prior_mean: float
    prior_std: float
    reach: float  # how far from the prior's mean a reader can move each dimension
    copied: bool  # whether it is a distilled copy of the decoder
    error: float  # mean absolute difference of a pixel in [0, 1] from the true decoder
    dimensions: Annotated[list[Dimension], MinLen(1), MaxLen(MOVED)]
    layers: Annotated[list[Layer], MinLen(1), MaxLen(16)]
    starts: Annotated[list[Start], MinLen(1), MaxLen(10)]
    labels: Annotated[str, MaxLen(POINTS)]  # a digit for each point
    points: str  # float32, (points, 2): codes of test images, none if the code has more dimensions

    def __post_init__(self) -> None:
        """Raises ValueError where parts contradict each other."""
        numbers = [self.prior_mean, self.prior_std, self.reach, self.error, *(of.kl for of in self.dimensions)]
        numbers += [value for start in self.starts for value in start.code]
        if not all(map(math.isfinite, numbers)):
            raise ValueError("a number is not finite")
        if self.prior_std <= 0 or self.reach <= 0:
            raise ValueError("the prior has no width")
        if any(of.inputs != before.outputs for before, of in itertools.pairwise(self.layers)):
            raise ValueError("a layer does not fit the one before it")
        if self.layers[-1].outputs != PIXELS:
            raise ValueError(f"the last layer has {self.layers[-1].outputs} outputs, not {PIXELS}")
        indices = {of.index for of in self.dimensions}
        if len(indices) < len(self.dimensions) or max(indices) >= self.latent:
            raise ValueError("a dimension that the code does not have")
        if any(len(start.code) != self.latent for start in self.starts):
            raise ValueError("a code of another length")
        if re.search(r"[^0-9]", self.labels) or (self.labels and self.latent != 2):
            raise ValueError("labels that are no digits")
        _array(self.points, torch.float32, 2 * len(self.labels))

    @property
    def latent(self) -> int:
        """Dimensions of the code."""
        return self.layers[0].inputs

    def decode(self, codes: Tensor) -> Tensor:
        """Returns the pictures `(B, 784)` in [0, 1], float64, of codes `(B, latent)`, as the page computes them."""
        values = codes.cpu().double()
        for layer in self.layers:
            values = layer(values)
        return values.sigmoid()


def quantised(weight: Tensor, bias: Tensor, activation: Activation) -> Layer:
    """Returns a layer whose weights differ from `weight` `(outputs, inputs)` by at most half of their row's scale."""
    weight = weight.detach().float().cpu()
    largest = weight.abs().amax(1)
    scales = torch.where(largest > 0, largest / LEVELS, 1.0)
    levels = (weight / scales[:, None]).round().clamp(-LEVELS, LEVELS).to(torch.int8)
    outputs, inputs = weight.shape
    texts = map(as_base64, (levels, scales, bias.detach().float().cpu()))
    return Layer(inputs, outputs, activation, *texts)


# -- the file ---------------------------------------------------------------------------------------------------------


def write(path: Path, plane: Plane) -> None:
    """Writes the file that `read` reads."""
    write_atomically(path, _text(plane).encode())


def read(path: Path) -> Plane:
    """Returns what `write` wrote.

    Raises:
        ValueError: it cannot be read, is too large, or damaged in some other way; one line says why.
    """
    try:
        if not path.is_file():
            raise ValueError("no file")
        with path.open("rb") as file:
            content = file.read(LIMIT + 1)
        if len(content) > LIMIT:
            raise ValueError(f"larger than {LIMIT:,} bytes")
        return TypeAdapter(Plane).validate_json(content, strict=True)
    except OSError as error:
        raise ValueError(error.strerror) from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = "/".join(map(str, first["loc"]))[:60]
        raise ValueError(f"{where}: {first['msg'][:200]}" if where else first["msg"][:200]) from None


def fits(plane: Plane) -> bool:
    """Returns whether the file is small enough to be read again."""
    return len(_text(plane)) <= LIMIT


def _text(plane: Plane) -> str:
    return json.dumps(dataclasses.asdict(plane), separators=(",", ":"))


def as_base64(values: Tensor) -> str:
    """Returns the bytes of a tensor on the CPU, row by row."""
    return base64.b64encode(values.contiguous().numpy().tobytes()).decode()


def _array(text: str, kind: torch.dtype, count: int) -> Tensor:
    content = bytearray(base64.b64decode(text, validate=True))
    if len(content) != count * kind.itemsize:
        raise ValueError(f"{len(content)} bytes in place of {count * kind.itemsize}")
    values = torch.frombuffer(content, dtype=kind) if content else torch.empty(0, dtype=kind)
    if not values.isfinite().all():
        raise ValueError("a number is not finite")
    return values
