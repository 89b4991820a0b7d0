"""Training and fine-tuning: the shared loop with this experiment's loss, optimiser and masks."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.data import Augmentation, Dataset
from common.device import autocast, random_stream, stream_seed
from common.errors import RunError
from common.experiment import Run
from common.files import save_weights
from common.training import Recipe, TrainState, fit
from pruning import measures
from pruning.calibration import batches, recalibrate
from pruning.criteria import Scorer, scorer
from pruning.filters import Importance, clear_filters, ranked_masks, weight_masks
from pruning.given import read_network
from pruning.masks import Masks, apply_masks, clear_empty_filters, forget_momentum
from pruning.rewind import dense_recipe, do_nothing, early_weights, finetune_recipe, keeper, rewind_step
from pruning.rounds import masks_file, stages
from pruning.schedule import MaskSchedule
from pruning.settings import EARLY, Settings
from pruning.smaller import smaller_network, widened
from pruning.vgg import VGG11, prunable_layers, prunable_weights


def train_dense(run: Run, settings: Settings, dataset: Dataset, stage: str = "dense") -> VGG11:
    """Returns a network trained from random weights; another `stage` name means other random numbers.

    With `--dense-weights` it returns that network and trains none.

    Raises:
        RunError: the file holds no VGG11 with this many classes.
    """
    torch.manual_seed(stream_seed(settings.seed, f"{stage} weights"))
    network = VGG11(len(dataset.classes), settings.initialisation).to(run.device)

    def trained() -> dict[str, Tensor]:
        if settings.dense_weights is not None:
            if settings.rewind == "weights":
                early_weights(run, settings, len(dataset.train))  # refused now rather than after the scan
            return read_network(settings.dense_weights, classes=len(dataset.classes))
        keep = keeper(run, settings, network, len(dataset.train)) if stage == "dense" else do_nothing
        recipe = dense_recipe(settings)
        return _fit(run, stage, settings, dataset, network, recipe, settings.learning_rate, keep).state_dict()

    origin = settings.dense_weights or run.checkpoints / f"{stage}.safetensors"
    _load(network, run.remembered_weights(stage, trained), origin)
    return network


def fine_tune(
    run: Run, settings: Settings, dataset: Dataset, network: VGG11, schedule: MaskSchedule, score: Scorer | None = None
) -> Masks:
    """Prunes the dense `network` by its `score` and trains it under the masks of `schedule`, in as many rounds.

    Without a `score` it is the one of the settings. The network is changed in place. Returns the masks that it ends
    with. Every round but the last one leaves its network in the run folder. With `distillation` the network as it was
    before any pruning is the teacher.

    Raises:
        RunError: the run folder holds masks of another network.
    """
    score = score or scorer(settings.criterion, dataset, settings.label_smoothing, settings.ranked_by)
    teacher = copy.deepcopy(network).eval() if settings.distillation else None
    masks: Masks | None = None
    for number, stage in enumerate(stages(schedule.rounds), 1):

        def tuned(number: int = number, stage: str = stage, kept: Masks | None = masks) -> dict[str, Tensor]:
            before = None if kept is None else ranked_masks(kept, settings.ranked_by)
            chosen = weight_masks(network, schedule.first_masks(score(network), number, before), settings.ranked_by)
            if settings.rewind == "weights":
                _load(network, early_weights(run, settings, len(dataset.train)), run.checkpoints / EARLY)
            pruner = Pruner(network, chosen, schedule, score, settings.ranked_by)
            if settings.recalibrate:
                recalibrate(network, batches(dataset))
            if (tuned_before := run.start_weights(stage)) is not None:
                pruner.go_on(tuned_before, _masks(run.start_weights("masks"), run.path / "masks.safetensors", network))
            if settings.granularity == "filter" and not schedule.gradual:  # they are gone: what is left trains faster
                smaller = smaller_network(network, pruner.masks)
                trained = _fit_again(run, stage, settings, dataset, smaller, do_nothing, pruner.masks, teacher)
                result = widened(trained.state_dict(), network, pruner.masks)
            else:
                trained = _fit_again(run, stage, settings, dataset, network, pruner.after_step, pruner.masks, teacher)
                result = trained.state_dict()
            save_weights(masks_file(run, stage), pruner.masks)
            return result

        weights = run.checkpoints / f"{stage}.safetensors"
        _load(network, run.remembered_weights(stage, tuned), weights)
        path = masks_file(run, stage)
        if not path.exists():
            raise RunError(f"{path}: missing; delete {weights.name} to repeat that stage and those after it")
        masks = _masks(run.remembered_weights(path.stem, dict), path, network)
    assert masks is not None
    return masks


class Pruner:
    """Keeps a network pruned while it trains.

    The dropped weights are exactly zero after every step, also in the moving average. Their momentum is zero too, so
    only the schedule can bring a weight back, and it comes back at zero. A filter without weights has no bias either.
    With `importance` whole filters are pruned, and nothing of them comes back.
    """

    def __init__(
        self,
        network: VGG11,
        masks: Masks,
        schedule: MaskSchedule,
        score: Scorer,
        importance: Importance | None = None,
    ) -> None:
        """Prunes `network` to `masks` of its weights, from where `schedule` goes on."""
        self.network, self.schedule, self.score, self.importance = network, schedule, score, importance
        self.masks = {name: mask.clone() for name, mask in masks.items()}  # changed in place: checkpoints hold these
        self._clear(network)

    def go_on(self, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
        """Starts from the weights and masks that a finished fine-tuning ended with; the masks change no more."""
        self.network.load_state_dict(weights)
        for name, mask in self.masks.items():
            mask.copy_(masks[name])
        self.schedule = dataclasses.replace(self.schedule, gradual=False)

    def after_step(self, state: TrainState) -> None:
        """Clears the dropped weights after a step of the optimiser, then prunes and regrows what is due."""
        self._drop(state.optimizer)
        if self.schedule.is_due(state.step, state.total_steps):
            scores, kept = self.score(self.network), ranked_masks(self.masks, self.importance)
            pruned = self.schedule.masks_at(state.step, state.total_steps, scores, kept)
            if pruned is not None:
                self._change_to(pruned, state.optimizer)
        weights = prunable_weights(self.network)
        regrown = self.schedule.regrown_at(state.step, state.total_steps, weights, self.masks)  # single weights only
        if regrown is not None:
            self._change_to(regrown, state.optimizer)
        if isinstance(state.average, VGG11):
            self._clear(state.average)

    def _change_to(self, masks: Masks, optimizer: torch.optim.Optimizer) -> None:
        for name, mask in weight_masks(self.network, masks, self.importance).items():
            self.masks[name].copy_(mask)
        self._drop(optimizer)

    def _drop(self, optimizer: torch.optim.Optimizer) -> None:
        forget_momentum(prunable_weights(self.network), self.masks, optimizer)
        self._clear(self.network)

    def _clear(self, network: VGG11) -> None:
        apply_masks(prunable_weights(network), self.masks)
        clear_empty_filters(prunable_layers(network), self.masks)
        if self.importance is not None:
            clear_filters(network, self.masks)


def training_loss(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None, settings: Settings) -> Tensor:
    """Returns the mean loss of a batch in nats, from logits `(B, classes)` and labels `(B,)`.

    It is the cross-entropy with label smoothing. Where there is a teacher, the share `distillation` of it is replaced
    by `distillation_loss`.
    """
    loss = F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
    if teacher_logits is None:
        return loss
    share = settings.distillation
    return (1 - share) * loss + share * distillation_loss(logits, teacher_logits, settings.temperature)


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Returns T² KL(teacher ‖ network) in nats of the predictions at temperature T, the mean over the images.

    Both logits are (N, classes). T² keeps the gradients as large as the labels' (Hinton et al. 2015, section 2).
    """
    ours, theirs = (F.log_softmax(values.float() / temperature, 1) for values in (logits, teacher_logits))
    return temperature**2 * F.kl_div(ours, theirs, log_target=True, reduction="batchmean")


