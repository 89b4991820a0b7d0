"""history.csv: rows are read as they were written, and damage is noticed."""

import math
from pathlib import Path

import pytest

from common import history

ROWS = [
    {"stage": "train", "step": 1, "loss": 1.5},
    {"stage": "eval", "step": 1, "return": 3.0},
    {"stage": "train", "step": 2, "loss": 0.1, "early": math.nan},
    {"stage": "train", "step": 3, "loss": 0.0},
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    history.write(tmp_path / "history.csv", ROWS)
    return tmp_path / "history.csv"


def test_rows_that_were_read_have_the_checksum_of_those_written(path: Path) -> None:
    assert history.record(history.read(path)) == history.record(ROWS)
    assert history.record(ROWS)["history_rows"] == 4


def test_a_history_is_whole_with_rows_to_spare_and_not_with_one_too_few_or_another(path: Path) -> None:
    rows = history.read(path)
    assert history.is_whole(rows, history.record(ROWS[:3]))
    assert not history.is_whole(rows[:2], history.record(ROWS[:3]))
    assert not history.is_whole([*rows[:2], rows[3]], history.record(ROWS[:3]))
    assert history.is_whole(rows, {})  # of a version that remembered none


def test_rewinding_leaves_other_stages_alone() -> None:
    assert history.rewound(ROWS, "train", 1) == ROWS[:2]
    assert history.rewound(ROWS, "eval", 0) == [ROWS[0], *ROWS[2:]]


def test_columns_are_those_of_the_first_row_of_the_stage(path: Path) -> None:
    for rows in (ROWS, history.read(path)):
        assert history.columns(rows, "train") == {"step": [1, 2, 3], "loss": [1.5, 0.1, 0.0]}
        assert history.columns(rows, "fine-tuning") == {}


def test_what_a_later_row_lacks_is_not_a_number(path: Path) -> None:
    """A window of the training may be too short for one update of the policy."""
    short = [*ROWS, {"stage": "train", "step": 4}]
    history.write(path, short)
    for rows in (short, history.read(path)):
        loss = history.columns(rows, "train")["loss"]
        assert loss[:3] == [1.5, 0.1, 0.0]
        assert math.isnan(loss[3])


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "stage,step\n,1\n", "stage,step\ntrain,0\n", "stage,step,x\na,1,b\n"])
def test_what_is_no_history_is_refused(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(ValueError, match=r"."):
        history.read(path)
