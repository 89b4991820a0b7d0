"""Runs side by side: what the table says, and runs that do not compare."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from common import cli, stats
from common.errors import RunError, UsageError
from rl.compare import Comparison, gains, main, paired, tables
from rl.measures import Arm
from rl.records import FIGURES, pooled
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


@pytest.mark.slow
def test_differences_are_paired_by_seed(arms: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(Comparison(tuple(arms), tmp_path / "out", of=("return", "length", "distance"), share=("paid", "solved")))
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    none, single = (record["arms"][name]["eval_returns"] for name in ("none", "single"))
    gain = [b - a for a, b in zip(none, single, strict=True)]
    difference = record["differences"]["single − none"]["final return"]
    assert difference["t"]["estimate"] == pytest.approx(sum(gain) / 2)
    assert difference["paired"]
    assert difference["bootstrap"]["low"] == pytest.approx(min(gain))
    assert difference["bootstrap"]["high"] == pytest.approx(max(gain))
    length = record["differences"]["single − none"]["episode length"]["t"]["estimate"]
    lengths = [np.mean(record["arms"][name]["eval_lengths"]) for name in ("none", "single")]
    assert length == pytest.approx(lengths[1] - lengths[0])
    assert record["paid"]["arms"]["single"]["estimate"] == 1  # the dense reward pays
    assert record["solved"]["arms"]["single"]["estimate"] == 0
    table = (tmp_path / "out" / "tables.md").read_text()
    assert "| none |" in table
    assert "single − none" in table
    assert (tmp_path / "out" / "figures" / "returns.png").stat().st_size > 10_000


@pytest.mark.slow
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
    (other / "metrics.json").write_text(json.dumps(metrics))
    history = (other / "history.csv").read_text()
    head, *rows = history.splitlines(keepends=True)
    shorter = "".join([head, *(row for row in rows if not row.startswith("eval,600,"))])
    for damaged in ("", head, shorter, history.replace("eval,600,", "eval,6x0,"), history + "eval,600\n", "\x00"):
        (other / "history.csv").write_text(damaged)
        with pytest.raises(RunError, match=f"{other}: damaged or cut short: its history"):
            main(Comparison((arms[0], other), tmp_path / "out"))
    (other / "metrics.json").unlink()
    with pytest.raises(RunError, match=r"metrics.json is missing"):
        main(Comparison((arms[0], other), tmp_path / "out"))
    for runs, told in (
        ((arms[0],), "1 run folders"),
        ((arms[0],) * 2, "same name"),
        ((arms[0], tmp_path / "missing"), "missing: no such folder"),
    ):
        with pytest.raises(UsageError, match=told):
            main(Comparison(runs, tmp_path / "out"))
    with pytest.raises(UsageError, match="a run's folder"):
        main(Comparison(tuple(arms), arms[0]))
    assert not (tmp_path / "out").exists()


def finished(name: str, returns: list[float], parameters: int) -> Arm:
    """A finished run as `read` returns it."""
    metrics = {"env_id": "Hopper-v4", "reward": "dense", "seeds": list(range(5)), "env_steps": 100_000}
    metrics |= {"evaluations_averaged": 2, "eval_returns": returns, "curiosity_parameters": parameters}
    return Arm(name, {}, metrics, [], [])


def test_the_tables_say_what_was_found_and_what_that_allows_to_say() -> None:
    plain = finished("none", [100.0, 200.0, 300.0, 400.0, 500.0], 0)
    curious = finished("single", [190.0, 310.0, 390.0, 500.0, 590.0], 12_345)
    arms, differences = tables([plain, curious])
    assert arms.caption.startswith(
        "Hopper-v4, dense reward, 5 seeds × 100,000 steps; return of the policy without noise"
    )
    assert list(arms.head) == [
        "arm",
        "mean return",
        "interquartile mean",
        "seeds",
        "parameters of the curiosity module",
    ]
    middle = stats.interquartile_mean([100.0, 200.0, 300.0, 400.0, 500.0])
    assert arms.rows[0] == [
        "none",
        str(stats.mean([100, 200, 300, 400, 500])),
        str(middle),
        "100, 200, 300, 400, 500",
        "0",
    ]
    assert arms.rows[1][-1] == "12,345"
    gain = stats.mean([90.0, 110.0, 90.0, 100.0, 90.0])
    chance = stats.probability_of_improvement([curious.metrics["eval_returns"]], [plain.metrics["eval_returns"]])
    assert list(differences.head) == [
        "difference (means paired by seed)",
        "mean return",
        "so",
        "probability of improvement",
    ]
    assert differences.rows == [["single − none", f"**{gain.text(signed=True)}**", "better", str(chance)]]
    assert paired([plain, curious]) == {"single − none": gain}
    assert tables([curious, plain])[1].rows[0][2] == "worse"


def run_of(name: str, seeds: range, offset: float = 0.0, **settings: object) -> Arm:
    """A finished run with two evaluations; the first one's return is half the last one's."""
    generator = np.random.default_rng([seeds.start, len(name)])
    returns = (offset + generator.normal(0, 10, len(seeds))).tolist()
    metrics = dict.fromkeys(FIGURES, 0) | {"env_id": "Hopper-v4", "reward": "dense", "env_steps": 1000}
    metrics |= {"seeds": list(seeds), "eval_returns": returns, "evaluations_averaged": 1}
    chosen = {"seed": seeds.start, "num_seeds": len(seeds), "threads": seeds.start + 1, **settings}
    return Arm(name, chosen, metrics, [500.0, 1000.0], [[value / 2, value] for value in returns])


def test_runs_of_the_same_settings_with_other_seeds_are_one_arm() -> None:
    first, more = run_of("none", range(5)), run_of("none-5-to-9", range(5, 10), bonus="plain")  # its default
    again, other = run_of("again", range(5)), run_of("slow", range(10, 15), learning_rate=1e-4)
    arms = pooled([first, more, again, other])
    assert [arm.name for arm in arms] == ["none", "again", "slow"]
    assert arms[0].metrics["seeds"] == list(range(10))
    assert arms[0].metrics["runs"] == ["none", "none-5-to-9"]
    assert arms[0].metrics["eval_returns"] == first.metrics["eval_returns"] + more.metrics["eval_returns"]
    assert arms[0].curves == first.curves + more.curves
    assert arms[0].metrics["eval_return_mean"] == pytest.approx(np.mean(arms[0].metrics["eval_returns"]))


def test_paired_where_the_seeds_are_the_same_and_welch_elsewhere() -> None:
    none, single, few = run_of("none", range(8), 100), run_of("single", range(8), 130), run_of("few", range(5), 102)
    table, record = gains([none, single, few], "12%")
    returns = {arm.name: np.array(arm.metrics["eval_returns"]) for arm in (none, single, few)}
    paired_t = scipy.stats.ttest_rel(returns["single"], returns["none"]).confidence_interval()
    welch = scipy.stats.ttest_ind(returns["few"], returns["none"], equal_var=False).confidence_interval()
    for name, pairs, expected in (("single − none", True, paired_t), ("few − none", False, welch)):
        found = record[name]["final return"]
        assert found["paired"] == pairs
        assert (found["t"]["low"], found["t"]["high"]) == pytest.approx((expected.low, expected.high))
        assert found["margin"] == pytest.approx(0.12 * returns["none"].mean())
    assert record["single − none"]["final return"]["equivalence"] in ("different", "open")
    assert record["single − none"]["area"]["t"]["estimate"] == pytest.approx(
        0.75 * record["single − none"]["final return"]["t"]["estimate"]
    )
    assert gains([none, few], "1000")[1]["few − none"]["area"]["equivalence"] == "equivalent"
    assert [row[:3] for row in table.rows][:2] == [
        ["single − none", "final return", "paired"],
        ["single − none", "area", "paired"],
    ]


def test_a_margin_of_a_log_area_is_a_ratio() -> None:
    """An arm 5 % above another: log 1.05 apart, equivalent within ±12 %, of which the log is 0.113."""
    none, single = run_of("none", range(8), 100), run_of("single", range(8), 100)
    higher = dataclasses.replace(single, curves=[[1.05 * value for value in curve] for curve in none.curves])
    _, record = gains([none, higher], "12%", ["log-area"])
    found = record["single − none"]["log area"]
    assert found["t"]["estimate"] == pytest.approx(np.log(1.05))
    assert found["margin"] == pytest.approx(np.log(1.12))
    assert found["equivalence"] == "equivalent"


def test_arms_that_are_never_paid_are_not_different() -> None:
    """A share of a mean of 0 is no margin within which anything could lie."""
    none, single = run_of("none", range(8)), run_of("single", range(8))
    for arm in (none, single):
        arm.metrics["eval_returns"] = [0.0] * 8
    found = gains([none, single], "12%", ["return"])[1]["single − none"]["final return"]
    assert (found["margin"], found["says"], found["equivalence"]) == (0, "nothing shown", "open")


def test_arms_without_a_seed_in_common_have_no_paired_difference() -> None:
    assert paired([run_of("none", range(5)), run_of("late", range(5, 10))]) == {}


def test_pooled_runs_keep_the_figures_that_all_of_them_have() -> None:
    first, more = run_of("none", range(5)), run_of("more", range(5, 8))
    for arm in (first, more):
        arm.metrics["steps_paid"] = [float(seed) for seed in arm.metrics["seeds"]]
    first.metrics["coverage"] = [1.0] * 5
    (arm,) = pooled([first, more])
    assert arm.metrics["steps_paid"] == [float(seed) for seed in range(8)]
    assert "coverage" not in arm.metrics


@pytest.mark.parametrize("margin", ["much", "-3", "0%", "inf"])
def test_a_margin_that_is_none_is_told(margin: str) -> None:
    with pytest.raises(UsageError, match=f"--margin {margin}"):
        main(Comparison((Path("a"), Path("b")), margin=margin))