def _fit_again(
    run: Run,
    stage: str,
    settings: Settings,
    dataset: Dataset,
    network: VGG11,
    after_step: Callable[[TrainState], None],
    masks: Masks,
    teacher: nn.Module | None,
) -> nn.Module:
    """Returns the pruned network after the fine-tuning, or after the dense training repeated from its early step on."""
    if settings.rewind == "none":
        recipe, rate, first_step = finetune_recipe(settings), settings.finetune_learning_rate, 0
    else:
        recipe, rate = dense_recipe(settings), settings.learning_rate
        first_step = rewind_step(settings, len(dataset.train))
    return _fit(run, stage, settings, dataset, network, recipe, rate, after_step, masks, teacher, first_step)


def _optimizer(settings: Settings, network: VGG11, learning_rate: float) -> torch.optim.Optimizer:
    """Returns SGD with Nesterov momentum; biases learn `bias_rate` times as fast, with their decay divided by it."""
    biases = [parameter for name, parameter in network.named_parameters() if name.endswith("bias")]
    weights = [parameter for name, parameter in network.named_parameters() if not name.endswith("bias")]
    rate, decay = settings.bias_rate, settings.weight_decay
    return torch.optim.SGD(
        [
            {"params": weights, "lr": learning_rate, "weight_decay": decay},
            {"params": biases, "lr": learning_rate * rate, "weight_decay": decay / rate},
        ],
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
        fused=True,
    )


