"""Adam (Kingma & Ba 2015) for networks so small that `torch.optim` spends more time around its kernel than in it.

Equal to `torch.optim.Adam(fused=True)` to the last bit. `torch.optim` looks up, checks and groups every tensor and
counts its steps at each step: on a CPU 7 % of a whole SAC step of one agent, 4 % of a step of a small VAE. Here the
lists are made once, and all tensors share one count. With `TRILAB_PLAIN=1` the update is Algorithm 1 of the paper,
written out.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from common.fast import replaced_by

BETAS, EPSILON = (0.9, 0.999), 1e-8  # Kingma & Ba's


def fused_update(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    steps: Tensor,
    rate: float | Tensor,
    betas: tuple[float, float] = BETAS,
) -> None:
    """Does what `update` does, for all tensors in one call of torch's kernel."""
    if not parameters:
        return  # a module that has nothing to learn: the kernel refuses empty lists
    torch._fused_adam_(
        list(parameters),
        list(gradients),
        list(means),
        list(squares),
        [],
        [steps] * len(parameters),
        lr=rate,
        beta1=betas[0],
        beta2=betas[1],
        eps=EPSILON,
        weight_decay=0.0,
        amsgrad=False,
        maximize=False,
    )


@replaced_by(fused_update)
def update(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    steps: Tensor,
    rate: float | Tensor,
    betas: tuple[float, float] = BETAS,
) -> None:
    """Moves parameters and both moving averages, in place, by step number `steps` (Kingma & Ba 2015, Algorithm 1)."""
    beta1, beta2 = betas
    count = steps.double()  # 1 − β₂ of the first step has only four correct digits in float32
    for parameter, gradient, mean, square in zip(parameters, gradients, means, squares, strict=True):
        mean.copy_(beta1 * mean + (1 - beta1) * gradient)
        square.copy_(beta2 * square + (1 - beta2) * gradient.square())
        unbiased_mean, unbiased_square = mean / (1 - beta1**count), square / (1 - beta2**count)
        parameter.sub_(rate * unbiased_mean / (unbiased_square.sqrt() + EPSILON))


class Adam(torch.optim.Optimizer):
    """torch's fused Adam on parameters in groups, each with its learning rate (`param_groups[i]["lr"]`)."""

    # torch's decorator of it imports torch._dynamo: 2 seconds of every start, for a compiler that is not used
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)

    def __init__(self, *groups: tuple[Iterable[nn.Parameter], float], beta1: float = BETAS[0]) -> None:
        super().__init__([{"params": list(parameters), "lr": rate} for parameters, rate in groups], {})
        self.betas = beta1, BETAS[1]
        self.parameters: list[Tensor] = [parameter for group in self.param_groups for parameter in group["params"]]
        self._means = [torch.zeros_like(parameter, requires_grad=False) for parameter in self.parameters]
        self._squares = [torch.zeros_like(parameter, requires_grad=False) for parameter in self.parameters]
        self.steps = torch.zeros((), device=self.parameters[0].device)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__  # a copy has the moments too; torch's own optimisers keep them elsewhere

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets all gradients."""
        assert set_to_none
        for parameter in self.parameters:
            parameter.grad = None

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Takes one step down the gradients stored in the parameters.

        Raises:
            ValueError: a parameter has none.
        """
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if missing := len(self.parameters) - len(gradients):
            raise ValueError(f"{missing} of {len(self.parameters)} parameters have no gradient")
        self._update(gradients)

    def descend(self, loss: Tensor) -> None:
        """Takes one step down `loss`; no other tensor gets a gradient of it.

        If `loss` is a sum over agents, each agent's gradient is that of its own loss.
        """
        self._update(torch.autograd.grad(loss, self.parameters))

    @torch.no_grad()
    def _update(self, gradients: Sequence[Tensor]) -> None:
        self.steps += 1
        start = 0
        for group in self.param_groups:
            part = slice(start, start := start + len(group["params"]))
            update(
                self.parameters[part],
                gradients[part],
                self._means[part],
                self._squares[part],
                self.steps,
                group["lr"],
                self.betas,
            )

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that later steps depend on, except the parameters and the learning rates."""
        return {"means": self._means, "squares": self._squares, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copies what `state_dict` returned into this optimizer's own tensors.

        Raises:
            KeyError, ValueError, RuntimeError: the state is not one of these parameters.
        """
        for here, saved in ((self._means, state["means"]), (self._squares, state["squares"])):
            for tensor, other in zip(here, saved, strict=True):
                tensor.copy_(other)
        self.steps.copy_(state["steps"])
