"""Settings: dataclass default < YAML preset < smoke test < command line, checked, with errors of one line."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

import tyro
import yaml
from annotated_types import Ge, Interval
from pydantic import ConfigDict, StringConstraints, TypeAdapter, ValidationError

from common import command_line, extending, stopping
from common.device import Precision
from common.errors import RunError, UsageError, in_one_line
from common.files import moved_to_sweeps
from common.plain_yaml import read_yaml
from common.progress import require_task

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """The settings every script has. A script inherits them, adds its own and narrows `dataset` to what it can use."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)
    smoke: ClassVar[dict[str, Any]] = {}  # what --smoke-test sets: the whole pipeline, shrunk to about a minute
    not_saved: ClassVar[tuple[str, ...]] = ("config", "resume")  # how a run was asked for, not what it is
    may_change: ClassVar[tuple[str, ...]] = ("data_dir", "config", "resume", "track")  # when a run is resumed
    once_finished: ClassVar[Mapping[str, str]] = {}  # setting → what a finished {run} has instead of it, for the user
    extension: ClassVar[extending.Extension | None] = None  # what --extend goes on with
    replaced: ClassVar[Mapping[str, str]] = {}  # key of an older preset → the key that replaced it

    config: Path | None = None
    """YAML preset whose values replace the defaults; a run's own config.yaml repeats that run."""
    resume: Path | None = None
    """Folder of a run to continue from where it stopped, with its own settings."""
    extended_from: Annotated[Path | None, tyro.conf.arg(aliases=["--extend"])] = None
    """Folder of a finished run to go on from, in a new run that is longer; other settings are the finished run's."""
    keep_state: bool = False
    """Keep what the training needs to go on (optimiser's moments, replay buffer), for an exact --extend."""
    track: Literal["wandb"] | None = None
    """Service that also gets what TensorBoard gets; wandb needs its package, pip install -e '.[wandb]'."""
    smoke_test: bool = False
    """The whole pipeline in about a minute, on data that needs no network. A check, not a result."""
    seed: Annotated[int, Ge(0)] = 0
    """Seed of every random stream: weights, batches, augmentation, random masks."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on; auto takes a CUDA GPU when there is one."""
    precision: Precision = "auto"
    """Number format of matrix products in training; auto takes bfloat16 where the hardware supports it."""
    threads: Annotated[int, Interval(ge=1, le=1024)] | None = None
    """CPU threads; none means one for each core that other processes leave free when the run starts."""
    dataset: str = "auto"
    """Images; auto takes the task's own set and falls back to scikit-learn's digits, with a warning."""
    data_dir: Path | None = None
    """Folder with the data sets; none means the variable DATA_DIR, or else ./data."""
    results_dir: Path = Path("results")
    """Folder of all results; a run is written to RESULTS_DIR/<task>/<run>."""
    run_name: Annotated[str, StringConstraints(pattern=r"^\w[\w.-]*$")] | None = None
    """Name of the run's folder; none makes one from the settings and the time."""

    def check(self) -> None:
        """Raises UsageError for settings that contradict each other."""


IN_PLAIN_WORDS = {  # pydantic's kind of error → what the user is told in place of its own words
    "string_pattern_mismatch": "only letters, digits, '-', '_' and '.', and not '-' or '.' first",
    "too_short": "give at least one value",
}
Settings = TypeVar("Settings", bound=RunSettings)
Options = TypeVar("Options", bound="DataclassInstance")


def run(main: Callable[[Settings], None], settings_class: type[Settings], argv: Sequence[str] | None = None) -> None:
    """Parses the command line and calls `main(settings)`; see `guarded` for how failures end."""

    def checked() -> Settings:
        settings = parse(settings_class, sys.argv[1:] if argv is None else argv)
        if settings.extended_from is not None and settings.resume is None:
            extending.require(settings, from_mapping(settings_class, _values_of(settings.extended_from, "--extend")))
        return settings

    guarded(lambda: main(checked()))


