"""Shares a trained VAE: `python vae/share.py results/vae/RUN FOLDER` writes weights, settings and a model card.

`vae/sample.py FOLDER` and `vae.load(FOLDER)` take the folder like the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common import cli, sharing
from common.files import finished_metrics
from common.sharing import Card, Figure, Share
from vae.settings import Settings
from vae.trained import load

LOAD = """
from vae import load

model = load("{folder}")
images = model.sample(16, seed=1)  # (16, 1, 28, 28) in [0, 1]
"""
ON_HUB = {"mnist": "ylecun/mnist", "fashion-mnist": "zalando-datasets/fashion_mnist"}


def main(options: Share) -> None:
    """Writes the folder and prints it."""
    trained = load(options.run)  # which refuses what is damaged
    metrics = finished_metrics(options.run, "elbo", "vae/train.py")
    sharing.share(options, trained.settings, metrics, card(trained.settings, metrics))
    print(options.folder)


def card(settings: Settings, metrics: Mapping[str, Any]) -> Card:
    """Returns what the model card says of the model."""
    name = str(metrics["dataset"]["name"])
    return Card(
        what=f"{settings.model_title}, trained on {name}, {settings.likelihood} likelihood.",
        task=("unconditional-image-generation", "Image generation"),
        data=(ON_HUB.get(name, name), name),
        on_hub=name in ON_HUB,
        figures=[
            Figure("elbo", "ELBO, nats an image", float(metrics["elbo"])),
            Figure("nll", f"NLL at most, nats an image ({metrics['nll_samples']} codes)", float(metrics["nll"])),
            Figure("fid", "FID of the prior's samples, our classifier's features", float(metrics["fid"])),
            Figure("density", "density", float(metrics["density"])),
            Figure("coverage", "coverage", float(metrics["coverage"])),
        ],
        tags=["vae", "variational-autoencoder", "image-generation", name],
        load=LOAD,
        limits=[
            "The bounds are of the test images, at β = 1, whatever β the model was trained with.",
            "FID, density and coverage are computed on the features of a classifier trained here, not of Inception: "
            "they compare with our own figures alone.",
            "28×28 grey images. Samples are the decoder's means, which are smoother than the data.",
            "One seed.",
        ],
        script="vae/train.py",
        weights=["vae.safetensors", "mixture.safetensors"],
        pictures=["samples_prior", "reconstructions"],
        small={
            "vae.safetensors": lambda run: sharing.halved(run, "vae.safetensors"),
            "mixture.safetensors": lambda run: (run / "checkpoints" / "mixture.safetensors").read_bytes(),
        },
        made_small="The weights are in half precision; the figures above are of the model in float32.",
    )


if __name__ == "__main__":
    cli.command(main, Share)
