"""Several models and seeds in one go: the tables, the sheet, going on after a failure, and bad input."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from common import cli
from vae.study import StudySettings, compare, main

STUDY: dict[str, Any] = {
    "dataset": "digits",
    "seeds": 2,
    "processes": 2,
    "everywhere": {"arch": "fc", "hidden": [16], "epochs": 1, "batch_size": 64, "generated": 100, "nll_samples": 2},
    "models": {"plain": {"latent": 2}, "beta": {"latent": 2, "beta": 4}},
    "claims": {"β-VAE − VAE": ["beta", "plain"]},
}


def preset(folder: Path, **changes: Any) -> str:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}))
    return str(path)


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory, own_cache: None) -> Path:
    folder = tmp_path_factory.mktemp("study")
    arguments = ["--config", preset(folder), "--results-dir", str(folder), "--run-name", "s"]
    cli.run(main, StudySettings, arguments)
    return folder / "vae" / "s"


def test_runs_all_models_and_seeds(study: Path) -> None:
    runs = sorted(path.parent.name for path in study.glob("runs/vae/*/metrics.json"))
    assert runs == ["beta-seed0", "beta-seed1", "plain-seed0", "plain-seed1"]
    configs = {run: yaml.safe_load((study / "runs" / "vae" / run / "config.yaml").read_text()) for run in runs}
    assert [configs[run]["beta"] for run in runs] == [4, 4, 1, 1]
    assert [configs[run]["seed"] for run in runs] == [0, 1, 0, 1]
    digests = {
        json.loads((study / "runs/vae" / run / "metrics.json").read_text())["classifier"]["weights_sha256"]
        for run in runs
    }
    assert len(digests) == 1  # one judge for all


def test_metrics_are_those_of_the_runs(study: Path) -> None:
    metrics = json.loads((study / "metrics.json").read_text())
    for model in ("plain", "beta"):
        runs = [json.loads((study / f"runs/vae/{model}-seed{seed}/metrics.json").read_text()) for seed in (0, 1)]
        assert metrics["models"][model]["elbo"] == [run["elbo"] for run in runs]
        assert metrics["models"][model]["fid"] == [run["fid"] for run in runs]
    claim = metrics["claims"]["β-VAE − VAE"]["fid"]
    beta, plain = (metrics["models"][name]["fid"] for name in ("beta", "plain"))
    assert claim["estimate"] == pytest.approx(sum(beta) / 2 - sum(plain) / 2)
    assert claim["low"] <= claim["estimate"] <= claim["high"]
    tables = (study / "tables.md").read_text()
    assert "| plain |" in tables
    assert "| β-VAE − VAE |" in tables
    assert {path.name for path in (study / "figures").iterdir()} == {"samples.png", "claims.png"}


def test_resume_runs_only_what_is_missing(study: Path, tmp_path: Path, own_cache: None) -> None:
    shutil.copytree(study, tmp_path / "s")
    before = (study / "metrics.json").read_text()
    for path in (tmp_path / "s" / "metrics.json", tmp_path / "s" / "runs" / "vae" / "beta-seed1" / "metrics.json"):
        path.unlink()
    untouched = tmp_path / "s" / "runs" / "vae" / "plain-seed0" / "metrics.json"
    stamp = untouched.stat().st_mtime_ns
    cli.run(main, StudySettings, ["--resume", str(tmp_path / "s")])
    assert untouched.stat().st_mtime_ns == stamp
    assert json.loads((tmp_path / "s" / "metrics.json").read_text())["models"] == json.loads(before)["models"]


@pytest.mark.parametrize("damage", ["[]", "{}", '{"elbo": "x"}', "{"])
def test_a_damaged_run_is_told(damage: str, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(study, tmp_path / "s")
    (tmp_path / "s" / "metrics.json").unlink()
    (tmp_path / "s" / "runs" / "vae" / "beta-seed1" / "metrics.json").write_text(damage)
    with pytest.raises(SystemExit):
        cli.run(main, StudySettings, ["--resume", str(tmp_path / "s")])
    assert "beta-seed1/metrics.json: damaged" in capsys.readouterr().err.splitlines()[-1]


def test_differences_are_first_minus_second() -> None:
    one = {key: [3.0, 5.0] for key in ("fid", "elbo", "nll", "fid_mixture", "coverage")}
    other = {key: [1.0, 2.0] for key in one}
    assert compare(one, other)["elbo"]["estimate"] == 2.5


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"models": {}}, "needs models"),
        ({"models": {"a": {"latent": 0}}, "claims": {}}, "--latent 0"),
        ({"models": {"a": {"latents": 2}}, "claims": {}}, "a: latents"),
        ({"claims": {"c": ["beta", "other"]}}, "no model is named other"),
        ({"seeds": 0}, "--seeds 0"),
        ({"seeds": 1}, "at least 2 seeds"),
        ({"everywhere": {"seed": 3}}, "seed is not for a model to set"),
        ({"models": {"a": {"generated": 100}, "b": {"generated": 200}}, "claims": {}}, "the same generated"),
        ({"models": {"a/b": {"latent": 2}}, "claims": {}}, "a/b"),
    ],
)
def test_bad_studies_are_told(
    changes: dict[str, Any], told: str, tmp_path: Path, refused: Callable[..., tuple[int, str]]
) -> None:
    arguments = ["--config", preset(tmp_path, **changes), "--results-dir", str(tmp_path)]
    status, line = refused(main, StudySettings, arguments)
    assert status == 2
    assert told in line
    assert not (tmp_path / "vae").exists()


def test_every_study_preset_is_accepted() -> None:
    presets = [path for path in Path("configs/vae").glob("*.yaml") if "models" in yaml.safe_load(path.read_text())]
    assert len(presets) == 2
    for path in presets:
        cli.parse(StudySettings, ["--config", str(path)]).check()
