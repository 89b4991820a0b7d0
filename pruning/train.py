"""Training and fine-tuning: the shared loop with this study's loss, optimiser and masks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.data import Augmentation, Dataset, Split
from common.device import autocast, random_stream, stream_seed
from common.errors import RunError
from common.experiment import Run
from common.files import load_weights, save_weights
from common.training import Recipe, TrainState, accuracy, fit, triangular
from pruning.masks import (
    Masks,
    apply_masks,
    clear_empty_filters,
    cosine_share,
    cubic_sparsity,
    exchange,
    forget_momentum,
)
from pruning.settings import Settings
from pruning.vgg import VGG11, prunable_layers, prunable_weights


def inputs(data: Dataset, split: Split) -> Callable[[slice], Tensor]:
    """Returns the function from rows of a split to the network's input."""
    return lambda rows: data.normalise(split.images[rows])


def train_dense(run: Run, settings: Settings, data: Dataset, stage: str = "dense") -> VGG11:
    """Returns a network trained from random weights; another `stage` name means other random numbers.

    With `--dense-weights` that network is taken in place of training one.

    Raises:
        RunError: the file holds no VGG11 with this many classes.
    """
    torch.manual_seed(stream_seed(settings.seed, f"{stage} weights"))
    model = VGG11(len(data.classes)).to(run.device)

    def trained() -> dict[str, Tensor]:
        if settings.dense_weights is not None:
            return load_weights(settings.dense_weights)
        epochs, rate, warmup = settings.epochs, settings.learning_rate, settings.warmup
        return _fit(run, stage, settings, data, model, epochs, rate, warmup).state_dict()

    _load(
        model,
        run.remembered_weights(stage, trained),
        settings.dense_weights or run.checkpoints / f"{stage}.safetensors",
    )
    return model


def _load(model: VGG11, weights: dict[str, Tensor], origin: Path) -> None:
    ours, theirs = ({n: t.shape for n, t in tensors.items()} for tensors in (model.state_dict(), weights))
    if ours != theirs:
        raise RunError(f"{origin}: not a VGG11 with {model.classifier.out_features} classes")
    model.load_state_dict(weights)


def fine_tune(
    run: Run,
    settings: Settings,
    data: Dataset,
    model: VGG11,
    final_masks: Masks,
    masks_at: Callable[[float, Mapping[str, Tensor], Masks], Masks],
) -> Masks:
    """Fine-tunes `model` in place under masks and returns the masks it ends with.

    One-shot: `final_masks` from the first step on. Gradual: `masks_at(fraction of the final sparsity, weights, masks so
    far)` every `gradual_every` steps, ten times at least, over the first `gradual_fraction` of the steps; with `regrow`
    some dropped weights then come back, at zero (GraNet, Liu et al. 2021). The dropped weights are exactly zero after
    every step, also in the moving average, and the momentum under them is cleared, so that nothing else revives them. A
    filter that has lost all its weights loses its bias too. With `distillation` the network as given, before any
    pruning, is the teacher.
    """
    teacher = copy.deepcopy(model).eval() if settings.distillation else None
    gradual = settings.schedule == "gradual"
    masks = {name: torch.ones_like(mask) if gradual else mask.clone() for name, mask in final_masks.items()}

    def prune(network: VGG11) -> None:
        apply_masks(prunable_weights(network), masks)
        clear_empty_filters(prunable_layers(network), masks)

    def change(due: Masks) -> None:
        for name, mask in due.items():
            masks[name].copy_(mask)

    def keep_pruned(state: TrainState) -> None:
        last = math.ceil(settings.gradual_fraction * state.total_steps)
        every = max(1, min(settings.gradual_every, last // 10))
        weights, done = prunable_weights(model), state.step / last

        def drop() -> None:
            forget_momentum(weights, masks, state.optimizer)
            prune(model)

        drop()
        if gradual and state.step <= last and (state.step % every == 0 or state.step == last):
            change(masks_at(cubic_sparsity(done), weights, masks))
            drop()
            if settings.regrow:
                change(exchange(masks, weights, settings.regrow * cosine_share(done)))
                drop()
        if isinstance(state.average, VGG11):
            prune(state.average)

    def tuned() -> dict[str, Tensor]:
        prune(model)
        epochs, rate, warmup = settings.finetune_epochs, settings.finetune_learning_rate, settings.finetune_warmup
        result = _fit(
            *(run, "finetuned", settings, data, model, epochs, rate, warmup),
            after_step=keep_pruned,
            masks=masks,
            teacher=teacher,
        )
        save_weights(run.checkpoints / "masks.safetensors", masks)
        return result.state_dict()

    _load(model, run.remembered_weights("finetuned", tuned), run.checkpoints / "finetuned.safetensors")
    path = run.checkpoints / "masks.safetensors"
    final = load_weights(path)
    if {name: mask.shape for name, mask in final.items()} != {name: mask.shape for name, mask in masks.items()}:
        raise RunError(f"{path}: not the masks of this network; delete finetuned.safetensors to repeat that stage")
    return {name: mask.copy_(final[name]) for name, mask in masks.items()}


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Returns T² KL(teacher ‖ network) in nats of the predictions at temperature T, the mean over the images.

    Both logits are (N, classes). T² keeps its gradients as large as the labels' (Hinton et al. 2015, section 2).
    """
    ours, theirs = (F.log_softmax(values.float() / temperature, 1) for values in (logits, teacher_logits))
    return temperature**2 * F.kl_div(ours, theirs, log_target=True, reduction="batchmean")


def _fit(
    run: Run,
    stage: str,
    settings: Settings,
    data: Dataset,
    model: VGG11,
    epochs: int,
    learning_rate: float,
    warmup: float,
    *,
    after_step: Callable[[TrainState], None] = lambda state: None,
    masks: Masks | None = None,
    teacher: nn.Module | None = None,
) -> nn.Module:
    """Runs the shared loop with SGD, label smoothing, augmentation and, where there is a `teacher`, distillation."""
    recipe = Recipe(epochs, settings.batch_size, triangular(warmup), settings.precision, settings.ema_decay)
    generator = random_stream(settings.seed, f"{stage} batches", run.device)
    augment = Augmentation(data.train.images, translate=settings.translate, flip=settings.flip, generator=generator)
    biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
    weights = [parameter for name, parameter in model.named_parameters() if not name.endswith("bias")]
    rate, decay = settings.bias_rate, settings.weight_decay
    optimizer = torch.optim.SGD(
        [
            {"params": weights, "lr": learning_rate, "weight_decay": decay},
            {"params": biases, "lr": learning_rate * rate, "weight_decay": decay / rate},
        ],
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
        fused=True,
    )

    def batch_loss(
        network: nn.Module, indices: Tensor, epoch: float, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        labels = data.train.labels[indices]
        images = data.normalise(augment(indices, epoch, generator))
        logits = network(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
        if teacher is not None:
            with torch.no_grad():
                taught = teacher(images)
            share = settings.distillation
            loss = (1 - share) * loss + share * distillation_loss(logits, taught, settings.temperature)
        return loss, {"accuracy": (logits.argmax(1) == labels).float().mean()}

    def validate(network: nn.Module, epoch: int) -> dict[str, float]:
        with autocast(run.device, settings.precision):
            return {"accuracy/validation": accuracy(network, inputs(data, data.validation), data.validation.labels)}

    return fit(
        run,
        stage,
        model,
        optimizer,
        batch_loss,
        len(data.train),
        recipe,
        generator,
        after_step=after_step,
        validate=validate,
        carried=masks,
    )
