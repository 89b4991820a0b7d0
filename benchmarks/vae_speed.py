"""VAE training speed beside PyTorch's example loop and Pythae: ratios within one run, and peak memory.

`python benchmarks/vae_speed.py` (`pip install -e '.[bench]'` brings Pythae). Both sides of a row train the same layers
with Adam, on the same MNIST images, with the same batch and likelihood (grey values in the cross-entropy, which all
peers use). Every side is its own process, so that its memory can be measured. The sides take turns, one round each,
and the rates are medians over the rounds. A round is one pass over the row's images through the side's own training
loop: `common.training.fit` here, `BaseTrainer.train_step` in Pythae, the plain loop of pytorch/examples/vae.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from turns import Side, serve

from common import data
from common.cli import RunSettings
from common.device import peak_memory, resolve_precision, set_up, synchronize
from common.experiment import Run
from common.fast.adam import Adam
from common.training import Recipe, fit, triangular
from vae import models, objective
from vae.settings import Settings as VaeSettings

Network = Literal["example", "pythae-mlp", "pythae-conv"]
ROWS: dict[str, tuple[Network, str, int]] = {  # row → network, other side, images a round
    "784-400-20, DataLoader + ToTensor": ("example", "plain", 54_000),
    "784-400-20, the same with 2 workers": ("example", "plain-workers", 54_000),
    "Pythae, its MLP 784-512-16": ("pythae-mlp", "pythae", 54_000),
    "Pythae, its convolutional MNIST network": ("pythae-conv", "pythae", 1_280),
}
LATENT = {"example": 20, "pythae-mlp": 16, "pythae-conv": 16}


@dataclasses.dataclass(frozen=True)
class Settings:
    """VAE training speed beside PyTorch's example and Pythae."""

    rounds: int = 5
    """Rounds; in each one, both sides of a row run in turn."""
    batch_size: int = 128
    """Images a step, on both sides."""
    device: str = "auto"
    """auto, cpu or cuda."""
    data_dir: Path | None = None
    """Folder with the datasets; none means the variable DATA_DIR, or else ./data."""
    output: Path | None = None
    """JSON file for the figures."""
    side: str | None = None
    """For the benchmark's own processes: ours, plain, plain-workers or pythae; none runs the whole comparison."""
    network: Network = "example"
    """For the benchmark's own processes: which network."""
    images: int = 54_000
    """For the benchmark's own processes: images a round."""


# -- our side ----------------------------------------------------------------------------------------------------------


def our_network(network: Network) -> models.VAE:
    """Returns the other side's layers in our VAE."""
    if network == "pythae-conv":
        return models.build("deep", LATENT[network], hidden=(), channels=0)
    hidden = (400,) if network == "example" else (512,)
    return models.build("fc", LATENT[network], hidden=hidden, channels=0)


