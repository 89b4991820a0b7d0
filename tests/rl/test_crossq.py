"""CrossQ: batch renormalisation against the paper's formula and torch's batch norm; joint pass, lockstep, resume."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common import cli
from common.files import load_weights
from rl import load
from rl.compiled import FEW
from rl.crossq import D_MAX, EPSILON, MOMENTUM, R_MAX, Norm, RenormalisedMLP, batch_renorm, renormalised_perceptron
from rl.networks import StackedMLP
from rl.replay import Batch
from rl.sac import SAC
from rl.settings import Settings
from rl.streams import Noise
from rl.train_sac_icm import main
from tests.rl.runs import QUICK, metrics_of, rows_of, stopped_at_the_first_checkpoint
from tests.rl.test_sac import BATCH, batch_and_noise, sac
from tests.rl.test_train import Refused

CROSSQ: dict[str, Any] = {"critic": "crossq", "critic_hidden": (10, 14), "policy_delay": 3, "adam_beta1": 0.5}


def network(agents: int, warm_up: int = 0, sizes: Sequence[int] = (4, 6, 5, 2)) -> RenormalisedMLP:
    """With scales, shifts and running statistics that are not those of the start."""
    made = RenormalisedMLP(sizes, [torch.Generator().manual_seed(k) for k in range(agents)], warm_up=warm_up)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (*made.scales, *made.shifts):
            parameter += 0.3 * torch.randn(parameter.shape, generator=g)
        for norm in made.norms():
            norm.mean.copy_(0.5 * torch.randn(norm.mean.shape, generator=g))
            norm.variance.copy_(0.2 + torch.rand(norm.variance.shape, generator=g))
    return made


def norm_of(features: int, warm: bool, mean: float = 0.0, variance: float = 1.0) -> Norm:
    one = torch.ones(1, 1, features)
    return Norm(one * 1.5, one * 0.25, one * mean, one * variance, torch.tensor([[[warm]]]))


@pytest.mark.parametrize("far", [0.0, 40.0])
def test_renormalised_as_the_papers_algorithm_says(far: float) -> None:
    """Number by number in double precision; far from the running mean the correction d is clipped, as is r."""
    x = (torch.randn(1, 20, 3) * torch.tensor([0.01, 1.0, 30.0]) + far).double()
    norm = norm_of(3, warm=True, mean=0.5, variance=2.0)
    ours = batch_renorm(x, x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True), norm)
    clipped = 0
    for j in range(3):
        column = x[0, :, j].tolist()
        mean = sum(column) / 20
        deviation = (sum((value - mean) ** 2 for value in column) / 20 + EPSILON) ** 0.5
        running = (2.0 + EPSILON) ** 0.5
        r, d = deviation / running, (mean - 0.5) / running
        clipped += not 1 / R_MAX < r < R_MAX
        clipped += abs(d) > D_MAX
        r, d = min(max(r, 1 / R_MAX), R_MAX), min(max(d, -D_MAX), D_MAX)
        expected = [1.5 * ((value - mean) / deviation * r + d) + 0.25 for value in column]
        torch.testing.assert_close(ours[0, :, j], torch.tensor(expected).double(), rtol=1e-6, atol=1e-6)
    assert clipped == (5 if far else 2)


def test_before_it_is_warm_it_is_torchs_batch_norm() -> None:
    """r = 1 and d = 0: the same outputs, and the same gradients through the batch's statistics."""
    torchs = nn.BatchNorm1d(3, eps=EPSILON, momentum=1 - MOMENTUM)
    torchs.weight.data.fill_(1.5)
    torchs.bias.data.fill_(0.25)
    x, weights = (torch.randn(20, 3) * 2 + 1).requires_grad_(), torch.randn(20, 3)
    mean, variance = x.mean(0)[None, None], x.var(0, correction=0)[None, None]
    norm = norm_of(3, warm=False, mean=9.0, variance=5.0)
    ours, theirs = batch_renorm(x[None], mean, variance, norm)[0], torchs(x)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_with_the_batch_s_own_statistics_as_the_running_ones_the_network_acts_as_it_learns() -> None:
    """Then r = 1 and d = 0, and the weights of the acting perceptron, with the running ones in them, say the same."""
    made, x = network(2), torch.randn(2, 64, 4)
    with torch.no_grad():
        for _ in range(3):  # a layer's statistics are right once those before it are
            _, statistics = renormalised_perceptron(x, StackedMLP.layers(made), made.norms(), torch.float32)
            for norm, (mean, variance) in zip(made.norms(), statistics, strict=True):
                norm.mean.copy_(mean)
                norm.variance.copy_(variance)
        torch.testing.assert_close(made(x), made.learn(x), rtol=1e-4, atol=1e-5)


