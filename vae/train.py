"""The VAE experiment: load, train, bound the likelihood, judge samples, draw (Kingma & Welling 2014, on MNIST).

`python vae/train.py --arch conv --prior gaussian12 --latent 16` runs all of it; `--help` lists every setting.
"""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

import torch
from torch import Tensor, nn

from common import cli, data
from common.device import random_stream, set_up, stream_seed
from common.errors import RunError
from common.experiment import Run, say
from common.fast.adam import Adam
from common.training import Recipe, fit, triangular
from vae import figures, models, objective, samplers
from vae.classifier import judge, reference_rows
from vae.models import VAE
from vae.priors import carried_to
from vae.settings import Settings

CODED = 20_000  # training images whose codes the mixture is fitted to


def main(settings: Settings) -> None:
    """Runs the experiment, or what is left of it, and prints the run folder."""
    settings.check()
    device = set_up(settings.device, settings.threads)
    images = data.load(
        settings.dataset, task_default="mnist", shape=(1, 28, 28), data_dir=settings.data_dir, device=device
    )
    beta = f"-beta{settings.beta:g}" if settings.beta != 1 else ""
    mean, std = settings.prior_parameters
    named = settings.prior_mean is None and settings.prior_std is None
    prior_name = settings.prior if named else f"prior{mean:g}_{std:g}"
    run = Run(settings, "vae", f"{images.name}-{settings.arch}{beta}-{prior_name}-{settings.latent}", device)
    if run.finished:
        say(f"{run.path} is complete; nothing is left to do")
        print(run.path)
        return
    run.require_same_dataset(images.record())
    seen = as_seen(settings, images)
    prior, seed = settings.prior_on(device), settings.seed

    say(f"1/5 training on {images.caption}: {len(seen.train)} images, run folder {run.path}")
    model = train(run, settings, seen)
    rates = run.history("vae")["images_per_second"]
    metrics: dict[str, Any] = {
        "dataset": images.record(),
        "arch": settings.arch,
        **{"prior": settings.prior if named else "custom", "prior_mean": mean, "prior_std": std},
        **{"latent": settings.latent, "beta": settings.beta, "capacity": settings.capacity},
        "likelihood": settings.likelihood,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "images_per_second": statistics.median(rates),
    }

    say("2/5 bounds on the likelihood of the test images, at β = 1")
    samples = settings.nll_samples or (5000 if device.type == "cuda" else 100)
    metrics |= run.remembered(
        "bounds",
        lambda: {
            **objective.evaluate_bounds(model, seen.test.images, prior, samples=samples, seed=seed),
            "nll_samples": samples,
        },
    )
    means, deviations = objective.posterior_means(model, seen.test.images)
    metrics["active_units"] = objective.active_units(means, prior)
    bound = f"NLL at most {metrics['nll']:.2f} nats ({metrics['nll_samples']} codes an image)"
    say(f"    ELBO {metrics['elbo']:.2f} nats, {bound}")

    say("3/5 judging samples")
    critic = judge(run, images, settings.generated)
    metrics["classifier"] = {"accuracy": critic.accuracy, "weights_sha256": critic.digest}
    coded = seen.train.head(CODED)
    if settings.likelihood == "dynamic":
        coded = objective.binary_once(coded, "images of the mixture")
    training_means, _ = objective.posterior_means(model, coded.images)
    drawn = {
        "prior samples": samplers.prior_codes(prior, settings.generated, settings.latent, seed),
        "mixture samples": samplers.mixture_codes(training_means, settings.generated, seed),
    }
    generated = {sampler: objective.decoded(model, codes) for sampler, codes in drawn.items()}
    metrics["quality"] = run.remembered(
        "quality",
        lambda: (
            {sampler: critic.verdict(pictures) for sampler, pictures in generated.items()}
            | reference_rows(critic, images, settings.generated)
        ),
    )
    metrics |= {name: metrics["quality"]["prior samples"][name] for name in ("fid", "density", "coverage")}

    say("4/5 drawing")
    title = model_title(settings)
    run.figure("training", figures.training(run.history("vae"), title, images.caption))
    run.figure("reconstructions", figures.reconstructions(model, seen.test, title, images.caption))
    for sampler, pictures in generated.items():
        fid = f"FID {metrics['quality'][sampler]['fid']:.1f}"
        sheet = figures.samples(pictures[:100], f"{title}: {sampler}, {fid}", images.caption)
        run.figure(f"samples_{sampler.split()[0]}", sheet)
    run.figure("latent", figures.latent_scatter(means, deviations, seen.test.labels, prior, title, images.caption))
    if settings.latent == 2:
        run.figure("manifold", figures.manifold(model, prior, title, images.caption))
    else:
        run.figure("traversals", figures.traversals(model, means, deviations, prior, title, images.caption))
    run.figure("interpolations", figures.interpolations(model, means, seen.test, title, images.caption))
    run.figure("quality", figures.quality(metrics["quality"], title, images.caption))

    say("5/5 saving")
    run.finish(metrics, ("elbo", "nll", "fid"))
    say(figures.table(metrics))
    print(run.path)


