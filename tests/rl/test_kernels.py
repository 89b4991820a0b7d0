"""The compiled loops against the same steps one by one in torch, for both number formats, NaN included."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from common.fast.loops import array
from rl import kernels

NETWORKS, BATCH, UNITS = 2, 7, 37  # units that do not fill whole vector registers
FORMATS = [torch.float32, torch.bfloat16]


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("of_product", FORMATS)
def test_activate(of_product: torch.dtype, dtype: torch.dtype) -> None:
    product, bias = normal(NETWORKS, BATCH, UNITS, dtype=of_product), normal(NETWORKS, 1, UNITS)
    product[0, 0, 0], product[1, 2, 3], product[1, 2, 4] = torch.nan, torch.inf, -torch.inf
    out = torch.full(product.shape, 7.0, dtype=dtype)
    kernels.activate(*map(array, (product, bias, out)))
    expected = (product.float() + bias).relu().to(dtype)
    assert out[0, 0, 0].isnan()
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("of_product", FORMATS)
def test_read_out_and_its_gradients(of_product: torch.dtype, outputs: int) -> None:
    product = normal(NETWORKS, BATCH, UNITS, dtype=of_product)
    bias, weight, last_bias = normal(NETWORKS, 1, UNITS), normal(NETWORKS, outputs, UNITS), normal(NETWORKS, 1, outputs)
    out, gradient = torch.empty(NETWORKS, BATCH, outputs), normal(NETWORKS, BATCH, outputs)
    kernels.read_out(*map(array, (product, bias, weight, last_bias, out)))

    inputs = [tensor.float().requires_grad_() for tensor in (product.clone(), bias.clone(), weight.clone())]
    expected = torch.bmm((inputs[0] + inputs[1]).relu(), inputs[2].transpose(1, 2)) + last_bias
    torch.testing.assert_close(out, expected.detach(), rtol=1e-4, atol=1e-5)

    for_product, for_bias, for_weight = torch.autograd.grad(expected, inputs, gradient)
    into = torch.full_like(product, 7.0)
    of_weight, of_bias = torch.full_like(weight, 7.0), torch.full_like(bias, 7.0)
    given_arrays = [array(tensor) for tensor in (product, bias, weight, gradient, into, of_weight, of_bias)]
    kernels.read_out_back(*given_arrays, False)
    torch.testing.assert_close(into, for_product.to(of_product))
    assert (of_weight == 7).all()
    assert (of_bias == 7).all()
    kernels.read_out_back(*given_arrays, True)
    torch.testing.assert_close(into, for_product.to(of_product))
    torch.testing.assert_close(of_weight, for_weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(of_bias, for_bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("of_gradient", FORMATS)
def test_through_relu(of_gradient: torch.dtype, dtype: torch.dtype) -> None:
    gradient = normal(NETWORKS, BATCH, UNITS, dtype=of_gradient)
    activation = normal(NETWORKS, BATCH, UNITS).relu().to(of_gradient)
    activation[0, 0, 0] = torch.nan  # lets the gradient through, as torch's ReLU does
    out, for_bias = torch.full(gradient.shape, 7.0, dtype=dtype), torch.full((NETWORKS, 1, UNITS), 7.0)
    expected = gradient.float().where(activation != 0, 0.0)
    kernels.through_relu(*map(array, (gradient, activation, out, for_bias)), True)
    torch.testing.assert_close(out, expected.to(dtype), rtol=0, atol=0)
    torch.testing.assert_close(for_bias, expected.sum(1, keepdim=True))


@given(st.lists(st.floats(width=32), min_size=1, max_size=40))
def test_numbers_are_rounded_as_torch_rounds_them(values: list[float]) -> None:
    product = torch.tensor(values).view(1, 1, -1)
    out = torch.empty(product.shape, dtype=torch.bfloat16)
    kernels.activate(product.numpy(), np.zeros((1, 1, len(values)), np.float32), array(out))
    torch.testing.assert_close(out, product.relu().to(torch.bfloat16), rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow
def test_a_cache_that_cannot_be_used_is_done_without(tmp_path: Path) -> None:
    """Missing, written, cut off, and in a place where nothing can be written."""
    program = (
        "import numpy as np; from rl import kernels; out = np.zeros((1, 2, 3), np.float32)\n"
        "kernels.activate(out + 1, np.ones((1, 1, 3), np.float32), out); print(out.sum(), kernels.activate.cached)"
    )

    def said(folder: Path) -> str:
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert said(tmp_path / "cache") == "12.0 True"
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert files
    assert said(tmp_path / "cache") == "12.0 True"
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    assert said(tmp_path / "cache") == "12.0 False"
    assert said(Path("/proc/nowhere")).startswith("12.0 ")
