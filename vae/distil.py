"""What the report page shows of a trained model: its own decoder, or a small copy that is distilled from it.

The copy is a fully connected network (Hinton et al. 2015). It learns from the decoder's pictures of codes where a
reader can go: of the prior, of posteriors of test images, and with dimensions moved as far as the page lets them. Each
picture is a target of the cross-entropy, pixel by pixel. It takes a few seconds on one core.

All of it draws from random streams of its own, on one thread, after the last figure is computed: a run's weights and
metrics are the same with and without it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from common.device import one_thread, random_stream, stream_seed
from common.fast.adam import Adam
from common.training import progress_bar, triangular
from vae.bounds import decoded
from vae.models import VAE
from vae.objective import bernoulli_log_likelihood
from vae.plane import MOVED, PIXELS, POINTS, Activation, Dimension, Layer, Plane, Start, as_base64, fits, quantised
from vae.priors import Prior, kl_divergence

WIDTHS = (128, 128, 256)  # of the copy
STEPS, BATCH, LEARNING_RATE = 800, 128, 1e-2
LONGEST = 400  # dimensions of a code whose copy still fits
CODES = 4000  # of each of the three kinds that the copy learns from
NAMES: dict[type[nn.Module], Activation] = {
    **{nn.ReLU: "relu", nn.SiLU: "silu", nn.Identity: "identity"},
    nn.Unflatten: "identity",  # behind the last layer: the page has the pixels in one row
}


def made(model: VAE, means: Tensor, deviations: Tensor, labels: Tensor, prior: Prior) -> Plane | None:
    """Returns what the page shows of a trained model, given the posteriors of test images and their classes.

    `means` and `deviations` are `(N, latent)`, `labels` is `(N,)`. None where nothing fits: a code so long that even
    the copy is too large. A code of one dimension has none either: its traversal shows all of it. Nor have more than
    ten classes, since the page has ten colours; nor a conditional model, whose decoder needs a class too; nor one under
    a mixture, since the page moves codes through the deviations of one Gaussian.
    """
    if means.shape[1] == 1 or int(labels.max()) > 9 or model.classes or not isinstance(prior, Normal):
        return None
    means, deviations, labels = means.cpu(), deviations.cpu(), labels.cpu()
    prior = Normal(prior.mean.cpu(), prior.stddev.cpu())
    region = _region(means, deviations, prior)
    own = own_layers(model)
    if own is not None and fits(plane := _assembled(own, region, model, labels, copied=False)):
        return plane
    if means.shape[1] > LONGEST:
        return None
    return _assembled(distilled(model, region), region, model, labels, copied=True)


@dataclasses.dataclass(frozen=True)
class Region:
    """Where a reader can go: the posteriors of test images, and what is within `reach` of the prior's mean."""

    means: Tensor  # (N, latent)
    deviations: Tensor  # (N, latent)
    prior: Normal
    reach: float
    dimensions: list[Dimension]

    def codes(self, count: int, generator: torch.Generator) -> Tensor:
        """Returns `(3 · count, latent)`: from the prior, from posteriors, and those with some dimensions moved."""
        shape = (count, self.means.shape[1])
        chosen = torch.randint(len(self.means), (count,), generator=generator)
        from_prior = self.prior.mean + self.prior.stddev * torch.randn(shape, generator=generator)
        from_posterior = self.means[chosen] + self.deviations[chosen] * torch.randn(shape, generator=generator)
        columns = [of.index for of in self.dimensions]
        places = self.prior.mean + self.reach * (2 * torch.rand((count, len(columns)), generator=generator) - 1)
        share = torch.rand((count, 1), generator=generator)  # from none to all of them
        moved = torch.rand(places.shape, generator=generator) < share
        elsewhere = from_posterior.clone()
        elsewhere[:, columns] = torch.where(moved, places, from_posterior[:, columns])
        return torch.cat([from_prior, from_posterior, elsewhere])


def _region(means: Tensor, deviations: Tensor, prior: Normal) -> Region:
    kl = kl_divergence(means, 2 * deviations.log(), prior).mean(0)
    order = [0, 1] if len(kl) == 2 else kl.argsort(descending=True)[:MOVED].tolist()
    reach = 3 * float(prior.stddev)
    if len(kl) == 2:  # the plane shows the codes too, except for the outermost
        reach = max(reach, float((means - prior.mean).abs().flatten().quantile(0.995)))
    return Region(means, deviations, prior, reach, [Dimension(index, float(kl[index])) for index in order])


def _assembled(layers: Sequence[Layer], region: Region, model: VAE, labels: Tensor, *, copied: bool) -> Plane:
    first = [int(rows[0]) for digit in range(10) if len(rows := (labels == digit).nonzero())]
    shown = slice(POINTS if region.means.shape[1] == 2 else 0)
    plane = Plane(
        version=1,
        prior_mean=float(region.prior.mean),
        prior_std=float(region.prior.stddev),
        reach=region.reach,
        copied=copied,
        error=0.0,
        dimensions=region.dimensions,
        layers=list(layers),
        starts=[Start(int(labels[row]), [float(f"{value:.5g}") for value in region.means[row]]) for row in first],
        labels="".join(map(str, labels[shown].tolist())),
        points=as_base64(region.means[shown].float()),
    )
    codes = region.codes(1000, random_stream(0, "error of the plane"))
    pictures = decoded(model, codes.to(model.posterior.weight.device)).flatten(1).cpu()
    return dataclasses.replace(plane, error=float((plane.decode(codes) - pictures).abs().mean()))


def own_layers(model: VAE) -> list[Layer] | None:
    """Returns the decoder's own layers with weights of 8 bits, None if not all of them are fully connected."""
    assert isinstance(model.decoder, nn.Sequential)
    modules = [model.from_code, model.act, *model.decoder]
    layers = []
    for linear, act in itertools.zip_longest(modules[::2], modules[1::2]):
        if not isinstance(linear, nn.Linear) or type(act) not in NAMES:
            return None
        layers.append(quantised(linear.weight, linear.bias, NAMES[type(act)]))
    return layers


@one_thread()
def distilled(model: VAE, region: Region) -> list[Layer]:
    """Returns a small decoder that has learned the pictures of `model`, with weights of 8 bits."""
    codes = region.codes(CODES, random_stream(0, "codes of the plane"))
    pictures = decoded(model, codes.to(model.posterior.weight.device)).flatten(1).cpu().clone()
    standard = (codes - region.prior.mean) / region.prior.stddev
    sizes = [codes.shape[1], *WIDTHS, PIXELS]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(0, "weights of the plane"))
        linears = [nn.Linear(inputs, outputs) for inputs, outputs in itertools.pairwise(sizes)]
    network = nn.Sequential(*(part for linear in linears for part in (linear, nn.SiLU())))[:-1]
    optimizer, schedule = Adam((network.parameters(), LEARNING_RATE)), triangular(0.1)
    generator = random_stream(0, "batches of the plane")
    with progress_bar("decoder of the report page", 0, STEPS, delay=2.0) as bar:
        for step in range(STEPS):
            batch = torch.randint(len(codes), (BATCH,), generator=generator)
            loss = -bernoulli_log_likelihood(network(standard[batch]), pictures[batch]).mean()
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * schedule((step + 0.5) / STEPS)
            optimizer.descend(loss)
            bar.update()
    with torch.no_grad():  # the first layer takes the code as it is
        linears[0].weight.div_(region.prior.stddev)
        linears[0].bias.sub_(linears[0].weight.sum(1) * region.prior.mean)
    return [quantised(of.weight, of.bias, "identity" if of is linears[-1] else "silu") for of in linears]
