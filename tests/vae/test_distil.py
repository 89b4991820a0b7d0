"""Which decoder a run keeps for the page, and that the copy is one."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from tests.vae.planes import fully_connected, plane_of, posteriors
from vae import distil, models, priors
from vae.bounds import decoded
from vae.plane import Plane, fits

STANDARD = Normal(torch.tensor(0.0), torch.tensor(1.0))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that has hardly learned."""
    monkeypatch.setattr(distil, "STEPS", 3)
    monkeypatch.setattr(distil, "CODES", 20)


def made(model: models.VAE, latent: int) -> Plane | None:
    return distil.made(model.eval().requires_grad_(False), *posteriors(latent), STANDARD)


def test_a_decoder_that_fits_is_kept_itself() -> None:
    model = models.build("fc", 20, hidden=(400,), channels=0)
    kept = made(model, 20)
    assert kept is not None
    assert not kept.copied
    assert [layer.activation for layer in kept.layers] == ["relu", "identity"]
    codes = torch.randn(30, 20)
    difference = (kept.decode(codes) - decoded(model, codes).flatten(1)).abs().mean().item()
    assert difference == pytest.approx(kept.error, rel=0.5)
    assert 0 < kept.error < 0.003


@pytest.mark.parametrize("arch", ["fc", "conv"])
@pytest.mark.parametrize("latent", [2, 16])
@pytest.mark.usefixtures("short")
def test_the_default_decoders_are_copied(arch: models.Architecture, latent: int) -> None:
    copy = made(models.build(arch, latent, hidden=(512, 256), channels=64), latent)
    assert copy is not None
    assert copy.copied
    assert copy.latent == latent
    assert len(copy.dimensions) == min(latent, 4)
    assert fits(copy)


@pytest.mark.usefixtures("short")
def test_the_longest_code_fits_and_longer_ones_have_no_plane() -> None:
    model = models.build("conv", distil.LONGEST, hidden=(), channels=2)
    longest = made(model, distil.LONGEST)
    assert longest is not None
    assert fits(longest)
    assert made(models.build("conv", distil.LONGEST + 1, hidden=(), channels=2), distil.LONGEST + 1) is None


def test_more_classes_than_the_page_has_colours_have_no_plane() -> None:
    means, deviations, labels = posteriors(2)
    model = fully_connected(2, (8,), nn.ReLU())
    assert distil.made(model, means, deviations, labels % 10, STANDARD) is not None
    assert distil.made(model, means, deviations, torch.full_like(labels, 10), STANDARD) is None


def test_conditional_models_and_learned_priors_have_no_plane() -> None:
    conditional = models.build("fc", 2, hidden=(8,), channels=0, classes=10)
    assert made(conditional, 2) is None
    learned = models.build("fc", 2, hidden=(8,), channels=0, pseudo_inputs=4).requires_grad_(False)
    assert distil.made(learned, *posteriors(2), priors.vamp(learned)) is None


def test_one_dimension_has_no_plane() -> None:
    assert made(models.build("fc", 1, hidden=(8,), channels=0), 1) is None


@pytest.mark.usefixtures("short")
def test_the_same_copy_again_and_no_random_number_used_up() -> None:
    model = models.build("conv", 2, hidden=(), channels=4)
    torch.manual_seed(1)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = made(model, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    torch.manual_seed(2)
    assert made(model, 2) == first


def test_the_dimensions_with_most_kl_can_be_moved() -> None:
    means, deviations, labels = posteriors(6)
    strength = torch.tensor([0.1, 2.0, 0.3, 1.0, 0.2, 3.0])
    plane = distil.made(fully_connected(6, (8,), nn.ReLU()), strength * means, deviations, labels, STANDARD)
    assert plane is not None
    assert [of.index for of in plane.dimensions] == [5, 1, 3, 2]
    assert all(one.kl > other.kl for one, other in itertools.pairwise(plane.dimensions))
    assert plane.reach == 3


def test_the_plane_reaches_the_codes_but_not_the_outermost() -> None:
    means, deviations, labels = posteriors(2, images=1000)
    means[0] = 1000
    plane = distil.made(fully_connected(2, (8,), nn.ReLU()), 3 * means, deviations, labels, STANDARD)
    assert plane is not None
    assert 6 < plane.reach < 15


@pytest.mark.slow
@pytest.mark.parametrize("prior", [(0.0, 1.0), (1.0, 2.0)])
def test_the_copy_learns_the_decoder(prior: tuple[float, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also under N(1, 2²), whose codes its first layer takes as they are."""
    model = fully_connected(2, (512, 512), nn.ReLU(), spread=3)  # too large for the page
    copy = plane_of(model, prior)
    assert copy.copied

    def pictures_of(codes: Tensor) -> Tensor:
        return decoded(model, codes).flatten(1)

    pictures = pictures_of(prior[0] + prior[1] * torch.randn(500, 2))
    constant = (pictures - pictures.mean(0)).abs().mean().item()
    assert constant > 0.02  # a picture that varies
    assert copy.error < constant / 5
    means, _, _ = posteriors(2, prior)
    assert (copy.decode(means) - pictures_of(means)).abs().mean().item() < constant / 5
