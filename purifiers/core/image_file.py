"""Files of images with labels, indices and their origin, to exchange adversarial sets."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from torch import Tensor

from purifiers.core.artifacts import write_bytes
from purifiers.core.component import default_indices
from purifiers.core.errors import UserError
from purifiers.core.images import check_images, check_labels
from purifiers.core.provenance import provenance as provenance_of_this_process

SUFFIXES = (".npz", ".parquet")
_FIELDS = ("images", "labels", "indices")


@dataclass(frozen=True)
class ImageFile:
    """Content of a file of images.

    Attributes:
        images: (n, C, H, W), float32 in [0, 1] or uint8.
        labels: int64 (n,); None if the file has none.
        indices: the images' indices in their data set, int64 (n,); 0 ... n-1 if the file has none.
        provenance: how the images were made; empty if the file has none.
    """

    images: npt.NDArray
    labels: npt.NDArray | None
    indices: npt.NDArray
    provenance: dict[str, Any]


def write_image_file(
    path: Path,
    images: npt.NDArray,
    labels: npt.NDArray,
    indices: npt.NDArray,
    provenance: Mapping[str, Any],
) -> None:
    """Write images completely or not at all.

    ``.npz`` has the arrays ``images``, ``labels``, ``indices`` and the JSON text ``provenance``.
    ``.parquet`` has one row per image: ``index``, ``label`` and ``image``, a list of C * H * W
    values; shape and provenance are in the metadata of the schema.

    Raises:
        UserError: another suffix.
    """
    text = json.dumps(dict(provenance))
    buffer = io.BytesIO()
    if _suffix(path) == ".npz":
        np.savez_compressed(
            buffer, images=images, labels=labels, indices=indices, provenance=np.array(text)
        )
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        values = pa.array(images.reshape(-1))
        table = pa.table(
            {
                "index": indices,
                "label": labels,
                "image": pa.FixedSizeListArray.from_arrays(values, int(images[0].size)),
            }
        )
        shape = json.dumps(list(images.shape[1:]))
        pq.write_table(table.replace_schema_metadata({"shape": shape, "provenance": text}), buffer)
    write_bytes(path, buffer.getvalue())


def save_images(
    path: str | Path,
    images: Tensor,
    labels: Tensor,
    indices: Sequence[int] | Tensor | None = None,
    **provenance: Any,
) -> None:
    """Write images with labels, indices and provenance, for other tools or for attack ``stored``.

    Args:
        path: ends in ``.npz`` or ``.parquet``.
        images: float32 (n, C, H, W) in [0, 1].
        labels: int64 (n,).
        indices: the images' indices in their data set; 0 ... n-1 by default.
        provenance: JSON-able facts to store beside the suite's own: code, libraries and time.

    Raises:
        UserError: wrong images or labels, or another suffix.
    """
    check_images(images, "save_images")
    check_labels(labels, images, "save_images")
    rows = default_indices(images, indices).numpy()
    content = {**provenance_of_this_process(), **provenance}
    write_image_file(Path(path), images.cpu().numpy(), labels.cpu().numpy(), rows, content)


def read_image_file(path: Path) -> ImageFile:
    """Read a file of images; nothing is unpickled.

    Raises:
        UserError: a missing or damaged file, another suffix, no images, or arrays that do not fit
            together.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; correct the path")
    try:
        content = _read_npz(path) if _suffix(path) == ".npz" else _read_parquet(path)
    except (OSError, EOFError, ValueError, TypeError, KeyError, BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path}: cannot be read as images ({reason}); write it with purifiers.save_images, or "
            "with numpy.savez(path, images=..., labels=..., indices=...)"
        ) from None
    count = len(content.images)
    for name in ("labels", "indices"):
        array = getattr(content, name)
        if array is not None and array.shape != (count,):
            raise UserError(f"{path}: {count} images but {name} of shape {array.shape}")
    if content.images.ndim != 4 or content.images.dtype not in (np.float32, np.uint8):
        raise UserError(
            f"{path}: images are {content.images.dtype} of shape {content.images.shape}, expected "
            "float32 or uint8 (n, C, H, W)"
        )
    if len(np.unique(content.indices)) != count:
        raise UserError(f"{path}: an index occurs twice; give each image its own index")
    return content


def _suffix(path: Path) -> str:
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: choose a name that ends in {' or '.join(SUFFIXES)}")
    return path.suffix


def _read_npz(path: Path) -> ImageFile:
    stored = np.load(path, allow_pickle=False)
    if not isinstance(stored, np.lib.npyio.NpzFile):
        raise ValueError("a single array, not an archive of named arrays")
    with stored as arrays:
        images = arrays["images"]
        labels = _whole(arrays["labels"], "labels") if "labels" in arrays else None
        indices = arrays["indices"] if "indices" in arrays else np.arange(len(images))
        text = str(arrays["provenance"]) if "provenance" in arrays else "{}"
    return ImageFile(images, labels, _whole(indices, "indices"), json.loads(text))


def _whole(numbers: npt.NDArray, name: str) -> npt.NDArray:
    """Whole numbers as int64."""
    kind = numbers.dtype.kind
    if kind not in "iuf" or (kind == "f" and (numbers % 1).any()):  # of nan it is nan
        raise ValueError(f"{name} are {numbers.dtype}, expected whole numbers")
    return numbers.astype(np.int64)


def _read_parquet(path: Path) -> ImageFile:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    metadata = table.schema.metadata or {}
    if "image" not in table.column_names or b"shape" not in metadata:
        raise ValueError("needs a column image, and its shape [C, H, W] in the schema's metadata")
    shape = json.loads(metadata[b"shape"])
    flat = table["image"].combine_chunks().flatten().to_numpy()
    columns = {
        name: table[name].to_numpy().astype(np.int64) if name in table.column_names else None
        for name in ("label", "index")
    }
    rows = columns["index"]
    return ImageFile(
        images=flat.reshape(len(table), *shape),
        labels=columns["label"],
        indices=np.arange(len(table)) if rows is None else rows,
        provenance=json.loads(metadata.get(b"provenance", b"{}")),
    )
