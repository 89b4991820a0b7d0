"""Settings: dataclass default < YAML preset < smoke test < command line, checked, and errors told in one line."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

import torch
import tyro
import yaml
from annotated_types import Ge, Interval
from pydantic import ConfigDict, StringConstraints, TypeAdapter, ValidationError

from common.device import Precision
from common.errors import RunError, UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """The settings every script has. A script inherits, adds its own, and narrows `dataset` to what it can use."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)
    smoke: ClassVar[dict[str, Any]] = {}  # what --smoke-test sets: the whole pipeline, shrunk to under a minute
    not_saved: ClassVar[tuple[str, ...]] = ("config", "resume")  # how a run was asked for, not what it is
    may_change: ClassVar[tuple[str, ...]] = ("data_dir", "config", "resume")  # when a run is resumed

    config: Path | None = None
    """YAML preset whose values replace the defaults; a run's own config.yaml repeats that run."""
    resume: Path | None = None
    """Run folder to continue where it stopped, with its own settings."""
    smoke_test: bool = False
    """The whole pipeline in under a minute on data that needs no network. A check, not a result."""
    seed: Annotated[int, Ge(0)] = 0
    """Seed of every random stream: weights, batches, augmentation, random masks."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a CUDA GPU when there is one."""
    precision: Precision = "auto"
    """Number format of the products in training; auto takes bfloat16 where the hardware has it."""
    threads: Annotated[int, Interval(ge=1, le=1024)] | None = None
    """CPU threads; none leaves torch's own choice."""
    dataset: str = "auto"
    """Images; auto takes the task's own set and falls back to scikit-learn's digits, with a warning."""
    data_dir: Path | None = None
    """Folder with the data sets; none means the variable DATA_DIR, or else ./data."""
    results_dir: Path = Path("results")
    """Runs are written to RESULTS_DIR/<task>/<run>."""
    run_name: Annotated[str, StringConstraints(pattern=r"^\w[\w.-]*$")] | None = None
    """Name of the run's folder; none makes one from the settings and the clock."""

    def check(self) -> None:
        """Raises UsageError for settings that contradict each other."""


Settings = TypeVar("Settings", bound=RunSettings)
Options = TypeVar("Options", bound="DataclassInstance")


def run(main: Callable[[Settings], None], settings_class: type[Settings], argv: Sequence[str] | None = None) -> None:
    """Parses the command line and calls `main(settings)`, as `guarded`."""
    guarded(lambda: main(parse(settings_class, sys.argv[1:] if argv is None else argv)))


