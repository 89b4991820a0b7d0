"""Several VAEs and seeds in one go: the sheet of their samples, the table of their figures, the claims with intervals.

`python vae/study.py --config configs/vae/study_reference.yaml` trains the reference study's eight models;
`--config configs/vae/study_claims.yaml` tests its claims with seeds and controls. Started again with `--resume` it
does what is missing.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import tyro
from annotated_types import Ge
from torch import Tensor

from common import cli, data, stats
from common.device import set_up
from common.errors import RunError, UsageError
from common.experiment import Run, say
from common.files import load_weights, read_metrics, write_atomically
from common.sweep.jobs import Job, Work, at_once, here, options, run_jobs, threads_each
from common.tables import BOLD, Table, counted, difference
from vae import bounds, figures, samplers
from vae.classifier import trained_judge
from vae.settings import Settings
from vae.train import initial_model

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
SHARED = {field.name for field in dataclasses.fields(cli.RunSettings)}  # set for the study, not for a model
COMPARED = ("fid", "elbo", "nll", "fid_mixture", "coverage")


@dataclasses.dataclass(frozen=True)
class StudySettings(cli.RunSettings):
    """Train several VAEs with several seeds, compare them seed by seed, draw their samples side by side."""

    smoke: ClassVar[dict[str, Any]] = {"dataset": "digits", "seeds": 2}

    dataset: Literal["auto", "mnist", "digits"] = "auto"
    """Images; auto takes MNIST where it can be had, else scikit-learn's digits, with a warning."""
    seeds: Annotated[int, Ge(1)] = 1
    """Seeds of every model: --seed and the ones after it, the same for all."""
    processes: Annotated[int, Ge(1)] | None = None
    """Trainings at a time; none means one a core on a CPU (faster than more threads each) and one on a GPU."""
    everywhere: Annotated[dict[str, Any], tyro.conf.Fixed] = dataclasses.field(default_factory=dict)
    """Settings of vae/train.py that all models share (in the YAML preset)."""
    models: Annotated[dict[str, dict[str, Any]], tyro.conf.Fixed] = dataclasses.field(default_factory=dict)
    """Settings of vae/train.py for each model by name (in the YAML preset)."""
    claims: Annotated[dict[str, tuple[str, str]], tyro.conf.Fixed] = dataclasses.field(default_factory=dict)
    """Claim → the two models whose figures are subtracted, first − second (in the YAML preset)."""

    def check(self) -> None:
        """Raises UsageError for a study without models, with unknown settings, or with claims about none of them."""
        if not self.models:
            raise UsageError("a study needs models: give one of the presets, --config configs/vae/study_reference.yaml")
        unknown = {name for pair in self.claims.values() for name in pair} - self.models.keys()
        if unknown:
            raise UsageError(f"claims: no model is named {min(unknown)}; known are {', '.join(self.models)}")
        if self.claims and self.seeds < 2:
            raise UsageError(f"--seeds {self.seeds} with claims: a difference needs at least 2 seeds for its interval")
        allowed = {field.name for field in dataclasses.fields(Settings)} - SHARED
        for name in self.models:
            unknown = {**self.everywhere, **self.models[name]}.keys() - allowed
            if unknown:
                raise UsageError(
                    f"models: {name}: {min(unknown)} is not for a model to set; those are {', '.join(sorted(allowed))}"
                )
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise UsageError(f"models: {name!r} cannot name a folder; use letters, digits, '.', '-' and '_'")
            try:
                self.model_settings(name).check()
            except UsageError as error:
                raise UsageError(f"models: {name}: {error}") from None
        if len({self.model_settings(name).generated for name in self.models}) > 1:
            raise UsageError("models: all need the same generated: FID depends on the number of images")

    def job_settings(self, name: str, seed: int) -> dict[str, Any]:
        """Returns the settings that a run of model `name` is started with, without those of this machine."""
        chosen = {**self.everywhere, **self.models[name]}
        if self.smoke_test:
            chosen = {key: value for key, value in chosen.items() if key not in Settings.smoke} | {"smoke_test": True}
        passed: dict[str, Any] = {name: getattr(self, name) for name in ("device", "precision", "dataset")}
        return {**chosen, **passed, "seed": seed}

    def model_settings(self, name: str) -> Settings:
        """Returns the settings of one model with the first seed, as vae/train.py resolves them."""
        return cli.parse(Settings, options(self.job_settings(name, self.seed)))


