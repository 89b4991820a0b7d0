"""A finished run as one folder to share: weights, settings, figures and a model card, as the Hugging Face hub takes it.

The folder has the layout of a run, so a task's `load` reads it like one. The card is README.md: a header in YAML as the
hub documents it (model-index: Papers with Code's), then what a reader must know before the weights are used.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import safetensors.torch
import tyro
import yaml
from pydantic import StringConstraints

from common.cli import RunSettings
from common.errors import RunError, UsageError
from common.files import load_weights, write_atomically
from common.progress import require_unchanged

LIBRARY = "trilab"
WHERE = ("data_dir", "results_dir", "run_name", "threads", "keep_state", "track")  # not what was trained


@dataclasses.dataclass(frozen=True)
class Share:
    """Write a finished run as one folder with weights, settings, figures and a model card, to share or upload."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    folder: tyro.conf.Positional[Path]
    """Folder to write; it must be new or empty. Its name becomes the model's."""
    license: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]*$")] = "mit"
    """Licence of the weights, as the hub names it: mit, apache-2.0, cc-by-4.0."""
    small: bool = False
    """The weights in their smallest form, without history and figures: a packed sparse network, the best agent's policy
    alone, half precision. The card says what was made smaller."""


class Figure(NamedTuple):
    """A figure of the model: the hub's name of the measure (or ours), the name for readers, and the value."""

    measure: str
    name: str
    value: float | str


@dataclasses.dataclass(frozen=True)
class Card:
    """What a task says of a trained model."""

    what: str  # in a sentence or two
    task: tuple[str, str]  # the hub's name of the task, and the name for readers
    data: tuple[str, str]  # the data set on the hub, or our name of it, and the name for readers
    on_hub: bool  # whether the data set is one of the hub's
    figures: Sequence[Figure]
    tags: Sequence[str]
    load: str  # Python that loads {folder} and uses the model
    limits: Sequence[str]
    script: str
    weights: Sequence[str]  # files of checkpoints/ that make up the model; those that a run lacks are left out
    pictures: Sequence[str]  # of figures/, without ending
    small: Mapping[str, Callable[[Path], bytes]]  # file of checkpoints/ → what makes its small form of the run's folder
    made_small: str  # what --small does to the weights, a sentence for the card


def share(options: Share, settings: RunSettings, metrics: Mapping[str, Any], card: Card) -> None:
    """Writes the folder. No absolute path of this machine gets into it: what remains of one is its last part.

    Raises:
        UsageError: the folder is not empty.
        RunError: the run's weights are missing, or are not what the run wrote.
        OSError: the folder cannot be written.
    """
    run, folder = options.run, options.folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: exists and is not empty; give a new folder")
    require_unchanged(run)
    pictures: list[Path] = []
    if options.small:
        card = dataclasses.replace(card, limits=[card.made_small, *card.limits])
        for name, made in {name: make(run) for name, make in card.small.items()}.items():
            write_atomically(folder / "checkpoints" / name, made)
    else:
        files = [Path("checkpoints") / name for name in card.weights]
        if not (run / files[0]).exists():
            raise RunError(f"{run / files[0]}: missing; without weights there is nothing to share")
        shown = [Path("figures") / f"{name}.png" for name in card.pictures]
        pictures = [path for path in shown if (run / path).exists()]
        for file in (*files, Path("history.csv"), *pictures):
            if (run / file).exists():
                write_atomically(folder / file, (run / file).read_bytes())
    given = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    kept = {**given, "data_dir": None, "results_dir": "results", "run_name": None}
    write_atomically(folder / "config.yaml", yaml.safe_dump(_without_folders(kept), sort_keys=False).encode())
    write_atomically(folder / "metrics.json", json.dumps(_without_folders(dict(metrics)), indent=1).encode())
    text = model_card(folder.resolve().name, options.license, settings, metrics, card, pictures)
    write_atomically(folder / "README.md", text.encode())


def halved(run: Path, file: str) -> bytes:
    """Returns a run's weights in half precision, as safetensors; what loads them turns them into float32 again."""
    weights = load_weights(run / "checkpoints" / file)
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    return safetensors.torch.save(half)


