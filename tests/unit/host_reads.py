"""Count the values that code reads from tensors, each of which makes a GPU's host wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

READING = (
    *("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"),
    *("repeat_interleave.Tensor", "_unique2", "unique_dim", "unique_consecutive"),
)
"""Operations whose result or size depends on values that the host must read."""
INDEXING = ("index.Tensor", "index_put", "_index_put_impl", "_unsafe_index")
"""Operations that read the number of selected rows if they are called with a bool mask."""
CONVERSIONS = ("tolist", "numpy", "__array__")
"""Functions that read a tensor without an operation."""


class _Counting(TorchDispatchMode):
    def __init__(self, reads: Counter[str]) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.")
        if name.startswith(READING) or (name.startswith(INDEXING) and any(map(_is_mask, args[1]))):
            self.reads[name] += 1
        return func(*args, **(kwargs or {}))


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


@contextmanager
def host_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Count host reads by operation; conversions count too."""
    reads: Counter[str] = Counter()
    with monkeypatch.context() as patched:
        for name in CONVERSIONS:
            original = getattr(Tensor, name)

            def counted(
                tensor: Tensor, *arguments: Any, _name: str = name, _call: Any = original, **n: Any
            ) -> Any:
                reads[_name] += 1
                return _call(tensor, *arguments, **n)

            patched.setattr(Tensor, name, counted)
        with _Counting(reads):
            yield reads