def guarded(command: Callable[[], None], interrupted: str = "no run was begun") -> None:
    """Runs `command` and turns expected failures into one line on standard error and an exit status.

    A signal's line ends with `interrupted`, or with how to go on with the run that has begun.
    """
    stopping.begin_work()
    try:
        command()
    except (KeyboardInterrupt, Exception) as error:
        if isinstance(error, BrokenPipeError) and not stopping.going_on:  # `head` or a pager has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at the end
            raise SystemExit(141) from None
        if (status := stopping.status_of(error)) is not None:
            _stop(f"{stopping.word(status)}; {stopping.going_on or interrupted}", status)
        if (message := in_one_line(error)) is None:
            raise
        _stop(message, error.exit_status if isinstance(error, RunError) else 1)
    finally:
        stopping.end_work()


def _stop(message: str, status: int) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(status)


def parse(settings_class: type[Settings], argv: Sequence[str]) -> Settings:
    """Returns the checked settings that a command line asks for.

    Raises:
        UsageError: an unknown option or YAML key, a value out of range, an unreadable preset, a missing folder.
        RunError: `--resume` or `--extend` names a folder that holds no run, or one of another task.
    """
    argv = [re.sub(r"^--[^=]+", lambda option: option[0].replace("_", "-"), word) for word in argv]  # tyro reads both
    early = _read_first(argv)
    values: dict[str, Any] = {}
    if early.resume is not None and early.config is not None:
        raise UsageError("--config beside --resume: a resumed run keeps its own settings; give one of the two")
    if early.resume is not None:
        values = _values_of(Path(early.resume), "--resume")
    elif early.config is not None:
        values = _read_yaml(moved_to_sweeps(Path(early.config)), "--config", UsageError)
        if "script" in values and "script" not in {field.name for field in dataclasses.fields(settings_class)}:
            raise UsageError(
                f"--config {early.config}: a sweep file, of many runs; run it: python -m common.sweep {early.config}"
            )
    if early.extended_from is not None:
        if early.resume is not None:
            raise UsageError("--extend beside --resume: a resumed run is what it was; give one of the two")
        if settings_class.extension is None:
            raise UsageError("--extend: this script has no training of its own that could go on")
        base = Path(early.extended_from)
        values = _values_of(base, "--extend") | {"run_name": f"{base.resolve().name}-extended"} | values
    elif early.smoke_test and early.resume is None:
        values |= settings_class.smoke
    try:
        preset = from_mapping(settings_class, values, early.config or early.resume or "")
    except UsageError as error:
        if (made := early.resume or early.extended_from) is None:
            raise
        require_task(Path(made), settings_class.__module__.partition(".")[0])
        why = str(error).removeprefix(f"{made}: ")
        raise RunError(f"{made}: its settings are not those of this script ({why})") from None
    settings = _checked(settings_class, _fields(command_line.read(settings_class, argv, preset)))
    if early.resume is not None:
        for name, value in _fields(settings).items():
            if name not in settings.may_change and value != getattr(preset, name):
                given = f"{command_line.option(name)} {value}"
                longer = {settings.extension.length: f"--extend {{run}} {given}"} if settings.extension else {}
                instead = {**longer, **settings.once_finished}.get(name)
                hint = f"; once it is finished: {instead.format(run=early.resume)}" if instead else ""
                raise UsageError(
                    f"{given} beside --resume: the run was started with {getattr(preset, name)}, and "
                    f"changing it would not continue that run; only --data-dir and --track may differ{hint}"
                )
    return settings


def from_mapping(settings_class: type[Settings], values: Mapping[str, Any], origin: str = "") -> Settings:
    """Returns the checked settings that a mapping from names to values asks for; the rest keeps its defaults.

    The mapping is a YAML preset, an arm of a sweep or a model of a study. With `smoke_test: true` in it, the smoke
    test's values replace the defaults. `origin` says in errors where the mapping comes from.

    Raises:
        UsageError: an unknown name, a value out of range, a name that only the command line may set.
    """
    require_current_keys(values, settings_class.replaced, origin)
    for name in settings_class.not_saved:
        if name in values:
            raise UsageError(f"{_prefix(origin)}{name} belongs on the command line, not in a preset")
    smoke = settings_class.smoke if values.get("smoke_test") is True else {}
    return _checked(settings_class, {**smoke, **values}, origin)


