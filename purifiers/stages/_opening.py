"""Opening of data sets, images, classifiers and methods that earlier runs produced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from purifiers.core import registry
from purifiers.core.component import Classifier, Method, build, frozen
from purifiers.core.data_layouts import verify_content
from purifiers.core.errors import UserError
from purifiers.core.files import verify_files
from purifiers.core.memory_layout import lay_out
from purifiers.core.spec import (
    AttackSpec,
    ClassifierSpec,
    ComponentSpec,
    ImagesSpec,
    MethodSpec,
    PurifySpec,
    SubstituteSpec,
)
from purifiers.core.training_images import to_float
from purifiers.stages._context import IMAGES, LOGITS, Context, Data, load_weights


@dataclass(frozen=True)
class Rows:
    """Rows of a memory-mapped array, read on demand.

    Attributes:
        array: the array.
        indices: the rows of the array, in order.
    """

    array: npt.NDArray
    indices: npt.NDArray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, rows: npt.NDArray) -> npt.NDArray:
        return self.array[self.indices[rows]]


@dataclass(frozen=True)
class ImageSet:
    """Images to attack, purify or score, with the clean images behind them.

    Attributes:
        images: uint8 images of the whole split if the set is clean, else float32 images
            (n, C, H, W) of the set.
        rows: row of each image of the set in ``images``, int64 (n,).
        indices: the images' indices in their split, int64 (n,).
        labels: int64 (n,).
        clean: uint8 images of the whole split.
        classes: number of classes of the data set.
    """

    images: npt.NDArray
    rows: npt.NDArray
    indices: npt.NDArray
    labels: npt.NDArray
    clean: npt.NDArray
    classes: int

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, start: int, stop: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
        """Images (float32, channels-last) and labels on ``device``, and indices on the CPU."""
        images = to_float(self.images[self.rows[start:stop]], device)
        labels = torch.from_numpy(self.labels[start:stop]).to(device)
        indices = torch.from_numpy(self.indices[start:stop])
        return images.contiguous(memory_format=torch.channels_last), labels, indices

    def clean_batch(self, start: int, stop: int) -> Tensor:
        """The clean images behind a batch, float32 on the CPU."""
        return to_float(self.clean[self.indices[start:stop]])


def open_data(context: Context, run_id: str) -> Data:
    """Open a prepared data set, memory-mapped; its checksums are verified once per job."""
    if run_id not in context.opened:
        context.opened[run_id] = _read_data(context, run_id)
    return context.opened[run_id]


def _read_data(context: Context, run_id: str) -> Data:
    folder = context.folder("dataset", run_id)
    summary = folder.record().summary
    images, labels = {}, {}
    for split in ("train", "test"):
        images[split] = np.load(folder.path / f"{split}_images.npy", mmap_mode="r")
        labels[split] = np.load(folder.path / f"{split}_labels.npy")
    return Data(tuple(summary["shape"]), summary["classes"], images, labels)


def open_images(context: Context, spec: ImagesSpec) -> ImageSet:
    """Open a clean, adversarial or purified set.

    Raises:
        UserError: the set's run is not finished, is damaged, or was made from other images.
    """
    data = open_data(context, spec.data)
    indices = data.indices(spec.subset)
    labels = data.labels[spec.subset.split][indices]
    clean = data.images[spec.subset.split]
    if spec.run is None:
        return ImageSet(clean, indices, indices, labels, clean, data.classes)
    folder = context.folder(spec.stage, spec.run)
    source = folder.record().spec
    assert isinstance(source, AttackSpec | PurifySpec)
    if (source.images.data, source.images.subset) != (spec.data, spec.subset):
        raise UserError(
            f"{folder.path}: its images are of another subset; remove it and start again"
        )
    images = np.load(folder.path / IMAGES, mmap_mode="r")
    if images.shape != (len(indices), *data.shape):
        raise UserError(
            f"{folder.path / IMAGES}: has shape {images.shape}, "
            f"expected {(len(indices), *data.shape)}; remove {folder.path} and start again"
        )
    return ImageSet(images, np.arange(len(indices)), indices, labels, clean, data.classes)


def open_logits(context: Context, run_id: str, images: ImageSet) -> npt.NDArray:
    """Logits of a finished ``predict`` run, float32, memory-mapped.

    Their shape is (n, draws, classes), or (n, draws, states, classes) with ``all_steps``.

    Raises:
        UserError: the run is not finished, is damaged, or classified another number of images.
    """
    folder = context.folder("predict", run_id)
    folder.record()
    logits: npt.NDArray = np.load(folder.path / LOGITS, mmap_mode="r")
    if (len(logits), logits.shape[-1]) != (len(images), images.classes):
        raise UserError(
            f"{folder.path / LOGITS}: has shape {logits.shape}, expected {len(images)} images and "
            f"{images.classes} classes; remove {folder.path} and start again"
        )
    return logits


class Batches(TypedDict):
    """How :func:`purifiers.core.shards.fill` divides the images."""

    batch_size: int
    halves: bool
    resumes: bool


def batches_for(methods: Sequence[Method], context: Context) -> Batches:
    """The scale's batches, or those of a method whose network adapts to its batch.

    Such a network has a batch size of its own, so that a scale changes nothing. A killed run starts
    again, because the network may have adapted to the batches before.
    """
    size = adaptation(methods).get("batch_size")
    return Batches(batch_size=size or context.batch_size, halves=not size, resumes=not size)


def adaptation(methods: Sequence[Method]) -> dict[str, Any]:
    """Batches that the logits depend on, for a run's record; empty if they depend on none."""
    sizes = [method.batch_size for method in methods if method.traits.batch_dependent]
    return {"batch_size": sizes[0], "batch_order": "ascending index"} if sizes else {}


