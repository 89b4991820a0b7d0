"""The command as a user types it: the whole study, a crash in the middle, and a full disk."""

import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from common import cli
from common.files import load_weights, save_weights
from pruning.figures import table
from pruning.run import main
from pruning.settings import Settings
from pruning.sparse_file import load_sparse
from pruning.vgg import VGG11
from tests.pruning.small import use_few_images, use_narrow_network

Refused = Callable[..., tuple[int, str]]
Killed = Callable[..., Path]
Unchanged = Callable[[Any, Any, Path], None]
COMMAND = [sys.executable, "pruning/run.py"]
NARROW_COMMAND = [sys.executable, "-m", "tests.pruning.small"]


def study(*arguments: str, check: bool = True, **settings: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, **settings)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="session")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the whole experiment with a narrow network and few images."""
    folder = tmp_path_factory.mktemp("results")
    arguments = ["--smoke-test", "--latency-seconds", "0", "--results-dir", str(folder), "--run-name", "narrow"]
    with pytest.MonkeyPatch.context() as patch:
        use_narrow_network(patch)
        use_few_images(patch)
        cli.run(main, Settings, arguments)
    return folder / "pruning" / "narrow"


@pytest.fixture(params=["narrow", pytest.param("smoke", marks=pytest.mark.slow)])
def finished(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a finished run; `main` may be called on it."""
    run: Path = request.getfixturevalue(request.param)
    if request.param == "narrow":
        use_narrow_network(monkeypatch)
        use_few_images(monkeypatch)
    return run


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one smoke test, run as a user types it."""
    folder = tmp_path_factory.mktemp("results")
    done = study("--smoke-test", "--latency-seconds", "0", "--results-dir", str(folder), "--run-name", "smoke")
    assert done.stdout.splitlines()[-1] == str(folder / "pruning" / "smoke")
    return folder / "pruning" / "smoke"


def metrics_of(run: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return metrics


def test_writes_what_the_contract_says(finished: Path) -> None:
    metrics = metrics_of(finished)
    assert metrics.keys() >= {
        *("dataset", "device", "torch", "seconds", "git_commit"),
        *("dense_accuracy", "pruned_accuracy", "finetuned_accuracy", "layers", "conv_weights_kept"),
        *("recalibrated_accuracy", "recalibrated_validation_accuracy"),
        *("compression_ratio", "theoretical_speedup", "dense_bytes", "sparse_bytes", "sensitivity"),
    }
    assert metrics["dataset"] | {"name": "digits", "stand_in_for": "cifar10"} == metrics["dataset"]
    assert [layer["name"] for layer in metrics["layers"]] == list(metrics["sensitivity"])
    assert all(len(curve) == 12 for curve in metrics["sensitivity"].values())
    assert {p.name for p in (finished / "figures").iterdir()} == {
        *("training.png", "sensitivity.png", "weights.png", "layers.png", "outcome.png")
    }
    assert [*metrics["pruned_energy"]] == [*metrics["sensitivity"]]
    assert all(0 < share < 1 for share in metrics["pruned_energy"].values())
    assert list(finished.glob("events.out.tfevents.*"))
    assert (finished / "config.yaml").exists()
    rows = list(csv.DictReader((finished / "history.csv").open()))
    assert [row["stage"] for row in rows] == ["dense"] * 2 + ["finetuned"]


@pytest.mark.slow
def test_smoke_test_prunes_as_the_original_report_and_learns(smoke: Path) -> None:
    metrics = metrics_of(smoke)
    assert metrics["dataset"]["images"] == 1797
    assert metrics["conv_weights_kept"] == pytest.approx(0.2297, abs=5e-5)
    assert metrics["dense_accuracy"] > 0.8


def test_saved_networks_are_what_the_metrics_say(finished: Path) -> None:
    metrics = metrics_of(finished)
    finetuned, dense = (load_weights(finished / "checkpoints" / f"{n}.safetensors") for n in ("finetuned", "dense"))
    assert finetuned.keys() == dense.keys() == VGG11().state_dict().keys()  # no mask keys among the weights
    masks = load_weights(finished / "checkpoints" / "masks.safetensors")
    for layer in metrics["layers"]:
        weight = finetuned[f"{layer['name']}.weight"]
        assert int((weight != 0).sum()) == layer["nonzero"] == int(masks[layer["name"]].sum())
    exact = load_sparse(finished / "checkpoints" / "network.float32.sparse")
    assert all(torch.equal(exact.weights[name], tensor) for name, tensor in finetuned.items())
    for values, file in metrics["sparse_files"].items():
        assert (finished / "checkpoints" / f"network.{values}.sparse").stat().st_size == file["bytes"]
        assert file["coding_ratio"] == metrics["dense_bytes"] / file["unpruned_bytes"]
        assert file["coding_ratio"] * file["pruning_ratio"] == pytest.approx(file["dense_over_sparse"])
    assert metrics["sparse_files"]["float32"]["coding_ratio"] == pytest.approx(1.1, abs=0.1)
    assert metrics["dense_bytes"] == (finished / "checkpoints" / "dense.safetensors").stat().st_size


def test_the_terminal_marks_what_a_network_at_chance_saves(finished: Path) -> None:
    metrics = metrics_of(finished)
    for accuracy, marked in ((0.1, True), (0.9, False)):
        files = {name: {**file, "accuracy": accuracy} for name, file in metrics["sparse_files"].items()}
        text = table({**metrics, "finetuned_accuracy": accuracy, "sparse_files": files})
        assert text.count("(at chance)") == (2 + len(files)) * marked
        assert f"recalibrated {metrics['recalibrated_accuracy']:.4f}, fine-tuned {accuracy:.4f}" in text


@pytest.mark.slow
def test_kill_9_and_resume_give_the_same_weights(
    tmp_path: Path, killed: Killed, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["--smoke-test", "--epochs", "6", "--latency-seconds", "0"]
    run = killed([*NARROW_COMMAND, *settings, "--results-dir", str(tmp_path)], tmp_path, "dense.state.pt", later=0)
    assert not (run / "checkpoints" / "dense.safetensors").exists()
    done = subprocess.run([*NARROW_COMMAND, "--resume", str(run)], capture_output=True, text=True, check=True)
    assert "going on after epoch" in done.stderr
    use_narrow_network(monkeypatch)
    use_few_images(monkeypatch)
    cli.run(main, Settings, [*settings, "--results-dir", str(tmp_path), "--run-name", "whole"])
    whole = tmp_path / "pruning" / "whole"
    for name in ("dense", "finetuned"):
        ours, unbroken = (load_weights(r / "checkpoints" / f"{name}.safetensors") for r in (run, whole))
        assert all(torch.equal(ours[key], tensor) for key, tensor in unbroken.items())
    mine, theirs = metrics_of(run), metrics_of(whole)
    for key in ("dense_accuracy", "pruned_accuracy", "finetuned_accuracy", "sensitivity", "layers"):
        assert mine[key] == theirs[key]
    assert len((run / "history.csv").read_text().splitlines()) == 8


@pytest.mark.slow
def test_from_given_weights_gradually_with_regrowth_and_distillation(
    narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_narrow_network(monkeypatch)
    use_few_images(monkeypatch)
    given = narrow / "checkpoints" / "dense.safetensors"
    arguments = ["--smoke-test", "--scan-images", "2", "--latency-seconds", "0", "--batch-size", "64"]
    arguments += ["--allocation", "global", "--sparsity", "0.9", "--schedule", "gradual", "--regrow", "0.5"]
    arguments += ["--distillation", "0.9", "--dense-weights", str(given)]
    cli.run(main, Settings, [*arguments, "--results-dir", str(tmp_path), "--run-name", "run"])
    metrics = metrics_of(tmp_path / "pruning" / "run")
    assert metrics["dense_accuracy"] == metrics_of(narrow)["dense_accuracy"]
    weights = sum(layer["weights"] for layer in metrics["layers"])
    assert metrics["conv_weights_kept"] == pytest.approx(0.1, abs=8 / weights)  # a weight a layer
    rows = list(csv.DictReader((tmp_path / "pruning" / "run" / "history.csv").open()))
    assert [row["stage"] for row in rows] == ["finetuned"]


@pytest.mark.slow
def test_a_sparse_file_in_rounds_keeps_its_zeros_and_the_dense_bytes(
    narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a run's half-precision file of 77 %, in two rounds of Taylor scores, to 90 %; then its layers at random."""
    use_narrow_network(monkeypatch)
    use_few_images(monkeypatch)
    given = narrow / "checkpoints" / "network.float16.sparse"
    more = ["--smoke-test", "--scan-images", "2", "--latency-seconds", "0", "--results-dir", str(tmp_path)]
    arguments = [*more, "--dense-weights", str(given), "--schedule", "iterative", "--rounds", "2"]
    taylor = ["--allocation", "global", "--sparsity", "0.9", "--criterion", "taylor", "--run-name", "taylor"]
    cli.run(main, Settings, [*arguments, *taylor])
    assert f"--dense-weights {given} is sparse: " in capsys.readouterr().err
    run = tmp_path / "pruning" / "taylor"
    metrics, before = metrics_of(run), load_sparse(given).masks
    for name, mask in load_weights(run / "checkpoints" / "masks.safetensors").items():
        assert not (mask & ~before[name]).any()
        assert not load_weights(run / "checkpoints" / "finetuned.safetensors")[f"{name}.weight"][~mask].any()
    kept = [metrics_of(narrow)["conv_weights_kept"], *(row["conv_weights_kept"] for row in metrics["by_round"])]
    assert kept[1] == pytest.approx((kept[0] * kept[2]) ** 0.5, abs=1e-4)  # the same fraction in both rounds
    assert kept[2] == metrics["conv_weights_kept"] == pytest.approx(0.1, abs=1e-4)
    assert metrics["by_round"][-1]["accuracy"] == metrics["finetuned_accuracy"]
    assert metrics["dense_bytes"] == metrics_of(narrow)["dense_bytes"]  # in float32, whatever was given

    alike = ["--allocation", "given", "--sparsities-from", str(run), "--criterion", "random", "--run-name", "random"]
    dense = narrow / "checkpoints" / "dense.safetensors"
    cli.run(main, Settings, [*more, "--dense-weights", str(dense), *alike])
    control = metrics_of(tmp_path / "pruning" / "random")
    assert [layer["nonzero"] for layer in control["layers"]] == [layer["nonzero"] for layer in metrics["layers"]]


