"""The committed reference results: every run of theirs can be shown."""

from pathlib import Path

import pytest

from common.report.command import task_sections
from common.report.folders import find

REFERENCE = Path(__file__).resolve().parents[3] / "results" / "reference"


@pytest.mark.slow
def test_no_run_is_damaged() -> None:
    folders = find(REFERENCE)
    assert len(folders) > 200
    task_sections(folders)  # looks into each
    assert [f"{folder.name}: {folder.state}" for folder in folders if not folder.finished] == []
