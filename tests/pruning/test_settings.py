"""Settings of the study: bad input in one line, and presets and sweeps that it accepts."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common import cli
from common.sweep.file import groups_of, read
from pruning.run import main
from pruning.settings import EARLY, Settings

Refused = Callable[..., tuple[int, str]]


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["--sparsity", "1"], 2, "--sparsity 1"),
        (["--sparsity", "0.5"], 2, "--allocation reference"),
        (["--allocation", "magic"], 2, "lamp"),
        (["--accuracy-budget", "0.05"], 2, "--accuracy-budget 0.05: it is only for --allocation scan"),
        (["--gradual-fraction", "0.5"], 2, "--gradual-fraction 0.5: it is only for --schedule gradual"),
        (["--temperature", "2"], 2, "--temperature 2.0: it is only for --distillation above 0"),
        (["--distillation", "1.5"], 2, "--distillation"),
        (["--regrow", "0.5"], 2, "--regrow 0.5: it is only for --schedule gradual"),
        (["--schedule", "gradual", "--allocation", "random", "--regrow", "0.5"], 2, "--allocation random"),
        (
            ["--criterion", "taylor", "--allocation", "lamp"],
            2,
            "--criterion taylor with --allocation lamp: LAMP's score",
        ),
        (["--criterion", "taylor", "--allocation", "random"], 2, "--criterion taylor with --allocation random"),
        (
            ["--criterion", "random", "--schedule", "gradual", "--regrow", "0.5"],
            2,
            "--regrow 0.5 with --criterion random",
        ),
        (["--rounds", "3"], 2, "--rounds 3: it is only for --schedule iterative"),
        (["--rewind", "rate"], 2, "--rewind rate: it is only for --schedule iterative"),
        (["--schedule", "iterative", "--rewind-fraction", "0.1"], 2, "only for --rewind weights or rate"),
        (["--schedule", "iterative", "--rewind", "rate", "--finetune-warmup", "0.2"], 2, "only for --rewind none"),
        (
            ["--schedule", "iterative", "--rewind", "rate", "--finetune-epochs", "9"],
            2,
            "--finetune-epochs 9: it is only",
        ),
        (["--allocation", "given"], 2, "--sparsities-from RUN"),
        (["--allocation", "given", "--sparsities-from", "tests"], 1, "tests: no finished run"),
        (["--allocation", "given", "--sparsities-from", "no/such"], 2, "--sparsities-from no/such: no such folder"),
        (["--sparsities-from", "tests"], 2, "it is only for --allocation given"),
        (["--allocation", "given", "--sparsities-from", "tests", "--sparsity", "0.5"], 2, "--sparsity 0.5"),
        (["--smoke-test", "--batch-size", "5000"], 2, "--finetune-epochs 1 with --batch-size 5000"),
        (["--keep-first-layer"], 2, "--keep-first-layer with --allocation reference"),
        (["--keep-first-layer", "--allocation", "random"], 2, "or give --sparsity"),
        (["--initialisation", "zeros"], 2, "--initialisation zeros"),
        (["--initialisation", "default", "--dense-weights", "README.md"], 2, "a given network is not initialised"),
        (["--epochs", "0"], 2, "--epochs 0"),
        (["--granularity", "filter", "--allocation", "erk"], 2, "--allocation erk with --granularity filter"),
        (["--filter-importance", "l1"], 2, "--filter-importance l1: it is only for --granularity filter"),
        (
            ["--granularity", "filter", "--schedule", "gradual", "--regrow", "0.5"],
            2,
            "--regrow 0.5 with --granularity filter: a dropped filter has no gradient",
        ),
        (["--unknown"], 2, "--unknown"),
        (["--config", "README.md"], 2, "README.md"),
        (["--resume", "tests"], 1, "tests/config.yaml: no such file"),
        (["--resume", "no/such"], 2, "--resume no/such: no such folder"),
        (["--dense-weights", "no/such"], 2, "--dense-weights no/such: no such file"),
        (["--dense-weights", "README.md"], 1, "README.md: not a readable safetensors file"),
        (["--results-dir", "README.md"], 1, "README.md"),
        (["--results-dir", "/proc/none"], 1, "/proc/none"),
        (["--dataset", "cifar10", "--data-dir", "{damaged}"], 1, "cifar10.tar.xz: damaged or truncated"),
        pytest.param(
            *(["--device", "cuda"], 1, "--device cuda"),
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_bad_input_is_one_line_and_the_right_status(
    arguments: list[str], status: int, told: str, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "cifar10.tar.xz").write_bytes(b"\xfd7zXZ\x00" + bytes(100))
    arguments = [argument.format(damaged=tmp_path) for argument in arguments]
    if "--resume" not in arguments:
        arguments = ["--dataset", "digits", "--results-dir", str(tmp_path), *arguments]
    got, line = refused(main, Settings, arguments)
    assert got == status
    assert told in line


def test_every_preset_and_every_arm_of_a_sweep_is_accepted(tmp_path: Path) -> None:
    presets = list(Path("configs/pruning").glob("*.yaml"))
    sweeps = list(Path("configs/pruning/sweeps").glob("*.yaml"))
    dense = tmp_path / "dense.safetensors"  # stands for the file that an earlier arm writes
    dense.touch()
    (tmp_path / EARLY).touch()
    assert presets
    assert sweeps
    for path in presets:
        cli.parse(Settings, ["--config", str(path)]).check()
    for path in sweeps:
        for smoke_test in (False, True):
            for arm in (arm for group in groups_of(read(path), smoke_test=smoke_test) for arm in group):
                files = {"dense_weights": dense, "sparsities_from": tmp_path}
                given = {name: str(file) for name, file in files.items() if name in arm.settings}
                cli.from_mapping(Settings, {**arm.settings, **given}).check()
