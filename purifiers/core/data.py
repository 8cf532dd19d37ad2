"""Location of the data sets' files, and the choice of a subset of their images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from purifiers.core.errors import UserError


def data_root() -> Path:
    """The folder of all data sets.

    Returns:
        The environment variable ``PURIFYBENCH_DATA`` if it is set, else ``data/`` below the
        current directory.

    Raises:
        UserError: the variable names no folder.
    """
    configured = os.environ.get("PURIFYBENCH_DATA")
    if not configured:
        return Path.cwd() / "data"
    root = Path(configured).expanduser()
    if not root.is_dir():
        raise UserError(
            f"PURIFYBENCH_DATA is {configured!r}, which is no folder: correct it, or create the "
            "folder for downloads"
        )
    return root


def subset_indices(total: int, n: int, seed: int, last: bool = False) -> npt.NDArray:
    """Indices of ``n`` of ``total`` images, int64 (n,), ascending: all papers' subsets.

    Args:
        seed: of the shuffle.
        last: take the last images of the shuffle instead of the first. Both are disjoint if they
            fit into ``total`` together.
    """
    if n == total:
        return np.arange(total)
    shuffled = np.random.Generator(np.random.PCG64(seed)).permutation(total)
    return np.sort(shuffled[total - n :] if last else shuffled[:n])
