"""The few values that a layer's weights share in a packed file, found by k-means (Han et al. 2016, section 3.2)."""

from __future__ import annotations

import warnings

import numpy as np


def shared_values(values: np.ndarray, entries: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the shared values (float16, sorted) and, for each value, the uint8 code of the nearest shared one.

    The shared values are found by k-means, which starts from evenly spaced values (Han et al. 2016, section 3.2) and
    runs on at most 20,000 of the values, evenly spaced in their order.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    ranked = np.sort(values)[np.linspace(0, len(values) - 1, min(len(values), 20_000)).astype(int)]
    distinct = np.unique(ranked)
    if len(distinct) > entries:
        starts = np.linspace(distinct[0], distinct[-1], entries).reshape(-1, 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer clusters than asked for are fine
            clusters = KMeans(entries, init=starts, n_init=1, max_iter=50).fit(ranked.reshape(-1, 1))
        distinct = np.unique(clusters.cluster_centers_)
    codebook = distinct.astype(np.float16)
    middles = (codebook[1:].astype(np.float32) + codebook[:-1].astype(np.float32)) / 2
    return codebook, np.searchsorted(middles, values).astype(np.uint8)
