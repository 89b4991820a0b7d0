"""Several VAEs and seeds in one go: the sheet of their samples, the table of their figures, the claims with intervals.

`python vae/study.py --config configs/vae/sweeps/study_reference.yaml` trains the original report's eight models;
`--config configs/vae/sweeps/study_claims.yaml` tests its claims with seeds and controls. The presets are sweep files
(`common/sweep/file.py`): `python -m common.sweep` runs them too, without the sheet. `--resume` does what is missing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import cli, comparison, data, stats
from common.comparison import Column
from common.device import set_up
from common.errors import RunError
from common.experiment import Run, say
from common.files import load_weights, read_metrics, write_atomically
from common.sweep.executors import local_executor, runs_at_once, threads_each
from common.sweep.file import run_name, seeds_of
from common.sweep.jobs import Job, Work, run_jobs
from common.tables import BOLD, Table, counted
from vae import bounds, figures, samplers
from vae.classifier import trained_judge
from vae.settings import Settings
from vae.study_settings import StudySettings
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
COMPARED = ("fid", "elbo", "nll", "fid_mixture", "coverage")


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
    run.require_same_dataset(dataset.record())
    models = {name: settings.model_settings(arm) for name, arm in settings.models.items()}

    say(f"1/3 the classifier that judges samples of {dataset.caption}")
    trained_judge(run, dataset, next(iter(models.values())).generated)

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
    captions = {name: panel_caption(models[name].model_title, figures_of[name]) for name in models}
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


if __name__ == "__main__":
    cli.run(main, StudySettings)
