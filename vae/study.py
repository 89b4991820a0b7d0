"""Several VAEs and seeds in one go: the sheet of their samples, the table of their figures, the claims with intervals.

`python vae/study.py --config configs/vae/sweeps/study_reference.yaml` trains the original report's eight models;
`--config configs/vae/sweeps/study_claims.yaml` tests its claims with seeds and controls. The presets are sweep files
(`common/sweep/file.py`): `python -m common.sweep` runs them too, without the sheet. `--resume` does what is missing.
"""

from __future__ import annotations

import common.stopping  # noqa: F401 — a signal during the imports below ends the script in one line

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from common import cli, comparison, data, stats
from common.comparison import Column
from common.device import set_up
from common.errors import RunError, UsageError
from common.experiment import Run, say
from common.files import load_weights, numbers, read_metrics, write_atomically
from common.sweep.executors import local_executor, runs_at_once, threads_each
from common.sweep.file import run_name, seeds_of
from common.sweep.jobs import Job, Work, run_jobs
from common.tables import BOLD, Table, counted, margins_named
from vae import bounds, samplers, study_figures
from vae.classifier import MEASURES, UNCLASSIFIED, trained_judge
from vae.priors import gaussian, prior_label
from vae.settings import Settings
from vae.study_settings import StudySettings
from vae.train import MISMATCHED, initial_model

COLUMNS = {  # figure → (heading, decimals); all are means over the seeds
    "elbo": ("ELBO", 2),
    "nll": ("NLL ≤", 2),
    "reconstruction": ("reconstruction", 2),
    "kl": ("KL", 2),
    "fid": ("FID", 2),
    "fid_mixture": ("FID, mixture", 2),
    "random_fid": ("FID, random features", 2),
    "density": ("density", 3),
    "coverage": ("coverage", 3),
    "random_density": ("density, random features", 3),
    "random_coverage": ("coverage, random features", 3),
    "confidence": ("confidence", 3),
    "balance": ("balance of classes", 3),
    "active_units": ("active units", 1),
}
OF_SAMPLES = ("fid", "random_fid", "density", "random_density", "coverage", "random_coverage", "confidence", "balance")
COMPARED = ("fid", "random_fid", "fid_mixture", "elbo", "nll", *OF_SAMPLES[2:])
# Figures of samples from another prior than the model's → heading.
PREFIX = "mismatched_"
OTHER = {f"{PREFIX}{name}": COLUMNS[name][0] for name in OF_SAMPLES}
RECORDED = {  # figure of the study → where a run's metrics.json has it
    **{name: name for name in ("elbo", "nll", "reconstruction", "kl", "fid", "density", "coverage", "active_units")},
    **{name: f"quality/prior samples/{name}" for name in MEASURES if name not in ("fid", "density", "coverage")},
    "fid_mixture": "quality/mixture samples/fid",
}
CLASSIFIED = set(MEASURES) - set(UNCLASSIFIED)
MISMATCHED_FIGURES = {f"{PREFIX}{name}": f"quality/{MISMATCHED}/{name}" for name in MEASURES}


