"""SAC and DQN with curiosity, many agents side by side."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Offers `from rl import load` without loading torch and gymnasium for those who do not ask for it."""
    if name == "load":
        from rl.policy import load

        return load
    raise AttributeError(name)
