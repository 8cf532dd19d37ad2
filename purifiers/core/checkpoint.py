"""Training checkpoints on disk; damaged files and those of another run are refused."""

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
    """State of a training, apart from its module and optimizer.

    Attributes:
        step: optimizer steps taken.
        losses: training losses of the latest steps, as far as ``final_loss`` averages them.
        validation: loss of the held-out images after each epoch.
        watched: results of ``watch`` after each epoch.
        best: ``state_dict`` of the module after the epoch with the lowest validation loss.
        averaged: moving average of the trained parameters, by name; empty without averaging.
        rows: the training images of the current epoch, int64 (m,), if a subset is chosen.
        weights: their weights in the loss, float32 (m,).
        chosen_before: the epoch before which they were chosen; -1: no subset is chosen.
        seconds: wall-clock seconds of training so far, without work that a kill undid.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    watched: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    averaged: dict[str, Tensor] = field(default_factory=dict)
    rows: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    weights: Tensor = field(default_factory=lambda: torch.empty(0))
    chosen_before: int = -1
    seconds: float = 0.0


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint file of one run.

    Attributes:
        path: the file.
        identity: id of the run that it belongs to.
    """

    path: Path
    identity: str

    def save(self, state: State, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write state, module and optimizer, completely or not at all."""
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
        """Load the checkpoint into ``module`` and ``optimizer``.

        Returns:
            The saved state; a new one if there is no file.

        Raises:
            UserError: the file is damaged or belongs to another run.
        """
        if not self.path.exists():
            return State()
        buffer = io.BytesIO(read_sealed(self.path))
        content = torch.load(buffer, weights_only=True, map_location="cpu")
        if content["identity"] != self.identity:
            raise UserError(
                f"{self.path}: belongs to run {content['identity']!r}, not {self.identity!r}; "
                "remove it to train from the start"
            )
        module.load_state_dict(content["module"])
        optimizer.load_state_dict(content["optimizer"])
        return State(**content["state"])
