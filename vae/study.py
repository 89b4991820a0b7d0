"""Several VAEs and seeds in one go: the sheet of their samples, the table of their figures, the claims with intervals.

`python vae/study.py --config configs/vae/sweeps/study_reference.yaml` trains the original report's eight models;
`--config configs/vae/sweeps/study_claims.yaml` tests its claims with seeds and controls. The presets are sweep files
(`common/sweep/file.py`): `python -m common.sweep` runs them too, without the sheet. `--resume` does what is missing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import tyro
from annotated_types import Ge, MinLen
from torch import Tensor

from common import cli, comparison, data, stats
from common.comparison import Column
from common.device import set_up
from common.errors import RunError, UsageError
from common.experiment import Run, say
from common.files import load_weights, read_metrics, write_atomically
from common.sweep.executors import local_executor, runs_at_once, threads_each
from common.sweep.file import REPLACED, Arm, SweepFile, groups_of, pairs_of, run_name, seeds_of
from common.sweep.jobs import Job, Work, run_jobs
from common.tables import BOLD, Table, counted
from vae import figures, objective, samplers
from vae.classifier import judge
from vae.settings import Settings
from vae.train import initial_model, model_title

COLUMNS = {  # figure → (heading, decimals); all are means over the seeds
    "elbo": ("ELBO", 2),
    "nll": ("NLL ≤", 2),
    "reconstruction": ("reconstruction", 2),
    "kl": ("KL", 2),
    "fid": ("FID", 2),
    "fid_mixture": ("FID, mixture", 2),
    "density": ("density", 3),
    "coverage": ("coverage", 3),
}
SCRIPT = "vae/train.py"
SHARED = {field.name for field in dataclasses.fields(cli.RunSettings)}  # set for the study, not for a model
COMPARED = ("fid", "elbo", "nll", "fid_mixture", "coverage")


@dataclasses.dataclass(frozen=True)
class StudySettings(SweepFile, cli.RunSettings):
    """Train several VAEs with several seeds, compare them seed by seed, draw their samples side by side."""

    smoke: ClassVar[dict[str, Any]] = {"dataset": "digits", "seeds": 2}
    replaced: ClassVar[Mapping[str, str]] = REPLACED

    dataset: Literal["auto", "mnist", "digits"] = "auto"
    """Images; auto takes MNIST where it can be had, else scikit-learn's digits, with a warning."""
    script: Annotated[str, tyro.conf.Fixed] = SCRIPT
    """The script of every run."""
    seeds: Annotated[int, Ge(1)] | Annotated[list[Annotated[int, Ge(0)]], MinLen(1)] = 1
    """Seeds of every model: how many from --seed on, the same for all, or a list."""
    processes: Annotated[int, Ge(1)] | None = None
    """Trainings at a time; none means one a core on a CPU (faster than more threads each) and one on a GPU."""

    @property
    def models(self) -> dict[str, Arm]:
        """The models by name."""
        return {arm.name: arm for group in groups_of(self) for arm in group}

    @property
    def pairs(self) -> dict[str, tuple[str, str]]:
        """The claims: the two models whose figures are subtracted, by the claim's name."""
        return pairs_of(self, groups_of(self))

    def check(self) -> None:
        """Raises UsageError for a study without models, with unknown settings, or with claims about none of them."""
        if not self.arms and not self.grids:
            raise UsageError("a study needs arms: give a preset, --config configs/vae/sweeps/study_reference.yaml")
        if self.script != SCRIPT:
            raise UsageError(f"script {self.script}: a study is of {SCRIPT}; use python -m common.sweep")
        models = self.models
        seeds = seeds_of(self, self.seed)
        if self.pairs and len(seeds) < 2:
            raise UsageError(f"--seeds {self.seeds} with comparisons: an interval needs at least 2 seeds")
        for name, arm in models.items():
            if taken := SHARED & arm.settings.keys():
                raise UsageError(f"arms: {name}: {min(taken)} is not for an arm to set; it is an option of the study")
            try:
                self.model_settings(arm).check()
            except UsageError as error:
                raise UsageError(f"arms: {name}: {error}") from None
        if len({self.model_settings(arm).generated for arm in models.values()}) > 1:
            raise UsageError("arms: all need the same generated: FID depends on the number of images")

    def job_settings(self, arm: Arm, seed: int) -> dict[str, Any]:
        """Returns the settings that a run of a model is started with, without those of this machine."""
        chosen = dict(arm.settings)
        if self.smoke_test:
            chosen = {key: value for key, value in chosen.items() if key not in Settings.smoke} | {"smoke_test": True}
        passed: dict[str, Any] = {name: getattr(self, name) for name in ("device", "precision", "dataset")}
        return {**chosen, **passed, "seed": seed}

    def model_settings(self, arm: Arm) -> Settings:
        """Returns the settings of one model with the first seed, as vae/train.py resolves them."""
        return cli.from_mapping(Settings, self.job_settings(arm, seeds_of(self, self.seed)[0]))


