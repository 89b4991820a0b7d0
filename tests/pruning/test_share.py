"""A shared network is loaded like that of the run."""

import json
from pathlib import Path

import pytest
import torch

from common import cli
from common.cli import to_yaml
from common.files import save_weights
from common.sharing import Share
from pruning import load
from pruning.filters import Granularity
from pruning.settings import Settings
from pruning.share import main
from pruning.sparse_file import save_sparse
from pruning.vgg import VGG11
from tests.common.test_sharing import header_of, require_what_the_hub_documents
from tests.pruning.small import use_narrow_network

METRICS = {
    **{"finetuned_accuracy": 0.5, "dense_accuracy": 0.75, "conv_weights_kept": 0.25, "compression_ratio": 4.0},
    **{"theoretical_speedup": 2.0, "classes": ["a", "b"], "normalisation": {"mean": [0.5] * 3, "std": [0.25] * 3}},
    **{"torch": "2.14", "device": "cpu", "seconds": 9.0, "git_commit": "abc"},
    "dataset": {"name": "cifar10", "source": "here", "images": 3, "train": 1, "validation": 1, "test": 1},
}


def test_a_shared_folder_is_loaded_like_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_narrow_network(monkeypatch)
    run, folder = tmp_path / "run", tmp_path / "vgg"
    save_weights(run / "checkpoints" / "finetuned.safetensors", VGG11(2).state_dict())
    (run / "config.yaml").write_text(to_yaml(Settings()))
    (run / "metrics.json").write_text(json.dumps(METRICS))
    cli.command(main, Share, [str(run), str(folder)])
    header = header_of(folder / "README.md")
    require_what_the_hub_documents(header)
    assert header["datasets"] == ["uoft-cs/cifar10"]
    assert "to 25.00% of its convolution weights" in (folder / "README.md").read_text()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(load(folder)(images), load(run)(images))


@pytest.mark.parametrize("granularity", ["weight", "filter"])
def test_a_small_folder_has_the_packed_network(
    granularity: Granularity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_narrow_network(monkeypatch)
    run, folder, network = tmp_path / "run", tmp_path / "vgg", VGG11(2)
    save_weights(run / "checkpoints" / "finetuned.safetensors", network.state_dict())
    packed = run / "checkpoints" / "network.codebook5.sparse"
    size = save_sparse(packed, network.state_dict(), {}, "codebook5")
    (run / "config.yaml").write_text(to_yaml(Settings(granularity=granularity)))
    metrics = {**METRICS, "sparse_files": {"codebook5": {"bytes": size, "accuracy": 0.4375}}}
    (run / "metrics.json").write_text(json.dumps(metrics))
    cli.command(main, Share, [str(run), str(folder), "--small"])
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [packed.name]
    card = (folder / "README.md").read_text()
    assert f"{size:,} bytes, with test accuracy 0.4375" in card
    assert ("zeros in a network of the full size" in card, "smaller network" in card) == (True, False)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(load(folder)(images), load(packed)(images))
