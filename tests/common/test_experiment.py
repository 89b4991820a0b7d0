"""The run folder: never overwritten, survives crashes, tells what it was."""

import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.cli import RunSettings
from common.errors import RunError
from common.experiment import Run

CPU = torch.device("cpu")


def a_run(folder: Path, **settings: object) -> Run:
    return Run(RunSettings(results_dir=folder, **settings), "test", "name", CPU)  # type: ignore[arg-type]


def resumed(run: Run, task: str = "test") -> Run:
    return Run(RunSettings(resume=run.path), task, "", CPU)


def test_same_name_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = a_run(tmp_path, run_name="mine"), a_run(tmp_path, run_name="mine")
    assert first.path == tmp_path / "test" / "mine"
    assert second.path == tmp_path / "test" / "mine-2"
    assert "mine-2" in capsys.readouterr().err


def test_what_a_stage_made_is_computed_once(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    calls = []

    def compute() -> dict[str, float]:
        calls.append(1)
        return {"0.1": 0.5}

    assert run.remembered("curve", compute) == resumed(run).remembered("curve", compute) == {"0.1": 0.5}
    weights = {"w": torch.randn(3)}
    run.remembered_weights("net", lambda: weights)
    assert torch.equal(resumed(run).remembered_weights("net", lambda: {})["w"], weights["w"])
    assert len(calls) == 1


def test_history_csv_and_tensorboard_agree(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    run.log("dense", 1, {"loss": 0.5})
    run.log("dense", 2, {"loss": 0.25, "accuracy": 1.0})
    run.log("dense", 2, {"loss": 0.3, "accuracy": 1.0})  # a resumed stage logs a step again
    run.log("tuned", 1, {"loss": 0.1})
    expected = "stage,step,loss,accuracy\ndense,1,0.5,\ndense,2,0.3,1.0\ntuned,1,0.1,\n"
    assert (run.path / "history.csv").read_text() == expected
    assert resumed(run).history("dense")["loss"] == [0.5, 0.3]
    run.finish({"accuracy": 0.5}, ("accuracy",))
    events = EventAccumulator(str(run.path))
    events.Reload()
    assert [event.value for event in events.Scalars("tuned/loss")] == [pytest.approx(0.1)]


def test_metrics_say_what_the_run_was(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    run.finish({"accuracy": 0.5}, ("accuracy",))
    metrics = json.loads((run.path / "metrics.json").read_text())
    assert metrics.keys() >= {"accuracy", "device", "torch", "seconds", "git_commit", "precision", "threads"}
    assert resumed(run).finished


def test_a_metric_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    with pytest.raises(RunError, match="not a finite number"):
        run.finish({"accuracy": float("nan")}, ("accuracy",))
    assert not (run.path / "metrics.json").exists()


def test_seconds_add_up_over_sittings(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    run._seconds_before = 1000.0
    run.remembered("x", lambda: 1)
    again = resumed(run)
    again.finish({}, ())
    assert json.loads((run.path / "metrics.json").read_text())["seconds"] >= 1000


def test_figures_are_png_and_in_tensorboard(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    sheet = Figure()
    sheet.subplots().plot([1, 2])
    run.figure("plot", sheet)
    assert (run.figures / "plot.png").read_bytes().startswith(b"\x89PNG")
    run.finish({}, ())
    events = EventAccumulator(str(run.path))
    events.Reload()
    assert events.Tags()["images"] == ["figures/plot"]
    shown = Image.open(io.BytesIO(events.Images("figures/plot")[0].encoded_image_string))
    with Image.open(run.figures / "plot.png") as written:
        assert np.array_equal(np.asarray(shown.convert("RGB")), np.asarray(written.convert("RGB")))


def test_a_disk_that_fills_up_under_tensorboard_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread says no more than that there is no space."""
    run = a_run(tmp_path)

    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run._events.writer, "flush", full)
    with pytest.raises(OSError, match="No space left") as told:
        run.log("dense", 1, {"loss": 0.5})
    assert told.value.filename == str(run.path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_damaged_progress_is_told(tmp_path: Path, text: str) -> None:
    run = a_run(tmp_path)
    (run.checkpoints / "progress.json").write_text(text)
    with pytest.raises(RunError, match=r"progress\.json: damaged"):
        resumed(run)


@pytest.mark.parametrize("damage", ["truncated", "empty", "bytes", "columns"])
def test_damaged_history_is_told(tmp_path: Path, damage: str) -> None:
    run = a_run(tmp_path)
    for step in (1, 2):
        run.log("dense", step, {"loss": 0.5})
    assert resumed(run).history("dense")["step"] == [1, 2]
    path = run.path / "history.csv"
    whole = path.read_bytes()
    damaged = {"truncated": whole[:-8], "empty": b"", "bytes": bytes(range(256)), "columns": b"a,b\n1,2\n"}
    path.write_bytes(damaged[damage])
    with pytest.raises(RunError, match=r"history\.csv: damaged or rows are missing"):
        resumed(run)


def test_rows_of_several_stages_and_columns_are_read_back(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    run.log("train", 1, {"loss": 1.0, "speed": 2.0})
    run.log("eval", 1, {"return": np.float64(3.0)})
    run.log("train", 2, {"loss": 0.5, "early": math.nan, "speed": 2.0})
    assert resumed(run).history("eval") == {"step": [1], "return": [3]}


@pytest.mark.parametrize("file", ["history.csv", "checkpoints/progress.json", "checkpoints/net.safetensors"])
def test_a_flipped_bit_is_noticed(tmp_path: Path, file: str) -> None:
    """0.125 becomes 0.135: a value that could be true."""
    run = a_run(tmp_path)
    run.log("dense", 1, {"loss": 0.125})
    run.remembered("accuracy", lambda: 0.125)
    run.remembered_weights("net", lambda: {"w": torch.zeros(4)})
    content = bytearray((run.path / file).read_bytes())
    place = content.index(b"0.125") + 3 if b"0.125" in content else len(content) - 1
    content[place] ^= 1
    (run.path / file).write_bytes(content)
    with pytest.raises(RunError, match=Path(file).name):
        resumed(run).remembered_weights("net", dict)


def test_a_run_cleans_up_after_a_killed_write(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    names = (".history.csv.trilab-abcdefgh", "checkpoints/.x.pt.trilab-abcdefgh", "figures/.a.png.trilab-12345678")
    left = [run.path / name for name in names]
    for path in left:
        path.touch()
    resumed(run)
    assert not any(path.exists() for path in left)


def test_a_run_whose_folder_is_removed_stops(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    shutil.rmtree(run.path)
    with pytest.raises(RunError, match="was removed"):
        run.log("dense", 1, {"loss": 0.5})
    assert not run.path.exists()


def test_killed_in_the_first_row_after_a_rewind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed stage begins at its checkpoint with fewer rows than were whole before; it can be resumed again."""
    run = a_run(tmp_path)
    for step in (1, 2, 3):
        run.log("dense", step, {"loss": 0.5})
    again = resumed(run)
    again.rewind("dense", 1)
    monkeypatch.setattr(again._events.writer, "flush", lambda: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        again.log("dense", 2, {"loss": 0.4})
    assert resumed(again).history("dense") == {"step": [1, 2], "loss": [0.5, 0.4]}


def test_what_was_made_after_deleted_weights_is_made_anew(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    made: list[str] = []

    def weights(name: str) -> dict[str, torch.Tensor]:
        made.append(name)
        return {"w": torch.zeros(1)}

    def stages(run: Run) -> None:
        run.remembered("images", lambda: made.append("images"))
        run.remembered_weights("dense", lambda: weights("dense"))
        run.remembered("curves", lambda: made.append("curves"))
        run.remembered_weights("tuned", lambda: weights("tuned"))

    stages(run)
    stages(resumed(run))
    assert made == ["images", "dense", "curves", "tuned"]
    (run.checkpoints / "tuned.safetensors").unlink()
    stages(resumed(run))
    assert made[4:] == ["tuned"]
    (run.checkpoints / "dense.safetensors").unlink()
    stages(resumed(run))
    assert made[5:] == ["dense", "curves", "tuned"]


def test_another_tasks_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="a run of test, not of rl"):
        resumed(a_run(tmp_path), task="rl")
