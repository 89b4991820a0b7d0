"""Quality against β: which models of a study are one figure and one line of it, and what is drawn."""

from typing import Any

import torch

from vae import study_figures
from vae.classifier import MEASURES
from vae.settings import Settings
from vae.study import beta_sweeps, of_samples


def test_models_that_differ_in_beta_are_lines_of_one_figure() -> None:
    """A line for each prior and each set of samples; two values of β are no line."""
    betas = (0.1, 1.0, 4.0)
    models = {f"normal{beta}": Settings(beta=beta, sample_prior="gaussian12") for beta in betas}
    models |= {f"gaussian12{beta}": Settings(prior="gaussian12", beta=beta) for beta in betas}
    models |= {"a": Settings(latent=2), "b": Settings(latent=2, beta=4)}
    sweeps = beta_sweeps(models)
    assert list(sweeps) == ["conv 16"]
    own, mismatched, other = sweeps["conv 16"].values()  # N(1, 2²) has no other set
    assert list(sweeps["conv 16"])[1] == "trained under N(0, 1), samples from N(1, 2²)"
    assert own == {beta: (f"normal{beta}", False) for beta in betas}
    assert mismatched == {beta: (f"normal{beta}", True) for beta in betas}
    assert other == {beta: (f"gaussian12{beta}", False) for beta in betas}


def test_learned_priors_and_conditional_models_are_lines_of_their_own() -> None:
    """And a model on the importance-weighted bound, which has no β, does not take the place of the one with β = 1."""
    betas = (0.1, 1.0, 4.0)
    models = {f"plain{beta}": Settings(beta=beta) for beta in betas}
    models |= {f"vamp{beta}": Settings(beta=beta, prior="vamp", sample_prior="normal") for beta in betas}
    models |= {f"conditional{beta}": Settings(beta=beta, conditional=True) for beta in betas}
    models |= {"iwae": Settings(objective="iwae")}
    sweeps = beta_sweeps(models)
    assert list(sweeps) == ["conv 16", "conditional conv 16"]
    plain, vamp, mismatched = sweeps["conv 16"].values()
    assert plain == {beta: (f"plain{beta}", False) for beta in betas}
    assert vamp == {beta: (f"vamp{beta}", False) for beta in betas}
    assert mismatched == {beta: (f"vamp{beta}", True) for beta in betas}
    (conditional,) = sweeps["conditional conv 16"].values()
    assert conditional == {beta: (f"conditional{beta}", False) for beta in betas}


def test_models_that_differ_in_more_than_beta_are_networks_of_their_own() -> None:
    betas = (0.5, 1.0, 4.0)
    models = {f"plain{beta}": Settings(beta=beta) for beta in betas}
    models |= {f"gaussian{beta}": Settings(beta=beta, likelihood="gaussian") for beta in betas}
    models["longer"] = Settings(beta=8.0, epochs=40)  # no sweep: the only one of its length
    plain, gaussian = "conv 16, likelihood dynamic, epochs 20", "conv 16, likelihood gaussian, epochs 20"
    sweeps = beta_sweeps(models)
    assert {name: list(next(iter(sweep.values()))) for name, sweep in sweeps.items()} == {
        plain: [0.5, 1.0, 4.0],
        gaussian: [0.5, 1.0, 4.0],
    }
    assert sweeps[gaussian]["trained under N(0, 1), samples from it"][4.0] == ("gaussian4.0", False)


def test_pairings_need_not_have_the_same_betas() -> None:
    """Nor as few of them as there are colours, nor a β above 0."""
    values = {name: [1.0, 2.0, 3.0] for name in study_figures.QUALITIES}
    curves: dict[str, dict[float, Any]] = {f"pairing {n}": dict.fromkeys((0.1, 1.0, 4.0), values) for n in range(9)}
    curves["pairing 0"] = dict.fromkeys((0.0, 0.5, 1.0, 2.0), values)
    drawn = study_figures.quality_against_beta(curves, "conv 16", "digits").axes[0]
    assert [label.get_text() for label in drawn.get_xticklabels()] == ["0", "0.1", "0.5", "1", "2", "4"]
    images = torch.rand(16, 1, 28, 28)
    samples = {name: dict.fromkeys(curve, images) for name, curve in list(curves.items())[:2]}
    panels = study_figures.samples_against_beta(samples, "conv 16", "digits").axes
    assert [len(panel.images) for panel in panels] == [1, 0, 1, 1, 1, 0, 0, 1, 0, 1, 0, 1]


def test_the_figure_of_mismatched_samples_is_under_the_same_names() -> None:
    figures = {name: [1.0] for name in MEASURES} | {f"mismatched_{name}": [2.0] for name in MEASURES}
    assert of_samples(figures, mismatched=False) == {name: [1.0] for name in MEASURES}
    assert of_samples(figures, mismatched=True) == {name: [2.0] for name in MEASURES}
