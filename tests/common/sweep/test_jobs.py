"""Many runs of a script: skipped when finished, resumed when not, failures reported after the others have ended."""

from pathlib import Path

import pytest

from common.errors import RunError
from common.sweep.executors import local_executor
from common.sweep.jobs import Job, Work, as_words, run_jobs

SCRIPT = """
import pathlib, sys
words = " ".join(sys.argv[1:]).replace("=", " ").split()
words = dict(zip(words[::2], words[1::2]))
if "--resume" in words:
    run = pathlib.Path(words["--resume"])
else:
    run = pathlib.Path(words["--results-dir"]) / "toy" / words["--run-name"]
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(f"rate: {words['--rate']}")
(run / "started").open("a").write(" ".join(sys.argv[1:]) + "\\n")
if words.get("--rate") == "9" and not (run.parent / "mended").exists():
    print("working", file=sys.stderr)
    print("error: the rate is too high", file=sys.stderr)
    sys.exit(1)
(run / "metrics.json").write_text("{}")
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "toy.py"
    path.write_text(SCRIPT)
    return str(path)


def jobs(*rates: int) -> list[Job]:
    return [Job(f"rate{rate}", {"rate": rate}) for rate in rates]


def test_runs_each_once_and_skips_what_is_finished(script: str, tmp_path: Path) -> None:
    folders = run_jobs(Work(script, "toy", tmp_path), jobs(1, 2, 3), local_executor(2))
    again = run_jobs(Work(script, "toy", tmp_path), jobs(1, 2, 3, 4), local_executor(2))
    assert again == folders | {"rate4": tmp_path / "toy" / "rate4"}
    assert all(len((folder / "started").read_text().splitlines()) == 1 for folder in again.values())


def test_a_run_that_leaves_nothing_has_failed(tmp_path: Path) -> None:
    """A module that is no script, say: it ends well and has done nothing."""
    (tmp_path / "module.py").write_text("print('hello')")
    with pytest.raises(RunError, match=r"1 of 1 runs failed.*rate1: ended without a metrics.json; hello"):
        run_jobs(Work(str(tmp_path / "module.py"), "toy", tmp_path), jobs(1), local_executor(1))


def test_a_failure_is_told_with_its_last_line_and_the_rest_is_done(
    script: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RunError, match=r"1 of 3 runs failed.*rate9: error: the rate is too high"):
        run_jobs(Work(script, "toy", tmp_path), jobs(9, 1, 2), local_executor(1))
    said = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert "failed: rate9: error: the rate is too high" in said  # at once: before the others are done
    assert said.index("failed: rate9: error: the rate is too high") < len(said) - 1
    assert (tmp_path / "toy" / "rate2" / "metrics.json").exists()
    (tmp_path / "toy" / "mended").touch()
    folders = run_jobs(Work(script, "toy", tmp_path), jobs(9, 1, 2), local_executor(1))
    calls = (folders["rate9"] / "started").read_text().splitlines()
    assert calls[1].startswith("--resume")  # goes on where it stopped
    assert len((folders["rate1"] / "started").read_text().splitlines()) == 1


def test_a_run_with_other_settings_is_not_taken_for_this_one(script: str, tmp_path: Path) -> None:
    run_jobs(Work(script, "toy", tmp_path), [Job("a", {"rate": 1})], local_executor(1))
    with pytest.raises(RunError, match="rate 1, not 2"):
        run_jobs(Work(script, "toy", tmp_path), [Job("a", {"rate": 2})], local_executor(1))


def test_a_run_that_lacks_a_setting_is_not_called_damaged(script: str, tmp_path: Path) -> None:
    run_jobs(Work(script, "toy", tmp_path), [Job("a", {"rate": 1})], local_executor(1))
    with pytest.raises(RunError, match="already a run without newer, of another script or an earlier version"):
        run_jobs(Work(script, "toy", tmp_path), [Job("a", {"rate": 1, "newer": 2})], local_executor(1))


def test_numbers_are_compared_as_numbers_and_places_not_at_all(script: str, tmp_path: Path) -> None:
    run_jobs(Work(script, "toy", tmp_path), [Job("a", {"rate": 0.002})], local_executor(1))
    run_jobs(Work(script, "toy", tmp_path), [Job("a", {"rate": "2e-3"}, {"data_dir": "elsewhere"})], local_executor(1))


def test_a_path_is_the_same_however_it_is_spelt(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_jobs(Work(script, "toy", tmp_path), [Job("a", {"rate": "x/weights"})], local_executor(1))
    run_jobs(Work(script, "toy", tmp_path), [Job("a", {"rate": f"{tmp_path}/x/weights"})], local_executor(1))
    with pytest.raises(RunError, match="rate x/weights, not y/weights"):
        run_jobs(Work(script, "toy", tmp_path), [Job("a", {"rate": "y/weights"})], local_executor(1))


def test_a_run_stopped_before_it_wrote_its_settings_starts_anew(script: str, tmp_path: Path) -> None:
    (tmp_path / "toy" / "rate1").mkdir(parents=True)
    folders = run_jobs(Work(script, "toy", tmp_path), jobs(1), local_executor(1))
    assert (folders["rate1"] / "metrics.json").exists()


def test_a_resumed_run_is_told_where_the_data_is_now(script: str, tmp_path: Path) -> None:
    job = Job("rate9", {"rate": 9}, {"data_dir": "here"})
    with pytest.raises(RunError, match=r"1 of 1 runs failed \("):
        run_jobs(Work(script, "toy", tmp_path), [job], local_executor(1))
    (tmp_path / "toy" / "mended").touch()
    folder = run_jobs(
        Work(script, "toy", tmp_path), [Job("rate9", {"rate": 9}, {"data_dir": "there"})], local_executor(1)
    )["rate9"]
    assert (folder / "started").read_text().splitlines()[1].endswith("--data-dir=there")


def test_settings_as_words() -> None:
    settings = {"prior_mean": -2.0, "hidden": (4, 8), "flip": False, "smoke_test": True, "run_name": "-x"}
    words = ["--prior-mean=-2.0", "--hidden", "4", "8", "--no-flip", "--smoke-test", "--run-name=-x"]
    assert as_words(settings) == words


def test_an_interrupted_run_stops_the_sweep(tmp_path: Path) -> None:
    path = tmp_path / "stopped.py"
    path.write_text("import sys; sys.exit(130)")
    with pytest.raises(KeyboardInterrupt):
        run_jobs(Work(str(path), "toy", tmp_path), jobs(1, 2, 3), local_executor(1))
    assert not list((tmp_path / "toy").glob("*/metrics.json"))
