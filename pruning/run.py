"""The pruning study: train, scan, choose, prune, fine-tune, account, save, draw (Han et al. 2015, on VGG11-BN).

`python pruning/run.py` runs all of it on CIFAR-10; `--help` lists every setting.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from common import cli, data
from common.device import set_up, stream_seed
from common.experiment import Run, say
from common.training import accuracy
from pruning import account, allocation, figures, sparse_file
from pruning.masks import Masks, apply_masks, magnitude_masks, random_masks
from pruning.sensitivity import Sensitivity, scan
from pruning.settings import Settings
from pruning.train import fine_tune, inputs, train_dense
from pruning.vgg import VGG11, prunable_layers, prunable_weights


def main(settings: Settings) -> None:
    """Runs the study, or what is left of it, and prints the run folder."""
    settings.check()
    device = set_up(settings.device, settings.threads)
    images = data.load(
        settings.dataset, task_default="cifar10", shape=(3, 32, 32), data_dir=settings.data_dir, device=device
    )
    run = Run(settings, "pruning", f"{images.name}-{settings.allocation}-{settings.schedule}", device)
    if run.finished:
        say(f"{run.path} is complete; nothing is left to do")
        print(run.path)
        return

    run.require_same_dataset(images.record())

    def test_accuracy(network: VGG11) -> float:
        return accuracy(network, inputs(images, images.test), images.test.labels)

    say(f"1/6 training on {images.caption}: {len(images.train)} images, run folder {run.path}")
    dense = train_dense(run, settings, images)
    metrics: dict[str, Any] = {
        "dataset": images.record(),
        "dense_accuracy": run.remembered("dense_accuracy", lambda: test_accuracy(dense)),
        "dense_validation_accuracy": run.remembered(
            "dense_validation_accuracy", lambda: held_out_accuracy(settings, dense, images)
        ),
    }
    say(f"    dense accuracy {metrics['dense_accuracy']:.4f}")

    say("2/6 sensitivity scan")
    metrics["sensitivity"] = run.remembered("sensitivity", lambda: measure_sensitivity(run, settings, images, dense))

    say(f"3/6 choosing sparsities: {settings.allocation}")
    sparsities = run.remembered(
        "sparsities",
        lambda: choose(settings, dense, metrics["sensitivity"], metrics["dense_validation_accuracy"]),
    )

    say(f"4/6 pruning ({settings.schedule}) and fine-tuning")
    network, pruned = copy.deepcopy(dense), copy.deepcopy(dense)
    masks = masks_due(settings, sparsities, 1.0, prunable_weights(dense))
    apply_masks(prunable_weights(pruned), masks)
    metrics["pruned_accuracy"] = run.remembered("pruned_accuracy", lambda: test_accuracy(pruned))
    say(f"    accuracy pruned at once, before fine-tuning {metrics['pruned_accuracy']:.4f}")
    masks = fine_tune(run, settings, images, network, masks, functools.partial(masks_due, settings, sparsities))
    metrics["finetuned_accuracy"] = run.remembered("finetuned_accuracy", lambda: test_accuracy(network))
    say(f"    accuracy after fine-tuning {metrics['finetuned_accuracy']:.4f}")

    say("5/6 accounting")
    example = images.normalise(images.test.images[: settings.batch_size])
    metrics["layers"] = account.layer_table(network, masks, example[:1])
    metrics |= account.totals(network, metrics["layers"])
    metrics["latency"] = run.remembered(
        "latency", lambda: account.latencies(dense, network, example, settings.latency_seconds)
    )

    say("6/6 saving and drawing")
    metrics["dense_bytes"] = (run.checkpoints / "dense.safetensors").stat().st_size
    metrics["sparse_files"] = run.remembered(
        "sparse_files", lambda: save_sparse_files(run, network, masks, metrics["dense_bytes"], test_accuracy)
    )
    metrics["sparse_bytes"] = metrics["sparse_files"]["float16"]["bytes"]
    draw(run, metrics, dense, network, masks, images.caption)
    run.finish(metrics, ("dense_accuracy", "pruned_accuracy", "finetuned_accuracy", "compression_ratio"))
    say(figures.table(metrics))
    print(run.path)


def held_out_accuracy(settings: Settings, network: VGG11, images: data.Dataset) -> float:
    """Returns the accuracy on the held-out images of the scan: every choice is made on these, none on test."""
    split = images.validation.head(settings.scan_images)
    return accuracy(network, inputs(images, split), split.labels)


def measure_sensitivity(run: Run, settings: Settings, images: data.Dataset, dense: VGG11) -> Sensitivity:
    """Returns the accuracy for every layer alone at 10 … 99 %, of one network or of one trained anew for each layer."""
    split = images.validation.head(settings.scan_images)
    pixels, labels = inputs(images, split), split.labels
    if not settings.retrain_per_layer:
        return scan(dense, pixels, labels)
    curves: Sensitivity = {}
    for layer in prunable_layers(dense):
        curves |= scan(train_dense(run, settings, images, f"dense-{layer}"), pixels, labels, layers=[layer])
    return curves


def choose(settings: Settings, dense: VGG11, curves: Sensitivity, dense_accuracy: float) -> allocation.Sparsities:
    """Returns the sparsity of every layer that `--allocation` asks for, decided on the dense network."""
    weights = prunable_weights(dense)
    reference = allocation.reference(weights)
    if settings.sparsity is not None:
        sparsity = settings.sparsity
    else:
        total = sum(weight.numel() for weight in weights.values())
        sparsity = sum(reference[name] * weight.numel() for name, weight in weights.items()) / total
    match settings.allocation:
        case "reference":
            return reference
        case "random":
            return reference if settings.sparsity is None else allocation.uniform(weights, sparsity)
        case "scan" if settings.sparsity is None:
            return allocation.scan_for_budget(weights, curves, dense_accuracy, settings.accuracy_budget)
        case "scan":
            return allocation.scan_for_sparsity(weights, curves, dense_accuracy, sparsity)
        case rule:
            return allocation.RULES[rule](weights, sparsity)


def masks_due(
    settings: Settings,
    sparsities: allocation.Sparsities,
    share: float,
    weights: Mapping[str, Tensor],
    kept: Masks | None = None,
) -> Masks:
    """Returns the masks of `weights` when `share` of `sparsities` is due, 1 being all, nested in those `kept` so far.

    One threshold for the whole network is found anew on the weights as they are: on a gradual schedule the layers'
    shares follow what training makes of them. Every other rule takes each layer to its own sparsity.
    """
    if settings.allocation in allocation.ONE_THRESHOLD:
        sizes = {name: weight.numel() for name, weight in weights.items()}
        overall = sum(sparsities[name] * size for name, size in sizes.items()) / sum(sizes.values())
        due = allocation.RULES[settings.allocation](weights, share * overall)
    else:
        due = {name: share * sparsity for name, sparsity in sparsities.items()}
    if settings.allocation == "random":
        return random_masks(weights, due, stream_seed(settings.seed, "random masks"))
    return magnitude_masks(weights, due, kept)


def save_sparse_files(
    run: Run, network: VGG11, masks: Masks, dense_bytes: int, test_accuracy: Callable[[VGG11], float]
) -> dict[str, dict[str, float]]:
    """Writes the network in every value format, loads each file again, and returns its bytes, error and accuracy."""
    files: dict[str, dict[str, float]] = {}
    for values in sparse_file.VALUES:
        path = run.checkpoints / f"network.{values}.sparse"
        size = sparse_file.save_sparse(path, network.state_dict(), masks, values)
        reloaded = copy.deepcopy(network)
        reloaded.load_state_dict(sparse_file.load_sparse(path).weights)
        error = max(_largest_difference(a, b) for a, b in zip(reloaded.parameters(), network.parameters(), strict=True))
        result = {"bytes": size, "dense_over_sparse": dense_bytes / size}
        files[values] = {**result, "largest_error": error, "accuracy": test_accuracy(reloaded)}
    return files


def _largest_difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).detach().abs().max())


def draw(
    run: Run,
    metrics: dict[str, Any],
    dense: VGG11,
    network: VGG11,
    masks: Masks,
    caption: str,
) -> None:
    """Writes every figure, and the weights' histograms to TensorBoard."""
    before, after = ({n: w.detach() for n, w in prunable_weights(m).items()} for m in (dense, network))
    start = metrics["dense_validation_accuracy"]
    sparsities = {row["name"]: row["sparsity"] for row in metrics["layers"]}
    run.figure("training", figures.training(run.history("dense"), run.history("finetuned"), caption))
    run.figure("sensitivity", figures.sensitivity(metrics["sensitivity"], start, sparsities, caption))
    run.figure("weights", figures.weights(before, after, masks, caption))
    run.figure("layers", figures.layers(metrics["layers"], caption))
    run.figure("outcome", figures.outcome(metrics, caption))
    for name, mask in masks.items():
        run.histogram(f"weights_dense/{name}", before[name], 0)
        run.histogram(f"weights_kept/{name}", after[name][mask], 0)


if __name__ == "__main__":
    cli.run(main, Settings)