def _fit(
    run: Run,
    stage: str,
    settings: Settings,
    dataset: Dataset,
    network: VGG11,
    recipe: Recipe,
    learning_rate: float,
    after_step: Callable[[TrainState], None],
    masks: Masks | None = None,
    teacher: nn.Module | None = None,
    first_step: int = 0,
) -> nn.Module:
    """Returns the network, or its moving average, after the shared loop with augmentation and `training_loss`."""
    generator = random_stream(settings.seed, f"{stage} batches", run.device)
    augment = Augmentation(
        dataset.train.images,
        translate=settings.translate,
        flip=settings.flip,
        cutout=settings.cutout,
        generator=generator,
    )

    def batch_loss(
        network: nn.Module, indices: Tensor, epoch: float, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = dataset.normalise(augment(indices, epoch, generator)), dataset.train.labels[indices]
        logits = network(images)
        with torch.no_grad():
            teacher_logits = teacher(images) if teacher is not None else None
        loss = training_loss(logits, labels, teacher_logits, settings)
        return loss, {"accuracy": (logits.argmax(1) == labels).float().mean()}

    def validate(network: nn.Module, epoch: int) -> dict[str, float]:
        with autocast(run.device, settings.precision):
            return {"accuracy/validation": measures.accuracy(network, dataset, dataset.validation)}

    return fit(
        run,
        stage,
        network,
        _optimizer(settings, network, learning_rate),
        batch_loss,
        len(dataset.train),
        recipe,
        generator,
        after_step=after_step,
        validate=validate,
        carried=masks,
        first_step=first_step,
    )


def _load(network: VGG11, weights: dict[str, Tensor], origin: Path) -> None:
    ours, theirs = ({n: t.shape for n, t in tensors.items()} for tensors in (network.state_dict(), weights))
    if ours != theirs:
        raise RunError(f"{origin}: not a VGG11 with {network.classifier.out_features} classes")
    network.load_state_dict(weights)


def _masks(stored: Mapping[str, Tensor] | None, path: Path, network: VGG11) -> Masks:
    """Returns the masks that `path` holds, in the layout of the network's weights."""
    weights = prunable_weights(network)
    if stored is None or {n: m.shape for n, m in stored.items()} != {n: w.shape for n, w in weights.items()}:
        raise RunError(f"{path}: {'missing' if stored is None else 'not the masks of this network'}")
    like = {name: torch.empty_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    return {name: empty.copy_(stored[name]) for name, empty in like.items()}
