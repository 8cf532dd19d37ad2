"""One job: the unfinished runs of a batch, one after the other."""

from __future__ import annotations

import ctypes
import importlib
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from purifiers.core.allocation import driver_version, in_slurm_job, this_process, visible_gpus
from purifiers.core.artifacts import RunFolder, RunHeld, write_json
from purifiers.core.errors import UserError, check_choice
from purifiers.core.files import remembered
from purifiers.core.fitting import EXAMPLES, PHASES
from purifiers.core.precision import computing
from purifiers.core.provenance import provenance
from purifiers.core.shards import out_of_memory
from purifiers.core.sources import component_sources
from purifiers.core.spec import read_spec
from purifiers.stages._context import Context


def run_batch(batch: dict[str, Any], manifest: Path, runs_root: Path, threads: int) -> int:
    """Execute the unfinished runs of a batch.

    A run that fails leaves ``failure.json``, and the job continues with the next one. The manifest
    is written only when all runs are finished.

    Args:
        batch: content of the batch's spec file.
        manifest: path of the manifest.
        runs_root: folder of all runs.
        threads: number of CPU threads.

    Returns:
        The number of failed runs.

    Raises:
        RunHeld: another process executes a run, and this one is a cluster's job, which would hold
            its allocation while it waits.
    """
    device = choose_device(batch["device"])
    torch.set_num_threads(threads)
    _keep_freed_memory()
    context = Context(runs_root, device, threads, batch["batch_size"], batch["checkpoint_seconds"])
    stage = importlib.import_module(f"purifiers.stages.{batch['stage']}")
    failed = []
    for entry in batch["runs"]:
        folder = RunFolder(runs_root, batch["stage"], entry["id"])
        try:
            with folder.lock(wait=not in_slurm_job()), remembered(runs_root):
                if not folder.complete():
                    with computing("float32", device):
                        _execute(stage, folder, entry, context)
        except RunHeld:
            raise
        except Exception as error:  # the table must show a failed run, not a score
            failed.append(entry["id"])
            _record_failure(folder, error)
    if not failed:
        write_json(manifest, {"batch": batch["batch"], "runs": [r["id"] for r in batch["runs"]]})
    return len(failed)


def _keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for reuse; no effect with other C libraries.

    Returning memory to the kernel and faulting it in again with every batch cost small networks a
    quarter of their time.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(m_mmap_threshold, 2**30)
        mallopt(m_trim_threshold, 2**31 - 1)


def _execute(stage: Any, folder: RunFolder, entry: dict[str, Any], context: Context) -> None:
    free = shutil.disk_usage(folder.path).free
    written = sum(path.stat().st_blocks * 512 for path in folder.path.iterdir())
    needed = entry["size_bytes"] - written
    if needed > free:
        raise UserError(
            f"{folder.path}: needs {needed / 2**20:.1f} MiB, "
            f"{free / 2**20:.1f} MiB are free: free some space and start again"
        )
    started = time.monotonic()
    spec = read_spec(folder.stage, entry["spec"], f"spec of {folder.id}")
    outcome = stage.run(folder, spec, context)
    folder.finish(
        spec,
        outcome.files,
        {**outcome.summary, "passes": entry["passes"]},
        time.monotonic() - started,
        provenance(context.device, context.threads, component_sources(spec)),
    )
    (folder.path / "checkpoint").unlink(missing_ok=True)
    for temporary in (EXAMPLES, PHASES):
        shutil.rmtree(folder.path / temporary, ignore_errors=True)


def _record_failure(folder: RunFolder, error: Exception) -> None:
    line = " ".join(str(error).split()) or type(error).__name__
    if out_of_memory(error):
        line = f"out of memory: run fewer jobs at once, or give each more; {line[:120]}"
    elif not isinstance(error, UserError):
        line = f"{type(error).__name__}: {line}"
        traceback.print_exception(error, file=sys.stderr)
    print(f"error: {folder.stage} {folder.id}: {line}", file=sys.stderr, flush=True)
    try:
        folder.fail(line)
    except UserError as full:
        print(f"error: {full}", file=sys.stderr, flush=True)


def choose_device(requested: str) -> str:
    """The device ``cpu`` or ``cuda``; ``auto`` selects CUDA if the process may use a GPU.

    Raises:
        UserError: another name; or ``cuda`` is requested but not available; or ``auto``, and torch
            cannot use the GPU that there is.
    """
    check_choice("device", requested, ("auto", "cpu", "cuda"))
    if requested == "cpu" or torch.cuda.is_available():
        return "cpu" if requested == "cpu" else "cuda"
    gpus = visible_gpus()
    if gpus:
        raise UserError(
            f"device is {requested} and GPU {','.join(gpus)} was given to {this_process()}, but "
            f"torch {torch.__version__} (built for CUDA {torch.version.cuda or 'none'}) cannot use "
            f"it (NVIDIA driver {driver_version()}): install a torch build for this driver, or set "
            "`device: cpu` in the scale"
        )
    if requested == "cuda":
        raise UserError("device is cuda, but no CUDA device is available; set it to cpu or auto")
    return "cpu"
