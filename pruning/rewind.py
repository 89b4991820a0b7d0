"""Going back: the early step of the dense training whose weights, or whose learning rate, every round starts from.

Frankle et al. 2019 ("Stabilizing the lottery ticket hypothesis") rewind the weights: the sparse network is trained once
more from the weights of an early step. Renda et al. 2020 ("Comparing rewinding and fine-tuning in neural network
pruning") rewind the learning rate alone: the trained weights stay, and the schedule of the rate is repeated from that
step. Both train as long as the dense network did from that step on. The momentum starts at zero.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from common.errors import RunError, UsageError
from common.experiment import Run
from common.files import load_weights, save_weights
from common.training import Recipe, TrainState, triangular
from pruning.settings import EARLY, Settings
from pruning.vgg import VGG11

STEP = "step"  # beside the tensors of the network: the step that they are from


def dense_recipe(settings: Settings) -> Recipe:
    """Returns how long and how fast the dense network trains; what rewinds repeats the last part of it."""
    return _recipe(settings, settings.epochs, settings.warmup)


def finetune_recipe(settings: Settings) -> Recipe:
    """Returns how long and how fast a network trains under masks that does not rewind."""
    return _recipe(settings, settings.finetune_epochs, settings.finetune_warmup)


def _recipe(settings: Settings, epochs: int, warmup: float) -> Recipe:
    return Recipe(epochs, settings.batch_size, triangular(warmup), settings.precision, settings.ema_decay)


def rewind_step(settings: Settings, examples: int) -> int:
    """Returns the step of the dense training on so many `examples` to go back to; 0 is its start."""
    steps = dense_recipe(settings).steps(examples) * settings.epochs
    return min(int(settings.rewind_fraction * steps), steps - 1)


def require_learning(settings: Settings, examples: int) -> None:
    """Raises UsageError for a training in which nothing is learnt: its only step has the learning rate 0."""
    trainings = {}
    if settings.dense_weights is None or settings.rewind != "none":
        trainings["epochs"] = dense_recipe(settings)
    if settings.rewind == "none":
        trainings["finetune-epochs"] = finetune_recipe(settings)
    for option, recipe in trainings.items():
        steps = recipe.steps(examples) * recipe.epochs
        if not any(recipe.schedule(step / steps) > 0 for step in range(min(2, steps))):
            raise UsageError(
                f"--{option} {recipe.epochs} with --batch-size {settings.batch_size}: of {examples:,} training images "
                f"that is {steps} step, whose learning rate is 0; choose at most --batch-size {examples // 2}, or more "
                "epochs"
            )


def do_nothing(state: TrainState) -> None:
    """Leaves a step of the training as it is."""


def keeper(run: Run, settings: Settings, network: VGG11, examples: int) -> Callable[[TrainState], None]:
    """Returns what the dense training does after each step: after the early one it keeps the weights, if they are due.

    The weights are those of the network itself, also where a moving average of them is trained, with the batch-norm
    statistics. A dense training that is resumed writes the same bits again.
    """
    if settings.rewind != "weights":
        return do_nothing
    early = rewind_step(settings, examples)

    def keep(weights: dict[str, Tensor]) -> None:
        save_weights(run.checkpoints / EARLY, {**weights, STEP: torch.tensor(early)})

    if early == 0:
        keep(network.state_dict())

    def after_step(state: TrainState) -> None:
        if state.step == early:
            keep(state.model.state_dict())

    return after_step


def early_weights(run: Run, settings: Settings, examples: int) -> dict[str, Tensor]:
    """Returns the weights of the early step, which the dense training kept: this run's, or that of `dense_weights`.

    Raises:
        RunError: they are missing, or those of another step.
    """
    path = run.checkpoints / EARLY

    def given() -> dict[str, Tensor]:
        if settings.dense_weights is None:
            raise RunError(f"{path}: missing; delete dense.safetensors to repeat the dense training")
        return load_weights(settings.dense_weights.with_name(EARLY))

    weights = run.remembered_weights(path.stem, given)
    step, wanted = int(weights.pop(STEP, torch.tensor(-1))), rewind_step(settings, examples)
    if step != wanted:
        raise RunError(
            f"{path}: the weights after step {step}, and this run goes back to step {wanted}; give the --epochs, "
            "--batch-size and --rewind-fraction of the run that kept them"
        )
    return weights
