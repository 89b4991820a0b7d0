"""150 bad command lines and YAML files, drawn from the settings: one line names the setting, no traceback."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings, strategies

from common import cli, command_line
from common.errors import RunError, UsageError
from tests.faults.work import SCRIPTS, entry, trials

pytestmark = pytest.mark.faults
WORDS = strategies.text(
    strategies.characters(codec="utf-8", exclude_characters="\x00", exclude_categories=["Cs"]), max_size=12
)
ODD = strategies.one_of(
    WORDS,
    strategies.integers(-(10**30), 10**30),
    strategies.floats(allow_nan=True),
    strategies.booleans(),
    strategies.none(),
    strategies.dates(),
    strategies.binary(max_size=4),
    strategies.lists(strategies.integers(-3, 3), max_size=3),
    strategies.dictionaries(WORDS, strategies.integers(), max_size=2),
)
AS_YAML = ODD.map(yaml.safe_dump).map(str.encode)
SOME = settings(
    max_examples=trials(15), deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True
)


def names_of(task: str) -> list[str]:
    return [field.name for field in dataclasses.fields(entry(task)[1])]


def read(task: str, argv: list[str]) -> None:
    """Reads a command line as the script does; a UsageError is what may come, or that there is no run to extend."""
    _, kind = entry(task)
    try:
        cli.parse(kind, argv).check()
    except RunError as error:
        text, no_run = str(error), not isinstance(error, UsageError)
        assert text.startswith("--extend ") or not no_run, text
        assert "Traceback" not in text
        assert text.strip()
        assert any(part in text for part in ("--", "setting", "option", "YAML", "yaml", "no such file")), text
        assert len(text) < 20_000


@pytest.mark.parametrize("task", SCRIPTS)
@SOME
@given(data=strategies.data())
def test_presets(task: str, data: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    known = strategies.sampled_from(names_of(task))
    values = data.draw(strategies.dictionaries(strategies.one_of(known, known, WORDS, strategies.integers()), ODD))
    path = tmp_path_factory.mktemp("presets") / "preset.yaml"
    path.write_text(yaml.safe_dump(values))
    read(task, ["--config", str(path)])


@pytest.mark.parametrize("task", SCRIPTS)
@SOME
@given(data=strategies.data())
def test_command_lines(task: str, data: Any) -> None:
    options = [command_line.option(name) for name in names_of(task) if name not in ("resume", "config")]
    option = strategies.sampled_from(options)
    said = ODD.map(lambda value: str(value).replace("\x00", ""))
    words = strategies.one_of(
        strategies.tuples(option, said).map(list),
        strategies.tuples(option, said).map(lambda pair: [f"{pair[0]}={pair[1]}"]),
        option.map(lambda name: [name]),
        option.map(lambda name: [f"{name}x"]),
        WORDS.map(lambda word: [word]),
    )
    argv = [word for part in data.draw(strategies.lists(words, min_size=1, max_size=3)) for word in part]
    if not {"-h", "--help"} & set(argv):
        read(task, argv)


@pytest.mark.parametrize("task", SCRIPTS)
@SOME
@example(name=0, value=math.nan)
@given(name=strategies.integers(0, 200), value=ODD)
def test_one_wrong_value_names_its_setting(
    task: str, name: int, value: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A preset with one value: it is taken, or the line names it by its option."""
    _, kind = entry(task)
    names = [one for one in names_of(task) if one not in ("config", "resume")]
    field = names[name % len(names)]
    path = tmp_path_factory.mktemp("presets") / "preset.yaml"
    path.write_text(yaml.safe_dump({field: value}))
    try:
        cli.parse(kind, ["--config", str(path)]).check()
        told = field
    except UsageError as error:
        told = str(error)
    assert command_line.option(field) in told or field in told, (field, value, told)


@SOME
@given(content=strategies.one_of(strategies.binary(max_size=40), WORDS.map(str.encode), AS_YAML))
def test_files_that_are_no_presets(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    from common.sweep.file import read as read_sweep

    path = tmp_path_factory.mktemp("presets") / "preset.yaml"
    path.write_bytes(content)
    read("vae", ["--config", str(path)])
    with pytest.raises(UsageError, match=r"preset\.yaml"):
        read_sweep(Path(path))
