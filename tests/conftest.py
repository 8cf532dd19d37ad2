"""What all tests share: a workspace where Snakemake may run, and the plans of this repository.

A workspace is the workflow and a tiny paper in a folder of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from purifiers.__main__ import main
from purifiers.plan.plan import Plan, make_plan

ROOT = Path(__file__).resolve().parents[1]
# Read when torch is imported, here and in the processes that tests start. The networks are too
# small for more threads, whose waiting for each other makes a busy machine many times slower.
os.environ["OMP_NUM_THREADS"] = "1"

FOLDERS = ("workflow", "regression", "contract", "site", "unit")
"""Order of the tests: the longest files first, so that parallel workers end together."""
SAME = (
    *("runs/*/*/scores.parquet", "runs/*/*/weights.safetensors", "runs/*/*/images.npy"),
    *("tables/*/*/*.csv", "tables/*/*/*.md", "tables/*/*/*.tex"),
)
"""Results that must not depend on how often the work was interrupted."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folders = [ROOT / "tests" / name for name in FOLDERS]
    items.sort(key=lambda item: [folder not in item.path.parents for folder in folders])


def _heed_interrupts() -> None:
    """Undo what a shell sets for commands in its background, which ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass(frozen=True)
class Workspace:
    """A copy of the workflow with declarations of its own; the package is this checkout's."""

    path: Path

    @property
    def runs(self) -> Path:
        return self.path / "results" / "runs"

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start ``python -m <arguments>`` as the leader of a process group of its own."""
        inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        return subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=self.path,
            env={**inherited, **environment},
            start_new_session=True,
            preexec_fn=_heed_interrupts,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if arguments[0] == "snakemake" else subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run ``python -m <arguments>``; Snakemake's stdout and stderr come together."""
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=900)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err or "")

    def snakemake(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the workflow at scale ``tiny``."""
        return self.run("snakemake", *arguments, "--config", "scale=tiny", **environment)

    def job(self, stage: str) -> int:
        """Run the one job of a stage in this process; returns the exit status."""
        (spec,) = (self.runs / "batches" / stage).glob("*.spec.json")
        manifest = spec.with_name(spec.name.replace(".spec.", ".done."))
        with contextlib.chdir(self.path):
            return main(["run", str(spec), str(manifest)])

    def folder(self, stage: str, pattern: str = "*") -> Path:
        """The one run folder of a stage whose name fits."""
        (found,) = (self.runs / stage).glob(pattern)
        return found

    def results(self) -> dict[str, bytes]:
        """Content of every result that must not depend on interruptions."""
        results = self.path / "results"
        found = sorted(path for pattern in SAME for path in results.glob(pattern))
        return {str(path.relative_to(results)): path.read_bytes() for path in found}

    def state(self) -> dict[str, bytes]:
        """Content of every file below ``results``, but for locks, which name their last holder."""
        inside = (self.path / "results").rglob("*")
        files = (path for path in inside if path.is_file() and path.name != ".lock")
        return {str(path.relative_to(self.path)): path.read_bytes() for path in sorted(files)}

    def copy(self, path: Path) -> Workspace:
        """The same with all its results, somewhere else."""
        shutil.copytree(self.path, path, symlinks=True)
        return Workspace(path)


def make_workspace(path: Path, paper: str = "toy") -> Workspace:
    """A workspace without results: scale ``tiny`` and one of the tests' own papers."""
    here = ROOT / "tests" / "workflow"
    path.mkdir()
    shutil.copy(ROOT / "Snakefile", path)
    shutil.copytree(ROOT / "workflow", path / "workflow", ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copytree(ROOT / "profiles", path / "profiles")
    shutil.copy(here / "tiny.yaml", path / "workflow" / "scales")
    shutil.copytree(here / paper, path / "benchmarks" / paper)
    (path / "purifiers").symlink_to(ROOT / "purifiers", target_is_directory=True)
    return Workspace(path)


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
