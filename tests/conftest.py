"""A workspace: the workflow and a tiny paper in a folder of its own, where Snakemake may run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SAME = (
    *("runs/*/*/scores.parquet", "runs/*/*/weights.safetensors", "runs/*/*/images.npy"),
    *("tables/*/*/*.csv", "tables/*/*/*.md", "tables/*/*/*.tex"),
)
"""Results that must not depend on how often the work was interrupted."""


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
            env={**inherited, "OMP_NUM_THREADS": "1", **environment},
            start_new_session=True,
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

    def job(self, stage: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the one job of a stage, as its rule does."""
        (spec,) = (self.runs / "batches" / stage).glob("*.spec.json")
        manifest = spec.with_name(spec.name.replace(".spec.", ".done."))
        return self.run("purifiers", "run", str(spec), str(manifest), **environment)

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
        """Content of every file below ``results``."""
        files = (path for path in (self.path / "results").rglob("*") if path.is_file())
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
    rounds, under a name of its own too; this copy wrongly declares that it has a gradient."""
    made = make_workspace(tmp_path_factory.mktemp("masked") / "workspace", "masked")
    package = made.path / "purifiers"
    package.unlink()
    shutil.copytree(ROOT / "purifiers", package, ignore=shutil.ignore_patterns("__pycache__"))
    template = (package / "methods" / "_template.py").read_text()
    honest = "differentiable=False"
    assert template.count(honest) == 1
    rounding = template.replace("Template", "Rounding").replace(honest, "differentiable=True")
    (package / "methods" / "rounding.py").write_text(rounding)
    return made


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace without results."""
    return make_workspace(tmp_path / "workspace")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace where everything has run without interruption; only to be read and copied."""
    made = make_workspace(tmp_path_factory.mktemp("undisturbed") / "workspace")
    done = made.snakemake()
    assert done.returncode == 0, done.stdout
    return made


@pytest.fixture
def finished(undisturbed: Workspace, tmp_path: Path) -> Workspace:
    """A finished workspace to be spoiled."""
    return undisturbed.copy(tmp_path / "workspace")
