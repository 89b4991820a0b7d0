"""`--extend`: a longer run from a finished one, equal to an unbroken run where that can be, and clear where not."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
import torch
from annotated_types import Ge
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from common import cli
from common.cli import RunSettings
from common.experiment import Run
from common.extending import Extension
from common.fast.adam import Adam
from common.files import load_weights, write_atomically
from common.training import Recipe, fit, triangular

Refused = Callable[..., tuple[int, str]]
CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True)
class Settings(RunSettings):
    """A small training with a stage before it."""

    once_finished: ClassVar[dict[str, str]] = {"width": "look at {run}"}
    extension: ClassVar[Extension | None] = Extension(
        length="epochs",
        stage="net",
        may_change=("rate",),
        missing="the moments start at zero",
        state=("buffer",),
        beside=("masks.safetensors",),
        forget=("losses",),
    )
    epochs: Annotated[int, Ge(1)] = 2
    rate: float = 0.1
    width: int = 3
    ema_decay: float = 0.0
    constant: bool = True


def main(settings: Settings) -> None:
    run = Run(settings, "test", "name", CPU)
    if run.finished:
        print(run.path)
        return
    first = run.remembered_weights("first", lambda: {"w": torch.rand(2)})
    run.remembered("measured", lambda: float(first["w"].sum()))
    weights = run.remembered_weights("net", lambda: train(run, settings))
    run.finish({"sum": float(weights["weight"].sum())}, ("sum",))
    print(run.path)


def train(run: Run, settings: Settings) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(settings.seed)
    inputs = torch.randn(20, settings.width, generator=generator)
    model = nn.Linear(settings.width, 1)
    nn.init.ones_(model.weight)
    nn.init.zeros_(model.bias)
    if (start := run.start_weights("net")) is not None:
        model.load_state_dict(start)

    def loss(
        network: nn.Module, indices: Tensor, epoch: float, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        noise = torch.randn(len(indices), 1, generator=generator)
        return (network(inputs[indices]) - noise).square().mean(), {}

    schedule = (lambda done: 1.0) if settings.constant else triangular(0.25)
    recipe = Recipe(settings.epochs, 4, schedule, settings.precision, settings.ema_decay)
    trained = fit(run, "net", model, Adam((model.parameters(), settings.rate)), loss, 20, recipe, generator)
    if settings.keep_state:
        write_atomically(run.checkpoints / "buffer" / f"{settings.epochs}.pt", b"rows")
    run.remembered("losses", lambda: run.history("net")["loss/train"])
    return trained.state_dict()


def go(folder: Path, *arguments: str) -> Path:
    """Runs the script and returns the run's folder."""
    cli.run(main, Settings, ["--results-dir", str(folder), *arguments])
    return max((folder / "test").iterdir(), key=lambda run: run.stat().st_ctime_ns)


def weights_of(run: Path) -> dict[str, Tensor]:
    return load_weights(run / "checkpoints" / "net.safetensors")


def rows_of(run: Path) -> list[str]:
    """The lines of history.csv without the last column, the images a second."""
    return [line.rpartition(",")[0] for line in (run / "history.csv").read_text().splitlines()]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_with_its_state_kept_a_run_goes_on_to_what_an_unbroken_one_reaches(precision: str, tmp_path: Path) -> None:
    """Moments, moving average, order of the batches and noise; the rate here does not depend on the length."""
    kind = ["--precision", precision, "--ema-decay", "0.8"]
    whole = go(tmp_path, "--epochs", "5", "--run-name", "whole", *kind)
    go(tmp_path, "--epochs", "2", "--run-name", "short", "--keep-state", *kind)
    longer = go(tmp_path, "--extend", str(tmp_path / "test" / "short"), "--epochs", "5")
    assert longer.name == "short-extended"
    assert all(torch.equal(tensor, weights_of(longer)[name]) for name, tensor in weights_of(whole).items())
    assert rows_of(longer) == rows_of(whole)