def guarded(
    command: Callable[[], None], interrupted: str = "--resume RUN_DIR goes on from its last checkpoint, if it has one"
) -> None:
    """Runs `command` and turns expected failures into one line on standard error and an exit status."""
    try:
        command()
    except RunError as error:
        _stop(str(error), error.exit_status)
    except torch.OutOfMemoryError as error:
        _stop(f"out of memory on the device: {str(error).splitlines()[0]} Lower --batch-size.", 1)
    except RuntimeError as error:  # torch has no class of its own for memory that a CPU lacks
        if "DefaultCPUAllocator" not in str(error):
            raise
        _stop(f"out of memory: {str(error).splitlines()[0].split('] ')[-1]} Ask for less: a smaller batch, say.", 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _stop(f"{where}{error.strerror or error}. What was already written is intact.", 1)
    except KeyboardInterrupt:
        _stop(f"interrupted; {interrupted}", 130)


def _stop(message: str, status: int) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(status)


def parse(settings_class: type[Settings], argv: Sequence[str]) -> Settings:
    """Returns the checked settings that `argv` asks for.

    Raises:
        UsageError: an unknown option or YAML key, a value out of range, an unreadable preset.
        RunError: `--resume` names a folder that holds no run.
    """
    argv = [re.sub(r"^--[^=]+", lambda option: option[0].replace("_", "-"), word) for word in argv]  # tyro reads both
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for option in ("--config", "--resume"):
        finder.add_argument(option)
    finder.add_argument("--smoke-test", action="store_true")
    try:
        early = finder.parse_known_args(argv)[0]
    except argparse.ArgumentError as error:
        raise UsageError(str(error)) from None

    values: dict[str, Any] = {}
    if early.resume is not None and early.config is not None:
        raise UsageError("--config beside --resume: a resumed run keeps its own settings; give one of the two")
    if early.resume is not None:
        values = _read_yaml(Path(early.resume) / "config.yaml", "--resume", RunError)
    elif early.config is not None:
        values = _read_yaml(Path(early.config), "--config", UsageError)
    for name in settings_class.not_saved:
        if name in values:
            raise UsageError(f"{early.config or early.resume}: {name} belongs on the command line, not in a preset")
    if values.get("smoke_test") is True:
        values = {**settings_class.smoke, **values}  # a smoke run's own config.yaml holds every value: it is repeated
    if early.smoke_test and early.resume is None:
        values |= settings_class.smoke
    preset = _checked(settings_class, values, early.config or early.resume or "defaults")
    settings = _checked(settings_class, _fields(_parse_command_line(settings_class, argv, preset)), "command line")
    if early.resume is not None:
        for name, value in _fields(settings).items():
            if name not in settings.may_change and value != getattr(preset, name):
                option = "--" + name.replace("_", "-")
                raise UsageError(
                    f"{option} {value} beside --resume: the run was started with {getattr(preset, name)}, and changing "
                    f"it would not continue that run; only --data-dir may differ"
                )
    return settings


def command(main: Callable[[Options], None], options_class: type[Options], argv: Sequence[str] | None = None) -> None:
    """Calls `main(options)` as `run` does, for a command that is no run: no preset, nothing to resume."""

    def checked() -> Options:
        options = _parse_command_line(options_class, sys.argv[1:] if argv is None else argv)
        return _checked(options_class, _fields(options), "command line")

    guarded(lambda: main(checked()), interrupted="the same command does what is missing")


def to_yaml(settings: RunSettings) -> str:
    """Returns every resolved setting as YAML that `--config` reads back to the same settings."""
    values = {
        k: str(v) if isinstance(v, Path) else v for k, v in _fields(settings).items() if k not in settings.not_saved
    }
    return yaml.safe_dump(values, sort_keys=False)


def _fields(settings: DataclassInstance) -> dict[str, Any]:
    return {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}


def _read_yaml(path: Path, option: str, error_class: type[RunError]) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise error_class(f"{option} {path}: no such file") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise error_class(f"{option} {path}: cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise error_class(f"{option} {path}: holds no settings; write one 'name: value' a line")
    return values


def _checked(options_class: type[Options], values: dict[str, Any], origin: str) -> Options:
    """Returns `options_class(**values)` after pydantic has checked types, ranges and names."""
    try:
        return TypeAdapter(options_class).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        setting = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else "settings"
        if first["type"] == "unexpected_keyword_argument":
            known = ", ".join(field.name for field in dataclasses.fields(options_class))
            raise UsageError(
                f"{origin}: unknown setting {first['loc'][0]!r} (of another script?); known are {known}"
            ) from None
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{setting} {first['input']} ({origin}): {message[0].lower() + message[1:]}") from None


def _parse_command_line(
    options_class: type[Options], argv: Sequence[str], default: Any = tyro.MISSING_NONPROP
) -> Options:
    """Returns tyro's reading of `argv` over `default`; tyro's framed error becomes a UsageError of one line."""
    caught, columns = io.StringIO(), os.environ.get("COLUMNS")
    try:
        os.environ["COLUMNS"] = "400" if not {"-h", "--help"} & set(argv) else columns or "110"
        with contextlib.redirect_stderr(caught):
            options: Options = tyro.cli(options_class, args=list(argv), default=default)
            return options
    except SystemExit as stop:
        if not stop.code:
            raise
        lines = [line.strip("│ ").strip() for line in caught.getvalue().splitlines()]
        frame = re.compile("[╭╰].*|[─-]{3,}")  # drawn with dashes where standard output is not UTF-8
        rules = [i for i, line in enumerate(lines) if frame.fullmatch(line)] + [len(lines)] * 3
        message = " ".join(lines[rules[0] + 1 : rules[1]])
        expected = [line for line in lines[rules[1] + 1 : rules[2]] if line.startswith("--")]
        raise UsageError(message + (f" (expected {expected[0]})" if expected else "") + "; see --help") from None
    finally:
        if columns is None:
            os.environ.pop("COLUMNS", None)
        else:
            os.environ["COLUMNS"] = columns
