"""Arms that share their seeds, compared seed by seed: means with intervals, paired differences, and their tables.

An arm is one setting of an experiment, run with several seeds. A difference between two arms is taken seed by seed,
over the seeds that both have: they share the random numbers that the seed gives. All intervals are 95 % intervals
(`common/stats.py`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Literal

from common import stats
from common.stats import FEWEST, Interval
from common.tables import Table, difference

Figures = Mapping[str, float]  # figure → value, of one run
Arm = Mapping[int, Figures]  # seed → figures
Arms = Mapping[str, Arm]  # name → arm
Pairs = Mapping[str, tuple[str, str]]  # name of a difference → its two arms, first − second
Shows = Literal["mean", "estimate", "interquartile mean", "improvement", "verdict"]


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table: its figure, heading, decimals (none: as the interval's width asks for) and what it shows.

    `shows` is, in a table of arms, the mean with its interval, the mean alone (`estimate`) or the interquartile mean;
    in a table of differences, the mean difference, the probability that a run of the first arm is better than one of
    the second (`improvement`), or the difference in words (`verdict`).
    """

    figure: str
    heading: str = ""
    decimals: int | None = None
    scale: float = 1.0  # 100 shows a fraction in per cent, a difference of fractions in percentage points
    shows: Shows = "mean"
    lower_is_better: bool = False  # for `improvement` and `verdict`
    margin: float | None = None  # differences that lie within it are as good as none


# -- figures ----------------------------------------------------------------------------------------------------------


def arm_of(seeds: Sequence[int], figures: Mapping[str, Sequence[float]]) -> dict[int, dict[str, float]]:
    """Returns the arm whose `figures` are lists, one value a seed.

    Raises:
        ValueError: a list is longer or shorter than `seeds`.
    """
    for name, values in figures.items():
        if len(values) != len(seeds):
            raise ValueError(f"{name}: {len(values)} values of {len(seeds)} seeds")
    return {seed: {name: values[i] for name, values in figures.items()} for i, seed in enumerate(seeds)}


def mean(arm: Arm, figure: str, scale: float = 1.0) -> Interval | None:
    """Returns the mean of a figure over an arm's seeds with its interval; None where a value is missing."""
    return _mean(_values(arm, figure, scale))


def interquartile_mean(arm: Arm, figure: str, scale: float = 1.0) -> Interval | None:
    """Returns the mean of the middle half of an arm's values with its interval; None where a value is missing."""
    values = _values(arm, figure, scale)
    return stats.interquartile_mean(values) if _whole(values) else None


def paired(one: Arm, other: Arm, figure: str, scale: float = 1.0) -> Interval | None:
    """Returns the mean of `one` − `other` over the seeds that both have, with its interval.

    None where no seed is shared or a value is missing.
    """
    shared = [seed for seed in one if seed in other]
    return _mean([scale * (one[s].get(figure, math.nan) - other[s].get(figure, math.nan)) for s in shared])


@dataclasses.dataclass(frozen=True)
class Gain:
    """The difference of a figure between two arms: paired where they have the same seeds, else Welch's."""

    paired: bool
    t: Interval
    bootstrap: Interval


def gain(one: Arm, other: Arm, figure: str) -> Gain | None:
    """Returns the mean of `one` − that of `other`; None where a value is missing."""
    pairs = one.keys() == other.keys()
    ours = _values(one, figure, 1.0)
    theirs = _values({seed: other[seed] for seed in one} if pairs else other, figure, 1.0)
    if not _whole(ours) or not _whole(theirs):
        return None
    t = (
        stats.t_mean([a - b for a, b in zip(ours, theirs, strict=True)])
        if pairs
        else stats.welch_difference(ours, theirs)
    )
    return Gain(pairs, t, stats.bootstrap_difference(ours, theirs, paired=pairs))


def equivalence(of: Interval, margin: float) -> str:
    """Returns in words what an interval says about a difference of ±`margin`, which was named before."""
    if of.values < FEWEST:
        return "too few seeds"
    if of.within(margin):
        return "equivalent"
    return "different" if of.low > margin or of.high < -margin else "open"


def improvement(one: Arm, other: Arm, figure: str, *, lower_is_better: bool = False) -> Interval | None:
    """Returns the probability that a run of `one` is better than a run of `other`, with its interval.

    Every seed of either arm counts, paired or not (Agarwal et al. 2021, section 4.3); None where a value is missing.
    """
    scale = -1.0 if lower_is_better else 1.0
    ours, theirs = _values(one, figure, scale), _values(other, figure, scale)
    return stats.probability_of_improvement([ours], [theirs]) if _whole(ours) and _whole(theirs) else None


