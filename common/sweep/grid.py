"""The sweep file: which script, which settings, which seeds; the arms that follow, and what waits for what."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import yaml
from annotated_types import Ge, MinLen
from pydantic import ConfigDict, TypeAdapter, ValidationError
from sklearn.model_selection import ParameterGrid

from common.errors import UsageError
from common.files import ROOT

# What the sweep itself gives every run.
NOT_FOR_A_GRID = {"seed", "run_name", "results_dir", "resume", "config", "smoke_test", "data_dir", "threads"}


@dataclasses.dataclass(frozen=True)
class SweepFile:
    """What a sweep file says: which script, which settings, which seeds, and what to tabulate."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    script: str
    """The script of every run, such as pruning/run.py."""
    grids: Annotated[list[dict[str, Any]], MinLen(1)]
    """Setting → its value, or the list of its values: every combination is an arm. In text, {seed} is the run's seed,
    {runs} the folder of all runs: a grid that takes a file of an earlier arm, {runs}/ARM-seed{seed}/…, waits for it."""
    seeds: Annotated[int, Ge(1)] | Annotated[list[Annotated[int, Ge(0)]], MinLen(1)] = 1
    """The seeds of every arm: a list, or how many from 0 on."""
    shared: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of all runs; --smoke-test leaves them out."""
    columns: Annotated[list[str], MinLen(1)] | None = None
    """Figures of metrics.json to tabulate, such as elbo or quality/mixture samples/fid; none means the results
    at its top that differ between runs."""
    baseline: str | None = None
    """Arm that the others are compared with, seed by seed."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One combination of the grid's settings: its name, and all that its runs are given but their seed."""

    name: str
    varied: Mapping[str, Any]
    settings: Mapping[str, Any]


def read(path: Path) -> SweepFile:
    """Returns the sweep file.

    Raises:
        UsageError: it is missing, not YAML, or says something unknown.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise UsageError(f"{path}: not a sweep file: it has script, grids, seeds, shared, …")
        file = TypeAdapter(SweepFile).validate_python(values)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except ValidationError as error:
        # A misspelt name before the missing one that it stands for.
        first = min(error.errors(), key=lambda one: one["type"] != "unexpected_keyword_argument")
        where = ".".join(map(str, first["loc"][:2])) or "the file"
        raise UsageError(
            f"{path}: {where}: {first['msg'].lower()} (a sweep has script, grids, seeds, shared, …)"
        ) from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from None
    for settings in (file.shared, *file.grids):
        if taken := NOT_FOR_A_GRID & settings.keys():
            raise UsageError(f"{path}: {min(taken)} is not for a grid to set: the sweep sets it")
    if isinstance(file.seeds, list) and len(set(file.seeds)) < len(file.seeds):
        raise UsageError(f"{path}: seeds: the same seed twice")
    if Path(file.script).suffix != ".py" or not (ROOT / file.script).is_file():
        raise UsageError(f"{path}: script {file.script}: no such script in {ROOT}")
    return file


def arms(file: SweepFile, grid: Mapping[str, Any], *, smoke_test: bool) -> list[Arm]:
    """Returns every combination of one grid's lists; a value that is not a list is the same in all of them."""
    fixed = {name: value for name, value in grid.items() if not isinstance(value, list)}
    lists = {name: value for name, value in grid.items() if isinstance(value, list)}
    common = {"smoke_test": True} if smoke_test else file.shared
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


def require_distinct(names: Sequence[str], baseline: str | None) -> None:
    """Raises UsageError for two arms of one name, whose runs would be the same folders, or an unknown baseline."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"grids: two arms are called {twice}; put the values that tell them apart in lists")
    if baseline is not None and baseline not in names:
        raise UsageError(f"baseline {baseline}: no such arm; there are {', '.join(names)}")


def require_known_runs(grids: Sequence[Sequence[Arm]], seeds: Sequence[int], runs: Path) -> None:
    """Raises UsageError for a file `{runs}/<run>/…` of a run that no grid before it makes and that is not there.

    A run that has begun is left to the script: it may have what it took.
    """
    known: set[str] = set()
    for grid in grids:
        for arm, seed in ((arm, seed) for arm in grid for seed in seeds):
            if (runs / run_name(arm, seed) / "config.yaml").exists():
                continue
            for value in arm.settings.values():
                named = re.search(r"\{runs\}/([^/]+)", str(filled(value, seed)))
                if named and named[1] not in known and not Path(filled(value, seed, str(runs))).exists():
                    raise UsageError(f"{value}: no grid before it has a run {named[1]}")
        known |= {run_name(arm, seed) for arm in grid for seed in seeds}


def in_stages(grids: Sequence[Sequence[Arm]]) -> list[list[Arm]]:
    """Returns the arms that run beside one another, a stage when those before it have ended.

    A grid that takes a file of an earlier arm, `{runs}/<arm>-seed…`, comes in the stage after that arm's.
    """
    stages: list[list[Arm]] = []
    stage_of: dict[str, int] = {}
    for grid in grids:
        needed = [
            # A file that names no arm may be of any.
            max((stage for name, stage in stage_of.items() if f"{{runs}}/{name}-seed" in file), default=len(stages) - 1)
            for file in (str(value) for arm in grid for value in arm.settings.values())
            if "{runs}" in file
        ]
        stage = max(needed, default=-1) + 1
        stages += [[] for _ in range(stage + 1 - len(stages))]
        stages[stage] += grid
        stage_of |= {arm.name: stage for arm in grid}
    return [stage for stage in stages if stage]


def run_name(arm: Arm, seed: int) -> str:
    """Returns the name of a run's folder."""
    return f"{arm.name}-seed{seed}"


def filled(value: Any, seed: int, runs: str = "{runs}") -> Any:
    """Returns a setting with `{seed}` and `{runs}` in its text replaced."""
    return value.replace("{seed}", str(seed)).replace("{runs}", runs) if isinstance(value, str) else value
