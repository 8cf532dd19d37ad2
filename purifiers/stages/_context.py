"""What every stage is given, and how it opens what earlier stages made."""

from __future__ import annotations

import io
from collections.abc import Sequence
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
from torch import Tensor, nn

from purifiers.core import registry
from purifiers.core.artifacts import RunFolder, write_bytes
from purifiers.core.component import Classifier, Method, build, frozen
from purifiers.core.errors import UserError
from purifiers.core.loop import to_float
from purifiers.core.provenance import processor

WEIGHTS = "weights.safetensors"
IMAGES = "images.npy"
SCORES = "scores.parquet"
EXAMPLES = "examples"


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

    def subset(self, split: str, n: int, seed: int = 0, last: bool = False) -> npt.NDArray:
        """Indices of the first ``n`` images of a shuffled split, in order; all if n is its size.

        Args:
            last: the last ``n`` instead; no image is in both where both fit into the split.

        Raises:
            UserError: more images are asked for than there are.
        """
        total = len(self.labels[split])
        if n > total:
            raise UserError(f"the {split} split has {total} images, {n} were asked for")
        if n == total:
            return np.arange(total)
        shuffled = np.random.Generator(np.random.PCG64(seed)).permutation(total)
        return np.sort(shuffled[total - n :] if last else shuffled[:n])


@dataclass(frozen=True)
class Rows:
    """Some rows of a memory-mapped array, read when they are asked for."""

    array: npt.NDArray
    chosen: npt.NDArray

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, rows: npt.NDArray) -> npt.NDArray:
        return self.array[self.chosen[rows]]


@dataclass(frozen=True)
class ImageSet:
    """Images to attack, purify or score, and what they were before.

    Attributes:
        images: (n, C, H, W): uint8 of a clean set (all of the split), float32 of a made one.
        rows: place of each image in ``images``.
        indices: the images' indices in their split, int64 (n,).
        labels: int64 (n,).
        clean: uint8 images of the whole split.
    """

    images: npt.NDArray
    rows: npt.NDArray
    indices: npt.NDArray
    labels: npt.NDArray
    clean: npt.NDArray

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, start: int, stop: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
        """Images float32 in channels-last layout, labels, and indices (on the CPU)."""
        images = to_float(self.images[self.rows[start:stop]], device)
        labels = torch.from_numpy(self.labels[start:stop]).to(device)
        indices = torch.from_numpy(self.indices[start:stop])
        return images.contiguous(memory_format=torch.channels_last), labels, indices

    def clean_batch(self, start: int, stop: int) -> Tensor:
        """The clean images behind a batch, float32."""
        return to_float(self.clean[self.indices[start:stop]])


def open_data(context: Context, run_id: str) -> Data:
    """Open a prepared data set, memory-mapped; its digests are checked once per job."""
    if run_id not in context.opened:
        context.opened[run_id] = _read_data(context, run_id)
    return context.opened[run_id]


def _read_data(context: Context, run_id: str) -> Data:
    folder = context.folder("dataset", run_id)
    summary = folder.record()["summary"]
    images, labels = {}, {}
    for split in ("train", "test"):
        images[split] = np.load(folder.path / f"{split}_images.npy", mmap_mode="r")
        labels[split] = np.load(folder.path / f"{split}_labels.npy")
    return Data(tuple(summary["shape"]), summary["classes"], images, labels)


def open_images(context: Context, spec: dict[str, Any]) -> ImageSet:
    """Open a clean, adversarial or purified set.

    Raises:
        UserError: the set is not there, is damaged, or was made from other images.
    """
    data = open_data(context, spec["data"])
    subset = spec["subset"]
    indices = data.subset(subset["split"], subset["n"], subset["seed"])
    labels = data.labels[subset["split"]][indices]
    clean = data.images[subset["split"]]
    if spec["run"] is None:
        return ImageSet(clean, indices, indices, labels, clean)
    folder = context.folder(spec["stage"], spec["run"])
    made = folder.record()["spec"]["images"]
    if (made["data"], made["subset"]) != (spec["data"], subset):
        raise UserError(f"{folder.path}: made from other images than those to be scored")
    images = np.load(folder.path / IMAGES, mmap_mode="r")
    if images.shape != (len(indices), *data.shape):
        raise UserError(f"{folder.path / IMAGES}: has shape {images.shape}; remove {folder.path}")
    return ImageSet(images, np.arange(len(indices)), indices, labels, clean)


def new_classifier(spec: dict[str, Any], data: Data) -> Classifier:
    """An untrained classifier from its component spec."""
    cls = registry.load("classifier", spec["component"])
    return build(cls, data.shape, data.classes, **spec["parameters"])


def open_classifier(context: Context, run_id: str, stage: str = "classifier") -> Classifier:
    """A trained classifier, frozen, in evaluation mode, channels-last.

    Args:
        stage: which stage trained it: ``classifier`` or ``substitute``.
    """
    folder = context.folder(stage, run_id)
    spec = folder.record(verify=False)["spec"]  # load_weights checks the digest
    classifier = new_classifier(spec["classifier"], open_data(context, spec["data"]))
    load_weights(classifier, folder)
    frozen(classifier)
    return on_device(classifier, context)


def on_device(classifier: Classifier, context: Context) -> Classifier:
    """Move a classifier; convolutions run faster channels-last, on processors too."""
    return classifier.to(context.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def new_method(
    spec: dict[str, Any], classifier: Classifier | None, shape: Sequence[int], context: Context
) -> Method:
    """A purifier bound to its classifier and to images (C, H, W), its weights not yet loaded."""
    method: Method = build(registry.load("method", spec["component"]), **spec["parameters"])
    method.bind(classifier, shape)
    return method.to(context.device)


def open_method(context: Context, spec: dict[str, Any], classifier: Classifier) -> Method:
    """A purifier ready for use: bound, weights loaded, frozen."""
    method = new_method(spec, classifier, classifier.shape, context)
    if spec["run"] is not None:
        load_weights(method, context.folder("purifier", spec["run"]))
    frozen(method)
    return method


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
