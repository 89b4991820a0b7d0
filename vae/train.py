"""The VAE experiment: load, train, bound the likelihood, evaluate samples, draw (Kingma & Welling 2014, on MNIST).

`python vae/train.py --arch conv --prior gaussian12 --latent 16` runs all of it; `--help` lists every setting.
"""

from __future__ import annotations

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
from vae import bounds, figures, models, objective, samplers
from vae.classifier import reference_rows, trained_judge
from vae.models import VAE
from vae.priors import mapped_to
from vae.settings import Settings

CODED = 20_000  # training images whose codes the mixture is fitted to


def main(settings: Settings) -> None:
    """Runs the experiment, or what is left of it, and prints the run folder."""
    settings.check()
    device = set_up(settings.device, settings.threads)
    dataset = data.load(
        settings.dataset,
        task_default="mnist",
        shape=(1, 28, 28),
        data_dir=settings.data_dir,
        device=device,
        max_images=settings.max_images,
    )
    run = Run(settings, "vae", f"{dataset.name}-{settings.model_name}", device)
    if run.finished:
        say(f"{run.path} is complete; nothing is left to do")
        print(run.path)
        return
    run.require_same_dataset(dataset.record())
    seen = objective.as_seen(dataset, settings.likelihood)
    prior, (prior_mean, prior_std) = settings.prior_on(device), settings.prior_parameters

    say(f"1/5 training on {dataset.caption}: {len(seen.train)} images, run folder {run.path}")
    model = train(run, settings, seen)
    metrics: dict[str, Any] = {
        "dataset": dataset.record(),
        "arch": settings.arch,
        **{"prior": settings.prior_name, "prior_mean": prior_mean, "prior_std": prior_std},
        **{"latent": settings.latent, "beta": settings.beta, "capacity": settings.capacity},
        "likelihood": settings.likelihood,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "images_per_second": statistics.median(run.history("vae")["images_per_second"]),
    }

    say("2/5 bounds on the likelihood of the test images, at β = 1")
    metrics |= run.remembered("bounds", lambda: likelihood_bounds(settings, model, seen.test.images))
    means, deviations = bounds.posterior_means(model, seen.test.images)
    metrics["active_units"] = bounds.active_units(means, prior)
    nll = f"NLL at most {metrics['nll']:.2f} nats ({metrics['nll_samples']} codes an image)"
    say(f"    ELBO {metrics['elbo']:.2f} nats, {nll}")

    say("3/5 evaluating samples")
    # Samples are the decoder's means, which are grey, so the classifier compares them with the grey images.
    judge = trained_judge(run, dataset, settings.generated)
    metrics["classifier"] = {"accuracy": judge.accuracy, "weights_sha256": judge.digest}
    generated = generate(settings, model, seen.train)
    metrics["quality"] = run.remembered(
        "quality",
        lambda: (
            {sampler: judge.evaluate(images) for sampler, images in generated.items()}
            | reference_rows(judge, dataset, settings.generated)
        ),
    )
    metrics |= {name: metrics["quality"]["prior samples"][name] for name in ("fid", "density", "coverage")}

    say("4/5 drawing")
    title, caption = settings.model_title, dataset.caption
    run.figure("training", figures.training(run.history("vae"), title, caption))
    run.figure("reconstructions", figures.reconstructions(model, seen.test, title, caption))
    for sampler, images in generated.items():
        fid = f"FID {metrics['quality'][sampler]['fid']:.1f}"
        sheet = figures.samples(images[:100], f"{title}: {sampler}, {fid}", caption)
        run.figure(f"samples_{sampler.split()[0]}", sheet)
    run.figure("latent", figures.latent_scatter(means, deviations, seen.test.labels, prior, title, caption))
    if settings.latent == 2:
        run.figure("manifold", figures.manifold(model, prior, title, caption))
    else:
        run.figure("traversals", figures.traversals(model, means, deviations, prior, title, caption))
    run.figure("interpolations", figures.interpolations(model, means, seen.test, title, caption))
    run.figure("quality", figures.quality(metrics["quality"], title, caption))

    say("5/5 saving")
    run.finish(metrics, ("elbo", "nll", "fid"))
    say(figures.table(metrics))
    print(run.path)


