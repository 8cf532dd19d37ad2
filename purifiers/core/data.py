"""Where the files of data sets lie."""

from __future__ import annotations

import os
from pathlib import Path


def data_root() -> Path:
    """The folder that holds the datasets.

    Returns:
        the environment variable ``PURIFYBENCH_DATA`` if it is set, else ``data/`` below the
        current directory.
    """
    given = os.environ.get("PURIFYBENCH_DATA")
    return Path(given).expanduser() if given else Path.cwd() / "data"
