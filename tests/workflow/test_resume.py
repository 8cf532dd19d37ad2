"""Killed at any moment and started again, the workflow ends with the same bits."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from purifiers.core import loop
from purifiers.core.shards import fill
from purifiers.core.stale_lock import HOST, remove_stale_lock

MOMENTS = {
    "classifier": "runs/classifier/*/checkpoint",
    "attack": "runs/attack/*/images.npy.progress.json",
    "purify": "runs/purify/*/images.npy.progress.json",
    "score": "runs/score/*/measured.npy.progress.json",
    "report": "tables/tiny/toy/table_1.md",
}
"""Per stage a file, below ``results``, that shows it at work; purifiers are fitted beside the
attacks."""


def wait_for(workspace: Any, pattern: str, process: subprocess.Popen[str]) -> None:
    """Return as soon as a file appears while ``process`` runs."""
    results = workspace.path / "results"
    while not any(results.glob(pattern)):
        assert process.poll() is None, f"ended before {pattern}: {process.stdout.read()}"
        time.sleep(0.005)


def assert_ends_like(workspace: Any, undisturbed: Any) -> None:
    """Run until done: the results are the undisturbed run's, to the bit."""
    done = workspace.snakemake()
    assert done.returncode == 0, done.stdout
    expected, found = undisturbed.results(), workspace.results()
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


def test_the_undisturbed_run_has_results_of_every_kind(undisturbed: Any) -> None:
    names = list(undisturbed.results())
    for kind, count in (
        *(("weights.safetensors", 4), ("images.npy", 6), ("scores.parquet", 8)),
        *(("table_1.csv", 1), ("table_2.csv", 1), ("claims.csv", 1)),
    ):
        assert sum(name.endswith(kind) for name in names) == count


def test_killed_in_every_stage(workspace: Any, undisturbed: Any) -> None:
    draw = random.Random(20)
    for stage, pattern in MOMENTS.items():
        process = workspace.start("snakemake", "--config", "scale=tiny")
        wait_for(workspace, pattern, process)
        time.sleep(draw.choice([0.0, draw.uniform(0.0, 0.2)]))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL, f"{stage} was over before the kill"
    assert_ends_like(workspace, undisturbed)


def test_a_living_snakemake_keeps_its_lock(workspace: Any) -> None:
    process = workspace.start("snakemake", "--config", "scale=tiny")
    wait_for(workspace, MOMENTS["classifier"], process)
    second = workspace.snakemake()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert second.returncode != 0 and "LockException" in second.stdout


def test_a_lock_of_another_host_stays(tmp_path: Path) -> None:
    lock = tmp_path / ".snakemake" / "locks" / "0.input.lock"
    lock.parent.mkdir(parents=True)
    note = tmp_path / ".snakemake" / HOST
    for host, stays in (("elsewhere", True), ("", True), (socket.gethostname(), False)):
        lock.touch()
        note.write_text(host) if host else note.unlink()
        remove_stale_lock(tmp_path)
        assert lock.exists() == stays, host


