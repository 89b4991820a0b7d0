"""Several models and seeds in one go: the tables, the sheet, going on after a failure, and bad input."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from common import cli
from common.errors import RunError, UsageError
from common.sweep.file import groups_of, read
from tests.common.pictures import colour, encoded, write
from vae.study import COLUMNS, COMPARED, OTHER, compare, figures_in, main, tables
from vae.study_settings import StudySettings, described

STUDY: dict[str, Any] = {
    "script": "vae/train.py",
    "dataset": "digits",
    "seeds": 2,
    "processes": 2,
    "shared": {"arch": "fc", "hidden": [16], "epochs": 1, "batch_size": 64, "generated": 100, "nll_samples": 2},
    "arms": {"plain": {"latent": 2}, "beta": {"latent": 2, "beta": 4}},
    "comparisons": {"β-VAE − VAE": ["beta", "plain"]},
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_damaged_run_is_told(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(study, tmp_path / "s")
    (tmp_path / "s" / "metrics.json").unlink()
    (tmp_path / "s" / "runs" / "vae" / "beta-seed1" / "metrics.json").write_text("{")
    with pytest.raises(SystemExit):
        cli.run(main, StudySettings, ["--resume", str(tmp_path / "s")])
    assert "beta-seed1/metrics.json: damaged" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("damage", ["[]", "{}", '{"elbo": "x"}', "{"])
def test_figures_of_a_damaged_run_are_refused(damage: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(damage)
    with pytest.raises(RunError, match=r"metrics\.json: damaged"):
        figures_in(tmp_path)


def test_differences_are_first_minus_second_seed_by_seed() -> None:
    quality = ("density", "random_density", "coverage", "random_coverage", "confidence", "balance")
    keys = ("fid", "random_fid", "fid_mixture", "elbo", "nll", *quality)
    models = {"one": {key: [3.0, 5.0] for key in keys}, "other": {key: [1.0, 2.0] for key in keys}}
    claims = compare(models, [4, 5], {"claim": ("one", "other")})
    assert list(claims["claim"]) == list(keys)
    half = 12.706 * 0.5  # Student's t of one degree of freedom times the standard error of 2 and 3
    assert claims["claim"]["elbo"] == pytest.approx(
        {"estimate": 2.5, "low": 2.5 - half, "high": 2.5 + half, "values": 2}, abs=1e-3
    )


def test_tables_of_what_metrics_json_holds() -> None:
    models = {"plain": {key: [1.0, 2.5] for key in COLUMNS}}
    gain = {"estimate": -1.0, "low": -2.0, "high": -0.5, "values": 5}
    means, claims = tables(models, {"b − a": {key: gain for key in COMPARED}}, {"fid": 3.0})
    assert means.caption == "Means over 2 seeds, nats an image; evaluated on the test images at β = 1."
    head = "model | ELBO | NLL ≤ | reconstruction | KL | FID | FID, mixture | FID, random features | density | coverage"
    in_random_space = ("density, random features", "coverage, random features")
    assert list(means.head) == [
        *head.split(" | "),
        *in_random_space,
        "confidence",
        "balance of classes",
        "active units",
    ]
    assert means.rows == [["plain", *["1.75"] * 7, *["1.750"] * 6, "1.8"]]
    assert list(claims.head) == [
        *("claim", "FID", "FID, random features", "FID, mixture", "ELBO", "NLL ≤"),
        *("density", "density, random features", "coverage", "coverage, random features", "confidence"),
        "balance of classes",
    ]
    assert claims.rows == [["b − a", "**−1.0 [−2.0, −0.5]** ≈", *["**−1.0 [−2.0, −0.5]**"] * 10]]
    assert len(tables(models, {}, {})) == 1
    *_, other = tables(models, {"b − a": {key: gain for key in (*COMPARED, *OTHER)}}, {})
    assert list(other.head) == ["claim", "FID", "FID, random features", *claims.head[6:]]
    assert other.rows == [["b − a", *["**−1.0 [−2.0, −0.5]**"] * 8]]
    _, other = tables({"plain": {key: [1.0, 2.5] for key in (*COLUMNS, *OTHER)}}, {}, {})
    assert other.rows == [["plain", "1.75", "1.75", *["1.750"] * 6]]


@pytest.mark.slow
def test_images_of_one_class_are_compared_without_a_classifier(tmp_path: Path, own_cache: None) -> None:
    folder = write(tmp_path / "own", {f"{seed}.png": encoded(colour(seed)) for seed in range(120)})
    where = ["--dataset", str(folder), "--resize", "--results-dir", str(tmp_path), "--run-name", "s"]
    cli.run(main, StudySettings, ["--config", preset(tmp_path, arms={"plain": {"latent": 2}}, comparisons={}), *where])
    metrics = json.loads((tmp_path / "vae" / "s" / "metrics.json").read_text())
    assert metrics["dataset"]["name"] == "folder-own"
    found = metrics["models"]["plain"]
    assert found["fid"] == found["random_fid"]
    assert "confidence" not in found
    claims = compare({"plain": found, "again": found}, [0, 1], {"again − plain": ("again", "plain")})
    assert claims["again − plain"].keys() >= {"fid", "elbo", "coverage"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"arms": {}}, "needs arms"),
        ({"arms": {"a": {"latent": 0}}, "comparisons": {}}, "arms: a: --latent 0"),
        ({"arms": {"a": {"latents": 2}}, "comparisons": {}}, "arms: a: unknown setting 'latents'"),
        ({"comparisons": {"c": ["beta", "other"]}}, "no arm is called other"),
        ({"seeds": 0}, "--seeds 0"),
        ({"seeds": [3, 3]}, "the same seed twice"),
        ({"seeds": 1}, "at least 2 seeds"),
        ({"shared": {"seed": 3}}, "seed is not for an arm to set"),
        ({"shared": {"device": "cpu"}}, "device is not for an arm to set"),
        ({"shared": {"resize": True}}, "resize is not for an arm to set"),
        ({"shared": {"arch": "conv", "hidden": [7]}}, "arms: beta: --hidden 7 with --arch conv"),
        (
            {"dataset": "nmist"},
            "--dataset nmist: choose one of auto, mnist, fashion-mnist, kmnist, digits, or a folder",
        ),
        ({"resize": True}, "--resize with --dataset digits"),
        ({"arms": {"a": {"generated": 100}, "b": {"generated": 200}}, "comparisons": {}}, "the same generated"),
        ({"arms": {"a/b": {"latent": 2}}, "comparisons": {}}, "a/b"),
        ({"script": "pruning/run.py"}, "script pruning/run.py: a study is of vae/train.py"),
        ({"shared": {"max_images": 1500}}, "max_images is not for an arm to set; it is an option of the study"),
        ({"baseline": "other"}, "baseline other: no such arm"),
        ({"everywhere": {}, "models": {}}, "everywhere is now called shared, models is now called arms"),
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


def test_an_old_study_is_refused_with_what_replaced_its_keys(
    tmp_path: Path, refused: Callable[..., tuple[int, str]]
) -> None:
    old = {"seeds": 5, "everywhere": {"epochs": 4}, "models": {"a": {"arch": "fc"}}, "claims": {}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(old))
    status, line = refused(main, StudySettings, ["--resume", str(tmp_path)])
    assert status == 1
    for told in ("everywhere is now called shared", "models is now called arms", "claims is now called comparisons"):
        assert told in line


def test_seeds_from_seed_on_or_a_list(tmp_path: Path) -> None:
    settings = cli.parse(StudySettings, ["--config", preset(tmp_path), "--seed", "4"])
    assert settings.model_settings(settings.models["plain"]).seed == 4
    settings = cli.parse(StudySettings, ["--config", preset(tmp_path), "--seeds", "7", "3"])
    assert settings.seeds == [7, 3]
    assert settings.model_settings(settings.models["plain"]).seed == 7
    again = tmp_path / "again.yaml"
    again.write_text(cli.to_yaml(settings))
    assert dataclasses.replace(cli.parse(StudySettings, ["--config", str(again)]), config=settings.config) == settings


def test_models_from_a_grid_against_a_baseline(tmp_path: Path) -> None:
    changes = {"arms": {"plain": {"latent": 2}}, "grids": [{"latent": 2, "beta": [2, 4]}], "baseline": "plain"}
    path = preset(tmp_path, **changes, comparisons={"4 − 2": ["beta4", "beta2"]})
    settings = cli.parse(StudySettings, ["--config", path])
    settings.check()
    assert list(settings.models) == ["plain", "beta2", "beta4"]
    pairs = {"beta2": ("beta2", "plain"), "beta4": ("beta4", "plain"), "4 − 2": ("beta4", "beta2")}
    assert settings.pairs == pairs
    found = described(yaml.safe_load(cli.to_yaml(settings)))
    assert found is not None
    assert list(found[0]) == ["plain", "beta2", "beta4"]
    assert {claim: tuple(pair) for claim, pair in found[1].items()} == pairs


def test_what_a_config_describes_in_either_form() -> None:
    old = described({"models": {"a": {"beta": 4}}, "claims": {"c": ["a", "a"]}, "everywhere": {}})
    assert old == ({"a": {"beta": 4}}, {"c": ["a", "a"]})
    assert described({"arch": "fc"}) is None
    assert described({"comparisons": {}, "arms": 3}) is None  # damaged


def test_every_study_preset_is_accepted_and_is_a_sweep_file(capsys: pytest.CaptureFixture[str]) -> None:
    paths = sorted(Path("configs/vae/sweeps").glob("study_*.yaml"))
    assert paths
    for path in paths:
        settings = cli.parse(StudySettings, ["--config", str(path)])
        settings.check()
        assert dict(settings.models) == {arm.name: arm for group in groups_of(read(path)) for arm in group}
        assert capsys.readouterr().err == ""
        before = Path("configs/vae") / path.name
        moved = cli.parse(StudySettings, ["--config", str(before)])
        assert capsys.readouterr().err == f"{before} has moved to {path}\n"
        assert moved.arms == settings.arms


def test_a_margin_of_no_figure_is_refused_before_any_run(tmp_path: Path) -> None:
    settings = dataclasses.replace(cli.parse(StudySettings, ["--config", preset(tmp_path)]), margins={"elbow": 0.5})
    with pytest.raises(UsageError, match="margins: elbow: the figures are elbo, nll"):
        main(settings)
    assert not (tmp_path / "vae").exists()


def test_options_of_the_study_reach_its_runs(tmp_path: Path) -> None:
    settings = cli.parse(StudySettings, ["--config", preset(tmp_path), "--max-images", "1500", "--keep-state"])
    job = settings.job_settings(settings.models["plain"], 0)
    assert (job["max_images"], job["keep_state"]) == (1500, True)
    plain = cli.parse(StudySettings, ["--config", preset(tmp_path)])
    assert not {"max_images", "keep_state", "resize"} & plain.job_settings(plain.models["plain"], 0).keys()