def test_a_rate_that_depends_on_the_length_goes_on_as_that_of_the_longer_run(tmp_path: Path) -> None:
    """So the weights are others than those of an unbroken run; from the last epoch of before on, the rates are not."""
    whole = go(tmp_path, "--no-constant", "--epochs", "5", "--run-name", "whole")
    short = go(tmp_path, "--no-constant", "--epochs", "2", "--run-name", "short", "--keep-state")
    longer = go(tmp_path, "--extend", str(short), "--epochs", "5")
    rates = [
        json.loads(json.dumps(Run(RunSettings(resume=r), "test", "", CPU).history("net"))) for r in (whole, longer)
    ]
    assert rates[0]["learning_rate"][2:] == rates[1]["learning_rate"][2:]
    assert rates[0]["learning_rate"][1] != rates[1]["learning_rate"][1]
    assert not torch.equal(weights_of(whole)["weight"], weights_of(longer)["weight"])


def test_without_its_state_a_run_goes_on_from_its_weights_and_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = go(tmp_path, "--epochs", "2", "--run-name", "short")
    assert not (short / "checkpoints" / "net.state.pt").exists()
    before = weights_of(short)
    longer = go(tmp_path, "--extend", str(short), "--epochs", "3", "--rate", "1e-12")
    told = f"goes on from {short} after 2 epochs; its state was not kept (--keep-state): the moments start at zero"
    assert told in capsys.readouterr().err.splitlines()
    torch.testing.assert_close(weights_of(longer), before)  # the rate leaves them where they were
    assert rows_of(longer)[:3] == rows_of(short)
    assert [row.split(",")[1] for row in rows_of(longer)] == ["step", "1", "2", "3"]


def test_the_new_run_says_what_it_extends_and_leaves_that_as_it_is(tmp_path: Path) -> None:
    short = go(tmp_path, "--epochs", "2", "--run-name", "short", "--keep-state", "--seed", "7")
    before = {path: path.read_bytes() for path in short.rglob("*") if path.is_file()}
    longer = go(tmp_path, "--extend", str(short), "--epochs", "4", "--no-keep-state", "--run-name", "longer")
    assert before == {path: path.read_bytes() for path in short.rglob("*") if path.is_file()}
    assert f"extended_from: {short}" in (longer / "config.yaml").read_text()
    assert json.loads((longer / "metrics.json").read_text())["extended_from"] == str(short)
    assert "extended_from" not in json.loads((short / "metrics.json").read_text())
    assert (longer / "checkpoints" / "buffer" / "2.pt").read_bytes() == b"rows"
    assert not (longer / "checkpoints" / "net.state.pt").exists()
    assert not (longer / "checkpoints" / "start").exists()
    # What came before the training is the finished run's, what comes with it is not.
    first = [load_weights(run / "checkpoints" / "first.safetensors")["w"] for run in (short, longer)]
    assert torch.equal(*first)
    progress = [json.loads((run / "checkpoints" / "progress.json").read_text()) for run in (short, longer)]
    assert progress[0]["measured"] == progress[1]["measured"]
    assert (len(progress[0]["losses"]), len(progress[1]["losses"])) == (2, 4)
    # Another machine's checkout may not have the finished run any more: what was made from it can still be read.
    shutil.rmtree(short)
    assert cli.parse(Settings, ["--config", str(longer / "config.yaml")]).epochs == 4
    cli.run(main, Settings, ["--resume", str(longer)])


