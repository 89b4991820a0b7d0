"""Runs side by side: what the table says, and runs that do not compare."""

import json
import re
import shutil
from pathlib import Path

import pytest

from common import cli
from common.errors import RunError, UsageError
from common.stats import Interval
from rl.compare import Comparison, main, reading
from rl.settings import Settings
from rl.train_sac_icm import main as train


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two finished runs of two seeds."""
    folder = tmp_path_factory.mktemp("results")
    short = ["--smoke-test", "--env-steps", "600", "--eval-every", "300", "--hidden", "8", "8"]
    for icm in ("none", "single"):
        cli.run(train, Settings, [*short, "--icm", icm, "--run-name", icm, "--results-dir", str(folder)])
    return [folder / "rl" / icm for icm in ("none", "single")]


def test_differences_are_paired_by_seed(arms: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(Comparison(tuple(arms), tmp_path / "out"))
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    none, single = (record["arms"][name]["eval_returns"] for name in ("none", "single"))
    gain = [b - a for a, b in zip(none, single, strict=True)]
    difference = record["differences"]["single − none"]
    assert difference["estimate"] == pytest.approx(sum(gain) / 2)
    assert difference["low"] == pytest.approx(min(gain))
    assert difference["high"] == pytest.approx(max(gain))
    table = (tmp_path / "out" / "tables.md").read_text()
    assert "| none |" in table
    assert "single − none" in table
    assert (tmp_path / "out" / "figures" / "returns.png").stat().st_size > 10_000


def test_runs_that_do_not_compare_are_told(arms: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(arms[1], other)
    metrics, config = json.loads((other / "metrics.json").read_text()), (other / "config.yaml").read_text()
    for changed, told in (
        ("reward: sparse", "other has reward sparse, none has dense"),
        ("eval_episodes: 5", "5, none has 2"),
    ):
        name = changed.split(":")[0]
        (other / "config.yaml").write_text(re.sub(rf"(?m)^{name}: .*$", changed, config))
        with pytest.raises(RunError, match=told):
            main(Comparison((arms[0], other), tmp_path / "out"))
    (other / "config.yaml").write_text(config)
    without = {name: value for name, value in metrics.items() if name != "eval_returns"}
    for damaged in ("{", "[]", json.dumps(without), json.dumps(metrics | {"eval_returns": [1]})):
        (other / "metrics.json").write_text(damaged)
        with pytest.raises(RunError, match="not a finished run"):
            main(Comparison((arms[0], other), tmp_path / "out"))
    (other / "metrics.json").unlink()
    with pytest.raises(RunError, match=r"metrics.json is missing"):
        main(Comparison((arms[0], other), tmp_path / "out"))
    for runs, told in (
        ((arms[0],), "1 run folders"),
        (tuple(arms) * 5, "10 run folders"),
        ((arms[0],) * 2, "same name"),
    ):
        with pytest.raises(UsageError, match=told):
            main(Comparison(runs, tmp_path / "out"))
    with pytest.raises(UsageError, match="a run's folder"):
        main(Comparison(tuple(arms), arms[0]))
    assert not (tmp_path / "out").exists()


def test_a_difference_in_words() -> None:
    gains = [Interval(2.0, 1.0, 3.0), Interval(-2.0, -3.0, -1.0), Interval(2.0, -1.0, 3.0), Interval(2.0, 2.0, 2.0)]
    assert [reading(gain) for gain in gains] == ["better", "worse", "nothing shown", "nothing shown"]
    assert reading(Interval(2.0, 1.0, 3.0, values=4)) == "too few seeds"
