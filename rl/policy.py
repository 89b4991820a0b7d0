"""One trained policy out of a run: loaded, asked for actions, exported as a module that needs none of this code."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn

from common import cli
from common.errors import RunError, UsageError
from common.files import finished_metrics, load_weights
from common.plain_yaml import read_yaml
from rl.dqn import ActionGrid, QNetwork
from rl.dqn_settings import SCRIPTS, DQNSettings, kind_of
from rl.envs import make
from rl.networks import ActingNetwork, Actor
from rl.sac import mlp_of
from rl.settings import AgentSettings, Settings

Agent = int | Literal["best"]
Weights = Literal["last", "best"]
ENDINGS = (".pt", ".pt2", ".onnx")
OPSET = 18  # of ONNX; every runtime of the last years reads it


class Policy(nn.Module):
    """A policy without its noise, made of plain layers: observation → action in the task's own units."""

    def __init__(self, layers: nn.Sequential, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.layers = layers  # ends with what makes actions of outputs: tanh, or the greedy choice of a grid
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    @classmethod
    def of(cls, network: ActingNetwork, agent: int, actions: gym.spaces.Box) -> Policy:
        """Returns the policy of one agent of the stack; of the last layer it keeps the outputs that decide alone."""
        layers: list[nn.Module] = []
        stack = network.network.layers()
        for number, (weight, bias) in enumerate(stack):
            inputs, outputs = weight.shape[1:]
            last = number == len(stack) - 1
            width = network.outputs if last else outputs
            layer = nn.Linear(inputs, width)
            layer.weight.data.copy_(weight[agent, :, :width].T)
            layer.bias.data.copy_(bias[agent, 0, :width])
            layers += [layer, network.decision if last else nn.ReLU()]
        low, high = (torch.as_tensor(bound, dtype=torch.float32) for bound in (actions.low, actions.high))
        return cls(nn.Sequential(*layers), low, high).requires_grad_(False).eval()

    def forward(self, observation: Tensor) -> Tensor:
        """Returns actions `(…, action)` in the task's own range for observations `(…, obs)`, float32."""
        squashed: Tensor = self.layers(observation)
        low, high = self.get_buffer("low"), self.get_buffer("high")
        return low + 0.5 * (squashed + 1) * (high - low)

    def act(self, observation: NDArray[Any]) -> NDArray[np.float32]:
        """Returns the actions `(…, action)` for observations `(…, obs)` as the environment gives them.

        Raises:
            UsageError: observations of another size.
        """
        values = torch.from_numpy(np.asarray(observation, dtype=np.float32))
        first = self.layers[0]
        assert isinstance(first, nn.Linear)
        if values.shape[-1:] != (first.in_features,):
            raise UsageError(
                f"an observation must end in an axis of {first.in_features} numbers, its shape is {tuple(values.shape)}"
            )
        action: NDArray[np.float32] = self(values).numpy()
        return action

    def export(self, path: Path) -> None:
        """Writes the policy as TorchScript (`.pt`), a torch.export program (`.pt2`) or ONNX (`.onnx`).

        None of them needs this code to be run.

        Raises:
            UsageError: another ending, or the packages for ONNX are not installed.
            OSError: the file cannot be written.
        """
        first = self.layers[0]
        assert isinstance(first, nn.Linear)
        example = torch.zeros(1, first.in_features)
        batch = torch.export.Dim("batch")
        if path.suffix == ".pt2":
            program = torch.export.export(self, (example.expand(2, -1),), dynamic_shapes=({0: batch},))
            torch.export.save(program, path)
        elif path.suffix == ".pt":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # TorchScript is frozen, and still what every torch and C++ reads
                torch.jit.trace(self, example).save(str(path))
        elif path.suffix == ".onnx":
            if missing := next((name for name in ("onnx", "onnxscript") if find_spec(name) is None), None):
                raise UsageError(f"--export {path}: the package {missing} is missing; pip install -e '.[onnx]'")
            torch.onnx.export(
                self,
                (example.expand(2, -1),),
                str(path),
                input_names=["observation"],
                output_names=["action"],
                dynamic_shapes=({0: batch},),
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
        else:
            raise UsageError(f"--export {path}: the name must end in {', '.join(ENDINGS)}")


def load(run: Path | str, agent: Agent = "best", weights: Weights = "last") -> Policy:
    """Returns a trained agent of a run's folder: the one with the best final return, or the one of a seed.

    `weights` are the agent's last ones, or those of its best evaluation, which `--select best` keeps.

    Raises:
        RunError: no finished run of this task, or a damaged one.
        UsageError: there is no such folder, the run has no agent with that seed, or has not kept the best weights.
    """
    settings, actor, _ = loaded(Path(run), agent, weights)
    return Policy.of(actor, 0, action_space(settings.env_id, settings.task_arguments))


def settings_of(run: Path) -> Settings | DQNSettings:
    """Returns the settings of a run's folder, of the script that made it.

    Raises:
        RunError: its config.yaml is missing, damaged, or not of these scripts.
    """
    path = run / "config.yaml"
    try:
        values = read_yaml(path)
        return cli.from_mapping(kind_of(values), values)
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError, UsageError) as error:
        raise RunError(f"{path}: not the settings of a run of {SCRIPTS} ({' '.join(str(error).split())})") from None


def loaded(run: Path, agent: Agent, weights: Weights = "last") -> tuple[AgentSettings, ActingNetwork, int]:
    """Returns a run's settings, the acting network of one agent alone, and its seed; for errors see `load`."""
    metrics = finished_metrics(run, "eval_returns", SCRIPTS)
    settings = settings_of(run)
    returns = final_returns(run, metrics, settings)
    best = max(returns, key=lambda of: returns[of])
    seed = best if agent == "best" else agent
    if seed not in returns:
        seeds = ", ".join(map(str, returns))
        raise UsageError(f"--agent {agent}: {run} has the trained agents of seeds {seeds}; choose one of them, or best")
    path = run / "checkpoints" / ("best.safetensors" if weights == "best" else "agents.safetensors")
    if weights == "best" and settings.select != "best":
        raise UsageError(f"--weights best: {run} has kept the last weights alone; train with --select best")
    prefix = "q_network.network." if isinstance(settings, DQNSettings) and weights == "last" else "actor.network."
    stack = {name.removeprefix(prefix): t for name, t in load_weights(path).items() if name.startswith(prefix)}
    try:
        network = acting_network(
            settings, stack["weights.0"].shape[1], stack[f"weights.{len(settings.hidden)}"].shape[2]
        )
        alone = len(stack["weights.0"]) == 1 < settings.num_seeds  # the best agent of a folder that was shared small
        if alone and seed != best:
            raise UsageError(f"--agent {agent}: {run} has the best agent alone, that of seed {best}")
        row = 0 if alone else settings.seeds.index(seed)
        network.network.load_state_dict({name: tensor[[row]] for name, tensor in stack.items()})
    except (KeyError, IndexError, ValueError, RuntimeError):
        raise RunError(f"{path}: not the weights of these agents") from None
    return settings, network.requires_grad_(False), seed


def acting_network(settings: AgentSettings, obs_dim: int, outputs: int) -> ActingNetwork:
    """Returns the network of one agent that acts as the settings say, its weights not yet those of the run.

    Raises:
        ValueError: a network of these settings has another number of outputs.
    """
    generators = [torch.Generator()]
    if isinstance(settings, Settings):
        return Actor(obs_dim, outputs // 2, settings.hidden, settings.log_std_range, generators, mlp_of(settings))
    assert isinstance(settings, DQNSettings)
    dimensions = [
        n
        for n in range(1, outputs + 1)
        if outputs == (settings.bins**n if settings.head == "joint" else settings.bins * n)
    ]
    return QNetwork(obs_dim, settings.hidden, ActionGrid(dimensions[0], settings.bins, settings.head), generators)


def final_returns(run: Path, metrics: Mapping[str, Any], settings: AgentSettings) -> dict[int, float]:
    """Returns the final return of each agent by its seed; an agent that failed while training has none.

    Raises:
        RunError: the run's metrics lack the returns.
    """
    try:
        returns = dict(zip(metrics["seeds"], map(float, metrics["eval_returns"]), strict=True))
    except (KeyError, TypeError, ValueError):
        returns = {}
    if not returns or not set(returns) <= set(settings.seeds):
        raise RunError(f"{run / 'metrics.json'}: damaged (no final return for each seed)")
    return returns


def action_space(env_id: str, arguments: Mapping[str, Any]) -> gym.spaces.Box:
    """Returns the task's own action space, before it is scaled to [−1, 1]; for errors see `rl.envs.make`."""
    env = make(env_id, "dense", arguments=arguments)
    space = env.unwrapped.action_space
    env.close()
    assert isinstance(space, gym.spaces.Box)
    return space
