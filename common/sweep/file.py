"""The sweep file: which script, which arms, which seeds, what to compare; and which arms wait for which.

An arm is named under `arms:`, or comes from a grid under `grids:`. Both may stand in one file.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro
import yaml
from annotated_types import Ge, Gt, MinLen
from pydantic import ConfigDict, TypeAdapter, ValidationError
from sklearn.model_selection import ParameterGrid

from common import cli, comparison
from common.errors import UsageError
from common.files import ROOT, moved_to_sweeps
from common.plain_yaml import read_yaml

# The sweep itself gives these to every run.
NOT_FOR_AN_ARM = {"seed", "run_name", "results_dir", "resume", "config", "smoke_test", "data_dir", "threads"}
REPLACED = {"everywhere": "shared", "models": "arms", "claims": "comparisons"}  # keys of the studies' older form
ARM_NAME = r"\w[\w.-]*"  # it names folders


@dataclasses.dataclass(frozen=True)
class SweepFile:
    """What a sweep file says: which script, which arms, which seeds, and what to tabulate and compare.

    `Fixed` fields have no option on the command line of a script whose settings include these, as vae/study.py's do.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    script: Annotated[str, tyro.conf.Fixed]
    """The script of every run, such as pruning/run.py."""
    arms: Annotated[dict[str, dict[str, Any]], tyro.conf.Fixed] = dataclasses.field(default_factory=dict)
    """Name → settings of one arm."""
    grids: Annotated[list[dict[str, Any]], tyro.conf.Fixed] = dataclasses.field(default_factory=list)
    """Each grid: setting → its value, or the list of its values; every combination is an arm, named after the values
    in lists. In a text, {seed} is the run's seed and {runs} the folder of all runs: an arm that takes a file of an
    earlier arm, {runs}/ARM-seed{seed}/…, waits for it. Named arms come before those of the grids."""
    seeds: Annotated[int, Ge(1)] | Annotated[list[Annotated[int, Ge(0)]], MinLen(1)] = 1
    """The seeds of every arm: a list, or how many from 0 on."""
    shared: Annotated[dict[str, Any], tyro.conf.Fixed] = dataclasses.field(default_factory=dict)
    """Settings of all runs; the smoke test of a sweep leaves them out."""
    columns: Annotated[Annotated[list[str], MinLen(1)] | None, tyro.conf.Fixed] = None
    """Figures of metrics.json to tabulate, such as elbo or quality/mixture samples/fid; none means the results
    at its top that differ between runs."""
    baseline: Annotated[str | None, tyro.conf.Fixed] = None
    """Arm with which all others are compared, seed by seed."""
    comparisons: Annotated[dict[str, tuple[str, str]], tyro.conf.Fixed] = dataclasses.field(default_factory=dict)
    """Name of a difference → the two arms, first − second, seed by seed."""
    margins: Annotated[dict[str, Annotated[float, Gt(0)]], tyro.conf.Fixed] = dataclasses.field(default_factory=dict)
    """Figure → the largest difference that counts as none. Name it before the study runs."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One arm: its name, its own settings, and all settings that its runs get but their seed."""

    name: str
    varied: Mapping[str, Any]
    settings: Mapping[str, Any]


def read(path: Path) -> SweepFile:
    """Returns the sweep file.

    Raises:
        UsageError: it is missing, not YAML, or says something unknown.
    """
    path = moved_to_sweeps(path)
    try:
        values = read_yaml(path)
        if not isinstance(values, dict):
            raise UsageError(f"{path}: not a sweep file: it has script, arms, grids, seeds, shared, …")
        cli.require_current_keys(values, REPLACED, str(path))
        if "script" not in values and not {"arms", "grids"} & values.keys():
            raise UsageError(
                f"{path}: not a sweep file, it names no script; a preset of one run goes to its script with --config"
            )
        file = TypeAdapter(SweepFile).validate_python(values)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except ValidationError as error:
        # A misspelt name is reported before the missing one that it stands for.
        first = min(error.errors(), key=lambda one: one["type"] != "unexpected_keyword_argument")
        where = ".".join(map(str, first["loc"][:2])) or "the file"
        raise UsageError(
            f"{path}: {where}: {first['msg'].lower()} (a sweep file has script, arms, grids, seeds, shared, …)"
        ) from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from None
    if Path(file.script).suffix != ".py" or not (ROOT / file.script).is_file():
        raise UsageError(f"{path}: script {file.script}: no such script in {ROOT}")
    return file


def groups_of(file: SweepFile, *, smoke_test: bool = False) -> list[list[Arm]]:
    """Returns the arms in groups: every named arm is one, every grid is one.

    Raises:
        UsageError: an arm sets what the sweep sets, two arms have one name, a comparison is of an unknown arm.
    """
    if not file.arms and not file.grids:
        raise UsageError("no arms: give them by name in arms, as combinations in grids, or both")
    for settings in (file.shared, *file.arms.values(), *file.grids):
        if taken := NOT_FOR_AN_ARM & settings.keys():
            raise UsageError(f"{min(taken)} is not for an arm to set: the sweep sets it")
    if isinstance(file.seeds, list) and len(set(file.seeds)) < len(file.seeds):
        raise UsageError("seeds: the same seed twice")
    if bad := next((name for name in file.arms if not re.fullmatch(ARM_NAME, name)), None):
        raise UsageError(f"arms: {bad!r} cannot name a folder; use letters, digits, '.', '-' and '_'")
    common = {"smoke_test": True} if smoke_test else file.shared
    named = [[Arm(name, own, {**common, **own})] for name, own in file.arms.items()]
    groups = [*named, *(_combinations(grid, common) for grid in file.grids)]
    names = [arm.name for group in groups for arm in group]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two arms are called {twice}; in a grid, put the values that tell them apart in lists")
    if file.baseline is not None and file.baseline not in names:
        raise UsageError(f"baseline {file.baseline}: no such arm; there are {', '.join(names)}")
    for name, pair in file.comparisons.items():
        if unknown := [arm for arm in pair if arm not in names]:
            raise UsageError(f"comparisons: {name}: no arm is called {unknown[0]}; there are {', '.join(names)}")
    return groups


