"""How much faster is VGG11 with fewer filters? Forward passes and training steps beside the whole network, in turn.

`python benchmarks/filter_speed.py --threads 1` takes untrained networks: the time does not depend on the weights. Every
layer loses the same share of its filters. A ratio is the median over the rounds, with its quartiles in brackets.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from torch import Tensor

from common import cli
from common.device import autocast, set_up
from common.timing import in_turn, quartiles
from pruning import account
from pruning.vgg import CLASSES, VGG11, full_widths

WHOLE = "whole"


@dataclasses.dataclass(frozen=True)
class Options:
    """Times networks with fewer filters beside the whole one: a float32 forward pass, and a step of the training."""

    gone: tuple[Annotated[float, Ge(0), Lt(1)], ...] = (0.25, 0.375, 0.5)
    """Shares of each layer's filters that are gone."""
    multiple_of: int = 1
    """Widths are rounded to a multiple of this number."""
    batch_size: int = 128
    """Images in a training step, and in the larger of the two batches of the forward pass."""
    seconds: float = 20.0
    """Seconds for each of the three measurements."""
    threads: int | None = None
    """CPU threads; none means one for each core that is free."""
    device: str = "auto"
    """auto, cpu or cuda."""
    output: Path | None = None
    """JSON file to write the results to."""


def widths(gone: float, multiple_of: int) -> list[int]:
    """Returns the widths of the eight convolutions without the share `gone` of the filters."""
    return [max(1, round((1 - gone) * width / multiple_of)) * multiple_of for width in full_widths()]


def training_step(network: VGG11, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """Returns a step of SGD with Nesterov momentum on the same images, in the precision of `pruning/train.py`."""
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, nesterov=True, fused=True)

    def step() -> None:
        network.train()
        with autocast(images.device, "auto"):
            loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()

    return step


def main(options: Options) -> None:
    """Times the networks and prints a line for each, with the ratios to the whole network."""
    device = set_up(options.device, options.threads)
    smaller = {f"{100 * gone:g} % gone": widths(gone, options.multiple_of) for gone in options.gone}
    networks = {name: VGG11(widths=of).to(device) for name, of in {WHOLE: None, **smaller}.items()}
    images = torch.randn(options.batch_size, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (options.batch_size,), device=device)
    steps = {name: training_step(network, images, labels) for name, network in networks.items()}
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads")
    times = {
        "batch of 1": account.seconds_of(networks, images[:1], options.seconds),
        f"batch of {options.batch_size}": account.seconds_of(networks, images, options.seconds),
        "training step": in_turn(steps, device, options.seconds),
    }
    figures: dict[str, dict[str, list[float]]] = {}
    for name in networks:
        line, figures[name] = f"{name:12}", {}
        for what, seconds in times.items():
            ratios = [whole / own for whole, own in zip(seconds[WHOLE], seconds[name], strict=True)]
            middle, (low, high) = statistics.median(ratios), quartiles(ratios)
            figures[name][what] = [statistics.median(seconds[name]), middle, low, high]
            line += f"  {what} {1000 * figures[name][what][0]:7.2f} ms"
            line += "" if name == WHOLE else f" {middle:.2f}× ({low:.2f}–{high:.2f})"
        print(line, flush=True)
    if options.output is not None:
        head = ["median seconds", "median ratio", "lower quartile", "upper quartile"]
        options.output.write_text(json.dumps({"columns": head, **figures}, indent=1))


if __name__ == "__main__":
    cli.command(main, Options)
