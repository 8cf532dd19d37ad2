"""CSV files with a provenance file beside them, whose digest shows damage and edits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from purifiers.core.artifacts import read_json, sha256, write_json, write_text

DIGEST = "csv_sha256"
"""Key of a provenance file with the SHA-256 of the CSV beside it."""


def provenance_path(path: Path) -> Path:
    """The provenance file beside a CSV."""
    return path.with_suffix(".provenance.json")


def write_recorded(path: Path, text: str, provenance: Mapping[str, Any]) -> None:
    """Write a CSV, and its provenance with the digest that :func:`is_intact` compares."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    write_text(path, text)
    write_json(provenance_path(path), {**provenance, DIGEST: digest})


def is_intact(path: Path) -> bool:
    """Whether a CSV exists and is the one whose digest its provenance records."""
    recorded = provenance_path(path)
    if not path.exists() or not recorded.exists():
        return False
    return bool(read_json(recorded).get(DIGEST) == sha256(path))
