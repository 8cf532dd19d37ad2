"""What all tests share: workspaces where Snakemake may run, and the plans of this repository."""

from __future__ import annotations

import fcntl
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from workspace import ROOT, Workspace, make_workspace

from purifiers.plan.plan import Plan, make_plan

# Read when torch is imported, here and in the processes that tests start. The networks are too
# small for more threads, whose waiting for each other makes a busy machine many times slower.
os.environ["OMP_NUM_THREADS"] = "1"

FOLDERS = ("workflow", "regression", "contract", "site", "unit")
"""Order of the tests: the longest files first, so that parallel workers end together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folders = [ROOT / "tests" / name for name in FOLDERS]
    items.sort(key=lambda item: [folder not in item.path.parents for folder in folders])


@pytest.fixture(scope="session")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace for the paper ``masked``: its package has the template of a purifier, which
    rounds, under a name of its own too. The copy declares a gradient that it does not have."""
    made = make_workspace(tmp_path_factory.mktemp("masked") / "workspace", "masked")
    package = made.path / "purifiers"
    package.unlink()
    unfinished = shutil.ignore_patterns("*.pyc.*")  # another process may be compiling
    shutil.copytree(ROOT / "purifiers", package, ignore=unfinished)
    template = (package / "methods" / "_template.py").read_text()
    assert "differentiable=False" in template
    dishonest = template.replace("differentiable=False", "differentiable=True")
    (package / "methods" / "rounding.py").write_text(dishonest.replace("Template", "Rounding"))
    scale = made.path / "workflow" / "scales" / "tiny.yaml"  # nothing is killed here
    scale.write_text(scale.read_text().replace("batch_size: 4\n", "batch_size: 64\n"))
    return made


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace without results."""
    return make_workspace(tmp_path / "workspace")


def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The temporary folder that all parallel workers share."""
    base = tmp_path_factory.getbasetemp()
    # each worker has a folder of its own in this one
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def made_once(
    tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]
) -> Path:
    """File or folder ``name``, made by the first of the parallel workers that needs it.

    Args:
        make: is called with the path, where nothing is or what an earlier call left unfinished.
    """
    base = base_folder(tmp_path_factory)
    path, done = base / name, base / f"{name}.done"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            make(path)
            done.touch()
    return path


class Plans(dict[str, Plan]):
    """Plan of everything by the name of the scale, made when it is first read."""

    def __init__(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        self.tmp_path_factory = tmp_path_factory

    def __missing__(self, scale: str) -> Plan:
        def make(path: Path) -> None:
            with pytest.MonkeyPatch.context() as patch:  # as if there were official data only
                empty = base_folder(self.tmp_path_factory) / "no_data"
                empty.mkdir(exist_ok=True)
                patch.setenv("PURIFYBENCH_DATA", str(empty))
                path.write_bytes(pickle.dumps(make_plan(ROOT, scale)))

        made = made_once(self.tmp_path_factory, f"{scale}.plan", make)
        self[scale] = pickle.loads(made.read_bytes())
        return self[scale]


@pytest.fixture(scope="session")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Plans:
    """The plans of this repository's scales; only to be read."""
    return Plans(tmp_path_factory)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace where everything has run without interruption; only to be read and copied."""

    def make(path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)
        done = make_workspace(path).snakemake()
        assert done.returncode == 0, done.stdout

    return Workspace(made_once(tmp_path_factory, "undisturbed", make))


@pytest.fixture
def finished(undisturbed: Workspace, tmp_path: Path) -> Workspace:
    """A finished workspace to be spoiled."""
    return undisturbed.copy(tmp_path / "workspace")
