"""The loop: plain SGD is what it does, resume is exact, the average is an average, NaN stops it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.cli import RunSettings
from common.errors import RunError
from common.experiment import Run
from common.fast.adam import Adam
from common.files import load_state, save_state
from common.training import BatchLoss, Recipe, TrainState, accuracy, fit, triangular

X = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
Y = (X @ torch.tensor([1.0, -2.0, 0.5, 0.0]) > 0).long()


def loss(model: nn.Module, indices: Tensor, epoch: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    noise = 0.01 * torch.randn(len(indices), 4, generator=generator)  # resume must bring the noise back too
    return F.cross_entropy(model(X[indices] + noise), Y[indices]), {}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def a_run(folder: Path, name: str = "r") -> Run:
    return Run(RunSettings(results_dir=folder, run_name=name), "test", name, torch.device("cpu"))


def train(
    run: Run,
    recipe: Recipe,
    batch_loss: BatchLoss = loss,
    after_step: Callable[[TrainState], None] = lambda state: None,
    first_step: int = 0,
) -> nn.Module:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    more = {"after_step": after_step, "first_step": first_step}
    return fit(run, "train", model, optimizer, batch_loss, len(X), recipe, generator, **more)  # type: ignore[arg-type]


def recipe(epochs: int = 4, ema_decay: float = 0.0) -> Recipe:
    return Recipe(epochs, 16, triangular(0.25), "float32", ema_decay)


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("first_step", [0, 4])
def test_equals_a_loop_written_out(tmp_path: Path, first_step: int) -> None:
    """From the first step on, or from one in the middle of the second epoch."""
    fitted = train(a_run(tmp_path), recipe(), first_step=first_step)
    model, generator, step = network(), torch.Generator().manual_seed(1), first_step
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(first_step // 3, 4):
        order = torch.randperm(50, generator=generator)
        for batch in (order[:16], order[16:32], order[32:48])[step % 3 :]:  # the two left over wait for another epoch
            done = step / 12
            optimizer.param_groups[0]["lr"] = 0.1 * (done / 0.25 if done < 0.25 else 1 - (done - 0.25) / 0.75)
            optimizer.zero_grad()
            loss(model, batch, epoch, generator)[0].backward()
            optimizer.step()
            step += 1
    assert same(fitted, model)


def test_goes_on_with_our_adam_and_refuses_a_checkpoint_of_another_optimiser(tmp_path: Path) -> None:
    def go(run: Run, adam: bool) -> nn.Module:
        model, generator = network(), torch.Generator().manual_seed(1)
        ours, theirs = Adam((model.parameters(), 0.01)), torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
        optimizer = ours if adam else theirs
        return fit(run, "train", model, optimizer, loss, len(X), recipe(), generator)

    unbroken = go(a_run(tmp_path, "unbroken"), adam=True)
    assert same(go(a_run(tmp_path, "torch"), adam=False), unbroken)
    broken = a_run(tmp_path, "broken")
    checkpoint = broken.checkpoints / "train.state.pt"
    saved = TrainState.save

    def save_once(state: TrainState, path: Path) -> None:
        saved(state, path)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainState, "save", save_once)
        with pytest.raises(Killed):
            go(broken, adam=True)
    state = load_state(checkpoint)
    assert state["step"] == 3
    again = Run(RunSettings(resume=broken.path), "test", "", torch.device("cpu"))
    assert same(go(again, adam=True), unbroken)
    save_state(checkpoint, state | {"optimizer": {"state": {}, "param_groups": []}})
    with pytest.raises(RunError, match=r"train\.state\.pt: not a checkpoint of this training"):
        go(Run(RunSettings(resume=broken.path), "test", "", torch.device("cpu")), adam=True)


class Killed(Exception):
    pass


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("stop_at", [2, 4, 11])  # in the first epoch, in the second, in the last
def test_resume_gives_the_unbroken_weights_and_history(tmp_path: Path, stop_at: int, ema_decay: float) -> None:
    unbroken_run = a_run(tmp_path, "unbroken")
    unbroken = train(unbroken_run, recipe(ema_decay=ema_decay))

    def stop(state: TrainState) -> None:
        if state.step == stop_at:
            raise Killed

    broken = a_run(tmp_path, "broken")
    with pytest.raises(Killed):
        train(broken, recipe(ema_decay=ema_decay), after_step=stop)
    again = Run(RunSettings(resume=broken.path), "test", "", torch.device("cpu"))
    assert same(train(again, recipe(ema_decay=ema_decay)), unbroken)
    for key in ("step", "loss/train", "learning_rate"):
        assert again.history("train")[key] == unbroken_run.history("train")[key]


def test_carried_tensors_are_restored(tmp_path: Path) -> None:
    run, carried = a_run(tmp_path), {"count": torch.zeros(1)}

    def count(state: TrainState) -> None:
        state.carried["count"] += 1
        if state.step == 7 and run.settings.resume is None:
            raise Killed

    def go(run: Run) -> None:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        fit(run, "t", model, optimizer, loss, 50, recipe(), torch.Generator(), after_step=count, carried=carried)

    with pytest.raises(Killed):
        go(run)
    carried["count"].fill_(99)
    run = Run(RunSettings(resume=run.path), "test", "", torch.device("cpu"))
    go(run)
    assert carried["count"].item() == 12


def test_average_is_the_mean_of_the_weights_when_decay_is_one(tmp_path: Path) -> None:
    """With a decay close to 1 the early rule, weight 1/(step + 1), makes it the plain mean of all weights so far."""
    seen = [network()[0].weight.detach().clone()]

    def look(state: TrainState) -> None:
        seen.append(state.model[0].weight.detach().clone())  # type: ignore[index]

    average = train(a_run(tmp_path), recipe(ema_decay=1 - 1e-9), after_step=look)
    torch.testing.assert_close(average[0].weight, torch.stack(seen).mean(0))  # type: ignore[index]


def test_nan_stops_with_the_step_and_the_last_good_checkpoint(tmp_path: Path) -> None:
    def spoil(
        model: nn.Module, indices: Tensor, epoch: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        value, measured = loss(model, indices, epoch, generator)
        return value * (float("nan") if epoch == 2 else 1.0), measured

    run = a_run(tmp_path)
    told = r"train, epoch 3: the first number that is not finite, loss of step 7, is nan; the last good checkpoint is "
    with pytest.raises(RunError, match=told + ".*train.state.pt"):
        train(run, recipe(), spoil)
    assert run.history("train")["step"] == [1, 2]


@pytest.mark.parametrize(
    ("spoilt", "told"),
    [
        ("kl", "not finite, kl of step 5, is inf"),
        ("both", "not finite, reconstruction and kl of step 5, is inf"),
        ("gradient", "the gradient of step 5 was too large or not finite, so every term of step 6 is not; the first"),
    ],
)
def test_the_term_that_failed_first_is_named(tmp_path: Path, spoilt: str, told: str) -> None:
    """Terms of a VAE's loss; a gradient that is not finite shows in all terms of the next step."""
    step = 0

    def spoil(
        model: nn.Module, indices: Tensor, epoch: float, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal step
        step += 1
        reconstruction = loss(model, indices, epoch, generator)[0]
        kl = model[0].weight.square().mean()  # type: ignore[index]
        infinite = torch.tensor(float("inf")) if step == 5 else torch.tensor(0.0)
        if spoilt == "gradient" and step == 5:
            model[0].weight.register_hook(lambda gradient: gradient * float("nan"))  # type: ignore[index]
        kl = kl + (infinite if spoilt != "gradient" else 0)
        value = reconstruction + (infinite if spoilt == "both" else 0)
        accuracy = torch.tensor(0.5) * (model[0].weight.sum() if spoilt == "gradient" else 1)  # type: ignore[index]
        return value + kl, {"reconstruction": value, "kl": kl, "accuracy": accuracy}

    with pytest.raises(RunError, match=told):
        train(a_run(tmp_path), recipe(), spoil)


def test_a_training_is_stopped_within_the_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.training.CHECK_EVERY", 2)
    steps = 0

    def spoil(
        model: nn.Module, indices: Tensor, epoch: float, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal steps
        steps += 1
        return loss(model, indices, epoch, generator)[0] * float("nan"), {}

    with pytest.raises(
        RunError, match="epoch 1: the first number that is not finite, loss of step 1, is nan; no check"
    ):
        train(a_run(tmp_path), recipe(), spoil)
    assert steps == 2


@pytest.mark.parametrize(
    ("examples", "batch_size", "with_last", "without"), [(50, 16, 4, 3), (49, 16, 3, 3), (48, 16, 3, 3), (5, 16, 1, 1)]
)
def test_what_is_left_over_is_a_batch_if_asked_for(
    examples: int, batch_size: int, with_last: int, without: int
) -> None:
    """Not a single example: batch norm cannot take it."""
    assert Recipe(1, batch_size, triangular(0.5), "float32", last_batch=True).steps(examples) == with_last
    assert Recipe(1, batch_size, triangular(0.5), "float32").steps(examples) == without


def test_an_epoch_with_its_last_batch_sees_every_example_and_weighs_them_alike(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def watch(
        model: nn.Module, indices: Tensor, epoch: float, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        seen.append(indices)
        return loss(model, indices, epoch, generator)[0], {"index": indices.float().mean()}

    run = a_run(tmp_path)
    train(run, dataclasses.replace(recipe(), last_batch=True), watch)
    assert [len(batch) for batch in seen] == [16, 16, 16, 2] * 4
    for epoch in range(4):
        assert torch.equal(torch.cat(seen[4 * epoch : 4 * epoch + 4]).sort().values, torch.arange(50))
    assert run.history("train")["index/train"] == pytest.approx([24.5] * 4)  # not a mean of batch means


def test_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    train(run, recipe(epochs=1))
    path = run.checkpoints / "train.state.pt"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(RunError, match=r"train\.state\.pt"):
        train(run, recipe())


def test_accuracy_counts_images_not_batches() -> None:
    """Ten images in batches of four: a mean of batch means would weigh the last two double."""

    class Echo(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.one_hot(x, 2)

    predictions, labels = torch.tensor([0] * 8 + [1] * 2), torch.zeros(10, dtype=torch.long)
    model = Echo().train()
    assert accuracy(model, lambda rows: predictions[rows], labels, batch_size=4) == 0.8
    assert model.training
