"""The command line outside a checkout, behind a pipe and with a mistyped data folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import purifiers
from purifiers.__main__ import main
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


def test_a_reader_that_has_enough() -> None:
    command = f"{sys.executable} -m purifiers plan advae | head -1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.count("\n") == 1 and done.stderr == ""


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
