"""The pruning experiment: train, scan, choose, prune, fine-tune, account, save, draw (Han et al. 2015, on VGG11-BN).

`python pruning/run.py` runs all of it on CIFAR-10; `--help` lists every setting.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from common import cli, data
from common.device import autocast, set_up
from common.experiment import Run, say
from pruning import account, figures, measures, rounds
from pruning.allocation import Sparsities, choose, overall_sparsity, sparsities_at, sparsities_of
from pruning.calibration import batches, recalibrated
from pruning.criteria import Scorer, Scores, scorer
from pruning.filters import clear_filters, filter_counts, weight_masks
from pruning.masks import Masks, apply_masks, pruned_energy
from pruning.rewind import require_learning
from pruning.schedule import MaskSchedule
from pruning.sensitivity import SPARSITIES, Sensitivity, scan
from pruning.settings import Settings
from pruning.smaller import account_smaller, export_onnx, require_onnx, smaller_network
from pruning.sparse_start import check_given, kept_weights, not_below
from pruning.train import fine_tune, train_dense
from pruning.trained import SMALLER, TrainedNetwork
from pruning.vgg import VGG11, prunable_layers, prunable_weights


def main(settings: Settings) -> None:
    """Runs the experiment, or what is left of it in a resumed run, and prints the run folder."""
    settings.check()
    if unused := settings.without_effect():
        say(f"note: --dense-weights trains no dense network: {', '.join(unused)} has no effect")
    if settings.onnx:
        require_onnx("--onnx")
    if settings.begins:
        check_given(settings)  # refused before any work, if at all
    device = set_up(settings.device, settings.threads)
    dataset = data.load(
        settings.dataset,
        task_default="cifar10",
        shape=(3, 32, 32),
        data_dir=settings.data_dir,
        device=device,
        max_images=settings.max_images,
    )
    if settings.resume is None:
        require_learning(settings, len(dataset.train))
    held_out = dataset.validation.head(settings.scan_images)  # every choice is made on these images, none on test
    run = Run(settings, "pruning", f"{dataset.name}-{settings.allocation}-{settings.schedule}", device)
    if run.finished:
        say(f"{run.path} is complete; nothing is left to do")
        print(run.path)
        return
    run.require_same_dataset(dataset.record())
    metrics: dict[str, Any] = {
        "dataset": dataset.record(),
        "classes": list(dataset.classes),
        "normalisation": {"mean": dataset.mean.tolist(), "std": dataset.std.tolist()},
    }

    def measure(name: str, network: VGG11, split: data.Split) -> None:
        metrics[name] = run.remembered(name, lambda: measures.accuracy(network, dataset, split))
        say(f"    {name.replace('_', ' ')} {metrics[name]:.4f}")

    say(f"1/6 training on {dataset.caption}: {len(dataset.train)} images, run folder {run.path}")
    dense = train_dense(run, settings, dataset)
    measure("dense_accuracy", dense, dataset.test)
    measure("dense_validation_accuracy", dense, held_out)
    kept = kept_weights(run, settings, prunable_weights(dense))  # of a network that was given sparse

    say("2/6 sensitivity scan")
    score = scorer(settings.criterion, dataset, settings.label_smoothing, settings.ranked_by)
    metrics["dense_sparsity"] = 0.0 if kept is None else overall_sparsity(kept, sparsities_at(kept))
    metrics["sensitivity"] = run.remembered(
        "sensitivity", lambda: scan_layers(run, settings, dataset, held_out, dense, score)
    )

    say(f"3/6 choosing sparsities: {settings.allocation}")
    scores = score(dense)
    sparsities = run.remembered("sparsities", lambda: not_below(choose_sparsities(settings, scores, metrics), kept))
    schedule = MaskSchedule.from_settings(settings, sparsities, kept)

    say(f"4/6 pruning ({settings.schedule}) and fine-tuning")
    pruned = copy.deepcopy(dense)  # only to measure what pruning costs before any fine-tuning
    at_once = weight_masks(dense, schedule.final_masks(scores), settings.ranked_by)
    metrics["pruned_energy"] = pruned_energy(prunable_weights(dense), at_once)
    apply_masks(prunable_weights(pruned), at_once)
    if settings.granularity == "filter":
        clear_filters(pruned, at_once)
    measure("pruned_accuracy", pruned, dataset.test)
    pruned = recalibrated(pruned, batches(dataset))
    measure("recalibrated_accuracy", pruned, dataset.test)
    measure("recalibrated_validation_accuracy", pruned, held_out)
    network = copy.deepcopy(dense)
    masks = fine_tune(run, settings, dataset, network, schedule, score)
    measure("finetuned_accuracy", network, dataset.test)
    if schedule.rounds > 1:
        metrics["by_round"] = run.remembered(
            "by_round", lambda: rounds.outcomes(run, network, dataset, schedule.rounds)
        )

    say("5/6 accounting")
    example = dataset.normalise(dataset.test.images[: settings.batch_size])
    smaller = smaller_network(network, masks) if settings.granularity == "filter" else None
    metrics["layers"] = account.layer_table(network, masks, example[:1], filters=smaller is not None)
    metrics |= account.totals(network, metrics["layers"], smaller)
    metrics |= run.remembered(
        "latencies", lambda: account.latencies(dense, network, example, settings.latency_seconds, smaller)
    )

    say("6/6 saving and drawing")
    metrics["dense_bytes"] = (run.checkpoints / "dense.safetensors").stat().st_size
    metrics["sparse_files"] = run.remembered(
        "sparse_files",
        lambda: account.save_sparse_files(run.checkpoints, network, masks, metrics["dense_bytes"], dataset, dense),
    )
    metrics["sparse_bytes"] = metrics["sparse_files"]["float16"]["bytes"]
    metrics["unpruned_sparse_bytes"] = metrics["sparse_files"]["float16"]["unpruned_bytes"]
    if smaller is not None:
        metrics |= filter_counts(masks.values())
        path, latency = run.checkpoints / SMALLER, metrics["latency"]
        metrics["smaller"] = account_smaller(path, smaller, network, dataset, example, latency)
    if settings.onnx:
        trained = TrainedNetwork(smaller or network, dataset.mean, dataset.std, dataset.classes)
        images = dataset.test.images[: settings.batch_size]
        metrics["onnx"] = run.remembered("onnx", lambda: export_onnx(run.checkpoints / "network.onnx", trained, images))
    draw(run, metrics, dense, network, masks, dataset.caption)
    run.finish(metrics, ("dense_accuracy", "pruned_accuracy", "finetuned_accuracy", "compression_ratio"))
    say(figures.table(metrics))
    print(run.path)


def scan_layers(
    run: Run, settings: Settings, dataset: data.Dataset, split: data.Split, dense: VGG11, score: Scorer
) -> Sensitivity:
    """Returns the accuracy on `split` for every layer pruned alone, at each sparsity of the scan.

    With `--retrain-per-layer` every layer is scanned on a network trained anew, as in the original report. There, and
    with `--recalibrate`, the curves begin with the network that is scanned, nothing pruned: it is not the dense one.
    Matrix products are in the precision of the training: bfloat16 takes a third of float32's time on a CPU.
    """
    another = settings.retrain_per_layer or settings.recalibrate
    sparsities = (0.0, *SPARSITIES) if another else SPARSITIES
    inputs, labels = measures.inputs(dataset, split), split.labels
    calibration = batches(dataset) if settings.recalibrate else None

    def scanned(network: VGG11, layers: Sequence[str] | None = None) -> Sensitivity:
        scores, by = score(network), settings.ranked_by
        with autocast(run.device, settings.precision):
            return scan(
                network, inputs, labels, layers, sparsities, calibration=calibration, scores=scores, importance=by
            )

    if not settings.retrain_per_layer:
        return scanned(dense)
    curves: Sensitivity = {}
    for layer in prunable_layers(dense):
        curves |= scanned(train_dense(run, settings, dataset, f"dense-{layer}"), [layer])
    return curves


def choose_sparsities(settings: Settings, scores: Scores, metrics: dict[str, Any]) -> Sparsities:
    """Returns the sparsity of each layer by the rule of `settings`, from the dense network's scores and its scan."""
    return choose(
        settings.allocation,
        scores,
        settings.sparsity,
        metrics["sensitivity"],
        metrics["dense_validation_accuracy"],
        settings.accuracy_budget,
        settings.keep_first_layer,
        sparsities_of(settings.sparsities_from) if settings.sparsities_from is not None else None,
    )


def draw(run: Run, metrics: dict[str, Any], dense: VGG11, network: VGG11, masks: Masks, caption: str) -> None:
    """Writes every figure, and the histograms of the weights to TensorBoard."""
    trained = rounds.history(run, len(metrics.get("by_round", [1])))
    before, after = ({n: w.detach() for n, w in prunable_weights(m).items()} for m in (dense, network))
    start = metrics["dense_validation_accuracy"]
    sparsities = {row["name"]: row.get("filter_sparsity", row["sparsity"]) for row in metrics["layers"]}
    run.figure("training", figures.training(run.history("dense"), trained, caption))
    run.figure("sensitivity", figures.sensitivity(metrics["sensitivity"], start, sparsities, caption))
    run.figure("weights", figures.weights(before, after, masks, caption))
    run.figure("layers", figures.layers(metrics["layers"], caption))
    run.figure("outcome", figures.outcome(metrics, caption))
    for name, mask in masks.items():
        run.histogram(f"weights_dense/{name}", before[name], 0)
        run.histogram(f"weights_kept/{name}", after[name][mask], 0)


if __name__ == "__main__":
    cli.run(main, Settings)
