"""The classifier that evaluates samples: trained here, since no weights are downloaded.

`SampleJudge` is a trained classifier with its features of the real test images; it compares other images with these,
and once more in a second space that knows no classes (`vae/features.py`). Images of one class train no classifier;
then the second space is the only one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from common.data import Augmentation, Dataset, Split
from common.device import one_thread, random_stream, stream_seed
from common.errors import RunError
from common.experiment import Run, say
from common.fast.adam import Adam
from common.files import load_state, save_state
from common.training import Recipe, accuracy, fit, progress_bar, triangular
from vae import features, metrics
from vae.features import FeatureSpace, RandomConvolutions, in_batches
from vae.metrics import blurred
from vae.objective import pixels

# The numbers that `SampleJudge.evaluate` returns; it returns the fraction of images in each class too.
UNCLASSIFIED = ["fid", "density", "coverage", "random_fid", "random_density", "random_coverage"]
MEASURES = [*UNCLASSIFIED, "confidence", "balance"]  # without a classifier only the first of these
EPOCHS, BATCH_SIZE, LEARNING_RATE = 4, 128, 2e-3  # 99.3 % on MNIST's test images in about a minute on one core


class Classifier(nn.Module):
    """Two convolutions with pooling and a layer of 64 features: enough for 99 % on MNIST."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(64 * 49, 64)),
        )
        self.head = nn.Linear(64, classes)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits `(B, classes)` for images `(B, 1, 28, 28)` in [0, 1]."""
        logits: Tensor = self.head(torch.relu(self.features(images)))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """Returns features `(B, 64)`, before the ReLU, so that they are closer to Gaussian."""
        features: Tensor = self.body(images)
        return features


@dataclasses.dataclass(frozen=True)
class SampleJudge:
    """A trained classifier, the random convolutions, and the features of the real test images in both spaces."""

    network: Classifier | None  # none for images of one class
    accuracy: float | None  # on the test images
    digest: str  # SHA-256 of the weights: FID, density and coverage compare only where it is the same
    space: FeatureSpace | None  # the classifier's
    random_network: RandomConvolutions
    random_space: FeatureSpace

    @torch.inference_mode()
    def classify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns features `(N, 64)` and class probabilities `(N, classes)` of images `(N, 1, 28, 28)` in [0, 1]."""
        assert self.network is not None
        features = in_batches(self.network.features, images)
        return features, self.network.head(torch.relu(features)).softmax(1)

    def evaluate(self, images: Tensor) -> dict[str, Any]:
        """Returns how good images `(N, 1, 28, 28)` in [0, 1] are.

        fid, density and coverage in the classifier's space; `random_fid`, `random_density` and `random_coverage` in
        that of the random convolutions; `confidence`, the mean probability of the likeliest class; `classes`, the
        fraction of images in each class, and `balance`, its entropy over that of equal classes. Without a classifier
        fid, density and coverage are those of the random convolutions, and there is no confidence, classes, balance.
        """
        random = self.random_space.compare(self.random_network(images))
        in_random_space = {f"random_{name}": of for name, of in random.items()}
        if self.space is None:
            return {**random, **in_random_space}
        features, probabilities = self.classify(images)
        counts = probabilities.argmax(1).bincount(minlength=probabilities.shape[1])
        entropy = torch.distributions.Categorical(counts.double()).entropy()
        return {
            **self.space.compare(features),
            **in_random_space,
            "confidence": float(probabilities.max(1).values.mean()),
            "balance": float(entropy) / math.log(len(counts)),
            "classes": [round(count / len(images), 4) for count in counts.tolist()],
        }

    def evaluate_all(self, sets: Mapping[str, Tensor], stage: str) -> dict[str, dict[str, Any]]:
        """Returns `evaluate` of several sets of images by name; a bar says how far it is."""
        with progress_bar(stage, 0, len(sets), unit="set") as bar:
            rows = {}
            for name, images in sets.items():
                rows[name] = self.evaluate(images)
                bar.update()
        return rows

    def record(self) -> dict[str, Any]:
        """Returns what metrics.json says of the judge."""
        if self.network is None:
            return {
                "space": "random convolutions alone: one class",
                "random_weights_sha256": self.random_network.digest,
            }
        return {
            "accuracy": self.accuracy,
            "weights_sha256": self.digest,
            "random_weights_sha256": self.random_network.digest,
        }


