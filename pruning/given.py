"""A trained VGG11 that somebody else saved, for `--dense-weights`: read, and checked tensor by tensor."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import RunError
from common.files import load_weights
from pruning.masks import Masks
from pruning.sparse_file import load_sparse
from pruning.vgg import CLASSES, VGG11, full_widths, widths_of

FEW_ZEROS = 0.01  # share of exact zeros up to which a network without masks is dense: 6e-5 after one epoch on digits


def read_network(
    path: Path,
    tell: Callable[[str], None] = lambda line: None,
    classes: int = CLASSES,
    any_widths: bool = False,
) -> dict[str, Tensor]:
    """Returns the float32 state dict of the VGG11 with this many classes in a file, on the CPU.

    It has the full widths, or with `any_widths` those of the file.

    `.pt` and `.pth` are state dicts that torch saved, `.sparse` is a file of this project, all others are safetensors.
    Names may begin with `module.` (DataParallel), and a weight may be a pair `weight_orig` and `weight_mask`
    (torch.nn.utils.prune). `tell` gets one line if another precision was converted.

    Raises:
        RunError: the file cannot be read, or a tensor is missing, unknown, of another shape or not finite.
    """
    weights = _masked(_without_prefix(_tensors(path)), path)
    network = f"{path}: not a VGG11 with {classes} classes"
    expected = _expected(classes, widths_of(weights) if any_widths else None)
    for name, like in expected.items():
        if name.endswith(
            "num_batches_tracked"
        ):  # a counter that old files lack, others convert, and nothing here reads
            weights[name] = weights.get(name, torch.zeros(())).to(like.dtype)
    for name, like in expected.items():
        if name not in weights:
            raise RunError(f"{network}: {name} is missing")
        if weights[name].shape != like.shape:
            raise RunError(f"{network}: {name} is {_size(weights[name])} and should be {_size(like)}")
        if weights[name].is_floating_point() != like.is_floating_point():
            raise RunError(f"{network}: {name} holds {_type(weights[name])} and should hold {_type(like)}")
    if unknown := next((name for name in weights if name not in expected), None):
        raise RunError(f"{network}: it has no tensor {unknown}")
    converted = dict.fromkeys(_type(t) for t in weights.values() if t.is_floating_point() and t.dtype != torch.float32)
    if converted:
        tell(f"--dense-weights {path}: {' and '.join(converted)} converted to float32")
    result = {name: weights[name].to(like.dtype) for name, like in expected.items()}
    for name, tensor in result.items():
        if not tensor.isfinite().all():
            raise RunError(f"{path}: {name} holds values that are not finite numbers")
        if name.endswith("running_var") and (tensor < 0).any():
            raise RunError(f"{path}: {name} holds negative variances")
    return result


def read_masks(path: Path, classes: int = CLASSES) -> Masks | None:
    """Returns which convolution weights the network in a file keeps; None if it is dense.

    A sparse file has its masks, and so has a state dict of torch.nn.utils.prune. In any other file exact zeros count,
    if they are more than 1 % of the convolution weights: training leaves hardly one of a dense network at exactly zero.
    The zeros of a filter that still is the identity, as before any training, do not count.
    """
    weights = read_network(path, classes=classes)
    kept = {
        name.removesuffix(".weight"): (tensor != 0) | _is_identity(tensor)
        for name, tensor in weights.items()
        if tensor.dim() == 4
    }
    if path.suffix == ".sparse":
        stored = load_sparse(path).masks
    else:
        tensors = _without_prefix(_tensors(path)).items()
        stored = {n.removesuffix(".weight_mask"): mask != 0 for n, mask in tensors if n.endswith(".weight_mask")}
    if stored:
        kept = {name: stored.get(name, torch.ones_like(mask)) for name, mask in kept.items()}
    dropped = sum(int((~mask).count_nonzero()) for mask in kept.values())
    few = 0 if stored else FEW_ZEROS * sum(mask.numel() for mask in kept.values())
    return kept if dropped > few else None


def _is_identity(weight: Tensor) -> Tensor:
    """Returns which filters of a weight `(out, in, 3, 3)` copy their input channel, as bools `(out, 1, 1, 1)`."""
    identity = torch.zeros_like(weight)
    nn.init.dirac_(identity[: weight.shape[1]])
    copies = (weight == identity).flatten(1).all(1) & (identity != 0).flatten(1).any(1)
    return copies.view(-1, 1, 1, 1)


def _expected(classes: int, widths: tuple[int, ...] | None) -> dict[str, Tensor]:
    """Returns a state dict with the names, shapes and types; of the full widths if these cannot be a network's."""
    known = widths is not None and len(widths) == len(full_widths()) and min(widths) > 0
    with torch.device("meta"):
        return VGG11(classes, "default", widths if known else None).state_dict()


def _tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".sparse":
        return load_sparse(path).weights
    if path.suffix not in (".pt", ".pth"):
        return load_weights(path)
    _require_uncompressed(path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}") from None
    except (RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, pickle.UnpicklingError):
        raise RunError(f"{path}: damaged, or not a state dict: only tensors are read from it, no objects") from None
    except zipfile.BadZipFile:
        raise RunError(f"{path}: damaged") from None
    if not isinstance(content, dict):
        raise RunError(f"{path}: not a state dict but a {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(value, Tensor) or not isinstance(name, str):
            raise RunError(f"{path}: not a state dict: {name} is no tensor but a {type(value).__name__}")
    return {name: value.detach() for name, value in content.items()}


def _require_uncompressed(path: Path) -> None:
    """Raises RunError for a file whose parts unpack to more than they take, which torch never writes: a "zip bomb"."""
    if not zipfile.is_zipfile(path):  # as torch wrote until 2020
        return
    try:
        with zipfile.ZipFile(path) as file:
            packed = [info.filename for info in file.infolist() if info.compress_type != zipfile.ZIP_STORED]
            sizes = sum(info.file_size for info in file.infolist())
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise RunError(f"{path}: damaged ({error})") from None
    if packed or sizes > path.stat().st_size:
        raise RunError(f"{path}: its parts are compressed, as torch does not write them: refused")


def _without_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    wrapped = all(name.startswith("module.") for name in weights)
    return {name.removeprefix("module."): tensor for name, tensor in weights.items()} if wrapped else weights


def _masked(weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Returns the weights with each pair `X_orig`, `X_mask` replaced by their product `X`."""
    result = dict(weights)
    for name in weights:
        if name.endswith("_orig"):
            base = name.removesuffix("_orig")
            mask = result.pop(f"{base}_mask", None)
            if mask is None or mask.shape != weights[name].shape:
                raise RunError(f"{path}: {name} has no {base}_mask of its shape")
            result[base] = result.pop(name) * mask.to(weights[name].dtype)
    return result


def _size(tensor: Tensor) -> str:
    return " × ".join(map(str, tensor.shape)) or "a single number"


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
