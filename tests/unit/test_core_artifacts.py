"""Files that are whole or not there, and records that notice every foreign or flipped bit."""

from __future__ import annotations

import errno
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from purifiers.core import artifacts
from purifiers.core.artifacts import RunFolder
from purifiers.core.errors import UserError
from purifiers.core.spec import (
    AttackSpec,
    ComponentSpec,
    ImagesSpec,
    ScoreSpec,
    Subset,
)

IMAGES = ImagesSpec(data="toy", subset=Subset(split="test", n=3, seed=0), run=None)
SPEC = AttackSpec(
    images=IMAGES,
    classifier="net",
    methods=(),
    gradient="exact",
    attack=ComponentSpec(component="pgd", version=1, parameters={"eps": 0.1}),
    seed=0,
)


@pytest.fixture
def run(tmp_path):
    """A finished run with one file."""
    folder = RunFolder(tmp_path, "attack", "toy-pgd-12345678")
    artifacts.write_bytes(folder.path / "images.npy", bytes(range(256)) * 10)
    folder.finish(SPEC, ["images.npy"], {"n": 3}, 1.23456, {"torch": "x"})
    return folder


# writing


def test_write_makes_folders_and_leaves_no_trace(tmp_path):
    path = tmp_path / "a" / "b.bin"
    artifacts.write_bytes(path, b"one")
    artifacts.write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["b.bin"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "kept"
    artifacts.write_bytes(path, b"old")

    def fail(*_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(artifacts.os, call, fail)
    with pytest.raises(OSError, match="broken"):
        artifacts.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["kept"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_line(tmp_path, monkeypatch, code):
    path = tmp_path / "deep" / "kept"

    def fail(*_):
        raise OSError(code, "full")

    monkeypatch.setattr(artifacts.os, "fsync", fail)
    with pytest.raises(
        UserError, match=r"kept: no room to write .*MiB free.*start again"
    ) as caught:
        artifacts.write_bytes(path, b"new")
    assert "\n" not in str(caught.value)
    assert not path.exists() and os.listdir(path.parent) == []


def test_json_is_stable_and_damage_is_told(tmp_path):
    path = tmp_path / "x.json"
    artifacts.write_json(path, {"b": 1, "a": [1.5, None, "ü"]})
    first = path.read_bytes()
    artifacts.write_json(path, {"a": [1.5, None, "ü"], "b": 1})
    assert path.read_bytes() == first
    assert artifacts.read_json(path) == {"b": 1, "a": [1.5, None, "ü"]}
    path.write_bytes(first[:-4])
    with pytest.raises(UserError, match=r"x\.json: not readable as JSON"):
        artifacts.read_json(path)


def test_sealed_bytes_notice_every_damage(tmp_path):
    path, content = tmp_path / "seal", bytes(1000)
    artifacts.write_sealed(path, content)
    assert artifacts.read_sealed(path) == content
    whole = path.read_bytes()
    for place in (0, 31, 32, 500, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match="damaged"):
            artifacts.read_sealed(path)
    for length in (0, 10, 32, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="damaged"):
            artifacts.read_sealed(path)


def test_short_hash_does_not_depend_on_order():
    assert artifacts.short_hash({"a": 1, "b": [2, 3]}) == artifacts.short_hash(
        {"b": [2, 3], "a": 1}
    )
    assert artifacts.short_hash({"a": 1}) != artifacts.short_hash({"a": 1.5})
    assert len(artifacts.short_hash(None)) == 8


def test_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180
    assert artifacts.sha256(tmp_path / "x") == expected


# runs


def test_a_record_says_everything(run, tmp_path):
    assert run.path == tmp_path / "attack" / "toy-pgd-12345678"
    record = run.record()
    assert record.id == run.id and record.stage == "attack"
    assert record.files["images.npy"] == {
        "sha256": artifacts.sha256(run.path / "images.npy"),
        "bytes": 2560,
    }
    assert (record.spec, record.summary) == (SPEC, {"n": 3})
    assert (record.elapsed_seconds, record.provenance) == (1.235, {"torch": "x"})


def test_a_record_has_the_spec_of_its_stage(run):
    assert run.record().spec_as(AttackSpec) == SPEC
    with pytest.raises(
        UserError, match=r"run toy-pgd-12345678: stage is 'attack', expected 'score'"
    ):
        run.record().spec_as(ScoreSpec)


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('"seed": 0', '"sead": 0', "spec: sead: "),
        ('"gradient": "exact"', '"gradient": 1', "spec: gradient: "),
        ('"n": 3,', '"n": "3",', "spec: images.subset.n: "),
    ],
)
def test_a_record_of_another_form_is_one_line(run, old, new, field):
    text = run.record_path.read_text()
    assert old in text
    run.record_path.write_text(text.replace(old, new))
    with pytest.raises(UserError) as caught:
        run.record()
    line = str(caught.value)
    assert "\n" not in line and line.startswith(f"{run.record_path}: {field}")
    assert line.endswith("remove it and start again")


def test_unfinished_is_refused(tmp_path):
    folder = RunFolder(tmp_path, "attack", "none")
    assert not folder.complete()
    with pytest.raises(UserError, match="not finished"):
        folder.record()


def test_one_flipped_bit_is_refused(run):
    file = run.path / "images.npy"
    content = bytearray(file.read_bytes())
    content[1234] ^= 8
    file.write_bytes(content)
    with pytest.raises(UserError, match="checksum mismatch"):
        run.record()
    assert run.record(verify=False).id == run.id


@pytest.mark.parametrize("change", ["shorter", "longer", "gone"])
def test_a_file_of_another_size_is_refused(run, change):
    file = run.path / "images.npy"
    content = file.read_bytes()
    if change == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:-1] if change == "shorter" else content + b"x")
    with pytest.raises(UserError, match=r"images\.npy: missing or truncated"):
        run.record()


