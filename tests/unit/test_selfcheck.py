"""The self-check at its tiny size on a CPU, and what makes its lines fail."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from purifiers.__main__ import main
from purifiers.attacks.pgd import Pgd
from purifiers.core.artifacts import read_json
from purifiers.core.precision import declared
from purifiers.methods.random_sign import RandomSign
from purifiers.plan.throughput import Throughput
from purifiers.selfcheck import loops, machine, parity, speed, strength, table
from purifiers.selfcheck.checks import FAIL, PASS, SKIP, Check, Line, Outcome, run_section, screen
from purifiers.selfcheck.context import SIZES, Context
from purifiers.stages import throughput
from purifiers.training.natural import Natural


@pytest.fixture(scope="module")
def context() -> Context:
    return Context("cpu", SIZES["tiny"])


def line(section: Any, context: Context, name: str, group: str = "") -> Outcome:
    """Outcome of one check of a section."""
    chosen = [c for c in section.checks(context) if c.name == name and group in c.group]
    (found,) = run_section("section", chosen[:1], time.monotonic() + 60)
    return found.outcome


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, int]]:
    """The file, the screen and the exit status of the whole check."""
    path = tmp_path_factory.mktemp("selfcheck") / "selfcheck.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(throughput, "MINIMUM_SECONDS", 1e-2)
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            status = main(["selfcheck", "--device", "cpu", "--out", str(path)])
    yield path, shown.getvalue(), status


def test_everything_passes_on_a_cpu(report: tuple[Path, str, int]) -> None:
    path, shown, status = report
    content = read_json(path)
    failed = [entry for entry in content["lines"] if entry["status"] == FAIL]
    assert (status, failed) == (0, [])
    assert content["counts"][PASS] > 50
    assert {entry["section"] for entry in content["lines"]} == {
        *("parity", "strength", "speed", "throughput", "table")
    }
    assert {"card", "driver", "torch", "versions", "git", "cuda"} <= content.keys()
    assert len(shown.splitlines()) <= 45 and "FAIL" not in shown


def test_its_throughput_fits_the_prices(report: tuple[Path, str, int]) -> None:
    measured = Throughput.parse(read_json(report[0])["throughput"], "selfcheck.json")
    (network,) = measured.macs
    assert measured.estimate(network, "cpu").seconds > 0


def test_its_measurements_become_the_timing_tables(
    report: tuple[Path, str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("workflow/scales", "benchmarks"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert main(["timing", "--selfcheck", str(report[0])]) == 0
    tables, committed = Path("results/tables/timing"), Path(__file__).parents[2] / "results/tables"
    for name in ("attacks", "purification"):
        made = pd.read_csv(tables / f"{name}_cpu.csv")
        assert list(made.columns) == list(pd.read_csv(committed / f"timing/{name}.csv").columns)
    assert {path.suffix for path in tables.glob("attacks_cpu.*")} == {".csv", ".md", ".png", ".svg"}


def test_a_file_without_measurements_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("workflow/scales", "benchmarks"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "selfcheck.json"
    for content, message in [
        (None, "no such file; run python -m purifiers selfcheck"),
        ('{"benchmarks": []}', "not a file of python -m purifiers selfcheck"),
        ('{"device": "cuda", "lines": []}', "section speed did not run; raise --minutes"),
    ]:
        if content is not None:
            path.write_text(content)
        assert main(["timing"]) == 2
        assert message in capsys.readouterr().err


def test_a_broken_attack_fails(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    assert line(parity, context, "pgd").status == PASS
    monkeypatch.setattr(Pgd, "perturb", lambda self, target, images, *rest: images)
    outcome = line(parity, context, "pgd")
    assert outcome.status == FAIL and "breaks none of" in outcome.reason
    monkeypatch.setattr(Pgd, "perturb", lambda self, target, images, *rest: images / 0)
    outcome = line(parity, context, "pgd")
    assert outcome.status == FAIL and "not finite" in outcome.reason


def test_other_results_on_the_device_fail(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = context.digits()
    assert parity.compared(context, images, images, labels).status == PASS
    assert parity.compared(context, images, 0.9 * images + 0.05, labels).status == FAIL
    assert parity.compared(context, images, 0 * images, labels).status == FAIL
    calls = iter(range(100))

    def drifting(self: Any, images: Tensor, *_: Any) -> Tensor:
        return (images + 1e-3 * next(calls)).clamp(0, 1)

    monkeypatch.setattr(RandomSign, "purify", drifting)
    assert line(parity, context, "random_sign", "purifiers").status == FAIL
    loss = Natural.loss
    monkeypatch.setattr(
        Natural, "loss", lambda self, *rest: loss(self, *rest) * (1 + 0.01 * next(calls))
    )
    assert line(parity, context, "natural").status == FAIL


def test_a_precision_that_weakens_an_attack_fails(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert line(strength, context, "pgd", "bfloat16").status == PASS
    perturb = Pgd.perturb

    def weak(self: Any, target: Any, images: Tensor, *rest: Any) -> Tensor:
        return images if declared() == "bfloat16" else perturb(self, target, images, *rest)

    monkeypatch.setattr(Pgd, "perturb", weak)
    outcome = line(strength, context, "pgd", "bfloat16")
    assert outcome.status == FAIL and "unbroken" in outcome.reason


def test_a_slow_attack_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    few = Context("cpu", replace(SIZES["tiny"], images=4, slack=1.0))
    perturb = Pgd.perturb

    def slow(self: Any, *arguments: Any) -> Tensor:
        end = time.process_time() + 0.5
        while time.process_time() < end:
            pass
        return perturb(self, *arguments)

    monkeypatch.setattr(Pgd, "perturb", slow)
    outcome = line(speed, few, "digits, PGD-20")
    assert outcome.status == FAIL and "of the floor (limit 1.10)" in outcome.reason


def test_limits_of_times() -> None:
    seconds = {"floor": 1.0, "purifybench": 1.2, "purifybench, dropped": 1.04, "peer": 1.0}
    assert speed.over_limits(seconds, [], 1.1, 1.0).status == PASS
    assert speed.over_limits(seconds, [], 1.0, 1.0).status == FAIL
    assert speed.over_limits(seconds, ["peer"], 1.1, 1.0).status == PASS
    assert speed.over_limits({**seconds, "peer": 0.9}, ["peer"], 1.1, 1.0).status == FAIL
    assert loops.judged({"purifybench": 1.0, "plain loop": 1.0}, 1.0).status == PASS
    assert loops.judged({"purifybench": 1.2, "plain loop": 1.0}, 1.0).status == FAIL
    assert speed.judged_reads(10, 20).status == PASS
    assert speed.judged_reads(11, 20).status == FAIL


def test_waits_of_the_host_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[Any] = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def run() -> None:
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("another", stacklevel=1)

    assert speed.synchronisations(run) == 3
    assert modes == ["warn", 0]


def test_a_table_whose_training_fails_is_a_failure(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(table.PAPER["trainings"]["natural"], "learning_rate", 1e-9)
    outcome = line(table, context, "training, attack, purification, score")
    assert outcome.status == FAIL and "none clean" in outcome.reason


def test_a_section_ends_at_its_deadline() -> None:
    now = iter([0.0, 5.0, 6.0, 6.0])
    checks = [Check(name, lambda: Outcome(PASS, "good")) for name in "abc"]
    found = list(run_section("x", checks, deadline=5.5, clock=lambda: next(now)))
    assert [entry.outcome.status for entry in found] == [PASS, SKIP, SKIP]
    assert "raise --minutes" in found[1].outcome.reason


def test_the_screen_merges_what_passes_and_shows_each_failure() -> None:
    outcomes = {"a": PASS, "b": FAIL, "c": PASS}
    lines = [Line("parity", "attacks", n, Outcome(s, f"why {n}")) for n, s in outcomes.items()]
    shown = screen([*lines, Line("table", "", "alone", Outcome(SKIP, "no time"))]).splitlines()
    assert len(shown) == 3
    assert shown[0].startswith("pass") and "2 of 3" in shown[0]
    assert shown[1].startswith("FAIL") and "attacks: b" in shown[1] and "why b" in shown[1]
    assert shown[2].startswith("skip") and "no time" in shown[2]


def test_a_missing_driver_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert machine.driver() == ""


BARE = """
import sys
class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from purifiers.__main__ import main
sys.exit(main(["selfcheck", "--device", "cpu", "--section", "table", "--out", "bare.json"]))
"""


def test_a_bare_machine_suffices(tmp_path: Path, context: Context) -> None:
    """Without Snakemake, JSON schemas, model zoos or AutoAttack's package."""
    absent = ("snakemake", "jsonschema", "robustbench", "timm", "pyautoattack")
    command = [sys.executable, "-c", BARE.format(absent=absent)]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert read_json(tmp_path / "bare.json")["counts"] == {PASS: 1, FAIL: 0, SKIP: 0}

    def missing() -> Outcome:
        raise ModuleNotFoundError("No module named 'peer'", name="peer")

    (found,) = run_section("x", [Check("a", missing)], time.monotonic() + 1)
    assert found.outcome == Outcome(SKIP, "peer is not installed")


def test_an_unknown_device_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selfcheck", "--device", "tpu"]) == 2
    assert capsys.readouterr().err == (
        "error: device is 'tpu': choose one of auto, cpu, cuda (did you mean 'cpu'?)\n"
    )