def main(settings: StudySettings) -> None:
    """Runs the study, or what is left of it, and prints its folder."""
    settings.check()
    if unknown := settings.margins.keys() - COLUMNS.keys() - OTHER.keys():
        raise UsageError(f"margins: {', '.join(sorted(unknown))}: the figures are {', '.join(COLUMNS)}")
    processes = runs_at_once(settings.processes, settings.device)
    shared_out = threads_each(settings.threads, processes)
    device = set_up(settings.device, shared_out)
    dataset = data.load(
        settings.dataset,
        task_default="mnist",
        shape=(1, 28, 28),
        data_dir=settings.data_dir,
        device=device,
        max_images=settings.max_images,
        resize=settings.resize,
    )
    models = {name: settings.model_settings(arm) for name, arm in settings.models.items()}
    for model in models.values():
        model.require_classes(dataset)
    run = Run(settings, "vae", "study", device)
    if run.finished:
        say(f"{run.path} is complete; nothing is left to do")
        print(run.path)
        return
    run.require_same_dataset(dataset.record())

    say(f"1/3 the classifier that judges samples of {dataset.caption}")
    judge = trained_judge(run, dataset, next(iter(models.values())).generated)

    seeds = seeds_of(settings, settings.seed)
    # The number of threads changes the last digits: a study resumed on another machine keeps its first number.
    threads = run.remembered("threads", lambda: shared_out)
    say(f"2/3 {len(models)} models × {len(seeds)} seeds, {processes} at a time, in {run.path / 'runs'}")
    folders = train(settings, run.path / "runs", seeds, processes, threads)
    results = {name: [figures_in(folders[name, seed]) for seed in seeds] for name in models}

    say("3/3 comparing and drawing")
    figures_of = {name: {key: [r[key] for r in rows] for key in rows[0]} for name, rows in results.items()}
    claims = compare(figures_of, seeds, settings.pairs)
    draw(run, models, folders, figures_of, claims, dataset)
    text = "\n".join(table.markdown() for table in tables(figures_of, claims, settings.margins))
    write_atomically(run.path / "tables.md", text.encode())
    metrics = {
        "dataset": dataset.record(),
        "classifier": judge.record(),
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
    where |= {"track": settings.track} if settings.track is not None else {}
    jobs = {
        (name, seed): Job(run_name(arm, seed), {**settings.job_settings(arm, seed), "threads": threads}, where)
        for seed in seeds
        for name, arm in settings.models.items()
    }
    script = str(Path(__file__).with_name("train.py"))
    folders = run_jobs(Work(script, "vae", results), list(jobs.values()), local_executor(processes))
    return {key: folders[job.name] for key, job in jobs.items()}


def figures_in(folder: Path) -> dict[str, float]:
    """Returns the figures of a run's metrics.json that a study keeps; those of mismatched samples where there are."""
    try:
        found = numbers(read_metrics(folder) or {})
        classified = "quality/prior samples/confidence" in found  # images of one class have no classifier
        figures = {name: float(found[path]) for name, path in RECORDED.items() if classified or name not in CLASSIFIED}
        return figures | {name: found[path] for name, path in MISMATCHED_FIGURES.items() if path in found}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{folder / 'metrics.json'}: damaged ({error}); delete the folder to run it anew") from None


def compare(
    models: Mapping[str, Mapping[str, Sequence[float]]], seeds: Sequence[int], pairs: comparison.Pairs
) -> dict[str, dict[str, dict[str, float]]]:
    """Returns every claim's differences, first − second over the shared seeds, with their 95 % intervals."""
    arms = {name: comparison.arm_of(seeds, of) for name, of in models.items()}
    found = comparison.differences(arms, pairs, [*COMPARED, *OTHER])
    return {claim: {key: dataclasses.asdict(gain) for key, gain in gains.items()} for claim, gains in found.items()}


def draw(
    run: Run,
    models: Mapping[str, Settings],
    folders: Mapping[tuple[str, int], Path],
    figures_of: Mapping[str, Mapping[str, Sequence[float]]],
    claims: Mapping[str, Mapping[str, Mapping[str, float]]],
    dataset: data.Dataset,
) -> None:
    """Draws the models' samples, the claims, and for models that differ in β the quality of samples against β."""
    caption = dataset.caption
    first_seed = {name: folder for (name, seed), folder in reversed(list(folders.items()))}
    sweeps = beta_sweeps(models)
    swept = {name for lines in sweeps.values() for curve in lines.values() for name, _ in curve.values()}
    if alone := [name for name in models if name not in swept]:
        pictures = {name: first_samples(models[name], first_seed[name], dataset) for name in alone}
        captions = {name: study_figures.panel_caption(models[name].model_title, figures_of[name]) for name in alone}
        run.figure("samples", study_figures.sheet_of_samples(pictures, captions, caption))
    for network, lines in sweeps.items():
        curves = {
            pairing: {beta: of_samples(figures_of[name], mismatched) for beta, (name, mismatched) in curve.items()}
            for pairing, curve in lines.items()
        }
        sheets = {
            pairing: {
                beta: first_samples(models[name], first_seed[name], dataset, 16, mismatched)
                for beta, (name, mismatched) in curve.items()
            }
            for pairing, curve in lines.items()
        }
        file = re.sub(r"[^\w.]+", "-", network)
        run.figure(f"quality_against_beta-{file}", study_figures.quality_against_beta(curves, network, caption))
        run.figure(f"samples_against_beta-{file}", study_figures.samples_against_beta(sheets, network, caption))
    if claims:
        run.figure("claims", study_figures.claims(claims, caption))


OF_A_LINE = {  # settings that tell the lines and the points of one network's figure apart
    *("beta", "prior", "prior_mean", "prior_std", "sample_prior", "sample_mean", "sample_std"),
}
Sweep = dict[str, dict[float, tuple[str, bool]]]  # pairing → β → the model, and whether its samples are mismatched


def beta_sweeps(models: Mapping[str, Settings]) -> dict[str, Sweep]:
    """Returns the models that differ in β alone, three or more of them, by network and by pairing.

    A pairing is the prior of the training and the one that the codes of the samples are from. Models that differ in
    any other setting are networks of their own. A model trained on the importance-weighted bound has no β and is left
    out.
    """
    networks: dict[str, Sweep] = {}
    chosen = {name: settings for name, settings in models.items() if settings.objective != "iwae"}
    named = network_names(list(chosen.values()))
    for (name, settings), network in zip(chosen.items(), named, strict=True):
        sweep = networks.setdefault(network, {})
        trained = f"trained under {settings.prior_label}"
        sweep.setdefault(f"{trained}, samples from it", {})[settings.beta] = (name, False)
        if (mismatched := settings.mismatched_parameters) is not None:
            pairing = f"{trained}, samples from {prior_label(*mismatched)}"
            sweep.setdefault(pairing, {})[settings.beta] = (name, True)
    wide = {
        network: {pairing: curve for pairing, curve in sweep.items() if len(curve) > 2}
        for network, sweep in networks.items()
    }
    return {network: sweep for network, sweep in wide.items() if sweep}


def network_names(models: Sequence[Settings]) -> list[str]:
    """Returns what each model's network is called: equal for those that differ in nothing but β and their priors."""
    names = [f"{'conditional ' if of.conditional else ''}{of.arch} {of.latent}" for of in models]
    rest = [{k: v for k, v in dataclasses.asdict(of).items() if k not in OF_A_LINE} for of in models]
    told = []
    for name, settings in zip(names, rest, strict=True):
        alike = [other for other, of in zip(rest, names, strict=True) if of == name]
        differ = [key for key, value in settings.items() if any(other[key] != value for other in alike)]
        told.append(", ".join([name, *(f"{key.replace('_', ' ')} {settings[key]}" for key in differ)]))
    return told


def of_samples(figures: Mapping[str, Sequence[float]], mismatched: bool) -> dict[str, Sequence[float]]:
    """Returns the measures of a model's own samples, or those of the mismatched ones, under the same names."""
    prefix = PREFIX if mismatched else ""
    return {name: figures[f"{prefix}{name}"] for name in MEASURES if f"{prefix}{name}" in figures}


def first_samples(
    settings: Settings, folder: Path, dataset: data.Dataset, count: int = 64, mismatched: bool = False
) -> Tensor:
    """Returns images that the trained model of a run makes of codes from its own prior, or of mismatched ones.

    The classes of a conditional model's images are drawn by their frequency in the training images.
    """
    labels = dataset.train.labels
    model = initial_model(settings, len(dataset.classes)).to(labels.device)
    path = folder / "checkpoints" / "vae.safetensors"
    try:
        model.load_state_dict(load_weights(path))
    except RuntimeError:
        raise RunError(f"{path}: not the weights of this model; delete {folder} to run it anew") from None
    model.requires_grad_(False).eval()
    other = settings.mismatched_parameters if mismatched else None
    prior = gaussian(other, labels.device) if other else settings.prior_of(model)
    codes = samplers.prior_codes(prior, count, settings.latent, settings.seed)
    return bounds.decoded(model, codes, samplers.drawn_classes(labels, count, settings.seed))


def tables(
    models: Mapping[str, Mapping[str, Sequence[float]]],
    claims: Mapping[str, Mapping[str, Mapping[str, Any]]],
    margins: Mapping[str, float],
) -> list[Table]:
    """Returns every model's figures and every claim's differences, both as metrics.json holds them, as tables."""
    count = len(next(iter(models.values()))["elbo"])
    seeds = counted(count, "seed")
    arms = {name: comparison.arm_of(range(count), of) for name, of in models.items()}
    measured = [key for key in COLUMNS if all(key in of for of in models.values())]  # older studies have fewer
    columns = [Column(key, *COLUMNS[key], shows="estimate") for key in measured]
    caption = f"Means over {seeds}, nats an image; evaluated on the test images at β = 1."
    result = [comparison.mean_table(arms, columns, caption, heading="model", seeds=False)]
    if others := [key for key in OTHER if all(key in of for of in models.values())]:
        columns = [Column(key, OTHER[key], COLUMNS[key.removeprefix(PREFIX)][1], shows="estimate") for key in others]
        caption = f"Means over {seeds} of samples from the other prior (`--sample-prior`) and not from the model's own."
        result.append(comparison.mean_table(arms, columns, caption, heading="model", seeds=False))
    if claims:
        gains = {claim: {key: stats.Interval(**of) for key, of in keys.items()} for claim, keys in claims.items()}
        compared = [key for key in COMPARED if all(key in of for of in gains.values())]
        columns = [Column(key, COLUMNS[key][0], margin=margins.get(key)) for key in compared]
        named = margins_named({COLUMNS[key][0]: margins[key] for key in compared if key in margins})
        caption = f"Differences seed by seed ({seeds}), mean and 95 % interval; {BOLD}.{named}"
        result.append(comparison.interval_table(gains, columns, caption, heading="claim"))
        if others := [key for key in OTHER if all(key in of for of in gains.values())]:
            columns = [Column(key, OTHER[key], margin=margins.get(key.removeprefix(PREFIX))) for key in others]
            caption = (
                "The same differences, of samples from the other prior (`--sample-prior`) and not from the model's own."
            )
            result.append(comparison.interval_table(gains, columns, caption, heading="claim"))
    return result


if __name__ == "__main__":
    cli.run(main, StudySettings)
