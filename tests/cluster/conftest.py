"""A Slurm for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .slurm import Slurm, missing, running_slurm


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A running Slurm; without its programs or root the tests are skipped."""
    if reason := missing():
        pytest.skip(reason)
    with running_slurm(tmp_path_factory.mktemp("slurm") / "here") as running:
        yield running
