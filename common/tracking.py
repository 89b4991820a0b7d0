"""`--track wandb`: Weights & Biases gets what TensorBoard gets, through wandb's own synchronisation."""

from __future__ import annotations

import os
import uuid
from importlib.util import find_spec
from typing import TYPE_CHECKING

import yaml

from common.errors import UsageError

if TYPE_CHECKING:
    from common.experiment import Run


def require(service: str | None) -> None:
    """Raises UsageError if the service's package is not installed, or the service does not know who it is."""
    if service is not None and find_spec(service) is None:
        raise UsageError(f"--track {service}: the package {service} is missing; pip install -e '.[{service}]'")
    if service == "wandb" and os.environ.get("WANDB_MODE", "online") == "online":
        import wandb

        if not wandb.login(prompt=False):
            raise UsageError("--track wandb: not logged in; call wandb login, or set WANDB_MODE=offline")


def start(run: Run) -> None:
    """Begins to track a run if `--track` says so; a resumed run goes on under the name that it had.

    wandb listens to the event files, so call it before TensorBoard's writer is made. Its own files lie in ./wandb or
    WANDB_DIR: in the run's folder it would take its copies of the event files for new ones. WANDB_MODE=offline sends
    nothing, WANDB_PROJECT names another project than trilab.
    """
    if run.settings.track is None:
        return
    import wandb

    from common.cli import to_yaml

    wandb.init(
        project=os.environ.get("WANDB_PROJECT", "trilab"),
        group=run.task,
        name=run.path.resolve().name,
        id=run.remembered("tracked_as", lambda: uuid.uuid4().hex[:12]),
        resume="allow",
        config=yaml.safe_load(to_yaml(run.settings)),
        sync_tensorboard=True,
        reinit="finish_previous",  # several runs in one process, one after the other
    )


def finish(service: str | None) -> None:
    """Ends the tracked run of this process, if there is one."""
    if service is not None:
        import wandb

        wandb.finish()
