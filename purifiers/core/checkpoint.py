"""A training on disk between two starts; what is damaged or foreign is refused."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from purifiers.core.artifacts import read_sealed, write_sealed
from purifiers.core.errors import UserError


@dataclass
class State:
    """How far a training has come, besides its module and optimizer.

    Attributes:
        step: steps taken.
        losses: those of the latest steps, as far as they will be reported.
        validation: loss of the held-out images after each epoch.
        best: state of the module after the epoch with the lowest of these.
        seconds: what the training took so far by the wall clock; work that a kill undid is not in
            it.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Checkpoint:
    """A file that holds a training of one run.

    Attributes:
        identity: the run it belongs to.
    """

    path: Path
    identity: str

    def save(self, state: State, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write everything that a later start needs, whole or not at all."""
        buffer = io.BytesIO()
        content = {
            "identity": self.identity,
            "state": vars(state),
            "module": module.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        torch.save(content, buffer)
        write_sealed(self.path, buffer.getvalue())

    def resume(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> State:
        """Set module and optimizer to what was saved; a new start where nothing was.

        Raises:
            UserError: the file is damaged or belongs to another run.
        """
        if not self.path.exists():
            return State()
        content = io.BytesIO(read_sealed(self.path))
        found = torch.load(content, weights_only=True, map_location="cpu")
        if found["identity"] != self.identity:
            raise UserError(
                f"{self.path}: belongs to run {found['identity']!r}, not {self.identity!r}; "
                "remove it to train from the start"
            )
        module.load_state_dict(found["module"])
        optimizer.load_state_dict(found["optimizer"])
        return State(**found["state"])
