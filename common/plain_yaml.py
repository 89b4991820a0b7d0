"""YAML from anybody: no code runs, and it cannot fill the memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MOST_YAML = 1 << 20  # bytes of a YAML file, and a tenth of it values, counted again wherever an alias repeats them


def read_yaml(path: Path) -> Any:
    """Returns what a YAML file holds: plain values, no object of any class.

    Raises:
        OSError: it cannot be read.
        ValueError, yaml.YAMLError: it is not YAML, too large, nested too deeply, or aliases make it so.
    """
    with path.open("rb") as file:
        content = file.read(MOST_YAML + 1)
    if len(content) > MOST_YAML:
        raise ValueError(f"larger than {MOST_YAML >> 20} MiB")
    return yaml_values(content.decode("utf-8"))


def yaml_values(text: str) -> Any:
    """Returns what YAML text holds, as `read_yaml` does."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (TypeError, OverflowError, AttributeError):  # a timestamp that is none, for instance
        raise ValueError("a value is not of the type that its tag says") from None
    finally:
        loader.dispose()


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Returns how many values a node holds, those of an alias wherever it stands ("billion laughs")."""
    if id(node) in known:
        if not known[id(node)]:
            raise ValueError("an alias inside what it repeats")
        return known[id(node)]
    known[id(node)] = 0  # not counted yet
    parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    count = 1 + (0 if isinstance(node, yaml.ScalarNode) else sum(_count(part, known) for part in parts))
    if count > MOST_YAML // 10:
        raise ValueError(f"its aliases make more than {MOST_YAML // 10:,} values of it")
    known[id(node)] = count
    return count
