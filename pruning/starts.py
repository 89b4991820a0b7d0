"""Where the accuracy goes and comes back: networks trained otherwise and pruned alike, stage by stage."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from common import comparison, data
from common.report.document import Block, Heading, Picture, link
from common.tables import BOLD, Table, difference
from pruning import figures
from pruning.arms import Arm, accuracy_text, mean
from pruning.records import Run
from pruning.settings import Settings

STAGES = {
    "dense_accuracy": "dense",
    "pruned_accuracy": "pruned, stale statistics",
    "recalibrated_accuracy": "pruned, recalibrated",
    "finetuned_accuracy": "fine-tuned",
}
SAID = {"dense_accuracy": 0.87, "pruned_accuracy": 0.41, "finetuned_accuracy": 0.88}  # by the original report
COSTS = {  # what it costs → the stages that are subtracted, first − second
    "pruning costs": ("pruned_accuracy", "dense_accuracy"),
    "recalibration brings back": ("recalibrated_accuracy", "pruned_accuracy"),
    "fine-tuned − dense": ("finetuned_accuracy", "dense_accuracy"),
}
# Settings of a dense training: without effect where a dense network is given.
OF_DENSE = ("initialisation", "epochs", "learning_rate", "warmup")
PLACES = {field.name: place for place, field in enumerate(dataclasses.fields(Settings))}


@dataclasses.dataclass(frozen=True)
class Trained:
    """Runs that were trained alike."""

    settings: str  # what differs in their training from that of the others
    seeds: Arm

    @property
    def name(self) -> str:
        """The name that a sweep gave its runs, without the seed; their settings if they have none in common."""
        folders = {Path(run.folder.name) for run in self.seeds.values()}
        (name, *others) = {_without_seed(folder) for folder in folders}
        return self.settings if others or name in {folder.name for folder in folders} else name


def alike(runs: Sequence[Run]) -> list[list[Trained]]:
    """Returns for each study the arms that were pruned alike and not trained alike, if there are two or more."""
    pruned: dict[tuple[object, ...], dict[tuple[str, ...], Arm]] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        if run.study != "." and run.metrics.recalibrated_accuracy is not None and run.sparsity:
            recipes = pruned[run.study, run.allocation, run.schedule, run.sparsity, *sorted(run.images.items())]
            recipes[_training(run)].setdefault(run.metrics.seed, run)
    found = []
    for recipes in pruned.values():
        own = ([s for s in sorted(recipe, key=_place) if not _is_shared(s, recipes)] for recipe in recipes)
        names = [", ".join(settings) or "own dense network" for settings in own]
        if len(recipes) > 1:
            found.append([Trained(*of) for of in zip(names, recipes.values(), strict=True)])
    return found


def _training(run: Run) -> tuple[str, ...]:
    """Returns the settings of a run's training; a given dense network by its run, for all seeds, not by settings."""
    given = run.folder.settings.get("dense_weights")
    if given is None:
        return run.recipe
    arm = _without_seed(Path(given).parent.parent) or Path(given).name
    own = (setting for setting in run.recipe if setting.split()[0] not in OF_DENSE)
    return (*own, f"dense_weights {arm}")


def _without_seed(folder: Path) -> str:
    return re.sub(r"-seed\d+$", "", folder.name)


def _is_shared(setting: str, recipes: Iterable[tuple[str, ...]]) -> bool:
    """Whether all arms have this setting; what an arm with a given network does not have counts as shared."""
    name = setting.split()[0]
    return all(
        setting in recipe or (name in OF_DENSE and not any(other.split()[0] == name for other in recipe))
        for recipe in recipes
    )


def _place(setting: str) -> int:
    """Returns where a setting stands in the name of an arm: as in `Settings`, from the start to the fine-tuning."""
    return PLACES.get(setting.split()[0], -1)


def stages(starts: Sequence[Trained]) -> list[Block]:
    """Returns the figure and the tables of the accuracy at each stage, and of what each step costs, seed by seed."""
    names = [of.name for of in starts]
    if len(set(names)) < len(names):
        names = [of.settings for of in starts]
    arms = dict(zip(names, (of.seeds for of in starts), strict=True))
    first = next(iter(starts[0].seeds.values()))
    curves = {name: [mean(arm, figure, 100) for figure in STAGES] for name, arm in arms.items()}
    trained = {run.training for arm in arms.values() for run in arm.values()}
    parts = [data.caption(first.metrics.dataset), *(trained if len(trained) == 1 else ())]
    caption = "; ".join([*parts, f"{first.sparsity_text} pruned, {first.schedule}"])
    alike = first.allocation == "reference" and first.metrics.dataset["name"] == "cifar10"
    reported = [100 * SAID[stage] if alike and stage in SAID else None for stage in STAGES]
    rows = [
        [name, of.settings, str(len(of.seeds)), *(accuracy_text(mean(of.seeds, figure)) for figure in STAGES)]
        for name, of in zip(names, starts, strict=True)
    ]
    costs = [[name, str(len(arm)), *(_cost(arm, *of) for of in COSTS.values())] for name, arm in arms.items()]
    said = f"Differences in points, seed by seed; {BOLD}."
    heads = [f"{name} [%]" for name in STAGES.values()]
    return [
        Heading(f"What pruning costs before fine-tuning: {first.study}", link("starts", first.study)),
        Picture(
            "Test accuracy at each stage, means with intervals.",
            figures.stages(curves, list(STAGES.values()), reported, caption),
        ),
        Table(["arm", "trained with", "seeds", *heads], rows, f"{caption}."),
        Table(["arm", "seeds", *COSTS], costs, said),
    ]


def _cost(arm: Mapping[int, Run], one: str, other: str) -> str:
    """Returns the mean difference of two stages, first − second, in points."""
    points = {s: 100 * (getattr(run.metrics, one) - getattr(run.metrics, other)) for s, run in arm.items()}
    gain = comparison.mean({seed: {"cost": cost} for seed, cost in points.items()}, "cost")
    return difference(gain, 2) if gain else ""
