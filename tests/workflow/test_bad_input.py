"""Whatever is wrong: one clear line, an exit code that is not 0, and nothing finished is lost."""

from __future__ import annotations

import csv
import io
import json
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from purifiers.__main__ import main
from purifiers.attacks.pgd import Pgd
from purifiers.classifiers.wide_resnet import WideResnet
from purifiers.core.artifacts import read_sealed, write_sealed

TABLE, PAPER = "benchmarks/toy/table_1.yaml", "benchmarks/toy/paper.yaml"
SCALE = "workflow/scales/tiny.yaml"
CLAIMS = "benchmarks/toy/claims.yaml"


@pytest.fixture
def command(
    finished: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Give the arguments of ``python -m purifiers``; get the status and what stderr says."""
    monkeypatch.chdir(finished.path)

    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        status = main(list(arguments))
        return status, capsys.readouterr().err

    return run


def edit(workspace: Any, file: str, old: str, new: str) -> None:
    """Replace the first occurrence of ``old`` in a declaration."""
    path = workspace.path / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def assert_one_line(err: str, *parts: str) -> None:
    """One line on stderr that says ``parts``."""
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for part in parts:
        assert part in err


# Declarations: refused before anything runs.


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        (TABLE, "rows:", "rowz:", ["table_1.yaml", "unknown key 'rowz' (did you mean 'rows'?)"]),
        (TABLE, "methods: [aid]", "methodz: [aid]", ["rows.2.cell", "(did you mean 'methods'?)"]),
        (TABLE, "methods: [aid]", "methods: [iad]", ["natural_aid", "'iad' is not in benchmarks"]),
        (TABLE, "attack: pgd", "attack: pdg", ["natural/pgd", "(did you mean 'pgd'?)"]),
        (TABLE, "dataset: digits", "dataset: digitz", ["'digitz'", "(did you mean 'digits'?)"]),
        (TABLE, "training: madry", "training: madri", ["'madri'", "(did you mean 'madry'?)"]),
        (TABLE, "[clean, pgd]", "[clean, pdg]", ["worst_of", "(did you mean 'pgd'?)"]),
        (TABLE, "oblivious", "oblivous", ["threat_model", "(did you mean 'oblivious'?)"]),
        (TABLE, "natural: [95", "natura: [95", ["no row 'natura' (did you mean 'natural'?)"]),
        (TABLE, "1.0, 1.0]", "1.0]", ["published.natural: 2 values for 3 columns"]),
        (TABLE, "id: madry,", "id: natural,", ["blocks.digits.rows: duplicate id 'natural'"]),
        (
            *(TABLE, "    published:", "    doubts: {natural: {pdg: odd}}\n    published:"),
            ["blocks.digits.doubts.natural.pdg: no published value"],
        ),
        (TABLE, "blocks:", "blocks: [", ["table_1.yaml: not readable as YAML"]),
        (TABLE, "natural: [95.0", "natural: [9e1", ["YAML reads '9e1' as text: write 90.0"]),
        (TABLE, "blocks:", "{{a}}: 1\nblocks:", ["table_1.yaml", "a key must be a word"]),
        (CLAIMS, "than:", "then:", ["claims.0.decide.0", "'then' (did you mean 'than'?)"]),
        (CLAIMS, "than:", "bye: 3\n        than:", ["claims.0.decide.0", "unknown key 'bye'"]),
        (CLAIMS, "than: {table", "by: much\n        than: {table", ["'much' is not of type"]),
        (PAPER, "methods:", "methodz:", ["paper.yaml", "(did you mean 'methods'?)"]),
        (PAPER, "eps: 0.15", "eps: 8", ["eps is 8", "write 8/255 for 8 grey levels"]),
        (PAPER, "eps: $eps", "eps: $epz", ["settings has no 'epz' (did you mean 'eps'?)"]),
        (PAPER, "iterations: 10", "iteration: 10", ["(did you mean 'iterations'?)"]),
        (PAPER, "depth: 10", "depth: 11", ["classifier.small: depth is 11, but must be 6 n + 4"]),
        (
            PAPER,
            "aid, width: 16",
            "aid, taps: [conv1, foo]",
            ["'small' has no 'foo': choose among"],
        ),
        (
            *(PAPER, "{component: aid, width: 16", "{component: aid, mixing: avmix"),
            ["mixing is 'avmix': choose one of avmixup, mixup, av, none (did you mean 'avmixup'?)"],
        ),
        (PAPER, "digits:", "mnist:", ["settings has no row for data set 'digits'"]),
        (SCALE, "seeds:", "seedz:", ["tiny.yaml", "unknown key 'seedz' (did you mean 'seeds'?)"]),
        (SCALE, "device: cpu", "device: gpu", ["device: 'gpu' is not one of cpu, cuda, auto"]),
        (SCALE, "use: digits", "use: digitz", ["no dataset 'digitz' (did you mean 'digits'?)"]),
        (
            *(SCALE, "datasets:", "budgets: {method.aid: {eps: 0.1}}\ndatasets:"),
            ["tiny.yaml: budgets.method.aid: 'eps' is not a budget", "a scale may change epochs"],
        ),
        (
            *(SCALE, "datasets:", "budgets: {method.iad: {epochs: 1}}\ndatasets:"),
            ["there is no method 'iad' (did you mean 'aid'?)"],
        ),
    ],
)
def test_wrong_declaration(
    finished: Any, command: Any, file: str, old: str, new: str, told: list[str]
) -> None:
    edit(finished, file, old, new)
    before = finished.state()
    status, err = command("plan", "--scale", "tiny")
    assert status != 0
    assert_one_line(err, *told)
    assert finished.state() == before


@pytest.mark.parametrize("verb", ["plan", "report"])
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--scale", "tinny"], "there is no scale 'tinny' (did you mean 'tiny'?)"),
        (["--scale", "tiny", "toi"], "there is no paper 'toi' (did you mean 'toy'?)"),
        (["--scale", "tiny", "toy/tabel_1"], "declares no 'tabel_1' (did you mean 'table_1'?)"),
    ],
)
def test_unknown_name(
    finished: Any, command: Any, verb: str, arguments: list[str], told: str
) -> None:
    before = finished.state()
    status, err = command(verb, *arguments)
    assert status != 0
    assert_one_line(err, told)
    assert finished.state() == before


@pytest.mark.parametrize(
    ("target", "scale", "told"),
    [
        (None, "tinny", "error: there is no scale 'tinny' (did you mean 'tiny'?)"),
        ("toy/table_11", "tiny", "error: paper 'toy' declares no 'table_11' (did you mean"),
        (None, "tiny", "error: benchmarks/toy/table_1.yaml: top level: unknown key 'rowz'"),
    ],
)
def test_snakemake_says_it_in_one_line_too(
    finished: Any, target: str | None, scale: str, told: str
) -> None:
    if told.endswith("'rowz'"):
        edit(finished, TABLE, "rows:", "rowz:")
    before = finished.state()
    targets = [f"results/tables/{scale}/{target}.csv"] if target else []
    done = finished.run("snakemake", *targets, "--config", f"scale={scale}")
    assert done.returncode == 1
    assert sum(line.startswith(told) for line in done.stdout.splitlines()) == 1, done.stdout
    assert "Traceback" not in done.stdout
    assert finished.state() == before


# Damaged files: found before they are used.


def reopen(workspace: Any, *runs: Path) -> None:
    """Make finished runs unfinished, so that their jobs have something to do."""
    for run in runs:
        shutil.rmtree(run)


def refused_job(workspace: Any, command: Any, stage: str) -> str:
    """Run a stage's job and return its line on stderr; no other run may have changed."""
    (spec,) = (workspace.runs / "batches" / stage).glob("*.spec.json")
    manifest = spec.with_name(spec.name.replace(".spec.", ".done."))
    manifest.unlink()
    before = workspace.state()
    status, err = command("run", str(spec), str(manifest))
    assert status != 0
    after = workspace.state()
    assert {name for name in before if after.get(name) != before[name]} == set()
    for name in set(after) - set(before):
        assert name.endswith(("/failure.json", "/.lock", ".npy.partial")), name
    return err


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("stage", ["classifier", "purifier"])
@pytest.mark.parametrize("damage", [flip, truncate])
def test_damaged_checkpoint(
    finished: Any, command: Any, stage: str, damage: Callable[[Path], None]
) -> None:
    run = finished.folder(stage, "*-natural-*")
    weights = (run / "weights.safetensors").read_bytes()
    reopen(finished, run)
    run.mkdir()
    write_sealed(run / "checkpoint", weights)
    assert read_sealed(run / "checkpoint") == weights
    damage(run / "checkpoint")
    err = refused_job(finished, command, stage)
    assert_one_line(err, f"{run / 'checkpoint'}: damaged (truncated or bit-flipped)", "remove it")
    assert json.loads((run / "failure.json").read_text())["error"] in err


@pytest.mark.parametrize(
    ("stage", "run", "file", "told"),
    [
        ("classifier", "*-natural-*", "weights.safetensors", "checksum mismatch"),
        ("dataset", "*", "test_images.npy", "checksum mismatch"),
        ("purify", "*-natural-pgd-aid-*", "images.npy", "checksum mismatch"),
        ("purify", "*-natural-pgd-aid-*", "run.json", "not readable as JSON"),
    ],
)
def test_damaged_result(
    finished: Any, command: Any, stage: str, run: str, file: str, told: str
) -> None:
    damaged = finished.folder(stage, run) / file
    reopen(finished, finished.folder("score", "*-natural-pgd-aid-*"))
    if file == "run.json":
        truncate(damaged)
    else:
        flip(damaged)
    assert_one_line(refused_job(finished, command, "score"), str(damaged), told, "remove")


def test_truncated_result(finished: Any, command: Any) -> None:
    weights = finished.folder("purifier", "*-madry-*") / "weights.safetensors"
    reopen(finished, finished.folder("purify", "*-madry-pgd-*"))
    truncate(weights)
    err = refused_job(finished, command, "purify")
    assert_one_line(err, f"{weights}: missing or truncated; remove {weights.parent}")


@pytest.mark.parametrize("whole", [True, False])
def test_adversarial_set_of_another_run(finished: Any, command: Any, whole: bool) -> None:
    wanted = finished.folder("attack", "*-natural-pgd-*")
    other = finished.folder("attack", "*-madry-pgd-*")
    reopen(finished, finished.folder("purify", "*-natural-pgd-*"))
    for file in ("images.npy", "run.json") if whole else ("images.npy",):
        shutil.copy(other / file, wanted / file)
    err = refused_job(finished, command, "purify")
    told = f"holds run {other.name!r}, not {wanted.name!r}" if whole else "checksum mismatch"
    assert_one_line(err, str(wanted), told)


def test_checkpoint_of_another_run(finished: Any, command: Any) -> None:
    run = finished.folder("classifier", "*-natural-*")
    reopen(finished, run)
    run.mkdir()
    buffer = io.BytesIO()
    torch.save({"identity": "another", "step": 3}, buffer)
    write_sealed(run / "checkpoint", buffer.getvalue())
    err = refused_job(finished, command, "classifier")
    assert_one_line(err, f"belongs to run 'another', not {run.name!r}")


def test_report_refuses_damaged_scores(finished: Any, command: Any) -> None:
    scores = finished.folder("score", "*-natural-clean-s0-*") / "scores.parquet"
    flip(scores)
    before = finished.state()
    status, err = command("report", "--scale", "tiny")
    assert status != 0
    assert_one_line(err, f"{scores}: checksum mismatch")
    assert finished.state() == before


# The machine: no network, no room, no GPU.


def test_missing_data_without_network(finished: Any, tmp_path: Path) -> None:
    """With Snakemake and all: its other messages do not hide the line, and the table says why."""
    edit(finished, SCALE, "digits: {use: digits, train: 200", "digits: {use: mnist, train: 200")
    edit(finished, PAPER, "digits: {eps", "mnist: {eps")
    before = finished.results()
    (tmp_path / "nothing").mkdir()
    done = finished.snakemake(
        "results/tables/tiny/toy/table_2.csv",
        PURIFYBENCH_DATA=str(tmp_path / "nothing"),
        PURIFYBENCH_MIRROR="http://127.0.0.1:1",
    )
    assert done.returncode == 1
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("error:"))
    for part in ("train-images-idx3-ubyte", "http://127.0.0.1:1", "PURIFYBENCH_DATA"):
        assert part in line
    assert "Traceback" not in done.stdout
    after = finished.results()
    for name in before:  # nor does it take along what was not asked for
        assert name.startswith("tables/tiny/toy/table_2.") or after[name] == before[name]
    for row in cells(finished, "table_2"):
        assert (row["verdict"], row["reproduced"]) == ("failed", "")
        assert "train-images-idx3-ubyte" in row["flags"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 160 KiB."""
    mount = tmp_path / "small_disk"
    mount.mkdir()
    arguments = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(mount)]
    try:
        mounted = subprocess.run(arguments, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("may not mount a file system here")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_full_disk(finished: Any, command: Any, small_disk: Path) -> None:
    run = finished.folder("classifier", "*-madry-*")
    reopen(finished, run)
    run.symlink_to(small_disk, target_is_directory=True)
    err = refused_job(finished, command, "classifier")
    assert_one_line(err, "no room to write", str(run), "No space left on device", "free some")
    assert not [file for file in small_disk.iterdir() if file.suffix == ".tmp"]


def test_work_that_has_its_room_already(
    finished: Any, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unfinished set takes all its blocks when it is begun; going on needs no more."""
    run = finished.folder("attack", "*-natural-*")
    size = (run / "images.npy").stat().st_size
    reopen(finished, run)
    run.mkdir()
    usage = shutil.disk_usage(run)._replace(free=size // 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert_one_line(refused_job(finished, command, "attack"), "MiB are free: free some space")
    (run / "images.npy.partial").write_bytes(bytes(size))
    (spec,) = (finished.runs / "batches" / "attack").glob("*.spec.json")
    assert command("run", str(spec), str(spec).replace(".spec.", ".done."))[0] == 0


def test_file_size_limit(finished: Any, command: Any, undisturbed: Any) -> None:
    """A quota in small; when it is lifted, the work goes on."""
    run = finished.folder("attack", "*-natural-*")
    reopen(finished, run)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, old[1]))
    try:
        err = refused_job(finished, command, "attack")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert_one_line(err, "no room to write", str(run), "free some space and start again")
    assert finished.job("attack") == 0
    assert finished.results() == undisturbed.results()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_gpu(finished: Any, command: Any) -> None:
    (spec,) = (finished.runs / "batches" / "classifier").glob("*.spec.json")
    spec.write_text(spec.read_text().replace('"device": "cpu"', '"device": "cuda"'))
    reopen(finished, finished.folder("classifier", "*-madry-*"))
    err = refused_job(finished, command, "classifier")
    assert_one_line(err, "device is cuda, but no CUDA device is available; set it to cpu or auto")


