"""Prepare a data set: read or download it, check it and store it for memory mapping."""

from __future__ import annotations

import io

import numpy as np

from purifiers.core.artifacts import RunFolder, write_bytes
from purifiers.core.data import data_root
from purifiers.core.data_layouts import SPLITS
from purifiers.core.spec import DatasetSpec
from purifiers.stages._context import Context, Outcome
from purifiers.stages._opening import new_component


def run(folder: RunFolder, spec: DatasetSpec, context: Context) -> Outcome:
    """Write ``{train,test}_images.npy`` (uint8 NCHW) and ``{train,test}_labels.npy`` (int64).

    Raises:
        UserError: the data are not available, or differ from the declared shape.
    """
    dataset = new_component("dataset", spec.dataset)
    files = []
    sizes = {}
    for split in SPLITS:
        images, labels = dataset.load(split, data_root())
        sizes[split] = len(images)
        for name, array in (("images", images), ("labels", labels)):
            buffer = io.BytesIO()
            np.save(buffer, array)
            write_bytes(folder.path / f"{split}_{name}.npy", buffer.getvalue())
            files.append(f"{split}_{name}.npy")
    source = dataset.source(data_root())
    summary = {
        "shape": list(dataset.shape),
        "classes": dataset.classes,
        "sizes": sizes,
        "source": source.text,
        "note": source.note,
    }
    return Outcome(files, summary)
