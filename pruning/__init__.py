"""Sensitivity scan, fine-grained magnitude pruning and fine-tuning of VGG11-BN (Han et al. 2015)."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Offers `from pruning import load` without loading torch for those who do not ask for it."""
    if name == "load":
        from pruning.trained import load

        return load
    raise AttributeError(name)