def main(settings: StudySettings) -> None:
    """Runs the study, or what is left of it, and prints its folder."""
    settings.check()
    processes = runs_at_once(settings.processes, settings.device)
    shared_out = threads_each(settings.threads, processes)
    device = set_up(settings.device, shared_out)
    dataset = data.load(
        settings.dataset, task_default="mnist", shape=(1, 28, 28), data_dir=settings.data_dir, device=device
    )
    run = Run(settings, "vae", "study", device)
    if run.finished:
        say(f"{run.path} is complete; nothing is left to do")
        print(run.path)
        return
    run.require_same_images(dataset.record())
    models = {name: settings.model_settings(arm) for name, arm in settings.models.items()}

    say(f"1/3 the classifier that judges samples of {dataset.caption}")
    judge(run, dataset, next(iter(models.values())).generated)

    seeds = seeds_of(settings, settings.seed)
    # The number of threads changes the last digits: a study resumed on another machine keeps its first number.
    threads = run.remembered("threads", lambda: shared_out)
    say(f"2/3 {len(models)} models × {len(seeds)} seeds, {processes} at a time, in {run.path / 'runs'}")
    folders = train(settings, run.path / "runs", seeds, processes, threads)
    results = {name: [_metrics(folders[name, seed]) for seed in seeds] for name in models}

    say("3/3 comparing and drawing")
    figures_of = {name: {key: [r[key] for r in rows] for key in COLUMNS} for name, rows in results.items()}
    claims = compare(figures_of, seeds, settings.pairs)
    pictures = {name: first_samples(models[name], folders[name, seeds[0]], device) for name in models}
    captions = {name: panel_caption(model_title(models[name]), figures_of[name]) for name in models}
    run.figure("samples", figures.sheet_of_samples(pictures, captions, dataset.caption))
    if claims:
        run.figure("claims", figures.claims(claims, dataset.caption))
    text = "\n".join(table.markdown() for table in tables(figures_of, claims))
    write_atomically(run.path / "tables.md", text.encode())
    metrics = {
        "dataset": dataset.record(),
        "classifier": results[next(iter(models))][0]["classifier"],
        "seeds": seeds,
        "models": figures_of,
        "claims": claims,
    }
    run.finish(metrics, ())
    say(text)
    print(run.path)


def train(
    settings: StudySettings, results: Path, seeds: Sequence[int], processes: int, threads: int
) -> dict[tuple[str, int], Path]:
    """Returns the finished run folders by model and seed; the first seed of all models is trained first."""
    where = {"data_dir": str(settings.data_dir)} if settings.data_dir is not None else {}
    jobs = {
        (name, seed): Job(run_name(arm, seed), {**settings.job_settings(arm, seed), "threads": threads}, where)
        for seed in seeds
        for name, arm in settings.models.items()
    }
    script = str(Path(__file__).with_name("train.py"))
    folders = run_jobs(Work(script, "vae", results), list(jobs.values()), local_executor(processes))
    return {key: folders[job.name] for key, job in jobs.items()}


