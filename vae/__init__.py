"""Variational autoencoders on MNIST: train, evaluate at β = 1, draw; see `vae/train.py`."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Offers `from vae import load` without loading torch for those who do not ask for it."""
    if name == "load":
        from vae.trained import load

        return load
    raise AttributeError(name)