@pytest.mark.parametrize("lost", ["net", "first"])
def test_a_stage_that_is_repeated_begins_with_what_the_finished_run_ended_with(lost: str, tmp_path: Path) -> None:
    short = go(tmp_path, "--epochs", "2", "--run-name", "short", "--keep-state")
    longer = go(tmp_path, "--extend", str(short), "--epochs", "5", "--no-keep-state")
    before, rows = weights_of(longer), rows_of(longer)
    (longer / "metrics.json").unlink()
    (longer / "checkpoints" / f"{lost}.safetensors").unlink()  # as the message of a damaged file says
    cli.run(main, Settings, ["--resume", str(longer)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(longer).items())
    assert rows_of(longer) == rows
    assert not (longer / "checkpoints" / "start").exists()
    (longer / "metrics.json").unlink()
    (longer / "checkpoints" / f"{lost}.safetensors").unlink()
    shutil.rmtree(short)
    with pytest.raises(SystemExit) as stop:
        cli.run(main, Settings, ["--resume", str(longer)])
    assert stop.value.code == 1


def test_tensorboard_has_the_whole_course(tmp_path: Path) -> None:
    short = go(tmp_path, "--epochs", "2", "--run-name", "short")
    events = EventAccumulator(str(go(tmp_path, "--extend", str(short), "--epochs", "4")))
    events.Reload()
    assert [event.step for event in events.Scalars("net/loss/train")] == [1, 2, 3, 4]


@pytest.mark.parametrize("kept", ["--keep-state", "--no-keep-state"])
@pytest.mark.parametrize("epoch", [3, 4])
def test_an_extension_that_was_interrupted_is_resumed(
    kept: str, epoch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after its own first checkpoint."""
    short = go(tmp_path, "--epochs", "2", "--run-name", "short", kept)
    more = ["--extend", str(short), "--epochs", "5"]
    whole = go(tmp_path, *more, "--run-name", "whole")
    log = Run.log

    def stop(run: Run, stage: str, step: int, scalars: Any) -> None:
        log(run, stage, step, scalars)
        if step == epoch:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", stop)
        with pytest.raises(SystemExit):
            go(tmp_path, *more, "--run-name", "stopped")
    stopped = tmp_path / "test" / "stopped"
    cli.run(main, Settings, ["--resume", str(stopped)])
    assert torch.equal(weights_of(stopped)["weight"], weights_of(whole)["weight"])
    assert rows_of(stopped) == rows_of(whole)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return go(tmp_path_factory.mktemp("results"), "--run-name", "short")


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["--extend", "{run}"], 2, "--epochs 2 with --extend {run}: the run has 2 already"),
        (["--extend", "{run}", "--epochs", "1"], 2, "--epochs 1 with --extend {run}: the run has 2 already"),
        (
            ["--extend", "{run}", "--epochs", "4", "--width", "5"],
            2,
            "--width 5 with --extend {run}: the run was trained",
        ),
        (["--extend", "{run}", "--epochs", "4", "--seed", "5"], 2, "--seed 5 with --extend {run}"),
        (["--extend", "{run}", "--epochs", "4", "--resume", "{run}"], 2, "--extend beside --resume"),
        (["--extended-from", "{run}/none", "--epochs", "4"], 2, "--extend {run}/none: no such folder"),
        (["--extend"], 2, "--extend"),
        (["--resume", "{run}", "--epochs", "4"], 2, "once it is finished: --extend {run} --epochs 4"),
        (["--resume", "{run}", "--width", "4"], 2, "once it is finished: look at {run}"),
    ],
)
def test_what_cannot_be_extended_is_one_line(
    arguments: list[str], status: int, told: str, short: Path, refused: Refused
) -> None:
    before = sorted(short.parent.iterdir())
    given = refused(main, Settings, [word.format(run=short) for word in arguments])
    assert given[0] == status
    assert told.format(run=short) in given[1]
    assert sorted(short.parent.iterdir()) == before


@pytest.mark.parametrize(("missing", "told"), [("metrics.json", "is not finished; --resume"), ("", "is missing")])
def test_a_run_without_figures_or_weights(
    missing: str, told: str, short: Path, tmp_path: Path, refused: Refused
) -> None:
    shutil.copytree(short, tmp_path / "run")
    (tmp_path / "run" / (missing or "checkpoints/net.safetensors")).unlink()
    status, line = refused(main, Settings, ["--extend", str(tmp_path / "run"), "--epochs", "4"])
    assert status == 1
    assert told in line


@pytest.mark.parametrize("file", ["history.csv", "checkpoints/net.state.pt"])
def test_a_damaged_run_is_not_extended(file: str, short: Path, tmp_path: Path, refused: Refused) -> None:
    shutil.copytree(short, tmp_path / "run")
    path = tmp_path / "run" / file
    path.write_bytes(path.read_bytes()[:40] if path.exists() else b"not a checkpoint")
    before = sorted(tmp_path.iterdir())
    status, line = refused(main, Settings, ["--extend", str(tmp_path / "run"), "--epochs", "4"])
    assert status == 1
    assert line.startswith(f"error: {path}: damaged")
    assert sorted(tmp_path.iterdir()) == before


def test_a_script_without_an_extension(refused: Refused, short: Path) -> None:
    status, line = refused(lambda settings: None, RunSettings, ["--extend", str(short)])
    assert status == 2
    assert "no training of its own" in line
