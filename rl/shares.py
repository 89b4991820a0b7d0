"""Shares of seeds, such as those that ever get paid: Wilson's interval, the difference of two, Fisher's exact test."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import scipy

from common import comparison
from common.stats import Interval
from common.tables import Table


def wilson(seen: Sequence[bool]) -> Interval:
    """Returns the share of true values with its 95 % interval (Wilson 1927): also of none and of all."""
    count = len(seen)
    found = scipy.stats.binomtest(sum(seen), count).proportion_ci(method="wilson")
    return Interval(sum(seen) / count, float(found.low), float(found.high), count)


def newcombe(ours: Sequence[bool], theirs: Sequence[bool]) -> Interval:
    """Returns the difference of two shares with its 95 % interval, of both Wilson's (Newcombe 1998, method 10)."""
    one, other = wilson(ours), wilson(theirs)
    gain = one.estimate - other.estimate
    below = math.hypot(one.estimate - one.low, other.high - other.estimate)
    above = math.hypot(one.high - one.estimate, other.estimate - other.low)
    return Interval(gain, gain - below, gain + above, min(len(ours), len(theirs)))


def fisher(ours: Sequence[bool], theirs: Sequence[bool]) -> float:
    """Returns the p-value of Fisher's exact test, two-sided."""
    rows = [[sum(seen), len(seen) - sum(seen)] for seen in (ours, theirs)]
    return float(scipy.stats.fisher_exact(rows).pvalue)


def power(one: float, other: float, seeds: int) -> float:
    """Returns how often Fisher's exact test at 5 % tells true shares `one` and `other` of `seeds` seeds each apart."""
    counts = range(seeds + 1)
    chances = [scipy.stats.binom.pmf(counts, seeds, share) for share in (one, other)]
    return float(
        sum(
            chances[0][a] * chances[1][b]
            for a in counts
            for b in counts
            if scipy.stats.fisher_exact([[a, seeds - a], [b, seeds - b]]).pvalue <= 0.05
        )
    )


def tables(arms: Mapping[str, Sequence[bool]], title: str) -> tuple[list[Table], dict[str, Any]]:
    """Returns the share of each arm's seeds and the differences of later arms from earlier ones, and their record."""
    shares = {name: wilson(seen) for name, seen in arms.items()}
    rows = [[name, f"{sum(arms[name])} of {len(arms[name])}", shares[name].text(2)] for name in arms]
    pairs = comparison.every_pair(arms)
    gains = {name: newcombe(arms[one], arms[other]) for name, (one, other) in pairs.items()}
    tests = {name: fisher(arms[one], arms[other]) for name, (one, other) in pairs.items()}
    found = [[name, gains[name].text(2, signed=True), f"{tests[name]:.3f}"] for name in pairs]
    caption = f"{title}; 95 % intervals (Wilson, Newcombe), Fisher's exact test"
    record = {
        "arms": {name: dataclasses.asdict(of) for name, of in shares.items()},
        "differences": {name: dataclasses.asdict(gains[name]) | {"fisher_p": tests[name]} for name in pairs},
    }
    heads = ["arm", "seeds", "share"], ["difference", "of shares", "Fisher's p"]
    return [Table(heads[0], rows, caption), Table(heads[1], found)], record
