"""The training loop that pruning and vae share: schedule, autocast, moving average, progress, checkpoints, resume."""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common.device import Precision, autocast, synchronize
from common.errors import RunError
from common.experiment import Run
from common.files import last_whole, save_state

CHECK_EVERY = 100  # steps between two looks for numbers that are not finite
# (model, indices (B,), epochs done as a fraction, generator) → (loss, {name: scalar to average over the epoch})
BatchLoss = Callable[[nn.Module, Tensor, float, torch.Generator], tuple[Tensor, dict[str, Tensor]]]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How long and how fast to train."""

    epochs: int
    batch_size: int
    schedule: Callable[[float], float]  # finished fraction of the training → multiplier of the learning rate
    precision: Precision
    ema_decay: float = 0.0  # per step; 0 keeps the last weights instead of their exponential moving average
    last_batch: bool = False  # whether an epoch ends with what is left over as a smaller batch, or without it

    def steps(self, examples: int) -> int:
        """Returns the steps of an epoch; a single example left over is no batch, since batch norm cannot take it."""
        whole, left = divmod(examples, min(self.batch_size, examples))
        return whole + (self.last_batch and left > 1)


@dataclasses.dataclass
class TrainState:
    """All that changes while training; `carried` holds a task's own tensors (such as masks), saved with the rest."""

    model: nn.Module
    average: nn.Module | None
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    carried: dict[str, Tensor]
    step: int = 0
    total_steps: int = 0

    def save(self, path: Path) -> None:
        """Writes everything to a checkpoint."""
        save_state(
            path,
            {
                "model": self.model.state_dict(),
                "average": self.average.state_dict() if self.average is not None else {},
                "optimizer": self.optimizer.state_dict(),
                "generator": self.generator.get_state(),
                "carried": self.carried,
                "step": self.step,
            },
            keep_older=True,
        )

    def load(self, path: Path) -> bool:
        """Restores what `save` wrote, or wrote before where that is damaged; returns False where there is nothing.

        Raises:
            RunError: the checkpoint is damaged or of another training, and no older one is whole.
        """
        return last_whole(path, lambda saved: self._restore(saved, path))

    def _restore(self, saved: dict[str, Any], path: Path) -> None:
        try:
            self.model.load_state_dict(saved["model"])
            if self.average is not None:
                self.average.load_state_dict(saved["average"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.generator.set_state(saved["generator"])
            for name, tensor in self.carried.items():
                tensor.copy_(saved["carried"][name])
            self.step = saved["step"]
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise RunError(f"{path}: not a checkpoint of this training ({error!r})") from None


def triangular(peak: float) -> Callable[[float], float]:
    """Returns a schedule that rises linearly to 1 at fraction `peak` of the training and falls to 0."""

    def multiplier(done: float) -> float:
        return done / peak if done < peak else 1 - (done - peak) / (1 - peak)

    return multiplier


def fit(
    run: Run,
    stage: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch_loss: BatchLoss,
    examples: int,
    recipe: Recipe,
    generator: torch.Generator,
    *,
    after_step: Callable[[TrainState], None] = lambda state: None,
    validate: Callable[[nn.Module, int], Mapping[str, float]] = lambda model, epoch: {},
    carried: dict[str, Tensor] | None = None,
    first_step: int = 0,
) -> nn.Module:
    """Trains `model` on `examples` indexed examples; returns it, or its moving average if the recipe has a decay.

    A checkpoint is written after every epoch. If the run folder holds one of this stage, training goes on from it and
    reaches the same weights as without the interruption. With `--extend` and no checkpoint, the epochs begin after
    those of the finished run. `after_step` may edit the weights (masks). `validate` is called after every epoch with
    the model that would be returned and the number of finished epochs. With `first_step` the training begins after that
    step of the recipe, with the rest of its epoch.

    Raises:
        RunError: the loss is not finite.
    """
    device = next(model.parameters()).device
    steps_an_epoch = recipe.steps(examples)
    average = copy.deepcopy(model) if recipe.ema_decay else None
    state = TrainState(model, average, optimizer, generator, carried or {}, first_step, steps_an_epoch * recipe.epochs)
    checkpoint = run.checkpoints / f"{stage}.state.pt"
    peak_rates = [group["lr"] for group in optimizer.param_groups]
    if state.load(checkpoint):
        print(f"{stage}: going on after epoch {state.step // steps_an_epoch}", file=sys.stderr)
    elif run.start_weights(stage) is not None:  # of a finished run without its state: `model` starts from them
        state.step = steps_an_epoch * (run.extended_at() or 0)
    run.rewind(stage, state.step // steps_an_epoch)

    with progress_bar(stage, state.step, state.total_steps) as bar:
        for epoch in range(state.step // steps_an_epoch, recipe.epochs):
            start = time.perf_counter()
            terms: dict[str, list[Tensor]] = {}  # name → a value for each step
            model.train()
            order = torch.randperm(examples, device=device, generator=generator)
            batches = order.split(recipe.batch_size)[state.step % steps_an_epoch : steps_an_epoch]
            for indices in batches:
                multiplier = recipe.schedule(state.step / state.total_steps)
                for group, rate in zip(optimizer.param_groups, peak_rates, strict=True):
                    group["lr"] = rate * multiplier
                with autocast(device, recipe.precision):
                    loss, measured = batch_loss(model, indices, state.step / steps_an_epoch, generator)
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                optimizer.step()
                state.step += 1
                after_step(state)
                if average is not None:
                    _update_average(average, model, recipe.ema_decay, state.step)
                for name, value in (measured | {"loss": loss}).items():  # stays on the device: no wait at each step
                    terms.setdefault(name, []).append(value.detach())
                if len(terms["loss"]) % CHECK_EVERY == 0:
                    require_finite_terms(terms, f"{stage}, epoch {epoch + 1}", state.step, checkpoint)
                bar.update()
            synchronize(device)
            seconds = time.perf_counter() - start
            require_finite_terms(terms, f"{stage}, epoch {epoch + 1}", state.step, checkpoint)
            sizes = torch.tensor([len(batch) for batch in batches], dtype=torch.float64)
            shares = sizes / sizes.sum()
            scalars = {
                f"{name}/train": float(torch.stack(values).double().cpu() @ shares) for name, values in terms.items()
            }
            scalars |= validate(average if average is not None else model, epoch + 1)
            scalars |= {
                "learning_rate": peak_rates[0] * multiplier,
                "images_per_second": float(sizes.sum()) / seconds,
            }
            run.log(stage, epoch + 1, scalars)
            state.save(checkpoint)
            bar.set_postfix_str(" ".join(f"{k}={v:.3g}" for k, v in scalars.items() if k != "learning_rate"))
    return average if average is not None else model


def require_finite_terms(terms: Mapping[str, list[Tensor]], where: str, step: int, checkpoint: Path | None) -> None:
    """Stops a training at the first step with a term that is NaN or infinite, and names the term.

    `terms` are the loss, last, and what it is made of, a value for each step up to number `step`. If all of them fail
    at one step, the cause is the weights, and so the gradient of the step before.

    Raises:
        RunError: a value is not finite.
    """
    values = torch.stack([torch.stack(of).float() for of in terms.values()]).cpu()  # (terms, steps)
    bad = ~values.isfinite()
    if not bad.any():
        return
    place = int(bad.any(0).nonzero()[0])
    first = step - values.shape[1] + 1 + place
    failed = [name for name, is_bad in zip(terms, bad[:, place].tolist(), strict=True) if is_bad]
    parts = [name for name in failed if name != "loss"] or failed
    if len(failed) == len(terms) > 1 and first > 1:
        cause = f"the gradient of step {first - 1} was too large or not finite"
        what = f"{where}: {cause}, so every term of step {first} is not; the first one, {failed[0]},"
    else:
        what = f"{where}: the first number that is not finite, {' and '.join(parts)} of step {first},"
    require_finite(float(values[list(terms).index(failed[0]), place]), what, checkpoint)


@torch.no_grad()
def _update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Moves the average towards the model, faster in the first steps, when there is not much to average."""
    weight = max(1 - decay, 1 / (step + 1))
    pairs = zip(average.state_dict().values(), model.state_dict().values(), strict=True)
    floats = [(a, m) for a, m in pairs if a.is_floating_point()]
    torch._foreach_lerp_([a for a, _ in floats], [m for _, m in floats], weight)


def progress_bar(stage: str, done: int, total: int, *, unit: str = "step", delay: float = 0.0) -> tqdm[Any]:
    """Returns a bar with rate and remaining time; it prints a line every 30 s if standard error is no terminal.

    With a `delay` in seconds, nothing is shown of what ends before, and of the rest nothing stays.
    """
    interval = 0.1 if sys.stderr.isatty() else 30.0
    shown: dict[str, Any] = {"mininterval": interval, "delay": delay, "leave": not delay, "dynamic_ncols": True}
    return tqdm(desc=stage, initial=done, total=total, unit=unit, **shown)


@torch.inference_mode()
def accuracy(model: nn.Module, inputs: Callable[[slice], Tensor], labels: Tensor, batch_size: int = 250) -> float:
    """Returns the fraction of all `labels` (N,) that the model predicts in evaluation mode, counted image by image.

    `inputs(rows)` returns the network's input for those rows.
    """
    training = model.training
    model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=labels.device)
    for start in range(0, len(labels), batch_size):
        rows = slice(start, start + batch_size)
        correct += (model(inputs(rows)).argmax(1) == labels[rows]).sum()
    model.train(training)
    return int(correct) / len(labels)


def require_finite(value: float, what: str, checkpoint: Path | None) -> None:
    """Stops a run whose `what` is NaN or infinite before it can damage a checkpoint.

    Raises:
        RunError: `value` is not finite; the message names the last good checkpoint.
    """
    if not math.isfinite(value):
        last = (
            f"the last good checkpoint is {checkpoint}" if checkpoint and checkpoint.exists() else "no checkpoint yet"
        )
        raise RunError(f"{what} is {value}; {last}. Start a new run with a lower learning rate, or milder settings.")
