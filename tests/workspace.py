"""A workspace: the workflow and a tiny paper in a folder of its own, where Snakemake may run."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from purifiers.__main__ import main

ROOT = Path(__file__).resolve().parents[1]
SAME = (
    *("runs/*/*/scores.parquet", "runs/*/*/weights.safetensors", "runs/*/*/images.npy"),
    *("tables/*/*/*.csv", "tables/*/*/*.md", "tables/*/*/*.tex"),
)
"""Results that must not depend on how often the work was interrupted."""


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


def make_workspace(path: Path, *papers: str) -> Workspace:
    """A workspace without results: scale ``tiny`` and the tests' own papers, ``toy`` by default."""
    here = ROOT / "tests" / "workflow"
    path.mkdir()
    shutil.copy(ROOT / "Snakefile", path)
    shutil.copytree(ROOT / "workflow", path / "workflow", ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copytree(ROOT / "profiles", path / "profiles")
    shutil.copy(here / "tiny.yaml", path / "workflow" / "scales")
    for paper in papers or ("toy",):
        shutil.copytree(here / paper, path / "benchmarks" / paper)
    (path / "purifiers").symlink_to(ROOT / "purifiers", target_is_directory=True)
    return Workspace(path)
