"""Arms that share their seeds, compared seed by seed: means with intervals, paired differences, and their tables.

An arm is one setting of an experiment, run with several seeds. A difference between two arms is taken seed by seed,
over the seeds that both have: they share the random numbers that the seed gives.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from common import stats
from common.stats import Interval
from common.tables import Table, difference

Figures = Mapping[str, float]  # figure → value, of one run
Arm = Mapping[int, Figures]  # seed → figures
Arms = Mapping[str, Arm]  # name → arm
Pairs = Mapping[str, tuple[str, str]]  # name of a difference → its two arms, first − second


@dataclasses.dataclass(frozen=True)
class Column:
    """A figure in a table: its heading, its decimals (none: as the interval's width asks for), and its unit's scale."""

    figure: str
    heading: str = ""
    decimals: int | None = None
    scale: float = 1.0  # 100 shows a fraction in per cent, a difference of fractions in percentage points


def mean(arm: Arm, figure: str, scale: float = 1.0) -> Interval | None:
    """Returns the mean of a figure over an arm's seeds with its interval; None where a value is missing."""
    return _mean([scale * of.get(figure, math.nan) for of in arm.values()])


def paired(one: Arm, other: Arm, figure: str, scale: float = 1.0) -> Interval | None:
    """Returns the mean of `one` − `other` over the seeds that both have, with its interval.

    None where no seed is shared or a value is missing.
    """
    shared = [seed for seed in one if seed in other]
    return _mean([scale * (one[s].get(figure, math.nan) - other[s].get(figure, math.nan)) for s in shared])


def _mean(values: Sequence[float]) -> Interval | None:
    return stats.mean(values) if values and all(map(math.isfinite, values)) else None


def from_baseline(arms: Iterable[str], baseline: str) -> dict[str, tuple[str, str]]:
    """Returns every other arm paired with `baseline`, under its own name."""
    return {name: (name, baseline) for name in arms if name != baseline}


def every_pair(arms: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Returns every later arm paired with every earlier one, as `later − earlier`."""
    return {f"{one} − {other}": (one, other) for other, one in combinations(arms, 2)}


def mean_table(arms: Arms, columns: Sequence[Column], caption: str = "") -> Table:
    """Returns a row for each arm: its number of seeds and the mean of every column with its interval."""
    rows = []
    for name, arm in arms.items():
        means = [(mean(arm, column.figure, column.scale), column.decimals) for column in columns]
        rows.append([name, str(len(arm)), *(of.text(decimals) if of else "" for of, decimals in means)])
    return Table(["arm", "seeds", *_headings(columns)], rows, caption)


def difference_table(arms: Arms, pairs: Pairs, columns: Sequence[Column], caption: str = "") -> Table:
    """Returns a row for each pair: the shared seeds and the difference in every column, bold where conclusive."""
    rows = []
    for name, (one, other) in pairs.items():
        shared = sum(seed in arms[other] for seed in arms[one])
        gains = [(paired(arms[one], arms[other], c.figure, c.scale), c.decimals) for c in columns]
        rows.append([name, str(shared), *(difference(gain, decimals) if gain else "" for gain, decimals in gains)])
    return Table(["difference", "seeds", *_headings(columns)], rows, caption)


def _headings(columns: Sequence[Column]) -> list[str]:
    return [column.heading or column.figure for column in columns]
