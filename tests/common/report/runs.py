"""Small finished runs of the three tasks, as their scripts leave them, for the tests of the report page."""

import csv
import json
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

CIFAR10 = {"name": "cifar10", "source": "cifar-10-batches-py", "stand_in_for": None, "images": 60_000}
MNIST = {"name": "mnist", "source": "MNIST/raw", "stand_in_for": None, "images": 70_000}
OF_THE_MACHINE = {"device": "cpu", "torch": "2.14.1", "seconds": 75.5, "git_commit": "0123456789abcdef-dirty"}
NONE = [1091.2, 987.4, 790.9, 365.5, 352.8]
STACKED = [1231.3, 392.5, 1055.6, 671.5, 2659.0]


def write(
    folder: Path, settings: dict[str, Any], metrics: dict[str, Any], figures: tuple[str, ...] = (), history: Any = ()
) -> Path:
    """Writes a run folder and returns it."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    (folder / "metrics.json").write_text(json.dumps(metrics | OF_THE_MACHINE, indent=1))
    for number, name in enumerate(figures):
        (folder / "figures").mkdir(exist_ok=True)
        image = Image.linear_gradient("L").resize((220 + 10 * number, 160))
        Image.merge("RGB", [image, image.point(lambda grey: 255 - grey), image]).save(
            folder / "figures" / f"{name}.png"
        )
    with (folder / "history.csv").open("w") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in history for name in row)) or ["stage", "step"])
        writer.writeheader()
        writer.writerows(history)
    return folder


def pruning_run(folder: Path, figures: tuple[str, ...] = ("sensitivity", "layers"), **changes: Any) -> Path:
    """Writes a pruning run at the original report's sparsities; `changes` are of its settings or metrics."""
    settings = {
        **{"smoke_test": False, "seed": 0, "dataset": "auto", "data_dir": None, "run_name": folder.name},
        **{"epochs": 10, "finetune_epochs": 4, "label_smoothing": 0.2, "weight_decay": 5e-4, "learning_rate": 0.2},
        **{"allocation": "reference", "schedule": "one-shot", "gradual_fraction": 0.7, "dense_weights": None},
    }
    metrics = {
        **{"dataset": CIFAR10, "dense_accuracy": 0.8746, "pruned_accuracy": 0.8503, "finetuned_accuracy": 0.8765},
        **{"conv_weights_kept": 0.2297, "compression_ratio": 4.33, "theoretical_speedup": 3.19},
        **{"dense_bytes": 36_951_520, "sparse_bytes": 4_350_000, "layers": [{"name": "features.0", "sparsity": 0.1}]},
    }
    metrics |= {name: value for name, value in changes.items() if name in metrics}
    return write(folder, settings | {n: v for n, v in changes.items() if n not in metrics}, metrics, figures)


def rl_run(folder: Path, icm: str = "none", returns: list[float] = NONE) -> Path:
    """Writes a curiosity run of five seeds."""
    seeds = list(range(len(returns)))
    mean = sum(returns) / len(returns)
    settings = {
        **{"seed": 0, "env_id": "Hopper-v4", "reward": "dense", "num_seeds": len(returns), "env_steps": 100_000},
        **{"icm": icm, "eval_every": 5000, "eval_episodes": 10, "hidden": [256, 256], "forward_width": None},
    }
    metrics = {
        **{"dataset": {"name": "Hopper-v4", "source": "gymnasium", "images": 0}, "icm": icm, "env_id": "Hopper-v4"},
        **{"reward": "dense", "seeds": seeds, "env_steps": 100_000, "eval_returns": returns, "eval_return_mean": mean},
        **{"eval_return_interval": [mean - 300, mean + 300], "eval_return_iqm": mean - 10},
        **{"eval_return_iqm_interval": [mean - 400, mean + 400], "evaluations_averaged": 2},
        **{"agent_steps_per_second": 115.0, "curiosity_parameters": 0 if icm == "none" else 35_395},
    }
    history: list[dict[str, Any]] = [{"stage": "train", "step": 1000, "critic_loss": 0.5}]
    for step, share in ((5000, 0.1), (50_000, 0.5), (100_000, 1.0)):
        by_seed = {f"return/seed{seed}": share * value for seed, value in zip(seeds, returns, strict=True)}
        history.append({"stage": "eval", "step": step, "return": share * mean, **by_seed})
    return write(folder, settings, metrics, ("learning_curve", "training"), history)


def vae_run(folder: Path, **changes: Any) -> Path:
    """Writes a VAE's run; `changes` are of its settings."""
    settings = {"seed": 0, "dataset": "auto", "arch": "fc", "prior": "normal", "latent": 16, "beta": 1.0} | changes
    metrics = {
        **{"dataset": MNIST, "arch": settings["arch"], "prior": settings["prior"], "prior_mean": 0.0, "prior_std": 1.0},
        **{"latent": 16, "beta": settings["beta"], "capacity": None, "likelihood": "dynamic", "elbo": -93.43},
        **{"images_per_second": 18853.1, "kl": 22.97, "nll": 89.87, "nll_samples": 100, "fid": 319.2},
        **{"density": 0.434, "coverage": 0.4535, "classifier": {"accuracy": 0.9929, "weights_sha256": "773a938c"}},
        "quality": {"prior samples": {"fid": 319.2, "classes": [0.1, 0.9]}},
    }
    return write(folder, settings, metrics, ("samples_prior", "reconstructions"))


def vae_study(folder: Path) -> Path:
    """Writes a VAE study of five seeds: the β-VAE is worse, and another prior makes a difference but for the start."""
    vae, beta = {"arch": "conv", "prior": "gaussian12"}, {"arch": "conv", "prior": "gaussian12", "beta": 4}
    mapped = vae | {"initialisation": "mapped"}
    models = {"vae": vae, "beta": beta, "normal": {"arch": "conv", "prior": "normal"}, "mapped": mapped}
    claims = {
        "conv 16: β-VAE − VAE, N(1, 2²)": (["beta", "vae"], (318, 312, 325), (-17.72, -18.02, -17.48)),
        "conv 16: N(1, 2²) − N(0, 1)": (["vae", "normal"], (76, 49, 103), (-1.3, -1.9, -0.6)),
        "conv 16: the same, mapped start": (["mapped", "normal"], (-14, -37, 8), (0.08, -0.25, 0.34)),
    }
    figures = ("elbo", "nll", "reconstruction", "kl", "fid", "fid_mixture", "density", "coverage")
    metrics: dict[str, Any] = {
        "dataset": MNIST,
        "seeds": [0, 1, 2, 3, 4],
        "models": {name: {figure: [1.0, 2.0, 3.0, 4.0, 5.0] for figure in figures} for name in models},
        "claims": {
            claim: {"fid": interval(*fid), **dict.fromkeys(("elbo", "nll", "fid_mixture", "coverage"), interval(*elbo))}
            for claim, (_, fid, elbo) in claims.items()
        },
    }
    settings = {
        "seed": 0,
        "seeds": 5,
        "models": models,
        "claims": {claim: pair for claim, (pair, *_) in claims.items()},
    }
    return write(folder, settings, metrics, ("samples", "claims"))


def interval(estimate: float, low: float, high: float) -> dict[str, float]:
    return {"estimate": estimate, "low": low, "high": high, "values": 5}
