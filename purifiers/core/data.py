"""Location of the data sets' files."""

from __future__ import annotations

import os
from pathlib import Path


def data_root() -> Path:
    """The folder of all data sets.

    Returns:
        The environment variable ``PURIFYBENCH_DATA`` if it is set, else ``data/`` below the
        current directory.
    """
    configured = os.environ.get("PURIFYBENCH_DATA")
    return Path(configured).expanduser() if configured else Path.cwd() / "data"
