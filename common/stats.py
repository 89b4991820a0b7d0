"""Statistics of seeds: means with intervals, and differences between arms that share their seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, trim_mean


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate and its bootstrap confidence interval."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.2f} [{self.low:.2f}, {self.high:.2f}]"

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the interval: the difference is more than its noise. A bare point has none."""
        return self.low < self.high and (self.low > 0 or self.high < 0)


def mean(values: Sequence[float], *, confidence: float = 0.95, resamples: int = 20_000) -> Interval:
    """Returns the mean over seeds with its percentile bootstrap interval; of fewer than two values a bare point.

    The percentile interval of few seeds is too narrow (of five normal values, a 95 % one contains the mean in 84 % of
    cases): read a difference that barely excludes zero as open.
    """
    return _bootstrapped(values, np.mean, confidence, resamples)


def interquartile_mean(values: Sequence[float], *, confidence: float = 0.95, resamples: int = 20_000) -> Interval:
    """Returns the mean of the middle half of the seeds, with its bootstrap interval (Agarwal et al. 2021).

    A quarter of the values, rounded down, is left out at either end: one of five, two of ten.
    """

    def middle(sample: NDArray[np.float64], axis: int = -1) -> Any:
        return trim_mean(sample, 0.25, axis=axis)

    return _bootstrapped(values, middle, confidence, resamples)


def _bootstrapped(
    values: Sequence[float], statistic: Callable[..., Any], confidence: float, resamples: int
) -> Interval:
    sample = np.asarray(values, dtype=float)
    estimate = float(statistic(sample))
    if len(sample) < 2 or np.ptp(sample) == 0:
        return Interval(estimate, estimate, estimate)
    drawn = bootstrap(
        (sample,), statistic, n_resamples=resamples, confidence_level=confidence, method="percentile", rng=0
    ).confidence_interval
    return Interval(estimate, float(drawn.low), float(drawn.high))


def paired_difference(
    ours: Sequence[float], theirs: Sequence[float], *, confidence: float = 0.95, resamples: int = 20_000
) -> Interval:
    """Returns the mean of `ours` − `theirs` seed by seed, with its bootstrap interval.

    Raises:
        ValueError: the arms do not have the same number of seeds.
    """
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    return mean(differences, confidence=confidence, resamples=resamples)
