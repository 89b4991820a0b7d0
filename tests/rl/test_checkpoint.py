"""A finished training goes on: exactly where its state was kept, from its weights where it was not."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from common import cli
from common.files import load_state, load_weights
from rl.forward_models import ForwardModels, kept
from rl.settings import Settings
from rl.train_sac_icm import main
from tests.rl.runs import QUICK, metrics_of, rows_of

pytestmark = pytest.mark.slow
Refused = Callable[..., tuple[int, str]]
SMALL = [*QUICK, "--random-steps", "20", "--hidden", "8", "8", "--batch-size", "8", "--num-seeds", "2"]
SMALL += ["--log-every", "20", "--eval-every", "40", "--checkpoint-every", "30", "--icm", "stacked"]


@pytest.fixture(scope="module", autouse=True)
def no_figures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.experiment.Run.figure", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


def go(results: Path, name: str, *arguments: str) -> Path:
    cli.run(main, Settings, [*arguments, "--results-dir", str(results), "--run-name", name])
    return results / "rl" / name


@pytest.mark.parametrize("kind", [["--precision", "float32"], ["--precision", "bfloat16", "--buffer-size", "50"]])
def test_goes_on_to_what_an_unbroken_run_reaches(kind: list[str], results: Path) -> None:
    """Networks, moments, replay, episodes, noise, best policies, and the figures; with a ring that is full too."""
    name = kind[1]
    whole = go(results, f"whole-{name}", *SMALL, *kind, "--env-steps", "120", "--select", "best")
    short = go(results, f"short-{name}", *SMALL, *kind, "--env-steps", "80", "--select", "best", "--keep-state")
    longer = go(results, f"longer-{name}", "--extend", str(short), "--env-steps", "120")
    for file in ("agents", "best"):
        ours, unbroken = (load_weights(run / "checkpoints" / f"{file}.safetensors") for run in (longer, whole))
        assert ours.keys() == unbroken.keys()
        assert all(torch.equal(ours[name], tensor) for name, tensor in unbroken.items())
    mine, theirs = metrics_of(longer), metrics_of(whole)
    for key in ("eval_returns", "best", "env_steps", "last_eval_returns", "seeds"):
        assert mine[key] == theirs[key]
    for stage in ("train", "eval"):
        for row, expected in zip(rows_of(longer, stage), rows_of(whole, stage), strict=True):
            assert {k: v for k, v in row.items() if "per_second" not in k} == {
                k: v for k, v in expected.items() if "per_second" not in k
            }
    assert mine["extended_from"] == str(short)


@pytest.fixture(scope="module")
def bare(results: Path) -> Path:
    return go(results, "bare", *SMALL, "--env-steps", "60", "--select", "best")


def test_without_a_replay_the_policy_fills_a_new_one_first(
    bare: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For as many steps as the random ones were, in which nothing is learned."""
    assert not (bare / "checkpoints" / "replay").exists()
    more = ["--extend", str(bare), "--checkpoint-every", "10", "--keep-state"]
    longer = go(results, "more", *more, "--env-steps", "90")
    assert "its state was not kept (--keep-state): the replay starts empty" in capsys.readouterr().err
    state = load_state(longer / "checkpoints" / "agents.state.pt")
    assert (state["step"], state["begun"]) == (90, 60)
    assert state["optimizers"][0]["steps"] == 10  # 90 − 60 − 20
    assert [int(row["step"]) for row in rows_of(longer, "eval")] == [40, 60, 80, 90]
    ours, before = metrics_of(longer), metrics_of(bare)
    assert all(paid > earlier > 0 for paid, earlier in zip(ours["steps_paid"], before["steps_paid"], strict=True))
    assert "coverage" in before
    assert "coverage" not in ours  # where the finished run has been is not known
    # Its own checkpoints hold the ring that began empty: what goes on from them is what an unbroken run reaches.
    assert kept(ForwardModels(run=longer))[1].begun == 60
    whole = go(results, "more-whole", *more, "--env-steps", "120", "--eval-every", "30")
    further = go(results, "further", "--extend", str(longer), "--env-steps", "120", "--eval-every", "30")
    weights, unbroken = (load_weights(run / "checkpoints" / "agents.safetensors") for run in (further, whole))
    assert all(torch.equal(weights[name], tensor) for name, tensor in unbroken.items())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--env-steps", "80"], "give more than 80"),
        (["--env-steps", "60"], "the run has 60 already"),
        (["--env-steps", "200", "--icm", "none"], "the run was trained with stacked"),
        (["--env-steps", "200", "--env-id", "Hopper-v5"], "the run was trained with Hopper-v4"),
    ],
)
def test_what_is_refused(arguments: list[str], told: str, bare: Path, refused: Refused) -> None:
    before = sorted(bare.parent.iterdir())
    status, line = refused(
        main, Settings, ["--extend", str(bare), "--results-dir", str(bare.parent.parent), *arguments]
    )
    assert status == 2
    assert told in line
    assert sorted(bare.parent.iterdir()) == before


@pytest.mark.parametrize(("arguments", "told"), [(["--env-steps", "2400"], "--extend"), (["--video"], "rl/play.py")])
def test_a_finished_run_is_told_what_there_is_instead(
    arguments: list[str], told: str, bare: Path, refused: Refused
) -> None:
    status, line = refused(main, Settings, ["--resume", str(bare), *arguments])
    assert status == 2
    assert f"{told} {bare} {arguments[0]}" in line
