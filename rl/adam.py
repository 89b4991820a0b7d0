"""Adam (Kingma & Ba 2015) for networks so small that `torch.optim` takes longer to call the kernel than it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

BETAS, EPSILON = (0.9, 0.999), 1e-8  # Kingma & Ba's


class Adam:
    """torch's fused Adam on parameters in groups, each with its learning rate.

    `torch.optim.Adam` looks up, checks and groups every tensor and counts its steps at each step: 7 % of a whole SAC
    step of one agent on a CPU. Here the lists are made once, and all tensors share one count.
    """

    def __init__(self, *groups: tuple[Sequence[nn.Parameter], float]) -> None:
        self.parameters: list[Tensor] = [parameter for parameters, _ in groups for parameter in parameters]
        self._groups = [(len(parameters), rate) for parameters, rate in groups]
        self._means = [torch.zeros_like(parameter, requires_grad=False) for parameter in self.parameters]
        self._squares = [torch.zeros_like(parameter, requires_grad=False) for parameter in self.parameters]
        self.steps = torch.zeros((), device=self.parameters[0].device)

    def step(self, loss: Tensor) -> None:
        """Takes one step down `loss`; of a sum over agents, each agent's gradient is that of its own loss."""
        gradients = torch.autograd.grad(loss, self.parameters)
        self.steps += 1
        start = 0
        with torch.no_grad():
            for count, rate in self._groups:
                part = slice(start, start := start + count)
                torch._fused_adam_(
                    self.parameters[part],
                    list(gradients[part]),
                    self._means[part],
                    self._squares[part],
                    [],
                    [self.steps] * count,
                    lr=rate,
                    beta1=BETAS[0],
                    beta2=BETAS[1],
                    eps=EPSILON,
                    weight_decay=0.0,
                    amsgrad=False,
                    maximize=False,
                )

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that later steps depend on, but the parameters."""
        return {"means": self._means, "squares": self._squares, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` returned, copied into the tensors that are here.

        Raises:
            KeyError, ValueError, RuntimeError: the state is not one of these parameters.
        """
        for here, saved in ((self._means, state["means"]), (self._squares, state["squares"])):
            for tensor, other in zip(here, saved, strict=True):
                tensor.copy_(other)
        self.steps.copy_(state["steps"])
