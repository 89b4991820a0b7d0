"""A run that starts from a sparse network (`--dense-weights`) keeps its zeros, and prunes on from there."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from common.errors import UsageError
from common.experiment import Run, say
from pruning.allocation import Sparsities, choose, overall_sparsity, sparsities_at, sparsities_of
from pruning.given import read_masks, read_network
from pruning.masks import Masks
from pruning.settings import Settings


def check_given(settings: Settings) -> None:
    """Reads the files that `settings` name, so that what cannot be used is refused before any work.

    Raises:
        RunError: a file holds no VGG11, or a folder no finished run.
        UsageError: there is no such file or folder, or the given network is sparser than what is asked for.
    """
    if settings.allocation == "given" and settings.sparsities_from is None:
        raise UsageError("--allocation given: say of which run, with --sparsities-from RUN")
    given = sparsities_of(settings.sparsities_from) if settings.sparsities_from is not None else None
    if settings.dense_weights is None:
        return
    weights = read_network(settings.dense_weights, say)
    masks = read_masks(settings.dense_weights)
    if masks is None:
        return
    if settings.granularity == "filter":
        raise UsageError(
            f"--granularity filter with --dense-weights {settings.dense_weights}: single weights are pruned there "
            "already; give a dense network"
        )
    there = sparsities_at(masks)
    layers = {name: weights[f"{name}.weight"] for name in masks}
    asked = settings.sparsity
    if asked is None and settings.allocation != "scan":  # the scan's budget of accuracy asks for no sparsity
        asked = overall_sparsity(layers, given if given is not None else choose("reference", layers, None, {}, 0, 0))
    total = sum(mask.numel() for mask in masks.values())
    if asked is not None and round(asked * total) < round(overall_sparsity(layers, there) * total):
        what = "--sparsity" if settings.sparsity is not None else f"--allocation {settings.allocation}, sparsity"
        share = f"{overall_sparsity(layers, there):.4f} of its convolution weights"
        raise UsageError(
            f"{what} {asked:.4g} with --dense-weights {settings.dense_weights}: {share} are pruned already and stay "
            "zero; ask for at least as much"
        )


def kept_weights(run: Run, settings: Settings, weights: Mapping[str, Tensor]) -> Masks | None:
    """Returns the masks of the given network, in the layout of its `weights`, and says what they keep; None if dense.

    They are kept in the run folder, so a resumed run has them though the file may be gone.
    """
    if settings.dense_weights is None:
        return None
    path = settings.dense_weights
    stored = run.remembered_weights("kept", lambda: read_masks(path) or {})
    if not stored:
        return None
    total = sum(mask.numel() for mask in stored.values())
    dropped = total - sum(int(mask.count_nonzero()) for mask in stored.values())
    share = f"{dropped:,} of {total:,} convolution weights ({dropped / total:.2%})"
    say(f"--dense-weights {settings.dense_weights} is sparse: {share} are pruned already and stay zero")
    return {name: torch.empty_like(w, dtype=torch.bool).copy_(stored[name]) for name, w in weights.items()}


def not_below(sparsities: Sparsities, kept: Masks | None) -> Sparsities:
    """Returns the sparsities, raised where a layer of the given network is sparser already."""
    if kept is None:
        return sparsities
    there = sparsities_at(kept)
    return {name: max(sparsity, there[name]) for name, sparsity in sparsities.items()}
