"""The decoder with weights of 8 bits against torch's, and the file that holds it, whole and damaged."""

import base64
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.vae.planes import fully_connected, plane_of, posteriors
from vae import plane
from vae.distil import own_layers
from vae.plane import Layer, Plane, quantised

STEEPEST = {"identity": 1.0, "relu": 1.0, "silu": 1.1}  # the largest slope of an activation
ACTS = [nn.ReLU(), nn.SiLU(), nn.Identity()]


def bound(weights: list[Tensor], biases: list[Tensor], layers: list[Layer], codes: Tensor) -> Tensor:
    """Returns how far a pixel of the rounded decoder can be from the true one's, `(B, 784)`, float64.

    A weight is off by at most half of its row's scale s. If the inputs x are off by at most e, then W x is off by at
    most |W| e + s/2 · Σ (|x| + e), and an activation makes at most its largest slope times that. That of the sigmoid
    is 1/4.
    """
    values, off = codes.double(), torch.zeros_like(codes, dtype=torch.float64)
    for weight, bias, layer in zip(weights, biases, layers, strict=True):
        scale = weight.double().abs().amax(1) / plane.LEVELS
        off = off @ weight.double().abs().T + (values.abs() + off).sum(1, keepdim=True) * scale / 2
        values = plane.ACTIVATIONS[layer.activation](values @ weight.double().T + bias.double())
        off = off * STEEPEST[layer.activation]
    return off / 4


@settings(max_examples=25, deadline=None)
@given(
    latent=st.integers(1, 6),
    widths=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    act=st.sampled_from(ACTS),
    spread=st.floats(0.1, 5),
    seed=st.integers(0, 1000),
)
def test_pixels_are_within_the_rounding_of_torchs(
    latent: int, widths: list[int], act: nn.Module, spread: float, seed: int
) -> None:
    torch.manual_seed(seed)
    model = fully_connected(latent, tuple(widths), act, spread=spread)
    layers = own_layers(model)
    assert layers is not None
    codes = 2 * torch.randn(20, latent)
    linears = [of for of in (model.from_code, *model.decoder) if isinstance(of, nn.Linear)]
    allowed = bound([of.weight for of in linears], [of.bias for of in linears], layers, codes)
    starts = [plane.Start(0, [0.0] * latent)]
    rounded = Plane(1, 0.0, 1.0, 3.0, False, 0.0, [plane.Dimension(0, 1.0)], layers, starts, "", "")
    difference = (rounded.decode(codes) - model.decode(codes).sigmoid().flatten(1)).abs()
    assert (difference <= allowed + 1e-5).all()  # float32's own rounding


def test_a_weight_is_off_by_half_a_step_at_most() -> None:
    weight = torch.randn(5, 7) * torch.tensor([1e-6, 1e-2, 1, 1e3, 0])[:, None]
    steps = weight.abs().amax(1) / 127
    layer = quantised(weight, torch.zeros(5), "identity")
    assert ((layer.weight - weight).abs() <= steps[:, None] * 0.5001).all()
    assert layer.weight[4].eq(0).all()


def test_read_returns_what_was_written(tmp_path: Path) -> None:
    made = plane_of(fully_connected(3, (8,), nn.SiLU()))
    plane.write(tmp_path / "plane.json", made)
    assert plane.read(tmp_path / "plane.json") == made


def test_it_holds_the_codes_of_test_images_by_class() -> None:
    means, _, labels = posteriors(2)
    made = plane_of(fully_connected(2, (8,), nn.ReLU()))
    points = torch.frombuffer(bytearray(base64.b64decode(made.points)), dtype=torch.float32).view(-1, 2)
    assert torch.equal(points, means)
    assert made.labels == "".join(map(str, labels.tolist()))
    assert [start.label for start in made.starts] == list(range(10))
    assert made.starts[4].code == pytest.approx(means[4].tolist(), rel=1e-4)


def put(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Returns the change that sets an entry of the file, the last of `path`."""
    *keys, last, value = path

    def change(content: Any) -> None:
        for key in keys:
            content = content[key]
        content[last] = value

    return change


NAN = base64.b64encode(torch.full((784,), torch.nan).numpy().tobytes()).decode()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (put("version", 2), "version"),
        (put("reach", "</script><script>alert(1)</script>"), "reach"),
        (put("reach", float("nan")), "finite"),
        (put("reach", -1), "width"),
        (put("prior_std", 0), "width"),
        (put("error", float("inf")), "finite"),
        (put("layers", []), "layers"),
        (put("layers", 0, "outputs", 9), "bytes"),
        (put("layers", 0, "outputs", 10**9), "outputs"),
        (put("layers", 0, "activation", "alert"), "activation"),
        (put("layers", 1, "biases", NAN), "finite"),
        (put("layers", 1, "biases", "<script>"), "layers/1"),
        (put("layers", 0, "levels", "é"), "layers/0"),
        (put("labels", "<b>"), "labels"),
        (put("labels", "123"), "bytes"),
        (put("labels", "1" * 5000), "labels"),
        (put("points", "AAAA"), "bytes"),
        (put("dimensions", 0, "index", 2), "dimension"),
        (put("dimensions", 1, "index", 0), "dimension"),
        (put("dimensions", [{"index": 0, "kl": 1.0}] * 5), "dimensions"),
        (put("starts", 0, "code", [1.0]), "length"),
        (put("starts", 0, "label", 10), "label"),
        (put("starts", []), "starts"),
        (lambda content: content["layers"].reverse(), "layer"),
        (lambda content: content["layers"].pop(), "outputs"),
        (lambda content: content.pop("points"), "points"),
    ],
)
def test_damage_is_told_in_one_line(change: Callable[[Any], Any], told: str, tmp_path: Path) -> None:
    content = dataclasses.asdict(plane_of(fully_connected(2, (8,), nn.ReLU())))
    change(content)
    path = tmp_path / "plane.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=told) as error:
        plane.read(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"\xff\xfe", b"[" * 100_000, b" " * 500_000])
def test_what_is_no_such_file_is_told(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "plane.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"JSON|object|larger|instance|Plane"):
        plane.read(path)


def test_a_pipe_or_a_folder_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match="no file"):
            plane.read(path)
