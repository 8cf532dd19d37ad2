"""Inputs and outputs of every stage, and the files that stages write."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from purifiers.core.artifacts import RunFolder, write_bytes
from purifiers.core.data import subset_indices
from purifiers.core.errors import UserError
from purifiers.core.provenance import processor
from purifiers.core.spec import Subset

WEIGHTS = "weights.safetensors"
IMAGES = "images.npy"
TRANSFORMED = "transformed.npy"
LOGITS = "logits.npy"
SCORES = "scores.parquet"
STATES = "states.npz"


@dataclass(frozen=True)
class Data:
    """A prepared data set.

    Attributes:
        shape: (C, H, W).
        classes: number of classes.
        images: per split, uint8 (n, C, H, W), memory-mapped.
        labels: per split, int64 (n,).
    """

    shape: tuple[int, ...]
    classes: int
    images: dict[str, npt.NDArray]
    labels: dict[str, npt.NDArray]

    def indices(self, subset: Subset) -> npt.NDArray:
        """Indices of a subset's images in their split, int64 (n,), ascending.

        The first and the last images of a shuffle are disjoint if both fit into the split.

        Raises:
            UserError: the subset has more images than the split.
        """
        total = len(self.labels[subset.split])
        if subset.n > total:
            raise UserError(
                f"the {subset.split} split has {total} images, {subset.n} are needed: take fewer"
            )
        return subset_indices(total, subset.n, subset.seed, subset.last)

    def training_indices(self, n: int) -> npt.NDArray:
        """Indices of the ``n`` images that train classifiers and methods, int64 (n,), ascending."""
        return self.indices(Subset(split="train", n=n, seed=0))


@dataclass(frozen=True)
class Context:
    """Location of the runs and resources of a job.

    Attributes:
        runs_root: folder of all runs.
        device: ``cpu`` or ``cuda``.
        threads: number of CPU threads.
        batch_size: images per batch in attacks, purification and scoring.
        checkpoint_seconds: seconds between training checkpoints.
        opened: data sets that are opened and verified, by run; the runs of a job share them.
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
    """Result of a stage.

    Attributes:
        files: names of the files that it wrote into the run's folder.
        summary: results for the run's record.
    """

    files: list[str]
    summary: dict[str, Any] = field(default_factory=dict)


def device_name(device: str) -> str:
    """Name of the GPU, or of the processor if ``device`` is ``cpu``."""
    return torch.cuda.get_device_name() if device == "cuda" else processor()


def save_rows(table: pa.Table, folder: RunFolder) -> None:
    """Write ``scores.parquet``, completely or not at all."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_bytes(folder.path / SCORES, buffer.getvalue())


def save_weights(module: nn.Module, folder: RunFolder) -> None:
    """Write a module's ``state_dict`` as safetensors, completely or not at all."""
    state = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    write_bytes(folder.path / WEIGHTS, save(state))


def load_weights(module: nn.Module, folder: RunFolder, exactly: bool = True) -> None:
    """Load a module's ``state_dict``.

    Args:
        exactly: the file must hold all of its tensors; else it may lack some.

    Raises:
        UserError: the file is damaged or belongs to another architecture.
    """
    folder.record()
    path = folder.path / WEIGHTS
    try:
        weights = load_file(path)
        own = module.state_dict()
        module.load_state_dict(weights if exactly else {**own, **weights})
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: cannot be loaded ({reason}); remove {folder.path} and start again"
        ) from None
