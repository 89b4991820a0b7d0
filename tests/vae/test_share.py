"""A shared VAE is loaded like that of the run."""

import json
from pathlib import Path

import pytest
import torch

from common import cli
from common.cli import to_yaml
from common.files import save_weights
from common.sharing import Share
from tests.common.test_sharing import header_of, require_what_the_hub_documents
from vae import load, samplers
from vae.settings import Settings
from vae.share import main
from vae.train import initial_model

METRICS = {
    **{"elbo": -90.5, "nll": 88.25, "nll_samples": 100, "fid": 600.0, "density": 0.2, "coverage": 0.1},
    **{"torch": "2.14", "device": "cpu", "seconds": 9.0, "git_commit": "abc", "class_counts": [5, 5]},
}


@pytest.mark.parametrize("name", ["mnist", "digits"])
def test_a_shared_folder_is_loaded_like_the_run(name: str, tmp_path: Path) -> None:
    run, folder = tmp_path / "run", tmp_path / "fc2"
    settings = Settings(arch="fc", latent=2, hidden=(4,))
    save_weights(run / "checkpoints" / "vae.safetensors", initial_model(settings, 10).state_dict())
    (run / "config.yaml").write_text(to_yaml(settings))
    record = {"name": name, "source": "here", "images": 3, "train": 1, "validation": 1, "test": 1}
    (run / "metrics.json").write_text(json.dumps({**METRICS, "dataset": record}))
    cli.command(main, Share, [str(run), str(folder)])
    header = header_of(folder / "README.md")
    require_what_the_hub_documents(header)
    assert header.get("datasets") == (["ylecun/mnist"] if name == "mnist" else None)
    assert torch.equal(load(folder).sample(3, seed=1), load(run).sample(3, seed=1))


def test_a_small_folder_is_in_half_precision(tmp_path: Path) -> None:
    run, folder = tmp_path / "run", tmp_path / "fc2"
    settings = Settings(arch="fc", latent=2, hidden=(4,))
    save_weights(run / "checkpoints" / "vae.safetensors", initial_model(settings, 10).state_dict())
    mixture = samplers.fitted_mixture(torch.randn(50, 2, generator=torch.Generator().manual_seed(0)), seed=0)
    save_weights(run / "checkpoints" / "mixture.safetensors", mixture)
    (run / "config.yaml").write_text(to_yaml(settings))
    record = {"name": "mnist", "source": "here", "images": 3, "train": 1, "validation": 1, "test": 1}
    (run / "metrics.json").write_text(json.dumps({**METRICS, "dataset": record}))
    cli.command(main, Share, [str(run), str(folder), "--small"])
    sizes = [(of / "checkpoints" / "vae.safetensors").stat().st_size for of in (folder, run)]
    assert sizes[0] < 0.6 * sizes[1]
    for sampler in ("prior", "mixture"):
        images = load(folder).sample(3, sampler=sampler, seed=1)
        assert images.dtype == torch.float32
        torch.testing.assert_close(images, load(run).sample(3, sampler=sampler, seed=1), atol=2e-3, rtol=0)
