"""The number of steps that a training has made, as its loss needs it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class StepCount:
    """Steps so far, in a buffer of a module, so that checkpoints store them.

    The buffer is read once per training, because each read of a device waits for it.

    Args:
        module: gets the buffer.
        name: of the buffer.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        module.register_buffer(name, torch.tensor(0))
        self._module, self._name = module, name
        self._value: int | None = None

    def begin(self, anew: bool = False) -> None:
        """Read the buffer at the next use: a checkpoint may be loaded before it.

        Args:
            anew: set the buffer to 0.
        """
        self._value = None
        if anew:
            self._buffer().zero_()

    @property
    def value(self) -> int:
        if self._value is None:
            self._value = int(self._buffer())
        return self._value

    def advance(self) -> None:
        self._value = self.value + 1
        self._buffer().fill_(self._value)

    def _buffer(self) -> Tensor:
        buffer: Tensor = getattr(self._module, self._name)
        return buffer
