"""Files from the future are dated now, others are left alone."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from purifiers.core.future_dates import date_back


def test_only_files_from_the_future_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, late = tmp_path / "old.json", tmp_path / "deep" / "late.json"
    late.parent.mkdir()
    now = time.time()
    for path, date in ((old, now - 100), (late, now + 90_000)):
        path.write_text("{}")
        os.utime(path, (date, date))
    assert date_back([tmp_path, tmp_path / "missing"]) == 1
    assert old.stat().st_mtime == pytest.approx(now - 100, abs=1)
    assert late.stat().st_mtime == pytest.approx(time.time(), abs=5)
    assert "1 files were dated in the future, such as" in capsys.readouterr().err
    assert date_back([tmp_path]) == 0
    assert capsys.readouterr().err == ""


def test_a_file_that_vanishes_meanwhile_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walked = [(str(tmp_path), [], ["gone.json"])]
    monkeypatch.setattr(os, "walk", lambda folder: iter(walked))
    assert date_back([tmp_path]) == 0