# A component that errors leaves no score.


def cells(workspace: Any, document: str) -> list[dict[str, str]]:
    path = workspace.path / "results" / "tables" / "tiny" / "toy" / f"{document}.csv"
    return list(csv.DictReader(path.open(newline="")))


def _raises(self: Any, *arguments: Any) -> Any:
    raise ValueError("boom")


def _not_finite(self: Any, target: Any, images: Any, *rest: Any) -> Any:
    return torch.full_like(images, float("nan"))


def _left_ball(self: Any, target: Any, images: Any, *rest: Any) -> Any:
    return 1.0 - images


def attack_fails(
    workspace: Any, command: Any, monkeypatch: pytest.MonkeyPatch, behaviour: Any
) -> tuple[Path, str]:
    """Do the attack on the natural network anew with a broken PGD; its run, and what it says."""
    attack = workspace.folder("attack", "*-natural-pgd-*")
    reopen(workspace, attack, workspace.folder("score", "*-natural-pgd-s0-*"))
    with monkeypatch.context() as patched:
        patched.setattr(Pgd, "perturb", behaviour)
        return attack, refused_job(workspace, command, "attack")


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (_raises, "ValueError: boom"),
        (_not_finite, "Pgd: adversarial images are not finite"),
        (_left_ball, "Pgd: perturbation "),
    ],
)
def test_failing_attack(
    finished: Any, command: Any, monkeypatch: pytest.MonkeyPatch, behaviour: Any, reason: str
) -> None:
    attack, err = attack_fails(finished, command, monkeypatch, behaviour)
    line = err.splitlines()[-1]
    assert line.startswith(f"error: attack {attack.name}: ") and reason in line
    assert reason in json.loads((attack / "failure.json").read_text())["error"]
    assert not (attack / "run.json").exists()

    status, err = command("report", "--scale", "tiny")
    assert (status, err) == (0, "")
    for row in cells(finished, "table_1"):
        failed = row["row"] == "natural" and row["column"] in ("pgd", "worst")
        assert (row["verdict"] == "failed") == failed
        assert (row["reproduced"] == row["n_correct"] == "") == failed
        assert (reason in row["flags"] and attack.name in row["flags"]) == failed
    (claim,) = cells(finished, "claims")
    assert claim["verdict"] == "failed"


