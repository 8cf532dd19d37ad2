"""The command line outside a checkout, behind a pipe and with a mistyped data folder."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import purifiers
from purifiers.__main__ import main
from purifiers.core.backend import drop_missing_backend
from purifiers.core.data import data_root
from purifiers.core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("command", ["plan", "report", "status", "measure"])
def test_outside_a_checkout(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([command]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "start the command in the repository" in error


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["plan", "--rate", "-3"], "argument --rate: is '-3', but takes a number of at least 0"),
        (["plan", "--rate", "nan"], "argument --rate: is 'nan', but takes a number of at least 0"),
        (["run", "a.spec.json", "b.json", "--threads", "0"], "argument --threads: is '0'"),
        (["run", "a.spec.json", "b.json", "--threads", "1.5"], "argument --threads: is '1.5'"),
        (["audit", "--model", "m", "--data", "d", "--n", "0"], "argument --n: is '0'"),
        (["audit", "--model", "m", "--data", "d", "--fit", "-1"], "argument --fit: is '-1'"),
        (["selfcheck", "--minutes", "0"], "argument --minutes: is '0', but takes a number above 0"),
    ],
)
def test_a_number_out_of_range(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert told in capsys.readouterr().err


def test_a_table_named_by_its_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["plan", "aid/3"]) == 2
    assert "declares no '3' (did you mean 'table_3'?)" in capsys.readouterr().err


def test_a_reader_that_has_enough() -> None:
    command = f"{sys.executable} -m purifiers plan advae | head -1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.count("\n") == 1 and done.stderr == ""


@pytest.mark.parametrize(
    "module", ["purifiers.report.figures", "purifiers.auditing.report", "purifiers.report.images"]
)
def test_the_backend_of_a_notebook_that_is_not_installed(module: str) -> None:
    code = (
        f"import {module}; from matplotlib.figure import Figure; import io; figure = Figure(); "
        "figure.subplots().plot([1, 2]); figure.savefig(io.BytesIO(), format='png')"
    )
    environment = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_backend_that_is_installed_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in ("agg", "module://matplotlib.backends.backend_svg"):
        monkeypatch.setenv("MPLBACKEND", backend)
        drop_missing_backend()
        assert os.environ["MPLBACKEND"] == backend
    monkeypatch.setenv("MPLBACKEND", "module://")
    drop_missing_backend()
    assert "MPLBACKEND" not in os.environ


def test_snakemake_from_elsewhere(tmp_path: Path) -> None:
    snakefile = str(ROOT / "Snakefile")
    command = [sys.executable, "-m", "snakemake", "-n", "--cores", "1", "-s", snakefile]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "error" in line.lower()]
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert lines == [
        f"error: {tmp_path}: is not the repository: start Snakemake in {ROOT}, or with "
        f"--directory {ROOT}"
    ]
    assert not (tmp_path / "results").exists()


def test_an_apostrophe_in_the_path_of_the_environment() -> None:
    """Jobs find this environment's programs first, whatever characters its path has."""
    lines = (ROOT / "workflow" / "rules" / "plan.smk").read_text().splitlines()
    prefix: list[str] = []
    places = {
        "sys": SimpleNamespace(executable="/o'hara/my env$/bin/python"),
        "shell": SimpleNamespace(prefix=prefix.append),
        **{"shlex": shlex, "Path": Path},
    }
    exec("\n".join(line for line in lines if line.startswith(("PROGRAMS", "shell."))), places)
    command = ["bash", "-c", prefix[0] + "echo $PATH"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.startswith("/o'hara/my env$/bin:") and done.stderr == ""


def test_ctrl_c_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("purifiers.plan.plan.make_plan", interrupted)
    monkeypatch.chdir(ROOT)
    assert main(["plan"]) == 130
    assert capsys.readouterr().err == "interrupted; the same command continues\n"


def test_a_mistyped_data_folder_is_not_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = tmp_path / "dta"
    monkeypatch.setenv("PURIFYBENCH_DATA", str(wrong))
    with pytest.raises(UserError, match="which is no folder: correct it"):
        data_root()
    with pytest.raises(UserError, match="PURIFYBENCH_DATA"):
        purifiers.load_images("mnist", 5)
    assert not wrong.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space are Linux's")
def test_too_little_memory_for_the_libraries_is_one_line() -> None:
    script = (
        "import resource, sys\n"
        "from purifiers.__main__ import main\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "sys.exit(main(['selfcheck', '--device', 'cpu']))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: too little memory to load a library (libtorch")


@pytest.mark.parametrize("target", ["reproduce", "table", "field"])
def test_make_passes_no_target_as_a_logger(target: str) -> None:
    """Snakemake's --logger takes every word up to the next option."""
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    (words,) = (line.split() for line in done.stdout.splitlines() if "--logger" in line)
    assert words[words.index("--logger") + 2].startswith("--"), words
