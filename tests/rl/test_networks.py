"""Stacked networks against plain layers, and the policy's log-probability against torch.distributions."""

import pytest
import torch
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from rl.networks import Actor, StackedMLP, TwinCritic, squashed_gaussian
from tests.rl.naive import log_probability, perceptron


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(k) for k in range(count)]


@pytest.mark.parametrize("sizes", [[5, 8, 3], [5, 8, 7, 3], [5, 6, 7, 8, 1]])
def test_stack_is_its_networks_side_by_side(sizes: list[int]) -> None:
    """Outputs and every gradient, also that of the input, against nn.Linear and autograd."""
    stack = StackedMLP(sizes, generators(3))
    x = torch.randn(3, 11, 5, requires_grad=True)
    outputs = stack(x)
    weight = torch.randn_like(outputs)
    (outputs * weight).sum().backward()
    for k in range(3):
        alone, single = perceptron(stack, k), x[k].detach().clone().requires_grad_()
        expected = alone(single)
        torch.testing.assert_close(outputs[k], expected)
        (expected * weight[k]).sum().backward()
        assert x.grad is not None
        torch.testing.assert_close(x.grad[k], single.grad)
        for layer, (w, b) in enumerate(zip(stack.weights, stack.biases, strict=True)):
            assert w.grad is not None
            assert b.grad is not None
            torch.testing.assert_close(w.grad[k].T, alone[2 * layer].weight.grad)
            torch.testing.assert_close(b.grad[k, 0], alone[2 * layer].bias.grad)


def test_gradient_of_one_agent_touches_no_other() -> None:
    stack = StackedMLP([5, 8, 8, 2], generators(4))
    stack(torch.randn(4, 9, 5))[2].square().sum().backward()
    for parameter in stack.parameters():
        assert parameter.grad is not None
        assert parameter.grad[2].abs().sum() > 0
        assert parameter.grad[[0, 1, 3]].abs().sum() == 0


def test_frozen_gives_gradients_to_the_input_alone() -> None:
    stack = StackedMLP([5, 8, 8, 2], generators(2))
    x = torch.randn(2, 9, 5, requires_grad=True)
    stack(x, frozen=True).sum().backward()
    assert all(parameter.grad is None for parameter in stack.parameters())
    frozen = x.grad
    x.grad = None
    stack(x).sum().backward()
    assert frozen is not None
    torch.testing.assert_close(frozen, x.grad)


def test_bfloat16_is_close_and_leaves_first_and_last_layer_exact() -> None:
    stack = StackedMLP([5, 64, 64, 1], generators(2))
    x = torch.randn(2, 50, 5)
    exact, rounded = stack(x), stack(x, hidden_dtype=torch.bfloat16)
    assert rounded.dtype == torch.float32
    assert 0 < (exact - rounded).abs().max() < 0.02
    shallow = StackedMLP([5, 64, 1], generators(2))  # no product between hidden layers
    assert torch.equal(shallow(x), shallow(x, hidden_dtype=torch.bfloat16))
    stack(x, hidden_dtype=torch.bfloat16).square().sum().backward()
    rounded_gradients = [p.grad.clone() for p in stack.parameters() if p.grad is not None]
    stack.zero_grad()
    stack(x).square().sum().backward()
    for p, rounded_gradient in zip(stack.parameters(), rounded_gradients, strict=True):
        assert p.grad is not None
        assert (p.grad - rounded_gradient).norm() < 0.03 * p.grad.norm()