def _metrics(folder: Path) -> dict[str, Any]:
    """Returns the figures of a run's metrics.json that a study compares, with the mixture's FID beside the prior's."""
    try:
        metrics = read_metrics(folder) or {}
        metrics["fid_mixture"] = metrics["quality"]["mixture samples"]["fid"]
        numbers = {key: float(metrics[key]) for key in COLUMNS}
        return {**numbers, "classifier": metrics["classifier"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{folder / 'metrics.json'}: damaged ({error}); delete the folder to run it anew") from None


def compare(
    models: Mapping[str, Mapping[str, Sequence[float]]], seeds: Sequence[int], pairs: comparison.Pairs
) -> dict[str, dict[str, dict[str, float]]]:
    """Returns every claim's differences, first − second over the shared seeds, with their 95 % bootstrap intervals."""
    arms = {name: comparison.arm_of(seeds, of) for name, of in models.items()}
    found = comparison.differences(arms, pairs, COMPARED)
    return {claim: {key: dataclasses.asdict(gain) for key, gain in gains.items()} for claim, gains in found.items()}


def first_samples(settings: Settings, folder: Path, device: torch.device, count: int = 64) -> Tensor:
    """Returns images that the trained model of a run makes of codes from its own prior."""
    model = initial_model(settings).to(device)
    path = folder / "checkpoints" / "vae.safetensors"
    try:
        model.load_state_dict(load_weights(path))
    except RuntimeError:
        raise RunError(f"{path}: not the weights of this model; delete {folder} to run it anew") from None
    codes = samplers.prior_codes(settings.prior_on(device), count, settings.latent, settings.seed)
    return objective.decoded(model.eval(), codes)


def panel_caption(title: str, values: Mapping[str, Sequence[float]]) -> str:
    """Returns a model's name over its figures, means over the seeds, for the sheet of samples."""
    mean = {key: stats.mean(numbers).estimate for key, numbers in values.items()}
    return (
        f"{title.replace(', prior', chr(10) + 'prior')}\n"
        f"ELBO {stats.number(mean['elbo'], 1)}, NLL ≤ {stats.number(mean['nll'], 1)}, FID {mean['fid']:.1f}"
    )


def tables(
    models: Mapping[str, Mapping[str, Sequence[float]]],
    claims: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> list[Table]:
    """Returns every model's figures and every claim's differences, both as metrics.json holds them, as tables."""
    count = len(next(iter(models.values()))["elbo"])
    seeds = counted(count, "seed")
    arms = {name: comparison.arm_of(range(count), of) for name, of in models.items()}
    columns = [Column(key, heading, digits, shows="estimate") for key, (heading, digits) in COLUMNS.items()]
    caption = f"Means over {seeds}, nats an image; evaluated on the test images at β = 1."
    result = [comparison.mean_table(arms, columns, caption, heading="model", seeds=False)]
    if claims:
        gains = {claim: {key: stats.Interval(**of) for key, of in keys.items()} for claim, keys in claims.items()}
        columns = [Column(key, COLUMNS[key][0]) for key in COMPARED]
        caption = f"Differences seed by seed ({seeds}), mean and 95 % bootstrap interval; {BOLD}."
        result.append(comparison.interval_table(gains, columns, caption, heading="claim"))
    return result


def described(config: Mapping[str, Any]) -> tuple[dict[str, Mapping[str, Any]], dict[str, Sequence[str]]] | None:
    """Returns every model's own settings and every claim's two models from a study's config.yaml, old or new.

    None for the settings of something else.
    """
    if "models" in config:
        return dict(config["models"]), dict(config["claims"])
    try:
        file = SweepFile(**{field.name: config[field.name] for field in dataclasses.fields(SweepFile)})
        groups = groups_of(file)
        return {arm.name: arm.settings for group in groups for arm in group}, dict(pairs_of(file, groups))
    except (KeyError, TypeError, AttributeError, UsageError):
        return None


if __name__ == "__main__":
    cli.run(main, StudySettings)
