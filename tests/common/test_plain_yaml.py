"""YAML from anybody."""

from pathlib import Path

import pytest
import yaml

from common.plain_yaml import read_yaml, yaml_values


@pytest.mark.parametrize("text", ["", "a: 1", "a: &x {b: [1, 2]}\nc: *x\nd: {<<: *x, e: 2020-01-01}", "- 1e-3\n- ~"])
def test_plain_values_are_those_of_safe_load(text: str) -> None:
    assert yaml_values(text) == yaml.safe_load(text)


LAUGHS = "a0: &a0 x\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (LAUGHS, "aliases"),
        ("a: &x [*x]", "alias inside"),
        ("[" * 5000, "too deeply"),
        ("a: !!python/object/apply:os.getcwd []", "constructor"),
        ("a: !!timestamp 99", "tag"),
        ("# " + "x" * (1 << 20), "larger than 1 MiB"),
    ],
)
def test_what_could_do_harm_is_refused(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text(text)
    with pytest.raises((ValueError, yaml.YAMLError), match=told):
        read_yaml(tmp_path / "file.yaml")
