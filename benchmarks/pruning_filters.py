"""Filter pruning beside Torch-Pruning: the same dense network, the same widths, the same fine-tuning, side by side.

`python benchmarks/pruning_filters.py --dense-weights FILE` prunes one network twice (`pip install -e '.[bench]'`). Both
sides lose the same share of each layer's filters. Ours are chosen by the norm of a filter; Torch-Pruning (Fang et al.
2023, "DepGraph") adds up the norms of all that goes with a filter: its batch-norm entries and the next layer's inputs.
Then both are trained by `pruning/train.py`, on the same batches in the same order. Times are medians of float32 forward
passes, both networks and the dense one in turn: ours in our form, theirs in the form in which Torch-Pruning leaves it,
with torch's own convolutions.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import statistics
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import tyro

from common import data
from common.device import set_up
from common.experiment import Run
from common.timing import quartiles
from pruning import account, measures
from pruning.allocation import uniform
from pruning.calibration import batches, recalibrated
from pruning.filters import Importance, clear_filters, ranked, weight_masks
from pruning.given import read_network
from pruning.masks import magnitude_masks
from pruning.schedule import MaskSchedule
from pruning.settings import Settings
from pruning.smaller import network_of, smaller_network, with_torch_convolutions
from pruning.train import fine_tune, train_dense
from pruning.vgg import VGG11, prunable_weights, widths_of

NORMS = {"l2": 2, "l1": 1}


@dataclasses.dataclass(frozen=True)
class Options:
    """Prunes one dense network by us and by Torch-Pruning to the same widths, fine-tunes both, and compares them."""

    dense_weights: Path | None = None
    """File of the dense network, with {seed} in its place if each seed has its own; none trains one for each seed."""
    sparsity: float = 0.5
    """Share of each layer's filters that goes."""
    importance: Importance = "l2"
    """Norm that ranks our filters, and the parts of Torch-Pruning's groups; batch-norm ranks both by |γ|."""
    seeds: int = 1
    """Number of seeds, from 0: of the dense training, if there is one, and of the order and augmentation of images."""
    epochs: int = 10
    """Passes over the training split for a dense network, where none is given."""
    finetune_epochs: int = 4
    """Passes over the training split after pruning, on both sides."""
    finetune_learning_rate: float = 0.05
    """Peak learning rate of the fine-tuning."""
    batch_size: int = 128
    """Images in a training step."""
    seconds: float = 10.0
    """Seconds to time each of the batches of 1 and 128."""
    dataset: str = "auto"
    """auto, cifar10 or digits."""
    threads: int | None = None
    """CPU threads; none means one for each core."""
    device: str = "auto"
    """auto, cpu or cuda."""
    data_dir: Path | None = None
    """Folder with the data sets; none means the variable DATA_DIR, or else ./data."""
    output: Path | None = None
    """JSON file to write the results to."""


def ours(dense: VGG11, widths: Sequence[int], importance: Importance) -> VGG11:
    """Returns the network of these widths that `pruning/run.py --granularity filter` leaves."""
    scores = ranked(dense, importance)
    shares = {name: 1 - width / len(of) for (name, of), width in zip(scores.items(), widths, strict=True)}
    masks = weight_masks(dense, magnitude_masks(scores, shares), importance)
    network = copy.deepcopy(dense)
    clear_filters(network, masks)
    return smaller_network(network, masks)


def theirs(dense: VGG11, sparsity: float, importance: Importance) -> VGG11:
    """Returns the network that Torch-Pruning leaves, with torch's own convolutions."""
    import torch_pruning

    network = with_torch_convolutions(dense)
    if importance == "batch-norm":
        group = torch_pruning.importance.BNScaleImportance()
    else:
        group = torch_pruning.importance.GroupMagnitudeImportance(p=NORMS[importance])
    pruner = torch_pruning.pruner.BasePruner(
        network,
        torch.zeros(1, 3, 32, 32, device=dense.classifier.weight.device),
        importance=group,
        pruning_ratio=sparsity,
        ignored_layers=[network.classifier],
    )
    pruner.step()
    return network.to(memory_format=torch.channels_last).eval()


