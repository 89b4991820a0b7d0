"""Every constant of the pruning study; `python pruning/run.py --help` prints this file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from annotated_types import Ge, Gt, Interval, Le, Lt

from common.cli import RunSettings
from common.errors import UsageError
from pruning.allocation import Allocation


@dataclasses.dataclass(frozen=True)
class Settings(RunSettings):
    """Train VGG11-BN on CIFAR-10, scan each layer's sensitivity, prune by magnitude, fine-tune, account, save."""

    smoke: ClassVar[dict[str, Any]] = {
        "dataset": "digits",
        "epochs": 2,
        "batch_size": 32,
        "learning_rate": 0.02,
        "finetune_epochs": 1,
        "scan_images": 40,
    }

    dataset: Literal["auto", "cifar10", "digits"] = "auto"
    """Images; auto takes CIFAR-10 where it can be had, else scikit-learn's digits, with a warning."""
    max_images: Annotated[int, Ge(1000)] | None = None
    """Images to use at most, the same share of training, held-out and test images, for a quick look; none: all."""

    # 1. Train
    dense_weights: Path | None = None
    """Trained network to start from, a run's checkpoints/dense.safetensors; none trains one."""
    epochs: Annotated[int, Ge(1)] = 10
    """Passes over the training split for the dense network."""
    batch_size: Annotated[int, Ge(1)] = 128
    """Images a step, and in the larger batch whose latency is measured."""
    learning_rate: Annotated[float, Gt(0)] = 0.1
    """Peak learning rate of SGD with Nesterov momentum; rises to it linearly and falls to 0 linearly."""
    warmup: Annotated[float, Interval(gt=0, lt=1)] = 0.25
    """Fraction of the training after which the learning rate peaks."""
    momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.85
    """Nesterov momentum (airbench, Jordan 2024)."""
    weight_decay: Annotated[float, Ge(0)] = 5e-4
    """L2 penalty (Simonyan & Zisserman 2015)."""
    bias_rate: Annotated[float, Gt(0)] = 64.0
    """Learning rate of the biases over that of the weights (airbench, Jordan 2024); their decay is divided by it."""
    label_smoothing: Annotated[float, Interval(ge=0, lt=1)] = 0.2
    """Probability spread over all classes (Szegedy et al. 2016; the value of airbench)."""
    translate: Annotated[int, Interval(ge=0, le=16)] = 2
    """Training images move by up to this many pixels (airbench, Jordan 2024)."""
    flip: bool = True
    """Training images are mirrored in every other epoch."""
    ema_decay: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Decay a step of the weights' moving average, which is what is kept; 0 keeps the last weights."""

    # 2. Sensitivity scan
    scan_images: Annotated[int, Ge(1)] | None = None
    """Held-out images the scan uses; none means the whole held-out split."""
    retrain_per_layer: bool = False
    """Train anew before each layer is scanned, as the reference study did: eight more trainings."""

    # 3. Choose
    allocation: Allocation = "reference"
    """How much of each layer goes; random masks are the control, at the reference sparsities or uniform ones."""
    sparsity: Annotated[float, Ge(0), Lt(1)] | None = None
    """Fraction of the convolution weights to prune, to a weight a layer; none: the reference's .7703 (scan: budget)."""
    accuracy_budget: Annotated[float, Gt(0), Le(1)] = 0.01
    """Held-out accuracy each layer alone may cost, for --allocation scan without --sparsity."""

    # 4. Prune and fine-tune
    schedule: Literal["one-shot", "gradual"] = "one-shot"
    """All at once before fine-tuning, or along a cubic curve while fine-tuning (Zhu & Gupta 2017)."""
    gradual_fraction: Annotated[float, Interval(gt=0, le=1)] = 0.7
    """Fraction of the fine-tuning over which gradual pruning reaches its final sparsity."""
    gradual_every: Annotated[int, Ge(1)] = 50
    """Steps between two prunings of the gradual schedule."""
    regrow: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Fraction of a layer's kept weights, the smallest, whose places a gradual pruning gives to the largest gradients;
    falls along a cosine to 0 at the last pruning (GraNet, Liu et al. 2021). 0 never brings a weight back."""
    distillation: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Share of the fine-tuning's loss that comes from the dense network's predictions, the rest from the labels
    (Hinton et al. 2015). 0 asks the labels alone."""
    temperature: Annotated[float, Gt(0)] = 4.0
    """What both networks' logits are divided by to compare their predictions (4: Zagoruyko & Komodakis 2017)."""
    finetune_epochs: Annotated[int, Ge(1)] = 4
    """Passes over the training split after (or while) pruning."""
    finetune_learning_rate: Annotated[float, Gt(0)] = 0.05
    """Peak learning rate of the fine-tuning."""
    finetune_warmup: Annotated[float, Interval(gt=0, lt=1)] = 0.1
    """Fraction of the fine-tuning after which its learning rate peaks."""

    # 5. Account
    latency_seconds: Annotated[float, Ge(0)] = 2.0
    """Time to spend on the latency of each batch size, three passes at least; beside other runs it means little."""

    def check(self) -> None:
        """Raises UsageError for settings that contradict each other."""
        if self.dense_weights is not None and self.resume is None and not self.dense_weights.is_file():
            raise UsageError(f"--dense-weights {self.dense_weights}: no such file")
        if self.dense_weights is not None and self.retrain_per_layer:
            raise UsageError(
                "--dense-weights with --retrain-per-layer: one starts from a network, the other trains anew"
            )
        if self.allocation == "reference" and self.sparsity is not None:
            others = ", ".join(name for name in get_args(Allocation) if name != "reference")
            raise UsageError(
                f"--sparsity {self.sparsity} with --allocation reference, which has its own: choose {others}"
            )
        budget = self.accuracy_budget
        if budget != Settings.accuracy_budget and (self.allocation != "scan" or self.sparsity is not None):
            raise UsageError(f"--accuracy-budget {budget}: it is for --allocation scan without --sparsity")
        if self.regrow and self.allocation == "random":
            raise UsageError(f"--regrow {self.regrow} with --allocation random, the control for every criterion")
        if self.temperature != Settings.temperature and not self.distillation:
            raise UsageError(f"--temperature {self.temperature}: it is for --distillation above 0")
        for name in ("gradual_fraction", "gradual_every", "regrow"):
            if self.schedule != "gradual" and getattr(self, name) != getattr(Settings, name):
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: it is for --schedule gradual")
