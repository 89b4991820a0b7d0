"""Curiosity by hand: losses, rewards, what sends gradients where, running moments."""

import copy

import pytest
import torch
from torch import Tensor

from rl.icm import IntrinsicCuriosity, RandomDistillation, RunningMoments, normalised
from rl.replay import Batch
from tests.rl.naive import perceptron

OBSERVATION, ACTION, FEATURES, BATCH, SHARE = 4, 2, 3, 9, 0.3


def module(stack: int, agents: int = 2) -> IntrinsicCuriosity:
    generators = [torch.Generator().manual_seed(k) for k in range(agents)]
    return IntrinsicCuriosity(OBSERVATION, ACTION, stack, FEATURES, 8, 10, SHARE, generators)


def batch(stack: int, agents: int = 2) -> Batch:
    g = torch.Generator().manual_seed(7)
    shapes = ((stack, OBSERVATION), (ACTION,), (), (), (OBSERVATION,))
    fields = [torch.randn(agents, BATCH, *shape, generator=g) for shape in shapes]
    return Batch(*fields, following=fields[-1])


@pytest.mark.parametrize("stack", [1, 4])
def test_losses_and_rewards_as_the_paper_writes_them(stack: int) -> None:
    icm, drawn = module(stack), batch(stack)
    surprise = icm(drawn)
    for k in range(2):
        encoder, inverse, forward = (perceptron(m, k) for m in (icm.encoder, icm.inverse_model, icm.forward_model))

        def encode(states: Tensor, k: int = k, encoder: torch.nn.Module = encoder) -> Tensor:
            mean = drawn.next_observation[k].mean(0)
            deviation = drawn.next_observation[k].var(0, correction=0).sqrt()
            features: Tensor = encoder(((states - mean) / deviation).clamp(-5, 5))
            return features

        now, following = encode(drawn.observation[k]), encode(drawn.next_observation[k])
        past = [encode(drawn.window[k, :, i]) for i in range(stack)]  # oldest first
        predicted_action = inverse(torch.cat([now, following], 1))
        predicted = forward(torch.cat([*past, drawn.action[k]], 1))
        error = 0.5 * (predicted - following).square().sum(1)
        inverse_loss = (predicted_action - drawn.action[k]).square().mean()
        torch.testing.assert_close(surprise.error[k], error, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(surprise.measured["inverse_loss"][k], inverse_loss, rtol=1e-4, atol=1e-4)
        expected = (1 - SHARE) * inverse_loss + SHARE * error.mean()
        torch.testing.assert_close(surprise.loss[k], expected, rtol=1e-4, atol=1e-4)
    assert not surprise.error.requires_grad
    torch.testing.assert_close(icm.error(drawn), surprise.error)  # with the moments as the batch left them


def test_forward_loss_does_not_move_its_target() -> None:
    """With β = 1 the encoder learns through φ(s) alone: its gradient is the same when φ(s′) is a constant."""
    icm, drawn = module(1), batch(1)
    icm.forward_share = 1.0
    icm(drawn).loss.sum().backward()
    gradients = [p.grad.clone() for p in icm.encoder.parameters() if p.grad is not None]
    fixed = copy.deepcopy(icm)
    target = fixed.encode(drawn)[2].detach()
    fixed.zero_grad()
    now = fixed.encoder(normalised(drawn.observation, fixed.moments))
    predicted = fixed.forward_model(torch.cat([now, drawn.action], -1))
    (0.5 * (predicted - target).square().sum(-1).mean(1)).sum().backward()
    for ours, theirs in zip(gradients, fixed.encoder.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.grad)
    assert all(g.abs().sum() > 0 for g in gradients)
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in icm.inverse_model.parameters())


def test_stack_of_one_is_single_frame() -> None:
    """A window of four whose past is the present gives each slot the same encoding; a stack of one has one slot."""
    drawn = batch(1)
    repeated = drawn._replace(window=drawn.window.expand(-1, -1, 4, -1))
    window, encoding, _ = module(4).encode(repeated)
    torch.testing.assert_close(window, encoding.repeat(1, 1, 4))


def test_matched_control_has_as_many_parameters() -> None:
    """The preset configs/rl/matched.yaml: within 0.2 % of the stack's forward model on Hopper-v4."""
    stacked, matched = (
        IntrinsicCuriosity(11, 3, stack, 32, 128, width, 0.2, [torch.Generator()])
        for stack, width in ((4, 128), (1, 309))
    )
    sizes = [sum(p.numel() for p in m.forward_model.parameters()) for m in (stacked, matched)]
    assert sizes == [21_024, 21_044]


def test_learning_makes_the_familiar_less_surprising() -> None:
    for curiosity in (module(1), RandomDistillation(OBSERVATION, FEATURES, 8, [torch.Generator()] * 2)):
        drawn = batch(1)
        optimizer = torch.optim.Adam([p for p in curiosity.parameters() if p.requires_grad], lr=1e-2)
        before = curiosity(drawn).error.mean()
        for _ in range(200):
            optimizer.zero_grad()
            curiosity(drawn).loss.sum().backward()
            optimizer.step()
        assert curiosity(drawn).error.mean() < 0.5 * before


def test_inverse_r2_is_one_when_actions_are_read_off_and_zero_for_the_mean() -> None:
    icm, drawn = module(1), batch(1)
    mean = drawn.action.mean(1, keepdim=True).expand_as(drawn.action)
    for answer, expected in ((drawn.action, 1.0), (mean, 0.0)):
        icm.inverse_model.forward = lambda _, answer=answer: answer  # type: ignore[assignment,misc]
        torch.testing.assert_close(icm.diagnostics(drawn)["inverse_r2"], torch.full((2,), expected), atol=1e-5, rtol=0)


def test_diagnostics_change_nothing() -> None:
    icm, drawn = module(4), batch(4)
    icm(drawn)
    before = copy.deepcopy(icm.state_dict())
    icm.diagnostics(drawn)
    assert all(torch.equal(tensor, before[name]) for name, tensor in icm.state_dict().items())


def test_distillation_target_never_learns() -> None:
    rnd, drawn = RandomDistillation(OBSERVATION, FEATURES, 8, [torch.Generator()] * 2), batch(1)
    rnd(drawn).loss.sum().backward()
    assert all(p.grad is None for p in rnd.target.parameters())
    assert all(p.grad is not None for p in rnd.predictor.parameters())


def test_moments_are_those_of_all_batches_and_forget_beyond_the_horizon() -> None:
    batches = torch.randn(6, 2, 50, 3) * 2 + 1
    moments = RunningMoments(2, 3)
    for values in batches:
        moments.update(values)
    every = batches.transpose(0, 1).reshape(2, 300, 3)
    torch.testing.assert_close(moments.mean[:, 0], every.mean(1))
    torch.testing.assert_close(moments.deviation[:, 0], every.std(1, correction=0))
    fading = RunningMoments(2, 3, horizon=2)
    for _ in range(30):
        fading.update(torch.full((2, 5, 3), 7.0))
    torch.testing.assert_close(fading.mean, torch.full((2, 1, 3), 7.0))
    fading.update(torch.full((2, 5, 3), 9.0))
    torch.testing.assert_close(fading.mean, torch.full((2, 1, 3), 8.0))
    torch.testing.assert_close(fading.deviation, torch.ones(2, 1, 3))