def initial_model(settings: Settings) -> VAE:
    """Returns the model with the weights that training starts from."""
    torch.manual_seed(stream_seed(settings.seed, "vae weights"))
    model = models.build(
        settings.arch,
        settings.latent,
        hidden=settings.hidden,
        channels=settings.channels,
        learn_noise=settings.likelihood == "gaussian",
    )
    if settings.initialisation == "mapped":
        model.load_state_dict(mapped_to(model.state_dict(), settings.prior_on(torch.device("cpu"))))
    return model


def train(run: Run, settings: Settings, seen: data.Dataset) -> VAE:
    """Returns the trained model.

    Raises:
        RunError: the run's weights are not those of this model.
    """
    model = initial_model(settings).to(run.device)
    prior = settings.prior_on(run.device)
    observe = objective.observer(settings.likelihood)
    noise = torch.randn(16, settings.latent, device=run.device, generator=random_stream(0, "early look", run.device))
    fixed_codes = prior.mean + prior.stddev * noise

    def batch_loss(
        network: nn.Module, indices: Tensor, epoch: float, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(network, VAE)
        images = observe(seen.train.images.index_select(0, indices), generator)
        reconstruction, kl = objective.training_terms(network, images, prior, generator)
        warmup = min(1.0, epoch / settings.kl_warmup_epochs) if settings.kl_warmup_epochs else 1.0
        loss = reconstruction + objective.penalty(kl, settings.beta, settings.capacity, warmup)
        return loss, {"reconstruction": reconstruction, "kl": kl}

    def validate(network: nn.Module, epoch: int) -> dict[str, float]:
        assert isinstance(network, VAE)
        network.eval()  # `fit` sets it to training again; batch norm must not see these images
        held_out = seen.validation.images
        bound = bounds.evaluate_bounds(network, held_out, prior, samples=1, seed=0)
        means, _ = bounds.posterior_means(network, held_out)
        run.histogram("latent/posterior_means", means, epoch)
        reconstructed, drawn = (bounds.decoded(network, codes) for codes in (means[:16], fixed_codes))
        rows = [objective.pixels(held_out[:16]), reconstructed, drawn]
        run.image("early_look", figures.image_grid(rows), epoch)
        scalars = {f"{name}/validation": bound[name] for name in ("elbo", "reconstruction", "kl")}
        return scalars | {"active_units": bounds.active_units(means, prior)}

    def trained() -> dict[str, Tensor]:
        generator = random_stream(settings.seed, "vae batches", run.device)
        optimizer = Adam((model.parameters(), settings.learning_rate))
        schedule = triangular(settings.warmup)
        recipe = Recipe(settings.epochs, settings.batch_size, schedule, settings.precision, settings.ema_decay)
        images = len(seen.train)
        return fit(run, "vae", model, optimizer, batch_loss, images, recipe, generator, validate=validate).state_dict()

    weights = run.remembered_weights("vae", trained)
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        path = run.checkpoints / "vae.safetensors"
        raise RunError(f"{path}: not the weights of this model; delete it to train again") from None
    return model.requires_grad_(False).eval()


def likelihood_bounds(settings: Settings, model: VAE, images: Tensor) -> dict[str, float]:
    """Returns the bounds of uint8 test images, and the number of codes for each image that they are computed from."""
    samples = settings.nll_samples or (5000 if images.device.type == "cuda" else 100)
    prior = settings.prior_on(images.device)
    return {
        **bounds.evaluate_bounds(model, images, prior, samples=samples, seed=settings.seed),
        "nll_samples": samples,
    }


def generate(settings: Settings, model: VAE, training: data.Split) -> dict[str, Tensor]:
    """Returns images `(N, 1, 28, 28)` in [0, 1] by sampler: decoded from the prior, and from a mixture of codes."""
    coded = training.head(CODED)
    if settings.likelihood == "dynamic":
        coded = objective.binary_once(coded, "images of the mixture")
    means, _ = bounds.posterior_means(model, coded.images)
    codes = {
        "prior samples": samplers.prior_codes(
            settings.prior_on(means.device), settings.generated, settings.latent, settings.seed
        ),
        "mixture samples": samplers.mixture_codes(means, settings.generated, settings.seed),
    }
    return {sampler: bounds.decoded(model, drawn) for sampler, drawn in codes.items()}


if __name__ == "__main__":
    cli.run(main, Settings)