def test_files_of_another_run_are_refused(run, tmp_path):
    other = RunFolder(tmp_path, "attack", "toy-fgsm-87654321")
    run.path.rename(other.path)
    with pytest.raises(UserError, match=r"holds run 'toy-pgd-12345678', not 'toy-fgsm-87654321'"):
        other.record()
    moved = RunFolder(tmp_path, "purify", other.id)
    moved.path.parent.mkdir()
    other.path.rename(moved.path)
    with pytest.raises(UserError, match="files come from another run"):
        moved.record()


def test_a_damaged_record_is_refused(run):
    run.record_path.write_text(run.record_path.read_text()[:50])
    with pytest.raises(UserError, match=r"run\.json: not readable"):
        run.record()


def test_failure_is_kept_until_success(run):
    run.record_path.unlink()
    assert run.failure() is None
    run.fail("it broke")
    assert run.failure() == "it broke" and not run.complete()
    run.finish(SPEC, ["images.npy"], {}, 0.0, {})
    assert run.failure() is None and run.complete()


def test_finish_needs_its_files(tmp_path):
    folder = RunFolder(tmp_path, "attack", "toy")
    folder.path.mkdir(parents=True)
    with pytest.raises(FileNotFoundError):
        folder.finish(SPEC, ["missing.npy"], {}, 0.0, {})
    assert not folder.complete()


def _hold(folder, held, seconds):
    with folder.lock():
        held.set()
        time.sleep(seconds)
        (folder.path / "done").touch()


def test_the_lock_waits_for_another_process(tmp_path):
    folder = RunFolder(tmp_path, "attack", "toy")
    context = multiprocessing.get_context("fork")
    held = context.Event()
    other = context.Process(target=_hold, args=(folder, held, 0.3))
    other.start()
    assert held.wait(10)
    with folder.lock():
        assert (folder.path / "done").exists()
    other.join(10)
    assert other.exitcode == 0


def test_a_full_disk_at_the_lock_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "touch", full)
    folder = RunFolder(tmp_path, "attack", "none")
    with pytest.raises(UserError, match=r"\.lock: no room to write it"), folder.lock():
        pass
