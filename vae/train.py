"""The VAE experiment: load, train, bound the likelihood, evaluate samples, draw (Kingma & Welling 2014, on MNIST).

`python vae/train.py --arch conv --prior gaussian12 --latent 16` runs all of it; `--help` lists every setting.
"""

from __future__ import annotations

import common.stopping  # noqa: F401 — a signal during the imports below ends the script in one line

import statistics
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from common import cli, data
from common.device import random_stream, set_up, stream_seed
from common.errors import RunError
from common.experiment import Run, say
from common.fast.adam import Adam
from common.training import Recipe, fit, progress_bar, triangular
from vae import bounds, code_figures, distil, figures, models, objective, plane, priors, samplers
from vae.classifier import reference_rows, trained_judge
from vae.models import VAE
from vae.priors import Prior, gaussian, mapped_to, prior_label, scale_steps, steps_unscaled, vamp
from vae.settings import Settings

MISMATCHED = "mismatched samples"  # of codes from another prior than the model's
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
        resize=settings.resize,
    )
    settings.require_classes(dataset)
    run = Run(settings, "vae", f"{dataset.name}-{settings.model_name}", device)
    if run.finished:
        say(f"{run.path} is complete; nothing is left to do")
        print(run.path)
        return
    run.require_same_dataset(dataset.record())
    seen = objective.as_seen(dataset, settings.likelihood)

    say(f"1/5 training on {dataset.caption}: {len(seen.train)} images, run folder {run.path}")
    model = train(run, settings, seen)
    prior, (prior_mean, prior_std) = settings.prior_of(model), settings.prior_parameters or (None, None)
    labels = seen.test.labels  # which only a conditional model uses
    metrics: dict[str, Any] = {
        "dataset": dataset.record(),
        **{"arch": settings.arch, "prior": settings.prior_name, "prior_mean": prior_mean, "prior_std": prior_std},
        **{"latent": settings.latent, "beta": settings.beta, "capacity": settings.capacity},
        **{"objective": settings.objective, "likelihood": settings.likelihood, "pseudo_inputs": settings.components},
        **{"importance_samples": settings.codes_a_step, "conditional": settings.conditional},
        **{"classes": list(dataset.classes), "class_counts": seen.train.labels.bincount().tolist()},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "images_per_second": statistics.median(run.history("vae")["images_per_second"]),
    }

    say("2/5 bounds on the likelihood of the test images, at β = 1")
    metrics |= run.remembered("bounds", lambda: likelihood_bounds(settings, model, seen.test))
    means, deviations = bounds.posterior_means(model, seen.test.images, labels)
    metrics["active_units"] = bounds.active_units(means, prior)
    nll = f"NLL at most {metrics['nll']:.2f} nats ({metrics['nll_samples']} codes an image)"
    say(f"    ELBO {metrics['elbo']:.2f} nats, {nll}")

    say("3/5 evaluating samples")
    # Samples are the decoder's means, which are grey, so the classifier compares them with the grey images.
    judge = trained_judge(run, dataset, settings.generated)
    metrics["classifier"] = judge.record()
    if (mismatched := settings.mismatched_parameters) is not None:
        metrics["sample_prior"] = {"mean": mismatched[0], "std": mismatched[1]}
    if line := told_of_further_samples(settings):
        say(f"    {line}")
    mixture = run.remembered_weights("mixture", lambda: mixture_of_codes(settings, model, seen.train))
    generated = generate(settings, model, mixture, seen.train.labels)
    metrics["quality"] = run.remembered(
        "quality",
        lambda: (
            judge.evaluate_all(generated, "comparing samples with test images")
            | reference_rows(judge, dataset, settings.generated)
        ),
    )
    metrics |= {name: metrics["quality"]["prior samples"][name] for name in ("fid", "density", "coverage")}
    if settings.conditional:
        asked = samplers.drawn_classes(seen.train.labels, settings.generated, settings.seed)
        _, probabilities = judge.classify(generated["prior samples"])
        agreement = metrics["class_agreement"] = float((probabilities.argmax(1) == asked).double().mean())
        say(f"    {agreement:.1%} of the prior samples are of the class that was asked for")

    say("4/5 drawing")
    title, caption, classes = settings.model_title, dataset.caption, dataset.classes
    with progress_bar("figures", 0, 5 + len(generated) + settings.conditional, unit="figure", delay=2.0) as bar:

        def draw(name: str, figure: Any) -> None:
            run.figure(name, figure)
            bar.update()

        draw("training", figures.training(run.history("vae"), title, caption))
        draw("reconstructions", figures.reconstructions(model, seen.test, title, caption))
        for sampler, images in generated.items():
            source = f", codes from {prior_label(*mismatched)}" if mismatched and sampler == MISMATCHED else ""
            sheet_title = f"{title}: {sampler}{source}, FID {metrics['quality'][sampler]['fid']:.1f}"
            draw(f"samples_{sampler.split()[0]}", figures.samples(images[:100], sheet_title, caption))
        draw("latent", code_figures.latent_scatter(means, deviations, labels, prior, title, caption, classes))
        if settings.latent == 2:
            draw("manifold", code_figures.manifold(model, prior, means, labels[0], title, caption, classes))
        else:
            draw("traversals", code_figures.traversals(model, means, deviations, prior, title, caption, labels[0]))
        if settings.conditional:
            codes = samplers.prior_codes(prior, 10, settings.latent, settings.seed)
            draw("samples_by_class", figures.samples_by_class(model, codes, title, caption, classes))
        draw("interpolations", code_figures.interpolations(model, means, seen.test, title, caption))
        draw("quality", figures.quality(metrics["quality"], title, caption, classes))

    say("5/5 saving")
    try:
        decoder = distil.made(model, means, deviations, labels, prior)
    except ValueError as error:  # of weights that diverged
        say(f"    the report page will not show the decoder: {error}")
        decoder = None
    if decoder is not None:
        plane.write(run.path / plane.FILE, decoder)
    run.finish(metrics, ("elbo", "nll", "fid"))
    say(figures.table(metrics))
    shown = bounds.shown_variance(model, means[:1000], seen.test.images[:1000], labels[:1000])
    collapse = bounds.warning_of_collapse(
        metrics["active_units"],
        settings.latent,
        metrics["kl"],
        shown,
        mappable=settings.mappable,
        weight=settings.beta if settings.objective == "elbo" else None,
    )
    if collapse is not None:
        say(collapse)
    print(run.path)