def _combinations(grid: Mapping[str, Any], common: Mapping[str, Any]) -> list[Arm]:
    """Returns every combination of a grid's lists; a value that is not a list is the same in all of them."""
    fixed = {name: value for name, value in grid.items() if not isinstance(value, list)}
    lists = {name: value for name, value in grid.items() if isinstance(value, list)}
    if not all(lists.values()):
        raise UsageError(f"grids: an empty list of values for {next(n for n, v in lists.items() if not v)}")
    combinations = [dict(sorted(c.items(), key=lambda item: list(lists).index(item[0]))) for c in ParameterGrid(lists)]
    return [Arm(arm_name(varied), varied, {**common, **fixed, **varied}) for varied in combinations]


def arm_name(varied: Mapping[str, Any]) -> str:
    """Returns a name for files and tables: words as they are, other values behind the name of their setting."""
    words = []
    for name, value in varied.items():
        if isinstance(value, bool):
            words.append(name if value else f"no_{name}")
        else:
            words.append(value if isinstance(value, str) else f"{name}{value}")
    return re.sub(r"[^\w.-]+", "_", "-".join(words)) or "all"


def pairs_of(file: SweepFile, groups: Sequence[Sequence[Arm]]) -> dict[str, tuple[str, str]]:
    """Returns every difference that the file asks for: the other arms from the baseline, and the comparisons."""
    names = [arm.name for group in groups for arm in group]
    against = comparison.from_baseline(names, file.baseline) if file.baseline is not None else {}
    return {**against, **file.comparisons}


def seeds_of(file: SweepFile, first: int = 0) -> list[int]:
    """Returns the seeds of every arm; a bare number of seeds counts from `first`."""
    return list(range(first, first + file.seeds)) if isinstance(file.seeds, int) else file.seeds


def require_known_runs(groups: Sequence[Sequence[Arm]], seeds: Sequence[int], runs: Path) -> None:
    """Raises UsageError for a file `{runs}/<run>/…` of a run that no group before it makes and that does not exist.

    A run that has begun is not checked: the file may be gone after the run has read it.
    """
    known: set[str] = set()
    for group in groups:
        for arm, seed in ((arm, seed) for arm in group for seed in seeds):
            if (runs / run_name(arm, seed) / "config.yaml").exists():
                continue
            for value in (text for setting in arm.settings.values() for text in texts(setting)):
                named = needed_run(value, seed)
                if named and named not in known and not Path(filled(value, seed, str(runs))).exists():
                    raise UsageError(f"{value}: no arm or grid before it has a run {named}")
        known |= {run_name(arm, seed) for arm in group for seed in seeds}


def needed_run(value: Any, seed: int) -> str | None:
    """Returns the run whose file a setting names, `{runs}/<run>/…`; None for any other setting."""
    named = re.search(r"\{runs\}/([^/]+)", str(filled(value, seed)))
    return named[1] if named else None


def in_stages(groups: Sequence[Sequence[Arm]]) -> list[list[Arm]]:
    """Returns the arms in stages: those of one stage run side by side, after those of the stages before have ended.

    A group that takes a file of an earlier arm, `{runs}/<arm>-seed…`, comes in the stage after that arm's.
    """
    stages: list[list[Arm]] = []
    stage_of: dict[str, int] = {}
    for group in groups:
        needed = [
            # A file that names no arm may be of any.
            max((stage for name, stage in stage_of.items() if f"{{runs}}/{name}-seed" in file), default=len(stages) - 1)
            for file in (str(value) for arm in group for value in arm.settings.values())
            if "{runs}" in file
        ]
        stage = max(needed, default=-1) + 1
        stages += [[] for _ in range(stage + 1 - len(stages))]
        stages[stage] += group
        stage_of |= {arm.name: stage for arm in group}
    return [stage for stage in stages if stage]


def run_name(arm: Arm, seed: int) -> str:
    """Returns the name of a run's folder."""
    return f"{arm.name}-seed{seed}"


def filled(value: Any, seed: int, runs: str = "{runs}") -> Any:
    """Returns a setting with `{seed}` and `{runs}` in its text replaced, or in the texts of its list."""
    if isinstance(value, list):
        return [filled(of, seed, runs) for of in value]
    return value.replace("{seed}", str(seed)).replace("{runs}", runs) if isinstance(value, str) else value


def texts(value: Any) -> list[str]:
    """Returns the texts of a setting, which may be a list."""
    return [text for of in value for text in texts(of)] if isinstance(value, list) else [str(value)]