def test_failed_run_is_done_again(
    finished: Any, undisturbed: Any, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the component is mended; the table that says "failed" gives way, too."""
    attack_fails(finished, command, monkeypatch, _raises)
    assert command("report", "--scale", "tiny")[0] == 0
    done = finished.snakemake()
    assert done.returncode == 0, done.stdout
    assert not list(finished.runs.rglob("failure.json"))
    assert finished.results() == undisturbed.results()


def test_network_without_numbers_gets_no_score(
    finished: Any, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = finished.folder("score", "*-natural-clean-s0-*")
    reopen(finished, score)

    def forward(self: Any, images: Any) -> Any:
        return torch.full((len(images), 10), float("nan"))

    with monkeypatch.context() as patched:
        patched.setattr(WideResnet, "forward", forward)
        err = refused_job(finished, command, "score")
    assert "the model gave logits that are not finite" in err.splitlines()[-1]
    assert not (score / "scores.parquet").exists()


def test_a_job_outside_a_runs_folder_is_refused(tmp_path, capsys):
    """Its runs would be written two folders up, wherever that is."""
    spec = tmp_path / "elsewhere" / "score.spec.json"
    spec.parent.mkdir()
    spec.write_text("{}")
    assert main(["run", str(spec), str(tmp_path / "done.json")]) == 2
    assert str(spec) in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]
