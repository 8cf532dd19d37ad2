"""What every stage receives and returns, and the files it writes."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from purifiers.core.artifacts import RunFolder, write_bytes
from purifiers.core.errors import UserError
from purifiers.core.provenance import processor
from purifiers.core.spec import Subset

WEIGHTS = "weights.safetensors"
IMAGES = "images.npy"
SCORES = "scores.parquet"
EXAMPLES = "examples"


@dataclass(frozen=True)
class Data:
    """A prepared data set.

    Attributes:
        shape: (C, H, W).
        images: per split, uint8 (n, C, H, W), memory-mapped.
        labels: per split, int64 (n,).
    """

    shape: tuple[int, ...]
    classes: int
    images: dict[str, npt.NDArray]
    labels: dict[str, npt.NDArray]

    def indices(self, subset: Subset) -> npt.NDArray:
        """Indices of a subset's images in their split, ascending.

        The first and last images of a shuffle have none in common if both fit into the split.

        Raises:
            UserError: the subset has more images than the split.
        """
        total = len(self.labels[subset.split])
        if subset.n > total:
            raise UserError(f"the {subset.split} split has {total} images, not {subset.n}")
        if subset.n == total:
            return np.arange(total)
        shuffled = np.random.Generator(np.random.PCG64(subset.seed)).permutation(total)
        return np.sort(shuffled[total - subset.n :] if subset.last else shuffled[: subset.n])

    def training_indices(self, n: int) -> npt.NDArray:
        """Indices of the ``n`` images that classifiers and methods are trained on."""
        return self.indices(Subset(split="train", n=n, seed=0))


@dataclass(frozen=True)
class Context:
    """Where runs lie and what they may use.

    Attributes:
        device: ``cpu`` or ``cuda``.
        batch_size: images per batch in attacks, purification and scoring.
        checkpoint_seconds: interval of training checkpoints.
        opened: data sets already opened and verified; the runs of a job share them.
    """

    runs_root: Path
    device: str
    threads: int
    batch_size: int
    checkpoint_seconds: float
    opened: dict[str, Data] = field(default_factory=dict, repr=False)

    def folder(self, stage: str, run_id: str) -> RunFolder:
        """The folder of another run."""
        return RunFolder(self.runs_root, stage, run_id)


@dataclass(frozen=True)
class Outcome:
    """What a stage made: files in its folder, and figures for the record."""

    files: list[str]
    summary: dict[str, Any] = field(default_factory=dict)


def device_name(device: str) -> str:
    """The GPU's name, or the processor's."""
    return torch.cuda.get_device_name() if device == "cuda" else processor()


def save_rows(table: pa.Table, folder: RunFolder) -> None:
    """Write ``scores.parquet``, whole or not at all."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_bytes(folder.path / SCORES, buffer.getvalue())


def save_weights(module: nn.Module, folder: RunFolder) -> None:
    """Write a module's state as safetensors, whole or not at all."""
    state = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    write_bytes(folder.path / WEIGHTS, save(state))


def load_weights(module: nn.Module, folder: RunFolder) -> None:
    """Read a module's state, every tensor of it and nothing else.

    Raises:
        UserError: the file is damaged or belongs to another architecture.
    """
    folder.record()
    path = folder.path / WEIGHTS
    try:
        module.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: cannot be loaded ({reason}); remove {folder.path}") from None