@pytest.mark.parametrize(("option", "stays"), [("--nolock", False), ("--cores", True)])
def test_the_job_of_a_cluster_holds_no_lock(tmp_path: Path, option: str, stays: bool) -> None:
    """On the head's own host it outlives a killed Snakemake."""
    lock = tmp_path / ".snakemake" / "locks" / "0.input.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    (tmp_path / ".snakemake" / HOST).write_text(socket.gethostname())
    words = [sys.executable, "-c", "print(flush=True); import time; time.sleep(60)"]
    with subprocess.Popen(
        [*words, "snakemake", option], cwd=tmp_path, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline()
        remove_stale_lock(tmp_path)
        other.kill()
    assert lock.exists() == stays


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_all_processes_are_told_to_end(finished: Any, undisturbed: Any, sign: Any) -> None:
    """As a scheduler and Ctrl-C do: Snakemake and its jobs get the signal at once."""
    shutil.rmtree(finished.runs / "score")
    process = finished.start("snakemake", "--config", "scale=tiny")
    wait_for(finished, MOMENTS["score"], process)
    os.killpg(process.pid, sign)
    process.wait()
    assert process.returncode != 0
    assert_ends_like(finished, undisturbed)


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_only_snakemake_ends(finished: Any, undisturbed: Any, sign: signal.Signals) -> None:
    """After SIGTERM and SIGINT Snakemake waits for its job. After SIGKILL the job lives on as an
    orphan, and the next start's job waits for it at the run folder's lock."""
    shutil.rmtree(finished.runs / "score")
    process = finished.start("snakemake", "--config", "scale=tiny")
    wait_for(finished, MOMENTS["score"], process)
    os.kill(process.pid, sign)
    process.wait()
    assert process.returncode != 0
    assert_ends_like(finished, undisturbed)


@pytest.mark.parametrize("moment", ["before the rename", "before the record", "half written"])
@pytest.mark.parametrize("stage", ["attack", "purify"])
def test_killed_between_two_files(finished: Any, undisturbed: Any, stage: str, moment: str) -> None:
    """The states on disk that last microseconds, made by hand."""
    folder = next(iter(sorted((finished.runs / stage).iterdir())))
    images = folder / "images.npy"
    rows = np.load(images)
    (folder / "run.json").unlink()
    progress = {"count": len(rows), "shape": list(rows.shape[1:]), "dtype": "<f4", "batch_size": 4}
    if moment == "before the rename":
        images.rename(folder / "images.npy.partial")
        progress["done"] = len(rows)
    elif moment == "half written":
        images.unlink()
        rows[len(rows) // 2 :] = 0.0
        with (folder / "images.npy.partial").open("wb") as file:
            np.save(file, rows)
        progress["done"] = len(rows) // 2
        (folder / ".run.json.1.tmp").write_text('{"id": ')
    if "done" in progress:
        progress["sha256"] = hashlib.sha256(rows[: progress["done"]].tobytes()).hexdigest()
        (folder / "images.npy.progress.json").write_text(json.dumps(progress))
    assert finished.job(stage) == 0
    assert (folder / "run.json").exists()
    assert finished.results() == undisturbed.results()


class Killed(BaseException):
    """No code catches it, as none catches SIGKILL."""


@pytest.mark.parametrize("killed_at", range(1, 24, 3))
def test_training_repeats_at_most_one_checkpoint_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    """A clock that ticks once per step, a checkpoint every five ticks, a kill inside a step."""
    interval, total = 5, 24
    pixels = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (30, 1, 4, 4), np.uint8)
    recipe = loop.Recipe(
        epochs=4, batch_size=5, learning_rate=0.1, momentum=0.9, checkpoint_seconds=interval
    )
    steps = 0
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: steps))

    def train(checkpoint: Path, kill_at: int | None) -> bytes:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Dropout(0.5), nn.Linear(8, 3))

        def loss(images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
            nonlocal steps
            steps += 1
            if steps == kill_at:
                raise Killed
            return nn.functional.cross_entropy(module(images), labels)

        labels = np.arange(30) % 3
        loop.fit(module, loss, pixels, labels, recipe, 1, checkpoint, "run", "train")
        return b"".join(value.numpy().tobytes() for value in module.state_dict().values())

    straight = train(tmp_path / "straight", None)
    assert steps == total
    steps = 0
    with pytest.raises(Killed):
        train(tmp_path / "killed", killed_at)
    assert train(tmp_path / "killed", None) == straight
    assert total < steps <= total + interval


@pytest.mark.parametrize("killed_at", [1, 2, 5])
def test_filling_repeats_at_most_one_batch(tmp_path: Path, killed_at: int) -> None:
    count, batch_size = 18, 4
    done: list[int] = []
    kill_at: int | None = killed_at

    def work(start: int, stop: int) -> Any:
        done.extend(range(start, stop))
        if len(done) > (kill_at or 99) * batch_size - batch_size:
            raise Killed
        return np.arange(start, stop, dtype=np.float32)[:, None] ** 2

    path = tmp_path / "rows.npy"
    with pytest.raises(Killed):
        fill(path, count, (1,), np.float32, work, batch_size, "fill")
    assert not path.exists()
    kill_at = None
    fill(path, count, (1,), np.float32, work, batch_size, "fill")
    assert np.load(path).ravel().tolist() == [float(i**2) for i in range(count)]
    assert len(done) <= count + batch_size
    assert sorted(set(done)) == list(range(count))
    assert [p.name for p in tmp_path.iterdir()] == ["rows.npy"]