def test_weights_do_not_depend_on_how_many_agents_there_are() -> None:
    for copies in (1, 2):
        three, one = StackedMLP([5, 8, 2], generators(3), copies), StackedMLP([5, 8, 2], generators(1), copies)
        for many, alone in zip(three.parameters(), one.parameters(), strict=True):
            assert torch.equal(many[:: len(many) // copies], alone)


def test_weights_start_where_torchs_linear_starts() -> None:
    stack = StackedMLP([400, 300, 2], generators(2))
    for w, b, inputs in zip(stack.weights, stack.biases, (400, 300), strict=True):
        for tensor in (w, b):
            assert tensor.abs().max() <= inputs**-0.5
        assert w.std().item() == pytest.approx(inputs**-0.5 / 3**0.5, rel=0.1)


def test_log_probability_against_torch_distributions() -> None:
    mean, log_std, noise = torch.randn(3, 20, 4), torch.randn(3, 20, 4) - 1, torch.randn(3, 20, 4)
    action, log_probability = squashed_gaussian(mean, log_std, noise)
    transform = TanhTransform(cache_size=1)
    distribution = Independent(TransformedDistribution(Normal(mean, log_std.exp()), [transform]), 1)
    expected = transform(mean + log_std.exp() * noise)
    torch.testing.assert_close(action, expected)
    torch.testing.assert_close(log_probability, distribution.log_prob(expected), rtol=1e-4, atol=1e-4)


def test_log_probability_is_exact_where_tanh_is_steep_and_finite_where_it_is_one() -> None:
    mean, log_std, noise = torch.tensor([[[3.0, -4.0]]]), torch.tensor([[[-1.0, 0.5]]]), torch.tensor([[[0.7, -0.3]]])
    _, steep = squashed_gaussian(mean, log_std, noise)
    expected = log_probability(mean, log_std, mean + log_std.exp() * noise)
    assert steep.item() == pytest.approx(expected.item(), rel=1e-5)
    zero = torch.zeros(1, 1, 1)
    action, far = squashed_gaussian(torch.full((1, 1, 1), 40.0, requires_grad=True), zero, zero)
    assert action.item() == 1
    assert far.item() == pytest.approx(-0.5 * 1.8378771 + 80 - 2 * 0.6931472, rel=1e-5)


def test_probabilities_integrate_to_one() -> None:
    """∫π(a)da over (−1, 1), the density read off samples at every u of a fine grid."""
    mean, log_std = torch.tensor(0.4), torch.tensor(-0.3)
    u = torch.linspace(-9, 9, 20_001)
    noise = (u - mean) / log_std.exp()
    ones = torch.ones(1, 20_001, 1)
    action, log_density = squashed_gaussian(mean * ones, log_std * ones, noise[None, :, None])
    assert torch.trapezoid(log_density[0].exp(), action[0, :, 0]).item() == pytest.approx(1, abs=1e-3)


def test_actor_and_critic_shapes_and_bounds() -> None:
    actor = Actor(5, 2, (8, 8), (-20, 2), generators(3))
    critic = TwinCritic(5, 2, (8, 8), generators(3))
    observation, noise = 100 * torch.randn(3, 7, 5), torch.randn(3, 7, 2)
    action, log_probability = actor(observation, noise)
    assert action.shape == (3, 7, 2)
    assert log_probability.shape == (3, 7)
    assert action.abs().max() <= 1
    now, its_noise = observation[:, 0], noise[:, 0]
    assert torch.equal(actor.act(now, its_noise), actor(now[:, None], its_noise[:, None])[0][:, 0])
    mean = actor.network(now[:, None])[:, 0, :2]
    torch.testing.assert_close(actor.deterministic(now), mean.tanh())
    (values,) = critic(observation, action)
    assert values.shape == (2, 3, 7)
    first, second = values
    assert (first - second).abs().min() > 0  # twins start apart


def test_the_heads_of_a_critic_share_its_hidden_layers() -> None:
    critic, x = TwinCritic(5, 2, (8, 8), generators(3), heads=2), torch.randn(3, 7, 7)
    values = critic(x[..., :5], x[..., 5:])
    outputs = critic.network(torch.cat([x, x]))
    for head in range(2):
        for twin in range(2):
            assert torch.equal(values[head][twin], outputs[3 * twin : 3 * twin + 3, :, head])
    one = TwinCritic(5, 2, (8, 8), generators(3))
    sizes = [sum(p.numel() for p in network.parameters()) for network in (critic, one)]
    assert sizes[0] - sizes[1] == 2 * 3 * (8 + 1)  # a second output of each network


def test_gradient_of_the_sample_against_autograd() -> None:
    """The closed form against what autograd derives from torch.distributions, in double precision."""
    mean, log_std, noise = (torch.randn(2, 6, 3, dtype=torch.double) for _ in range(3))
    for_action, for_log = torch.randn(2, 6, 3, dtype=torch.double), torch.randn(2, 6, dtype=torch.double)
    gradients = []
    for ours in (True, False):
        m, s = mean.clone().requires_grad_(), (log_std - 1).requires_grad_()
        if ours:
            action, log_probability = squashed_gaussian(m, s, noise)
        else:
            transform = TanhTransform(cache_size=1)
            action = transform(m + s.exp() * noise)
            log_probability = Independent(TransformedDistribution(Normal(m, s.exp()), [transform]), 1).log_prob(action)
        loss = (for_action * action).sum() + (for_log * log_probability).sum()
        gradients.append(torch.autograd.grad(loss, [m, s]))
    torch.testing.assert_close(gradients[0], gradients[1])
