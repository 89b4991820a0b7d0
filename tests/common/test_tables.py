"""Tables as CSV and back."""

import csv
import io

from common.tables import as_csv


def test_rows_come_back_with_every_column_that_any_of_them_has() -> None:
    text = as_csv([{"a": 1, "b": "x, y"}, {"c": "", "a": 2.5}])
    assert text.endswith("\n")
    assert list(csv.DictReader(io.StringIO(text))) == [
        {"a": "1", "b": "x, y", "c": ""},
        {"a": "2.5", "b": "", "c": ""},
    ]
    assert as_csv([{"a": 1, "b": 2}], ["b", "a"]) == "b,a\n2,1\n"
