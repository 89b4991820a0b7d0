"""The settings of a study of several VAEs: a sweep file of vae/train.py, and what the study adds to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro
from annotated_types import Ge, MinLen

from common import cli, data
from common.errors import UsageError
from common.sweep.file import REPLACED, Arm, SweepFile, groups_of, pairs_of, seeds_of
from vae.settings import DATASETS, ImageSet, Settings

SCRIPT = "vae/train.py"
# Set for the study, not for a model.
SHARED = {field.name for field in dataclasses.fields(cli.RunSettings)} | {"resize", "max_images"}


@dataclasses.dataclass(frozen=True)
class StudySettings(SweepFile, cli.RunSettings):
    """Train several VAEs with several seeds, compare them seed by seed, draw their samples side by side."""

    smoke: ClassVar[dict[str, Any]] = {"dataset": "digits", "seeds": 2}
    replaced: ClassVar[Mapping[str, str]] = REPLACED

    dataset: ImageSet = "auto"
    """Images; auto takes MNIST where it can be had, else scikit-learn's digits, with a warning. What is none of the
    names is a folder of images, as for vae/train.py."""
    resize: bool = False
    """Resize the images of such a folder to 28×28 and turn them to grey; their aspect is not kept."""
    max_images: Annotated[int, Ge(1000)] | None = None
    """Images to use at most, the same share of the training, held-out and test images; none means all of them."""
    extended_from: Annotated[Path | None, tyro.conf.Suppress] = None  # a study has no training of its own
    script: Annotated[str, tyro.conf.Fixed] = SCRIPT
    """The script of every run."""
    seeds: Annotated[int, Ge(1)] | Annotated[list[Annotated[int, Ge(0)]], MinLen(1)] = 1
    """Seeds of every model: how many from --seed on, the same for all, or a list."""
    processes: Annotated[int, Ge(1)] | None = None
    """Trainings at a time; none means one a core on a CPU (faster than more threads each) and one on a GPU."""

    @property
    def models(self) -> dict[str, Arm]:
        """The models by name."""
        return {arm.name: arm for group in groups_of(self) for arm in group}

    @property
    def pairs(self) -> dict[str, tuple[str, str]]:
        """The claims: the two models whose figures are subtracted, by the claim's name."""
        return pairs_of(self, groups_of(self))

    def check(self) -> None:
        """Raises UsageError for a study without models, with unknown settings, or with claims about none of them."""
        if not self.arms and not self.grids:
            raise UsageError("a study needs arms: give a preset, --config configs/vae/sweeps/study_reference.yaml")
        if self.script != SCRIPT:
            raise UsageError(f"script {self.script}: a study is of {SCRIPT}; use python -m common.sweep")
        data.require_dataset(self.dataset, DATASETS, self.resize)
        models = self.models
        seeds = seeds_of(self, self.seed)
        if self.pairs and len(seeds) < 2:
            raise UsageError(f"--seeds {self.seeds} with comparisons: an interval needs at least 2 seeds")
        for name, arm in models.items():
            if taken := SHARED & arm.settings.keys():
                raise UsageError(f"arms: {name}: {min(taken)} is not for an arm to set; it is an option of the study")
            try:
                self.model_settings(arm).check()
            except UsageError as error:
                raise UsageError(f"arms: {name}: {error}") from None
        if len({self.model_settings(arm).generated for arm in models.values()}) > 1:
            raise UsageError("arms: all need the same generated: FID depends on the number of images")

    def job_settings(self, arm: Arm, seed: int) -> dict[str, Any]:
        """Returns the settings that a run of a model is started with, without those of this machine."""
        chosen = dict(arm.settings)
        if self.smoke_test:
            chosen = {key: value for key, value in chosen.items() if key not in Settings.smoke} | {"smoke_test": True}
        passed: dict[str, Any] = {name: getattr(self, name) for name in ("device", "precision", "dataset")}
        usual = {"resize": False, "max_images": None, "keep_state": False}  # older studies have runs without them
        passed |= {name: getattr(self, name) for name, value in usual.items() if getattr(self, name) != value}
        return {**chosen, **passed, "seed": seed}

    def model_settings(self, arm: Arm) -> Settings:
        """Returns the settings of one model with the first seed, as vae/train.py resolves them."""
        return cli.from_mapping(Settings, self.job_settings(arm, seeds_of(self, self.seed)[0]))


def described(config: Mapping[str, Any]) -> tuple[dict[str, Mapping[str, Any]], dict[str, Sequence[str]]] | None:
    """Returns every model's own settings and every claim's two models from a study's config.yaml, old or new.

    None for the settings of something else.
    """
    if "models" in config:
        return dict(config["models"]), dict(config["claims"])
    try:
        fields = [
            field.name for field in dataclasses.fields(SweepFile) if field.name != "margins" or "margins" in config
        ]
        file = SweepFile(**{name: config[name] for name in fields})
        groups = groups_of(file)
        return {arm.name: arm.settings for group in groups for arm in group}, dict(pairs_of(file, groups))
    except (KeyError, TypeError, AttributeError, UsageError):
        return None