def require_current_keys(values: Mapping[str, Any], replaced: Mapping[str, str], origin: str) -> None:
    """Raises UsageError for keys of an older form of a file; the line names the keys that replaced them."""
    old = [name for name in values if name in replaced]
    if old:
        now = ", ".join(f"{name} is now called {replaced[name]}" for name in old)
        raise UsageError(f"{_prefix(origin)}has the keys of an older version: {now}")


def _read_first(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the options that decide which defaults the others have."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for option in ("--config", "--resume"):
        finder.add_argument(option)
    finder.add_argument("--extend", "--extended-from", dest="extended_from")
    finder.add_argument("--smoke-test", action="store_true")
    try:
        return finder.parse_known_args(argv)[0]
    except argparse.ArgumentError as error:
        raise UsageError(str(error)) from None


def command(main: Callable[[Options], None], options_class: type[Options], argv: Sequence[str] | None = None) -> None:
    """Calls `main(options)` as `run` does, for a command that is not a run: no preset, nothing to resume."""

    def checked() -> Options:
        options = command_line.read(options_class, sys.argv[1:] if argv is None else argv)
        return _checked(options_class, _fields(options))

    guarded(lambda: main(checked()), interrupted="the same command does what is missing")


def to_yaml(settings: RunSettings) -> str:
    """Returns every resolved setting as YAML that `--config` reads back to the same settings."""
    values = {
        k: str(v) if isinstance(v, Path) else v for k, v in _fields(settings).items() if k not in settings.not_saved
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def settings_of(settings_class: type[Settings], run: Path) -> Settings:
    """Returns the settings of a run's folder.

    Raises:
        UsageError: there is no such folder.
        RunError: its config.yaml is missing, damaged, or not of these settings.
    """
    values = _values_of(run, "")
    try:
        return from_mapping(settings_class, values, str(run / "config.yaml"))
    except UsageError as error:
        raise RunError(str(error)) from None


def _values_of(run: Path, option: str) -> dict[str, Any]:
    """Returns what the config.yaml of a run holds; `option` is the one that named the run."""
    if not run.exists():
        raise UsageError(f"{option} {run}: no such folder".lstrip())
    if run.is_file():
        raise UsageError(f"{option} {run}: a file; give the run's folder".lstrip())
    return _read_yaml(run / "config.yaml", option, RunError)


def _fields(settings: DataclassInstance) -> dict[str, Any]:
    return {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}


def _read_yaml(path: Path, option: str, error_class: type[RunError]) -> dict[str, Any]:
    named = f"{option} {path}".lstrip()
    try:
        values = read_yaml(path)
    except IsADirectoryError:
        raise error_class(f"{named}: a folder; give a YAML file") from None
    except (FileNotFoundError, NotADirectoryError):
        raise error_class(f"{named}: no such file") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise error_class(f"{named}: cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise error_class(f"{named}: holds no settings; write one 'name: value' a line")
    return values


def _checked(options_class: type[Options], values: Mapping[str, Any], origin: str = "") -> Options:
    """Returns `options_class(**values)` after pydantic has checked types, ranges and names."""
    try:
        return TypeAdapter(options_class).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "unexpected_keyword_argument":
            name = str(first["loc"][0])
            known = [field.name for field in dataclasses.fields(options_class)]
            close = difflib.get_close_matches(name, known, 1, 0.75)
            hint = f"did you mean {close[0]}?" if close else "of another script? --help lists those of this one"
            raise UsageError(f"{_prefix(origin)}unknown setting {name!r} ({hint})") from None
        setting = command_line.option(str(first["loc"][0])) if first["loc"] else "settings"
        message = IN_PLAIN_WORDS.get(first["type"]) or first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{_prefix(origin)}{setting} {first['input']}: {message[0].lower() + message[1:]}") from None


def _prefix(origin: str) -> str:
    return f"{origin}: " if origin else ""