def test_the_running_statistics_follow_the_batches() -> None:
    made, x = network(2, warm_up=2), torch.randn(2, 30, 4)
    before = made.norms()[0].mean.clone(), made.norms()[0].variance.clone()
    assert not made.norms()[0].warm.any()
    made.learn(x)
    norm = made.norms()[0]
    torch.testing.assert_close(norm.mean, 0.99 * before[0] + 0.01 * x.mean(1, keepdim=True))
    torch.testing.assert_close(norm.variance, 0.99 * before[1] + 0.01 * x.var(1, correction=0, keepdim=True))
    made(x)
    assert made.ages.tolist() == [[[1.0]], [[1.0]]]  # a batch that is not learned from counts for nothing
    made.learn(x)
    assert made.norms()[0].warm.all()


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("warm_up", [0, 100])
@pytest.mark.parametrize("through_x", [False, True])
@pytest.mark.parametrize("sizes", [[4, 3], [4, 6, 5, 2], [4, 6, 1], [4, 6, 7, 5, FEW + 1]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fast_twin_has_the_value_and_the_gradient_of_the_plain_formula(
    warm_up: int, through_x: bool, sizes: list[int], dtype: torch.dtype
) -> None:
    made = network(3, warm_up, sizes)
    x = (torch.randn(3, 40, 4) * 2 + 3).requires_grad_(through_x)
    toward = torch.randn(3, 40, sizes[-1])
    layers, norms = StackedMLP.layers(made), made.norms()
    wanted = [*made.parameters(), *([x] if through_x else [])]
    results = []
    plain = renormalised_perceptron.__wrapped__  # type: ignore[attr-defined]
    for function, hidden_dtype in ((plain, torch.float32), (renormalised_perceptron, dtype)):
        outputs, statistics = function(x, layers, norms, hidden_dtype)
        gradients = torch.autograd.grad((outputs * toward).sum(), wanted)
        results.append([outputs.detach(), *(tensor for pair in statistics for tensor in pair), *gradients])
    for theirs, ours in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype == torch.float32
        if dtype == torch.float32:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
        else:
            assert (ours - theirs).norm() <= 0.1 * theirs.norm()


def test_the_values_of_a_joint_pass_are_those_of_one_batch_of_both() -> None:
    """By torch's own layers, one critic at a time; the values of (s′, a′) carry no gradient."""
    agents = sac(range(2), **CROSSQ)
    batch, noise = batch_and_noise(2, 0)
    stack = agents.critic.network
    assert isinstance(stack, RenormalisedMLP)
    for scale in stack.scales:
        scale.data += 0.1 * torch.randn_like(scale)
    parts = batch.observation, batch.action, batch.next_observation, noise.next_action.tanh()
    (values,), (next_values,) = agents.critic.learn_jointly(*parts)
    assert values.shape == next_values.shape == (2, 2, BATCH)
    assert values.requires_grad
    assert not next_values.requires_grad
    for copy in range(2):
        for k in range(2):
            x = torch.cat([torch.cat([parts[0][k], parts[1][k]], 1), torch.cat([parts[2][k], parts[3][k]], 1)])
            for layer, (weight, bias) in enumerate(zip(stack.weights, stack.biases, strict=True)):
                n = 2 * copy + k
                scale, shift = stack.scales[layer][n, 0], stack.shifts[layer][n, 0]
                x = nn.functional.batch_norm(x, None, None, scale, shift, training=True, eps=EPSILON)
                x = x @ weight[n] + bias[n, 0]
                x = x.relu() if layer < 2 else x[:, 0]
            torch.testing.assert_close(values[copy, k], x[:BATCH], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(next_values[copy, k], x[BATCH:], rtol=1e-4, atol=1e-4)


def test_there_are_no_target_critics_and_the_target_is_of_the_joint_pass() -> None:
    agents = sac(range(2), **CROSSQ)
    assert not [name for name in agents.state_dict() if name.startswith("target")]
    assert agents.critic_optimizer.betas == agents.actor_optimizer.betas == (0.5, 0.999)
    batch, noise = batch_and_noise(2, 0)
    twin = sac(range(2), **CROSSQ)
    with torch.no_grad():
        action, log_probability = twin.actor(batch.following, noise.next_action)
        parts = batch.observation, batch.action, batch.following, action
        (values,), (next_values,) = twin.critic.learn_jointly(*parts)
        target = batch.reward + 0.99 * (1 - batch.terminated) * (next_values.amin(0) - log_probability)  # α = 1
        expected = 0.5 * (values - target).square().mean(-1).sum(0)
    torch.testing.assert_close(agents.update_critics(batch, noise)["critic_loss"], expected, rtol=1e-4, atol=1e-4)
    for name, tensor in agents.state_dict().items():
        if name.startswith("actor."):
            assert torch.equal(tensor, twin.state_dict()[name]), name  # acting for a target moves no statistics


@pytest.mark.parametrize("warm_up", [0, 100_000])
def test_an_agent_among_three_is_the_agent_alone(warm_up: int) -> None:
    chosen = {**CROSSQ, "renorm_warm_up": warm_up, "learning_rate": 1e-3}
    together, alone = sac(range(3), **chosen), sac(range(1, 2), **chosen)
    for step in range(9):
        batch, noise = batch_and_noise(3, step)
        own = Batch(*(t[1:2] for t in batch)), Noise(*(t[1:2] for t in noise))
        for agents, given in ((together, (batch, noise)), (alone, own)):
            (agents.update if step % 3 == 2 else agents.update_critics)(*given)
    weights = alone.state_dict()
    for name, tensor in together.state_dict().items():
        per_agent = tensor if tensor.ndim == 0 else tensor[1::3]
        torch.testing.assert_close(per_agent, weights[name], rtol=1e-3, atol=1e-4, msg=name)


# -- the script --------------------------------------------------------------------------------------------------------

SMALL = [*QUICK, "--env-steps", "90", "--random-steps", "20", "--hidden", "8", "8", "--batch-size", "8"]
SMALL += ["--critic", "crossq", "--critic-hidden", "12", "12", "--policy-delay", "3", "--adam-beta1", "0.5"]
SMALL += ["--renorm-warm-up", "10", "--learning-rate", "1e-3", "--num-seeds", "2", "--log-every", "45"]


def test_resumes_exactly_and_plays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    """Also with a value head for the bonus, and past the warm-up of the running statistics."""
    monkeypatch.setattr("common.experiment.Run.figure", lambda *_: None)
    arguments = [*SMALL, "--checkpoint-every", "40", "--results-dir", str(tmp_path)]
    arguments += ["--icm", "single", "--no-bonus-episodic", "--select", "best"]
    cli.run(main, Settings, [*arguments, "--run-name", "whole"])
    with stopped_at_the_first_checkpoint():
        assert refused(main, Settings, [*arguments, "--run-name", "stopped"])[0] == 130
    whole, stopped = tmp_path / "rl" / "whole", tmp_path / "rl" / "stopped"
    cli.run(main, Settings, ["--resume", str(stopped)])
    ours, unbroken = (load_weights(run / "checkpoints" / "agents.safetensors") for run in (stopped, whole))
    assert all(torch.equal(ours[name], tensor) for name, tensor in unbroken.items())
    assert rows_of(stopped, "eval") == rows_of(whole, "eval")
    settings = cli.parse(Settings, ["--config", str(whole / "config.yaml")])
    agents = SAC(settings, 11, 3, [torch.Generator()] * 2, torch.device("cpu"))
    agents.load_state_dict(unbroken)
    observation: Tensor = torch.randn(2, 11)
    expected = agents.actor.deterministic(observation)
    for seed in (0, 1):  # plain layers, with the normalisation in their weights
        action = load(whole, agent=seed)(observation[seed])
        torch.testing.assert_close(action, expected[seed], rtol=1e-4, atol=1e-5)
        assert load(whole, agent=seed, weights="best")(observation[seed]).shape == (3,)
    assert metrics_of(whole)["failed"] == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--critic", "crossq", "--tau", "0.01"], "--target-rate 0.01 with --critic crossq: it has no target critics"),
        (["--renorm-warm-up", "5"], "--renorm-warm-up 5 with --critic twin: nothing normalises"),
        (["--adam-beta1", "1"], "--adam-beta1 1"),
        (["--critic", "crosq"], "crossq"),
        (["--critic-hidden", "0"], "--critic-hidden"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], told: str, tmp_path: Path, refused: Refused) -> None:
    status, line = refused(main, Settings, ["--results-dir", str(tmp_path), *arguments])
    assert status == 2
    assert told in line
