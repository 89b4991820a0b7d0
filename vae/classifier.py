"""The classifier that evaluates samples: trained here, since no weights are downloaded.

`SampleJudge` is a trained classifier with its features of the real test images; it compares other images with these.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import sys
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
from common.files import load_weights, save_weights, write_atomically
from common.training import Recipe, accuracy, fit, triangular
from vae import metrics
from vae.metrics import Moments, blurred, density_and_coverage, frechet_distance, moments, neighbour_radii
from vae.objective import pixels

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
    """A trained classifier and its features of the real test images."""

    network: Classifier
    accuracy: float  # on the test images
    digest: str  # SHA-256 of the weights: FID, density and coverage compare only where it is the same
    real: Tensor  # features (N, 64)
    real_moments: Moments
    radii: Tensor  # (N,), see `neighbour_radii`

    @torch.inference_mode()
    def classify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns features `(N, 64)` and class probabilities `(N, classes)` of images `(N, 1, 28, 28)` in [0, 1]."""
        features = torch.cat([self.network.features(batch) for batch in images.split(500)])
        return features, self.network.head(torch.relu(features)).softmax(1)

    def evaluate(self, images: Tensor) -> dict[str, Any]:
        """Returns fid, density, coverage, confidence and classes of images `(N, 1, 28, 28)` in [0, 1].

        `confidence` is the mean probability of the likeliest class, `classes` the fraction of images in each class.
        """
        features, probabilities = self.classify(images)
        density, coverage = density_and_coverage(self.real, self.radii, features)
        counts = probabilities.argmax(1).bincount(minlength=probabilities.shape[1])
        return {
            "fid": frechet_distance(self.real_moments, moments(features)),
            "density": density,
            "coverage": coverage,
            "confidence": float(probabilities.max(1).values.mean()),
            "classes": [round(count / len(images), 4) for count in counts.tolist()],
        }


def trained_judge(run: Run, dataset: Dataset, generated: int) -> SampleJudge:
    """Returns the judge of `generated` images: its classifier is trained once per machine and dataset, then cached.

    The run keeps a copy of the weights, so that resuming it later gives the same figures.

    Raises:
        RunError: the run's copy is not a classifier of these images.
    """
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
        images = pixels(drawn(test, generated).images)
        real = torch.cat([network.features(batch) for batch in images.split(500)])
    return SampleJudge(network, test_accuracy, digest, real, moments(real), neighbour_radii(real))


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
    code = hashlib.sha256(Path(metrics.__file__).read_bytes() + Path(__file__).read_bytes()).hexdigest()[:16]
    path = platformdirs.user_cache_path("trilab") / f"reference-{judge.digest}-{code}-{generated}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # missing or damaged: computed anew
        cached = json.loads(path.read_text())
        return {
            name: {key: cached[name][key] for key in ("fid", "density", "coverage", "confidence", "classes")}
            for name in ("real training images", "blurred training images", "uniform noise")
        }
    train = pixels(dataset.train.images[:generated])
    noise = torch.rand(train.shape, generator=random_stream(0, "noise images")).to(train.device)
    rows = {
        "real training images": judge.evaluate(train),
        "blurred training images": judge.evaluate(blurred(train)),
        "uniform noise": judge.evaluate(noise),
    }
    with contextlib.suppress(OSError):
        write_atomically(path, json.dumps(rows).encode())
    return rows


def _cached_or_trained(run: Run, dataset: Dataset, network: Classifier) -> dict[str, Tensor]:
    """Returns the classifier's weights from the user's cache folder, where this file's content is part of the key."""
    made_of = json.dumps([dataset.record(), run.device.type]).encode() + Path(__file__).read_bytes()
    key = hashlib.sha256(made_of).hexdigest()[:16]
    path = platformdirs.user_cache_path("trilab") / f"classifier-{key}.safetensors"
    with contextlib.suppress(RunError, RuntimeError):  # missing or damaged: trained anew
        cached = load_weights(path)
        network.load_state_dict(cached)
        return cached
    torch.manual_seed(stream_seed(0, "classifier weights"))  # one classifier for all seeds of all models
    network.load_state_dict(Classifier(len(dataset.classes)).state_dict())
    say("    training the classifier that evaluates samples (once per machine)")
    weights = _train(run, dataset, network)
    try:
        save_weights(path, weights)
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