@pytest.mark.parametrize("file", ["dense", "masks"])
def test_another_networks_file_is_refused(
    narrow: Path, tmp_path: Path, file: str, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_narrow_network(monkeypatch)
    use_few_images(monkeypatch)
    shutil.copytree(narrow, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    save_weights(tmp_path / "run" / "checkpoints" / f"{file}.safetensors", {"x": torch.zeros(1)})
    _, line = refused(main, Settings, ["--resume", str(tmp_path / "run")])
    assert f"{file}.safetensors: not" in line


def test_resume_on_other_images_is_refused(finished: Path, tmp_path: Path, refused: Refused) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    progress = tmp_path / "run" / "checkpoints" / "progress.json"
    edited = json.loads(progress.read_text().replace("scikit-learn load_digits", "elsewhere"))
    del edited["sha256"]  # as an earlier version wrote it
    progress.write_text(json.dumps(edited))
    _, line = refused(main, Settings, ["--resume", str(tmp_path / "run")])
    assert "elsewhere" in line


def test_resuming_a_complete_run_changes_nothing(finished: Path, unchanged_by_resume: Unchanged) -> None:
    unchanged_by_resume(main, Settings, finished)


@pytest.mark.slow
def test_bad_input_at_the_shell() -> None:
    done = study("--sparsity", "1.5", check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --sparsity 1.5")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.slow
def test_a_full_disk_ends_with_one_line_and_damages_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: the checkpoint of the first epoch does not fit."""

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    command = [*NARROW_COMMAND, "--smoke-test", "--results-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=small_files)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "error: " in done.stderr.splitlines()[-1]
    assert "File too large" in done.stderr
    (run,) = (tmp_path / "pruning").iterdir()
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"progress.json"}
    json.loads((run / "checkpoints" / "progress.json").read_text())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.slow
def test_results_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    done = study("--smoke-test", "--results-dir", str(tmp_path / "results"), check=False)
    assert done.returncode == 1
    assert "Permission denied" in done.stderr