def ours(settings: Settings, split: data.Split, device: torch.device, folder: Path) -> Callable[[], float]:
    """Returns a function that trains for one round with `fit` and returns images a second by the loop's own clock."""
    model = our_network(settings.network).to(device)
    prior = VaeSettings(prior="normal").prior_on(device)
    optimizer = Adam((model.parameters(), 1e-3))
    generator = torch.Generator(device).manual_seed(0)
    run = Run(RunSettings(results_dir=folder), "benchmark", "vae", device)
    recipe = Recipe(1, settings.batch_size, triangular(0.5), "auto")
    rounds = iter(range(1000))

    def batch_loss(
        network: nn.Module, indices: Tensor, epoch: float, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(network, models.VAE)
        images = objective.pixels(split.images.index_select(0, indices))
        reconstruction, kl = objective.training_terms(network, images, prior, generator)
        return reconstruction + kl, {"reconstruction": reconstruction, "kl": kl}

    def train() -> float:
        stage = f"round {next(rounds)}"
        fit(run, stage, model, optimizer, batch_loss, len(split), recipe, generator)
        optimizer.param_groups[0]["lr"] = 1e-3
        return run.history(stage)["images_per_second"][0]

    return train


# -- the other sides ---------------------------------------------------------------------------------------------------


class ExampleVAE(nn.Module):
    """The network of pytorch/examples/vae/main.py, as it is written there."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc21, self.fc22 = nn.Linear(784, 400), nn.Linear(400, 20), nn.Linear(400, 20)
        self.fc3, self.fc4 = nn.Linear(20, 400), nn.Linear(400, 784)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns pixel means, posterior means and log-variances for images `(B, 1, 28, 28)`."""
        hidden = F.relu(self.fc1(x.view(-1, 784)))
        mean, log_variance = self.fc21(hidden), self.fc22(hidden)
        deviation = torch.exp(0.5 * log_variance)
        code = mean + torch.randn_like(deviation) * deviation
        return torch.sigmoid(self.fc4(F.relu(self.fc3(code)))), mean, log_variance


def plain(settings: Settings, split: data.Split, device: torch.device, workers: int) -> Callable[[], float]:
    """Returns the round of the example: DataLoader over PIL images, ToTensor, binary cross-entropy of the means."""
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    class Images(Dataset[tuple[Tensor, int]]):
        """Like torchvision's MNIST: each row of a uint8 array becomes a PIL image and then a tensor."""

        def __init__(self) -> None:
            self.pixels, self.labels = split.images[:, 0].cpu().numpy(), split.labels.tolist()
            self.transform = transforms.ToTensor()

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            from PIL import Image

            return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]

    loader = DataLoader(
        Images(), settings.batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    model = ExampleVAE().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def train() -> float:
        start, total = time.perf_counter(), 0.0
        for x, _ in loader:
            x = x.to(device)
            optimizer.zero_grad()
            means, mean, log_variance = model(x)
            cross_entropy = F.binary_cross_entropy(means, x.view(-1, 784), reduction="sum")
            kl = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
            loss = cross_entropy + kl
            torch.autograd.backward(loss)
            total += loss.item()
            optimizer.step()
        synchronize(device)
        return len(split) / (time.perf_counter() - start)

    return train


def pythae(settings: Settings, split: data.Split, device: torch.device, folder: Path) -> Callable[[], float]:
    """Returns the round of Pythae's own trainer with its own network."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.nn.benchmarks.mnist import Decoder_Conv_AE_MNIST, Encoder_Conv_VAE_MNIST
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    logging.disable(logging.INFO)
    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENT[settings.network], reconstruction_loss="bce")
    if settings.network == "pythae-conv":
        model = VAE(config, encoder=Encoder_Conv_VAE_MNIST(config), decoder=Decoder_Conv_AE_MNIST(config))
    else:
        model = VAE(config)
    training_config = BaseTrainerConfig(
        output_dir=str(folder),
        per_device_train_batch_size=settings.batch_size,
        learning_rate=1e-3,
        no_cuda=device.type == "cpu",
    )
    dataset = BaseDataset(objective.pixels(split.images.cpu()), split.labels.cpu())
    trainer = BaseTrainer(model, dataset, training_config=training_config)
    trainer.prepare_training()

    def train() -> float:
        start = time.perf_counter()
        trainer.train_step(1)
        synchronize(device)
        return len(split) / (time.perf_counter() - start)

    return train


# -- the comparison ----------------------------------------------------------------------------------------------------


def serve_side(settings: Settings) -> None:
    """Runs one side; each of its rounds gives images a second and the peak memory."""
    device = set_up(settings.device, torch.get_num_threads())  # the other sides that start are no busy machine
    kept_on = device if settings.side == "ours" else torch.device("cpu")  # theirs come from a loader
    mnist = data.load("mnist", task_default="mnist", shape=(1, 28, 28), data_dir=settings.data_dir, device=kept_on)
    split = mnist.train.head(settings.images)
    if settings.side != "ours":
        torch.set_float32_matmul_precision("highest")  # torch's default, which the others do not change
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        match settings.side:
            case "ours":
                train = ours(settings, split, device, Path(folder))
            case "pythae":
                train = pythae(settings, split, device, Path(folder))
            case _:
                train = plain(settings, split, device, workers=2 if settings.side == "plain-workers" else 0)
        serve(lambda: {"rate": train(), "memory": peak_memory(device)})


def side_of(settings: Settings, side: str, network: Network, images: int) -> Side:
    """Returns the process of one side."""
    command = [sys.executable, __file__, "--side", side, "--network", network, "--images", str(images)]
    command += ["--batch-size", str(settings.batch_size), "--device", settings.device]
    if settings.data_dir is not None:
        command += ["--data-dir", str(settings.data_dir)]
    return Side(command, quiet=side == "ours")  # our progress bar


def main(settings: Settings) -> None:
    """Runs all comparisons, or one side when told so."""
    if settings.side is not None:
        serve_side(settings)
        return
    device = set_up(settings.device, torch.get_num_threads())
    precision = resolve_precision("auto", device)
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {device}, {threads} threads, batch {settings.batch_size}, ours in {precision}")
    results: dict[str, Any] = {"torch": torch.__version__, "device": str(device), "threads": threads}
    results |= {"machine": platform.processor() or platform.machine(), "precision": precision}
    for row, (network, other, images) in ROWS.items():
        sides = {side: side_of(settings, side, network, images) for side in ("ours", other)}
        rounds = [{name: side.round() for name, side in sides.items()} for _ in range(settings.rounds + 1)][1:]
        for side in sides.values():
            side.close()
        ratios = [figures["ours"]["rate"] / figures[other]["rate"] for figures in rounds]
        rates = {name: statistics.median(figures[name]["rate"] for figures in rounds) for name in sides}
        memory = {name: rounds[-1][name]["memory"] / 1e6 for name in sides}
        results[row] = {
            "their_images_per_second": rates[other],
            "our_images_per_second": rates["ours"],
            "ratio": statistics.median(ratios),
            **{"ratio_lowest": min(ratios), "ratio_highest": max(ratios)},
            **{"their_peak_megabytes": memory[other], "our_peak_megabytes": memory["ours"]},
        }
        print(
            f"{row:42} {rates[other]:8.0f} → {rates['ours']:8.0f} images/s   {statistics.median(ratios):.2f}× "
            f"({min(ratios):.2f}–{max(ratios):.2f})   peak memory {memory[other]:.0f} → {memory['ours']:.0f} MB",
            flush=True,
        )
    if settings.output is not None:
        settings.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Settings))
