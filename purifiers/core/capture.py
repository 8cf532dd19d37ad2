"""Record the kernels of a step once as a CUDA graph and replay them: fewer launches by the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

Step = Callable[..., tuple[Tensor, ...]]
"""Tensors to tensors. Neither changes its inputs nor reads values on the host."""

WARM_UPS = 2
"""Runs before recording, in which libraries choose their algorithms. Our choice."""

ROUNDING, SHARE = 1e-3, 1e-3
"""A replay may differ from the eager result by ``ROUNDING`` of the largest value, in all but
``SHARE`` of the values. Our choice: some gradients on CUDA are sums in random order."""


class Backend(Protocol):
    """What records a step."""

    def applies_to(self, inputs: tuple[Tensor, ...]) -> bool:
        """Whether steps on such inputs can be recorded."""

    def record(self, step: Step, inputs: tuple[Tensor, ...]) -> Step:
        """A function that computes ``step`` on inputs of the same shapes."""


class CudaGraphs:
    """Records CUDA graphs."""

    def applies_to(self, inputs: tuple[Tensor, ...]) -> bool:
        return all(tensor.is_cuda for tensor in inputs)

    def record(self, step: Step, inputs: tuple[Tensor, ...]) -> Step:
        buffers = tuple(tensor.clone() for tensor in inputs)
        stream: Any = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                step(*buffers)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = step(*buffers)

        def replay(*inputs: Tensor) -> tuple[Tensor, ...]:
            for buffer, tensor in zip(buffers, inputs, strict=True):
                buffer.copy_(tensor)
            graph.replay()
            return tuple(output.clone() for output in outputs)

        return replay


CUDA_GRAPHS = CudaGraphs()


class Captured:
    """A step that is recorded at its first call and replayed from the second call on.

    The first call runs eagerly. Its result is compared with the first replay's. Where they differ,
    or recording fails, all calls run eagerly; so do calls with inputs of other shapes.

    Args:
        step: the step; it must compute the same function at every call.
        allowed: whether the step may be recorded, decided after the first eager call.
        backend: what records it.

    Attributes:
        path: ``"captured"``, or ``"eager: "`` and the reason; empty before the first call.
    """

    def __init__(
        self,
        step: Step,
        allowed: Callable[[], bool] = lambda: True,
        backend: Backend = CUDA_GRAPHS,
    ) -> None:
        self.path = ""
        self._step, self._allowed, self._backend = step, allowed, backend
        self._replay: Step | None = None
        self._shapes: list[torch.Size] = []

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if self._replay is not None and [tensor.shape for tensor in inputs] == self._shapes:
            return self._replay(*inputs)
        outputs = self._step(*inputs)
        if not self.path:
            reason = self._record(inputs, outputs)
            self.path = f"eager: {reason}" if reason else "captured"
        return outputs

    def _record(self, inputs: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> str:
        """Record the step; return why it runs eagerly, or nothing."""
        if not self._backend.applies_to(inputs):
            return "not on CUDA"
        if not self._allowed():
            return "the model may run other code at each call"
        try:
            replay = self._backend.record(self._step, inputs)
            outputs = replay(*inputs)
        except Exception as error:  # recording can fail with any exception
            return " ".join(f"recording failed: {error}".split())
        for one, other in zip(outputs, expected, strict=True):
            share = _differing(one, other)
            if share > SHARE:
                return f"{share:.1%} of the replayed values differ"
        self._replay, self._shapes = replay, [tensor.shape for tensor in inputs]
        return ""


def _differing(values: Tensor, expected: Tensor) -> float:
    """Share of the values that differ from the expected ones by more than rounding."""
    if values.shape != expected.shape:
        return 1.0
    if not values.numel():
        return 0.0
    allowed = ROUNDING * float(expected.nan_to_num(0.0, 0.0, 0.0).abs().max())
    close = torch.isclose(values, expected, rtol=0.0, atol=allowed, equal_nan=True)
    return float((~close).double().mean())