def main(settings: StudySettings) -> None:
    """Runs the study, or what is left of it, and prints its folder."""
    settings.check()
    processes = at_once(settings.processes, settings.device)
    shared_out = threads_each(settings.threads, processes)
    device = set_up(settings.device, shared_out)
    images = data.load(
        settings.dataset, task_default="mnist", shape=(1, 28, 28), data_dir=settings.data_dir, device=device
    )
    run = Run(settings, "vae", "study", device)
    if run.finished:
        say(f"{run.path} is complete; nothing is left to do")
        print(run.path)
        return
    run.require_same_images(images.record())
    models = {name: settings.model_settings(name) for name in settings.models}

    say(f"1/3 the classifier that judges samples of {images.caption}")
    trained_judge(run, images, next(iter(models.values())).generated)

    seeds = range(settings.seed, settings.seed + settings.seeds)
    # Threads change the last digits: a study resumed on another machine keeps those that it began with.
    threads = run.remembered("threads", lambda: shared_out)
    where = {"data_dir": str(settings.data_dir)} if settings.data_dir is not None else {}

    def job(name: str, seed: int) -> Job:
        return Job(f"{name}-seed{seed}", {**settings.job_settings(name, seed), "threads": threads}, where)

    jobs = {name: [job(name, seed) for seed in seeds] for name in models}
    say(f"2/3 {len(models)} models × {len(seeds)} seeds, {processes} at a time, in {run.path / 'runs'}")
    seed_by_seed = [job for row in zip(*jobs.values(), strict=True) for job in row]
    script = str(Path(__file__).with_name("train.py"))
    folders = run_jobs(Work(script, "vae", run.path / "runs"), seed_by_seed, here(processes))
    results = {name: [_metrics(folders[job.name]) for job in row] for name, row in jobs.items()}

    say("3/3 comparing and drawing")
    figures_of = {name: {key: [r[key] for r in rows] for key in COLUMNS} for name, rows in results.items()}
    claims = {claim: compare(figures_of[one], figures_of[other]) for claim, (one, other) in settings.claims.items()}
    first = {name: folders[row[0].name] for name, row in jobs.items()}
    pictures = {name: first_samples(models[name], folder, device) for name, folder in first.items()}
    captions = {name: panel_caption(models[name].model_title, figures_of[name]) for name in models}
    run.figure("samples", figures.sheet_of_samples(pictures, captions, images.caption))
    if claims:
        run.figure("claims", figures.claims(claims, images.caption))
    text = "\n".join(table.markdown() for table in tables(figures_of, claims))
    write_atomically(run.path / "tables.md", text.encode())
    metrics = {
        "dataset": images.record(),
        "classifier": results[next(iter(models))][0]["classifier"],
        "seeds": list(seeds),
        "models": figures_of,
        "claims": claims,
    }
    run.finish(metrics, ())
    say(text)
    print(run.path)


def _metrics(folder: Path) -> dict[str, Any]:
    """Returns the figures of a run's metrics.json that a study compares, with the mixture's FID beside the prior's."""
    try:
        metrics = read_metrics(folder) or {}
        metrics["fid_mixture"] = metrics["quality"]["mixture samples"]["fid"]
        numbers = {key: float(metrics[key]) for key in COLUMNS}
        return {**numbers, "classifier": metrics["classifier"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{folder / 'metrics.json'}: damaged ({error}); delete the folder to run it anew") from None


def compare(one: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Returns the mean of `one` − `other` over shared seeds and its 95 % bootstrap interval, for each figure."""
    return {key: dataclasses.asdict(stats.paired_difference(one[key], other[key])) for key in COMPARED}


def first_samples(settings: Settings, folder: Path, device: torch.device, count: int = 64) -> Tensor:
    """Returns images that the trained model of a run makes of codes from its own prior."""
    model = initial_model(settings).to(device)
    path = folder / "checkpoints" / "vae.safetensors"
    try:
        model.load_state_dict(load_weights(path))
    except RuntimeError:
        raise RunError(f"{path}: not the weights of this model; delete {folder} to run it anew") from None
    codes = samplers.prior_codes(settings.prior_on(device), count, settings.latent, settings.seed)
    return bounds.decoded(model.eval(), codes)


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
    """Returns every model's figures, and every claim's differences with their intervals."""
    seeds = counted(len(next(iter(models.values()))["elbo"]), "seed")
    rows = [
        [name, *(stats.number(stats.mean(values[key]).estimate, digits) for key, (_, digits) in COLUMNS.items())]
        for name, values in models.items()
    ]
    caption = f"Means over {seeds}, nats an image; evaluated on the test images at β = 1."
    result = [Table(["model", *(heading for heading, _ in COLUMNS.values())], rows, caption)]
    if claims:
        rows = [
            [claim, *(difference(stats.Interval(**differences[key])) for key in COMPARED)]
            for claim, differences in claims.items()
        ]
        caption = f"Differences seed by seed ({seeds}), mean and 95 % bootstrap interval; {BOLD}."
        result.append(Table(["claim", *(COLUMNS[key][0] for key in COMPARED)], rows, caption))
    return result


if __name__ == "__main__":
    cli.run(main, StudySettings)