def model_card(
    name: str,
    license_: str,
    settings: RunSettings,
    metrics: Mapping[str, Any],
    card: Card,
    pictures: Sequence[Path],
) -> str:
    """Returns README.md: the hub's header, then the text."""
    header = yaml.safe_dump(_header(name, license_, card), sort_keys=False, allow_unicode=True, width=1000)
    made = f"{metrics['torch']}, {metrics['device']}, {metrics['seconds']:.0f} s, commit {metrics['git_commit']}"
    before = metrics.get("extended_from")
    went_on = f"\n\nIt went on from an earlier run, `{_without_folders(before)}`." if before else ""
    table = "\n".join(f"| {figure.name} | {_shown(figure.value)} |" for figure in card.figures)
    shown = "".join(f"\n![{path.stem.replace('_', ' ')}]({path})\n" for path in pictures)
    check = ["From a smoke test: a check of the code, not a result."] if settings.smoke_test else []
    limits = "\n".join(f"- {limit}" for limit in [*check, *card.limits])
    return f"""---
{header}---

# {name}

{card.what}

## Figures

On {card.data[1]}; `metrics.json` has all of them.

| measure | value |
|---|---|
{table}
{shown}
## Data

{_data(metrics["dataset"])}

## Training

```sh
{command(card.script, settings)}
```

torch {made}. {_repeated(card.script, settings)}{went_on}

## Use

With {LIBRARY}'s code installed (`pip install -e .` in its checkout), and this folder downloaded:

```python
{card.load.format(folder=name).strip()}
```

## Limits

{limits}

## Licence

The weights: {license_}. The data set has terms of its own.
"""


def _repeated(script: str, settings: RunSettings) -> str:
    """Returns how to repeat the run, and what it began with that is not in the folder."""
    needed = [getattr(settings, name, None) for name in ("extended_from", "dense_weights", "sparsities_from")]
    missing = " and ".join(str(_without_folders(path)) for path in needed if path is not None)
    if missing:
        return f"`config.yaml` has every setting. To repeat the run takes {missing} too, which is not here."
    return f"`config.yaml` has every setting: `python {script} --config config.yaml` repeats the run."


def command(script: str, settings: RunSettings) -> str:
    """Returns the command of a run: the script and every setting that is not the default."""
    words = ["python", script]
    for field in dataclasses.fields(settings):
        value, option = _without_folders(getattr(settings, field.name)), "--" + field.name.replace("_", "-")
        if field.name in WHERE or field.name in settings.not_saved or getattr(settings, field.name) == field.default:
            continue
        if isinstance(value, bool):
            words.append(option if value else option.replace("--", "--no-", 1))
        else:
            words += [option, *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return shlex.join(words)


def _header(name: str, license_: str, card: Card) -> dict[str, Any]:
    """Returns the card's header as the hub documents it (hub docs, 'Model card metadata')."""
    (task, task_name), (data, data_name) = card.task, card.data
    result = {
        "task": {"type": task, "name": task_name},
        "dataset": {"type": data, "name": data_name},
        "metrics": [
            {"type": figure.measure, "value": figure.value, "name": figure.name, "verified": False}
            for figure in card.figures
        ],
    }
    return {
        "license": license_,
        "library_name": LIBRARY,
        "pipeline_tag": task,
        "tags": [*card.tags],
        **({"datasets": [data]} if card.on_hub else {}),
        "metrics": [figure.measure for figure in card.figures],
        "model-index": [{"name": name, "results": [result]}],
    }


def _data(record: Mapping[str, Any]) -> str:
    text = f"{record['name']} ({_without_folders(record['source'])})"
    if record.get("images"):
        text += (
            f": {record['train']:,} images to train on, {record['validation']:,} held out, {record['test']:,} to test"
        )
    if record.get("stand_in_for"):
        text += f". **They stand in for {record['stand_in_for']}, which was not at hand.**"
    return text.removesuffix(".") + ("" if text.endswith("**") else ".")


def _shown(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.4f}" if abs(value) < 1 else f"{value:,.2f}"


def _without_folders(value: Any) -> Any:
    """Returns `value` with every absolute path in it cut to its last part."""
    if isinstance(value, dict):
        return {name: _without_folders(of) for name, of in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_without_folders(of) for of in value)
    if isinstance(value, Path):
        return Path(value.name) if value.is_absolute() else value
    if isinstance(value, str) and value.startswith("/"):
        return Path(value).name
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