def differences(arms: Arms, pairs: Pairs, figures: Iterable[str]) -> dict[str, dict[str, Interval]]:
    """Returns the paired difference in every figure of every pair; one that has a value missing is left out."""
    names = list(figures)
    found = {
        pair: {name: paired(arms[one], arms[other], name) for name in names} for pair, (one, other) in pairs.items()
    }
    return {pair: {name: of for name, of in gains.items() if of is not None} for pair, gains in found.items()}


def _values(arm: Arm, figure: str, scale: float) -> list[float]:
    return [scale * of.get(figure, math.nan) for of in arm.values()]


def _whole(values: Sequence[float]) -> bool:
    return bool(values) and all(map(math.isfinite, values))


def _mean(values: Sequence[float]) -> Interval | None:
    return stats.mean(values) if _whole(values) else None


def verdict(*higher: Interval, lower: Sequence[Interval] = ()) -> str:
    """Returns in words what differences allow to say together.

    `higher` are differences in figures of which more is better, `lower` in those of which less is better. Nothing is
    said of an interval of fewer than five seeds.
    """
    if min(gain.values for gain in (*higher, *lower)) < FEWEST:
        return "too few seeds"
    better = {gain.estimate > 0 for gain in higher if gain.conclusive}
    better |= {gain.estimate < 0 for gain in lower if gain.conclusive}
    words = {frozenset(): "nothing shown", frozenset({True}): "better", frozenset({False}): "worse"}
    return words.get(frozenset(better), "better in one, worse in the other")


# -- which arms are compared ------------------------------------------------------------------------------------------


def from_baseline(arms: Iterable[str], baseline: str) -> dict[str, tuple[str, str]]:
    """Returns every other arm paired with `baseline`, under its own name."""
    return {name: (name, baseline) for name in arms if name != baseline}


def every_pair(arms: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Returns every later arm paired with every earlier one, as `later − earlier`."""
    return {f"{one} − {other}": (one, other) for other, one in combinations(arms, 2)}


# -- tables -----------------------------------------------------------------------------------------------------------


def mean_table(
    arms: Arms, columns: Sequence[Column], caption: str = "", *, heading: str = "arm", seeds: bool = True
) -> Table:
    """Returns a row for each arm: its number of seeds (unless `seeds` is false) and every column's figure."""
    rows = [
        [name, *([str(len(arm))] if seeds else []), *(_of_arm(arm, column) for column in columns)]
        for name, arm in arms.items()
    ]
    return Table([heading, *(["seeds"] if seeds else []), *_headings(columns)], rows, caption)


def difference_table(
    arms: Arms,
    pairs: Pairs,
    columns: Sequence[Column],
    caption: str = "",
    *,
    heading: str = "difference",
    seeds: bool = True,
) -> Table:
    """Returns a row for each pair: the number of shared seeds and the difference in every column.

    A difference is bold where its interval is conclusive.
    """
    rows = []
    for name, (one, other) in pairs.items():
        shared = [str(sum(seed in arms[other] for seed in arms[one]))] if seeds else []
        rows.append([name, *shared, *(_of_pair(arms[one], arms[other], column) for column in columns)])
    return Table([heading, *(["seeds"] if seeds else []), *_headings(columns)], rows, caption)


def interval_table(
    rows: Mapping[str, Mapping[str, Interval]],
    columns: Sequence[Column],
    caption: str = "",
    *,
    heading: str = "difference",
) -> Table:
    """Returns a row for each name: the differences that a study has computed before, bold where conclusive."""
    cells = [[name, *(_difference(of.get(column.figure), column) for column in columns)] for name, of in rows.items()]
    return Table([heading, *_headings(columns)], cells, caption)


def _of_arm(arm: Arm, column: Column) -> str:
    match column.shows:
        case "mean" | "estimate":
            of = mean(arm, column.figure, column.scale)
        case "interquartile mean":
            of = interquartile_mean(arm, column.figure, column.scale)
        case _:
            raise ValueError(f"{column.shows} is of two arms, not of one")
    if of is None:
        return ""
    return stats.number(of.estimate, column.decimals or 0) if column.shows == "estimate" else of.text(column.decimals)


def _of_pair(one: Arm, other: Arm, column: Column) -> str:
    if column.shows == "improvement":
        probability = improvement(one, other, column.figure, lower_is_better=column.lower_is_better)
        return probability.text(column.decimals) if probability else ""
    gain = paired(one, other, column.figure, column.scale)
    match column.shows:
        case "mean":
            return _difference(gain, column)
        case "verdict":
            gains = [gain] if gain else []
            return "" if not gain else verdict(lower=gains) if column.lower_is_better else verdict(*gains)
        case _:
            raise ValueError(f"{column.shows} is of one arm, not of two")


def _difference(gain: Interval | None, column: Column) -> str:
    return difference(gain, column.decimals, column.margin) if gain is not None else ""


def _headings(columns: Sequence[Column]) -> list[str]:
    return [column.heading or column.figure for column in columns]