def new_component(kind: str, spec: ComponentSpec, *context: Any) -> Any:
    """Construct a component of a spec.

    Raises:
        UserError: a file that the component reads has changed since planning.
    """
    verify_files(spec)
    described = registry.describe(kind, spec.component)
    verify_content(described.traits, {**described.parameters, **spec.parameters}, spec)
    return build(registry.load(kind, spec.component), *context, **spec.parameters)


def new_classifier(spec: ComponentSpec, data: Data) -> Classifier:
    """An untrained classifier for the images of ``data``."""
    classifier: Classifier = new_component("classifier", spec, data.shape, data.classes)
    return classifier


def open_classifier(context: Context, run_id: str, stage: str = "classifier") -> Classifier:
    """A trained classifier, frozen, in evaluation mode, channels-last.

    Args:
        stage: the stage that trained it: ``classifier`` or ``substitute``.
    """
    folder = context.folder(stage, run_id)
    spec = folder.record(verify=False).spec  # load_weights verifies the checksum
    assert isinstance(spec, ClassifierSpec | SubstituteSpec)
    classifier = new_classifier(spec.classifier, open_data(context, spec.data))
    load_weights(classifier, folder)
    frozen(classifier)
    return on_device(classifier, context)


def on_device(classifier: Classifier, context: Context) -> Classifier:
    """Move a classifier to the device, channels-last if it can be run so, see :func:`lay_out`."""
    lay_out(classifier.to(context.device), classifier.shape)
    return classifier


def new_method(
    spec: ComponentSpec, classifier: Classifier | None, shape: Sequence[int], context: Context
) -> Method:
    """A method bound to a classifier and an image shape (C, H, W), without its fitted weights."""
    method: Method = new_component("method", spec)
    method.bind(classifier, shape)
    return method.to(context.device)


def open_method(context: Context, spec: MethodSpec, classifier: Classifier) -> Method:
    """A method ready for use: bound, with its fitted weights, frozen."""
    method = new_method(spec, classifier, classifier.shape, context)
    if spec.run is not None:
        load_weights(method, context.folder("purifier", spec.run))
    frozen(method)
    return method
