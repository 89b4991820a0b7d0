"""Which classes and which images are drawn, and codes of the learned prior."""

import pytest
import torch
from sklearn.mixture import GaussianMixture

from common.data import Split
from common.device import stream_seed
from vae import samplers
from vae.priors import PosteriorMixture


def test_classes_are_drawn_by_their_frequency() -> None:
    labels = torch.tensor([0] * 60 + [3] * 30 + [9] * 10)
    drawn = samplers.drawn_classes(labels, 20_000, seed=0)
    shares = drawn.bincount(minlength=10) / 20_000
    torch.testing.assert_close(shares, labels.bincount(minlength=10) / 100, atol=0.01, rtol=0)
    assert torch.equal(drawn, samplers.drawn_classes(labels, 20_000, seed=0))
    assert not torch.equal(drawn, samplers.drawn_classes(labels, 20_000, seed=1))


def test_images_for_pseudo_inputs_are_different_ones_with_their_labels() -> None:
    training = Split(torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1).expand(40, 1, 28, 28), torch.arange(40))
    drawn = samplers.drawn_images(training, 30, seed=0)
    assert len(drawn.labels.unique()) == 30
    assert torch.equal(drawn.images[:, 0, 0, 0].long(), drawn.labels)
    assert not torch.equal(drawn.labels, samplers.drawn_images(training, 30, seed=1).labels)
    more = samplers.drawn_images(training, 90, seed=0).labels.bincount()  # more than there are: each twice or thrice
    assert set(more.tolist()) == {2, 3}


def test_codes_of_a_learned_prior_lie_at_its_components() -> None:
    means = torch.tensor([[-4.0, 0.0], [4.0, 0.0], [0.0, 5.0]])
    prior = PosteriorMixture(means, torch.full((3, 2), -4.0))
    codes = samplers.prior_codes(prior, 3000, 2, seed=0)
    distance = torch.cdist(codes, means).min(1)
    assert distance.values.max() < 1
    assert distance.indices.bincount(minlength=3).min() > 900
    assert torch.equal(codes, samplers.prior_codes(prior, 3000, 2, seed=0))


def test_the_mixture_is_that_of_one_call(generator: torch.Generator) -> None:
    """One iteration a call, for the progress bar, ends with the parameters of all iterations in one call."""
    means = torch.randn(400, 3, generator=generator) + 3 * torch.randint(0, 3, (400, 1), generator=generator)
    random_state = stream_seed(5, "mixture codes")
    expected = GaussianMixture(10, reg_covar=1e-5, random_state=random_state).fit(means.double().numpy())
    assert expected.converged_
    assert expected.n_iter_ > 3
    for name, tensor in samplers.fitted_mixture(means, seed=5).items():
        assert torch.equal(tensor, torch.from_numpy(getattr(expected, f"{name}_")))


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-9])
def test_the_mixture_is_as_wide_as_the_codes_also_under_a_narrow_prior(
    scale: float, generator: torch.Generator
) -> None:
    """A step of EM gives the whole mixture the covariance of the data; what is added to each component is little."""
    codes = scale * (torch.randn(400, 3, generator=generator) + 3 * torch.randint(0, 3, (400, 1), generator=generator))
    mixture = samplers.fitted_mixture(codes, seed=5)
    shares, centres = mixture["weights"], mixture["means"] - codes.double().mean(0)
    whole = torch.einsum("k,kij->ij", shares, mixture["covariances"] + centres[:, :, None] * centres[:, None])
    torch.testing.assert_close(whole / scale**2, codes.double().T.cov(correction=0) / scale**2, rtol=5e-3, atol=5e-3)