def trained_judge(run: Run, dataset: Dataset, generated: int) -> SampleJudge:
    """Returns the judge of `generated` images: its classifier is trained once per machine and dataset, then cached.

    The run keeps a copy of the weights, so that resuming it later gives the same figures. Images of one class get no
    classifier.

    Raises:
        RunError: the run's copy is not a classifier of these images.
    """
    images = pixels(drawn(dataset.test, generated).images)
    say(f"    features of {len(images):,} test images and the distances between them")
    random_network = RandomConvolutions().to(run.device)
    random_space = FeatureSpace.of(random_network(images))
    if len(dataset.classes) == 1:
        say(
            "    the images have one class, so there is no classifier: FID, density and coverage are those in the space"
        )
        say("    of random convolutions, and the samples' classes and confidence are not measured")
        return SampleJudge(None, None, random_network.digest, None, random_network, random_space)
    network = Classifier(len(dataset.classes)).to(run.device)
    weights = run.remembered_weights("classifier", lambda: _cached_or_trained(run, dataset, network))
    try:
        network.load_state_dict(weights)
    except RuntimeError:
        path = run.checkpoints / "classifier.safetensors"
        raise RunError(f"{path}: not a classifier of these images; delete it to have it made again") from None
    network.requires_grad_(False).eval()
    digest = hashlib.sha256(save(weights)).hexdigest()[:16]
    test = dataset.test
    test_accuracy = accuracy(network, lambda rows: pixels(test.images[rows]), test.labels)
    with torch.inference_mode():
        real = in_batches(network.features, images)
    return SampleJudge(network, test_accuracy, digest, FeatureSpace.of(real), random_network, random_space)


def drawn(split: Split, count: int) -> Split:
    """Returns `count` images of a split, drawn at random, the same ones every time; all if there are not more.

    Not the first ones: MNIST's first 5,000 test images are cleaner and easier than the last 5,000.
    """
    if count >= len(split):
        return split
    order = torch.randperm(len(split), generator=random_stream(0, "images that samples are compared with"))
    chosen = order[:count].sort().values.to(split.images.device)
    return Split(split.images[chosen], split.labels[chosen])


def reference_rows(judge: SampleJudge, dataset: Dataset, generated: int) -> dict[str, dict[str, Any]]:
    """Returns the rows that all others compare with: real training images (ceiling), blurred digits, noise (floor).

    They depend only on the judge, the images and the code of the evaluation, and are cached under their hashes.
    """
    files = (metrics.__file__, features.__file__, __file__)
    code = hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()[:16]
    of_data = hashlib.sha256(json.dumps(dataset.record()).encode()).hexdigest()[:16]
    path = platformdirs.user_cache_path("trilab") / f"reference-{judge.digest}-{of_data}-{code}-{generated}.pt"
    keys = [*MEASURES, "classes"] if judge.network is not None else UNCLASSIFIED
    with contextlib.suppress(RunError, TypeError, KeyError):  # missing or damaged: computed anew
        cached = load_state(path)
        return {
            name: {key: cached[name][key] for key in keys}
            for name in ("real training images", "blurred training images", "uniform noise")
        }
    train = pixels(dataset.train.images[:generated])
    noise = torch.rand(train.shape, generator=random_stream(0, "noise images")).to(train.device)
    sets = {"real training images": train, "blurred training images": blurred(train), "uniform noise": noise}
    rows = judge.evaluate_all(sets, "comparing real images, blur and noise")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_state(path, rows)
    return rows


def _cached_or_trained(run: Run, dataset: Dataset, network: Classifier) -> dict[str, Tensor]:
    """Returns the classifier's weights from the user's cache folder, where this file's content is part of the key."""
    made_of = json.dumps([dataset.record(), run.device.type]).encode() + Path(__file__).read_bytes()
    key = hashlib.sha256(made_of).hexdigest()[:16]
    path = platformdirs.user_cache_path("trilab") / f"classifier-{key}.pt"
    with contextlib.suppress(RunError, RuntimeError):  # missing or damaged: trained anew
        cached = load_state(path)
        network.load_state_dict(cached)
        return cached
    torch.manual_seed(stream_seed(0, "classifier weights"))  # one classifier for all seeds of all models
    network.load_state_dict(Classifier(len(dataset.classes)).state_dict())
    say("    training the classifier that evaluates samples (once per machine)")
    weights = _train(run, dataset, network)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_state(path, weights)
    except OSError as error:
        print(f"the classifier cannot be cached in {path.parent} ({error.strerror}); continuing", file=sys.stderr)
    return weights


def _train(run: Run, dataset: Dataset, network: Classifier) -> dict[str, Tensor]:
    train = dataset.train
    generator = random_stream(0, "classifier batches", run.device)
    augment = Augmentation(train.images, translate=2, flip=False, generator=generator)

    def batch_loss(
        model: nn.Module, indices: Tensor, epoch: float, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits = model(pixels(augment(indices, epoch, generator)))
        return F.cross_entropy(logits, train.labels[indices]), {}

    batch_size = min(BATCH_SIZE, max(16, len(train) // 50))  # enough steps also with the few stand-in digits
    optimizer = Adam((network.parameters(), LEARNING_RATE))
    recipe = Recipe(EPOCHS, batch_size, triangular(0.2), "auto")  # the same whatever the models' precision is
    with one_thread():  # sums in the same order, so the same weights, however many threads a run has
        trained = fit(run, "classifier", network, optimizer, batch_loss, len(train), recipe, generator)
    return trained.state_dict()