def initial_model(settings: Settings, classes: int) -> VAE:
    """Returns the model with the weights that training starts from, for images of so many classes."""
    torch.manual_seed(stream_seed(settings.seed, "vae weights"))
    model = models.build(
        settings.arch,
        settings.latent,
        hidden=settings.hidden,
        channels=settings.channels,
        learn_noise=settings.likelihood == "gaussian",
        classes=classes if settings.conditional else 0,
        pseudo_inputs=settings.components,
    )
    if settings.initialisation == "mapped":
        prior = settings.prior_on(torch.device("cpu"))
        model.load_state_dict(mapped_to(model.state_dict(), prior))
    return model


def train(run: Run, settings: Settings, seen: data.Dataset) -> VAE:
    """Returns the trained model.

    Raises:
        RunError: the run's weights are not those of this model.
    """
    model = initial_model(settings, len(seen.classes)).to(run.device)
    if settings.prior == "vamp":
        first = samplers.drawn_images(seen.train, settings.components, settings.seed)
        model.start_pseudo_inputs(objective.pixels(first.images), first.labels)
    gaussian_prior = settings.prior_on(run.device) if settings.prior != "vamp" else None
    observe = objective.observer(settings.likelihood)
    labels, held_out_labels = seen.train.labels, seen.validation.labels

    def batch_loss(
        network: nn.Module, indices: Tensor, epoch: float, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(network, VAE)
        images = observe(seen.train.images.index_select(0, indices), generator)
        prior = gaussian_prior or vamp(network)
        classes = labels[indices] if settings.conditional else None
        if settings.objective == "iwae" and epoch >= settings.elbo_epochs:
            loss, reconstruction, kl = objective.importance_weighted_terms(
                network, images, prior, settings.codes_a_step, generator, classes
            )
            return loss, {"reconstruction": reconstruction, "kl": kl}
        reconstruction, kl = objective.training_terms(network, images, prior, generator, classes)
        warmup = min(1.0, epoch / settings.kl_warmup_epochs) if settings.kl_warmup_epochs else 1.0
        loss = reconstruction + objective.penalty(kl, settings.beta, settings.capacity, warmup)
        return loss, {"reconstruction": reconstruction, "kl": kl}

    def validate(network: nn.Module, epoch: int) -> dict[str, float]:
        assert isinstance(network, VAE)
        network.eval()  # `fit` sets it to training again; batch norm must not see these images
        held_out = seen.validation.images
        with torch.no_grad():
            prior = settings.prior_of(network)
        bound = bounds.evaluate_bounds(network, held_out, prior, samples=1, seed=0, labels=held_out_labels)
        means, _ = bounds.posterior_means(network, held_out, held_out_labels)
        run.histogram("latent/posterior_means", means, epoch)
        generator = random_stream(0, "early look", run.device)  # the same codes in every epoch
        noise = torch.randn(16, settings.latent, device=run.device, generator=generator)[: len(held_out)]
        pictured = (means[:16], priors.codes_of(prior, noise, generator))
        reconstructed, drawn = (bounds.decoded(network, codes, held_out_labels[:16]) for codes in pictured)
        rows = [objective.pixels(held_out[:16]), reconstructed, drawn]
        run.image("early_look", figures.image_grid(rows), epoch)
        scalars = {f"{name}/validation": bound[name] for name in ("elbo", "reconstruction", "kl")}
        return scalars | {"active_units": bounds.active_units(means, prior)}

    def trained() -> dict[str, Tensor]:
        if (trained_before := run.start_weights("vae")) is not None:
            model.load_state_dict(trained_before)
        if settings.mapped_rates:
            scale_steps(model, settings.prior_on(run.device))
        generator = random_stream(settings.seed, "vae batches", run.device)
        optimizer = Adam((model.parameters(), settings.learning_rate))
        schedule = triangular(settings.warmup)
        recipe = Recipe(
            settings.epochs,
            settings.batch_size,
            schedule,
            settings.precision,
            settings.ema_decay,
            last_batch=True,
        )
        images = len(seen.train)
        network = fit(run, "vae", model, optimizer, batch_loss, images, recipe, generator, validate=validate)
        assert isinstance(network, VAE)
        steps_unscaled(model)
        return steps_unscaled(network).state_dict()

    weights = run.remembered_weights("vae", trained)
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        path = run.checkpoints / "vae.safetensors"
        raise RunError(f"{path}: not the weights of this model; delete it to train again") from None
    return model.requires_grad_(False).eval()


def likelihood_bounds(settings: Settings, model: VAE, test: data.Split) -> dict[str, float]:
    """Returns the bounds of the test images, and the number of codes for each image that they are computed from."""
    samples = settings.nll_samples or (5000 if test.images.device.type == "cuda" else 100)
    prior, seed = settings.prior_of(model), settings.seed
    return {
        **bounds.evaluate_bounds(model, test.images, prior, samples=samples, seed=seed, labels=test.labels),
        "nll_samples": samples,
    }


def mixture_of_codes(settings: Settings, model: VAE, training: data.Split) -> dict[str, Tensor]:
    """Returns the mixture of Gaussians fitted to the codes of training images, see `samplers.fitted_mixture`."""
    coded = training.head(CODED)
    if settings.likelihood == "dynamic":
        coded = objective.binary_once(coded, "images of the mixture")
    means, _ = bounds.posterior_means(model, coded.images, coded.labels)
    return samplers.fitted_mixture(means, settings.seed)


def told_of_further_samples(settings: Settings) -> str | None:
    """Returns a line that says which prior the further samples are from; None if the settings ask for none."""
    if (mismatched := settings.mismatched_parameters) is not None:
        other = prior_label(*mismatched)
        return f"the mismatched samples are of codes from {other}, not from the model's prior {settings.prior_label}"
    if (settings.sample_prior, settings.sample_mean, settings.sample_std) != ("own", None, None):
        return f"the prior of the further samples is the model's own, {settings.prior_label}: there are none"
    return None


def generate(
    settings: Settings, model: VAE, mixture: Mapping[str, Tensor], training_labels: Tensor
) -> dict[str, Tensor]:
    """Returns images `(N, 1, 28, 28)` in [0, 1] by sampler: decoded from the prior, and from a mixture of codes.

    With `--sample-prior` also from another prior, and from the same standard normal draws as the model's own. The
    classes of a conditional model's samples are drawn by their frequency in the training images.
    """
    device = training_labels.device
    drawn_from: dict[str, Prior] = {"prior samples": settings.prior_of(model)}
    if (mismatched := settings.mismatched_parameters) is not None:
        drawn_from[MISMATCHED] = gaussian(mismatched, device)
    codes = {
        sampler: samplers.prior_codes(prior, settings.generated, settings.latent, settings.seed)
        for sampler, prior in drawn_from.items()
    }
    codes["mixture samples"] = samplers.mixture_codes(mixture, settings.generated, settings.seed).to(device)
    classes = samplers.drawn_classes(training_labels, settings.generated, settings.seed)
    say(f"    decoding {settings.generated:,} codes of each sampler")
    return {sampler: bounds.decoded(model, drawn, classes) for sampler, drawn in codes.items()}


if __name__ == "__main__":
    cli.run(main, Settings)