def compare(options: Options, seed: int, dataset: data.Dataset, device: torch.device) -> dict[str, Any]:
    """Returns the figures of one seed, and prints them."""
    given = Path(str(options.dense_weights).format(seed=seed)) if options.dense_weights else None
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            results_dir=Path(folder),
            seed=seed,
            epochs=options.epochs,
            batch_size=options.batch_size,
            finetune_epochs=options.finetune_epochs,
            finetune_learning_rate=options.finetune_learning_rate,
        )
        if given is not None:
            dense = network_of(read_network(given, classes=len(dataset.classes))).to(device)
        else:
            dense = train_dense(Run(settings, "pruning", "dense", device), settings, dataset)
        other = theirs(dense, options.sparsity, options.importance)
        widths = widths_of(other.state_dict())  # Torch-Pruning rounds the filters that stay down
        sides = {"ours": ours(dense, widths, options.importance), "torch-pruning": other}
        assert widths_of(sides["ours"].state_dict()) == widths
        figures: dict[str, Any] = {"dense": measures.accuracy(dense, dataset, dataset.test), "widths": widths}
        print(f"seed {seed}  dense {100 * figures['dense']:6.2f} %, widths {' '.join(map(str, widths))}", flush=True)
        for name, network in sides.items():
            start = network_of(network.state_dict())  # both sides in one form, so that they train alike
            pruned = measures.accuracy(start, dataset, dataset.test)
            statistics_anew = measures.accuracy(recalibrated(start, batches(dataset)), dataset, dataset.test)
            nothing = MaskSchedule.from_settings(settings, uniform(prunable_weights(start), 0.0))
            fine_tune(Run(settings, "pruning", name, device), settings, dataset, start, nothing)
            tuned = measures.accuracy(start, dataset, dataset.test)
            figures[name] = {"pruned": pruned, "recalibrated": statistics_anew, "finetuned": tuned}
            print(f"seed {seed}  {name:14}", *(f"{k} {100 * v:6.2f} %" for k, v in figures[name].items()), flush=True)
    networks = {"dense": dense, **sides}
    images = dataset.normalise(dataset.test.images[:128])
    for batch in (images[:1], images):
        times = account.seconds_of(networks, batch, options.seconds)
        ratios = [other / our for our, other in zip(times["ours"], times["torch-pruning"], strict=True)]
        speed = {name: [d / s for d, s in zip(times["dense"], of, strict=True)] for name, of in times.items()}
        figures[f"batch_{len(batch)}"] = {
            "seconds": {name: statistics.median(of) for name, of in times.items()},
            "quartiles": {name: quartiles(of) for name, of in times.items()},
            "faster_than_dense": {name: statistics.median(of) for name, of in speed.items()},
            "ours_faster_than_torch_pruning": statistics.median(ratios),
        }
        low, high = quartiles(ratios)
        ms = ", ".join(f"{name} {1000 * statistics.median(of):.2f} ms" for name, of in times.items())
        print(f"seed {seed}  batch of {len(batch)}: {ms}; ours {statistics.median(ratios):.2f}× ({low:.2f}–{high:.2f})")
    return figures


def main(options: Options) -> None:
    """Compares the two for every seed."""
    device = set_up(options.device, options.threads)
    dataset = data.load(
        options.dataset, task_default="cifar10", shape=(3, 32, 32), data_dir=options.data_dir, device=device
    )
    versions = f"torch {torch.__version__}, Torch-Pruning {version('torch-pruning')}"
    print(f"{dataset.caption}; {versions}, {device}, {torch.get_num_threads()} threads")
    figures = {f"seed {seed}": compare(options, seed, dataset, device) for seed in range(options.seeds)}
    if options.output is not None:
        settings = {name: str(value) for name, value in vars(options).items()}
        options.output.write_text(json.dumps({"options": settings, "versions": versions, **figures}, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Options))
