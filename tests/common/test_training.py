"""The loop: plain SGD is what it does, resume is exact, the average is an average, NaN stops it."""

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
) -> nn.Module:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    return fit(run, "train", model, optimizer, batch_loss, len(X), recipe, generator, after_step=after_step)


def recipe(epochs: int = 4, ema_decay: float = 0.0) -> Recipe:
    return Recipe(epochs, 16, triangular(0.25), "float32", ema_decay)


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_equals_a_loop_written_out(tmp_path: Path) -> None:
    fitted = train(a_run(tmp_path), recipe())
    model, generator, step = network(), torch.Generator().manual_seed(1), 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(4):
        order = torch.randperm(50, generator=generator)
        for batch in (order[:16], order[16:32], order[32:48]):  # the two left over wait for another epoch
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
    with pytest.raises(
        RunError, match=r"loss of epoch 3 \(step 9\) is nan; the last good checkpoint is .*train.state.pt"
    ):
        train(run, recipe(), spoil)
    assert run.history("train")["step"] == [1, 2]


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