def as_seen(settings: Settings, images: data.Dataset) -> data.Dataset:
    """Returns the images as the likelihood sees them: black and white for `dynamic` and `static`, drawn once.

    Under `dynamic` the training images stay grey: they are drawn anew in every step.
    """
    if settings.likelihood not in ("dynamic", "static"):
        return images
    train = objective.binary_once(images.train, "train") if settings.likelihood == "static" else images.train
    validation, test = (
        objective.binary_once(images.validation, "validation"),
        objective.binary_once(images.test, "test"),
    )
    return dataclasses.replace(images, train=train, validation=validation, test=test)


def initial_model(settings: Settings) -> VAE:
    """Returns the model with the weights it starts from."""
    torch.manual_seed(stream_seed(settings.seed, "vae weights"))
    model = models.build(
        settings.arch,
        settings.latent,
        hidden=settings.hidden,
        channels=settings.channels,
        learn_noise=settings.likelihood == "gaussian",
    )
    if settings.initialisation == "mapped":
        model.load_state_dict(carried_to(model.state_dict(), settings.prior_on(torch.device("cpu"))))
    return model


def train(run: Run, settings: Settings, seen: data.Dataset) -> VAE:
    """Returns the trained model.

    Raises:
        RunError: the run's weights are not those of this model.
    """
    model = initial_model(settings).to(run.device)
    prior = settings.prior_on(run.device)
    observe = objective.observer(settings.likelihood)
    look = random_stream(0, "early look", run.device)
    looked_at = prior.mean + prior.stddev * torch.randn(16, settings.latent, device=run.device, generator=look)

    def batch_loss(
        network: nn.Module, indices: Tensor, epoch: float, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(network, VAE)
        batch = observe(seen.train.images.index_select(0, indices), generator)
        reconstruction, kl = objective.training_terms(network, batch, prior, generator)
        warm = min(1.0, epoch / settings.kl_warmup_epochs) if settings.kl_warmup_epochs else 1.0
        loss = reconstruction + objective.penalty(kl, settings.beta, settings.capacity, warm)
        return loss, {"reconstruction": reconstruction, "kl": kl}

    def validate(network: nn.Module, epoch: int) -> dict[str, float]:
        assert isinstance(network, VAE)
        network.eval()  # `fit` sets it to training again; batch norm must not see these images
        held_out = seen.validation.images
        bounds = objective.evaluate_bounds(network, held_out, prior, samples=1, seed=0)
        means, _ = objective.posterior_means(network, held_out)
        run.histogram("latent/posterior_means", means, epoch)
        rows = [objective.pixels(held_out[:16]), objective.decoded(network, means[:16])]
        run.image("early_look", figures.rows_of_pictures([*rows, objective.decoded(network, looked_at)]), epoch)
        judged = {f"{name}/validation": bounds[name] for name in ("elbo", "reconstruction", "kl")}
        return judged | {"active_units": objective.active_units(means, prior)}

    def trained() -> dict[str, Tensor]:
        generator = random_stream(settings.seed, "vae batches", run.device)
        optimizer = Adam((model.parameters(), settings.learning_rate))
        schedule = triangular(settings.warmup)
        recipe = Recipe(settings.epochs, settings.batch_size, schedule, settings.precision, settings.ema_decay)
        examples = len(seen.train)
        return fit(
            run, "vae", model, optimizer, batch_loss, examples, recipe, generator, validate=validate
        ).state_dict()

    weights = run.remembered_weights("vae", trained)
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        raise RunError(
            f"{run.checkpoints / 'vae.safetensors'}: not the weights of this model; delete it to train again"
        ) from None
    return model.requires_grad_(False).eval()


def model_title(settings: Settings) -> str:
    """Returns the model in words, for figures."""
    names = {"fc": "fully connected", "conv": "convolutional", "deep": "deep convolutional"}
    name = names.get(settings.arch, settings.arch)
    kind = "VAE" if settings.beta == 1 else f"β-VAE (β = {settings.beta:g})"
    if settings.capacity is not None:
        kind += f", capacity {settings.capacity:g} nats"
    return f"{name} {kind}, prior {settings.prior_label}, {settings.latent} dimension{'s' * (settings.latent > 1)}"


if __name__ == "__main__":
    cli.run(main, Settings)
