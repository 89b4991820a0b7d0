"""Which runs the report page may compare: those with the same training, whenever they were made."""

from pathlib import Path

from common.report.folders import find, usable
from pruning.records import Metrics, Run
from tests.common.report.runs import pruning_run


def test_a_setting_newer_than_a_run_counts_with_its_default(tmp_path: Path) -> None:
    pruning_run(tmp_path / "before")  # it says nothing of cutout
    pruning_run(tmp_path / "default", cutout=0)
    pruning_run(tmp_path / "covered", cutout=8)
    runs = {folder.name: Run(folder, metrics) for folder, metrics in usable(find(tmp_path), Metrics)}
    assert runs["before"].alike == runs["default"].alike
    assert "cutout 8" in set(runs["covered"].alike) - set(runs["default"].alike)
