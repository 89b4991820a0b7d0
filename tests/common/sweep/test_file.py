"""The sweep file: its arms, named or from grids, what waits for what, and where the file lies."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from common.errors import UsageError
from common.sweep.command import Sweep
from common.sweep.file import SweepFile, arm_name, groups_of, in_stages, pairs_of, read, seeds_of


def test_names_of_arms() -> None:
    assert arm_name({"allocation": "lamp", "sparsity": 0.95, "flip": False}) == "lamp-sparsity0.95-no_flip"
    assert arm_name({"env_id": "Hopper-v4", "path": "a/b"}) == "Hopper-v4-a_b"
    assert arm_name({}) == "all"


def test_arms_come_in_the_order_of_the_file(sweep_of: Callable[..., Sweep]) -> None:
    file = read(sweep_of([{"kind": ["b", "a"], "rate": [2, 1]}]).file)
    (names,) = ([arm.name for arm in group] for group in groups_of(file))
    assert names == ["b-rate2", "b-rate1", "a-rate2", "a-rate1"]


def test_named_arms_come_before_those_of_the_grids() -> None:
    arms = {"control": {"rate": 0}, "other": {"kind": "x"}}
    file = SweepFile("toy.py", arms=arms, grids=[{"rate": [1, 2]}], shared={"kind": "y", "flip": True})
    groups = groups_of(file)
    assert [[arm.name for arm in group] for group in groups] == [["control"], ["other"], ["rate1", "rate2"]]
    assert groups[0][0].settings == {"kind": "y", "flip": True, "rate": 0}
    assert groups[1][0].settings == {"kind": "x", "flip": True}
    smoke = [arm.settings for group in groups_of(file, smoke_test=True) for arm in group]
    assert smoke[:3] == [
        {"smoke_test": True, "rate": 0},
        {"smoke_test": True, "kind": "x"},
        {"smoke_test": True, "rate": 1},
    ]


def test_a_grid_waits_for_a_named_arm_whose_file_it_takes() -> None:
    arms = {"control": {"rate": 0}, "other": {"rate": 5}}
    file = SweepFile("toy.py", arms=arms, grids=[{"rate": [1, 2], "weights": "{runs}/control-seed{seed}/w"}])
    stages = in_stages(groups_of(file))
    assert [[arm.name for arm in stage] for stage in stages] == [["control", "other"], ["rate1", "rate2"]]


def test_which_arms_a_file_compares() -> None:
    arms: dict[str, dict[str, object]] = {name: {} for name in ("a", "b", "c")}
    file = SweepFile("toy.py", arms=arms, baseline="b", comparisons={"c − a": ("c", "a")})
    pairs = {"a": ("a", "b"), "c": ("c", "b"), "c − a": ("c", "a")}
    assert pairs_of(file, groups_of(file)) == pairs
    assert pairs_of(SweepFile("toy.py", arms=arms), groups_of(file)) == {}


def test_seeds_are_a_list_or_how_many() -> None:
    assert seeds_of(SweepFile("toy.py", seeds=3)) == [0, 1, 2]
    assert seeds_of(SweepFile("toy.py", seeds=2), first=5) == [5, 6]
    assert seeds_of(SweepFile("toy.py", seeds=[7, 3]), first=5) == [7, 3]


def test_a_file_that_moved_is_found_in_sweeps(
    sweep_of: Callable[..., Sweep], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = sweep_of([{"rate": [1]}])
    expected = read(sweep.file)
    assert capsys.readouterr().err == ""
    (tmp_path / "sweeps").mkdir()
    sweep.file.rename(tmp_path / "sweeps" / sweep.file.name)
    assert read(sweep.file) == expected
    assert capsys.readouterr().err == f"{sweep.file} has moved to {tmp_path / 'sweeps' / sweep.file.name}\n"


def test_the_older_form_of_a_study_is_refused_with_what_replaced_it(tmp_path: Path) -> None:
    old = {"seeds": 5, "everywhere": {"epochs": 4}, "models": {"a": {}}, "claims": {"c": ["a", "a"]}}
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(old, sort_keys=False))
    told = "everywhere is now called shared, models is now called arms, claims is now called comparisons"
    with pytest.raises(UsageError, match=f"old.yaml: has the keys of an older version: {told}"):
        read(tmp_path / "old.yaml")


def test_every_sweep_file_of_the_project_is_read() -> None:
    paths = sorted(Path("configs").glob("*/sweeps/*.yaml"))
    assert paths
    for path in paths:
        file = read(path)
        assert pairs_of(file, groups_of(file)) or path.stem in ("study_reference", "study_dense_matched", "study_main")
