"""The example of the README runs, on a tiny network in the layout of RobustBench's zoo."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from purifiers.core import robustbench_compat

README = Path(__file__).resolve().parents[2] / "README.md"
LINES = 20


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=4)
        self.fc = nn.Linear(512, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(images)).flatten(1))


def example() -> str:
    text = README.read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    return code


def write_cifar10(folder: Path, n: int) -> None:
    """Random images in the columns of the parquet layout."""
    draw = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        blobs = []
        for pixels in draw.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            blobs.append({"bytes": buffer.getvalue(), "path": None})
        table = pyarrow.table({"img": blobs, "label": [i % 10 for i in range(n)]})
        pyarrow.parquet.write_table(table, folder / f"{split}.parquet")


def test_the_example_is_short() -> None:
    assert len([line for line in example().splitlines() if line.strip()]) <= LINES


def test_the_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    robustbench_compat.import_robustbench()
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

    entries = model_dicts[BenchmarkDataset.cifar_10][ThreatModel.Linf]
    monkeypatch.setitem(entries, "Wong2020Fast", {"model": Tiny, "gdrive_id": "nowhere"})
    monkeypatch.setenv("PURIFYBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    write_cifar10(tmp_path / "data" / "cifar10", 256)
    zoo = tmp_path / "data" / "robustbench" / "cifar10" / "Linf"
    zoo.mkdir(parents=True)
    torch.save(Tiny().state_dict(), zoo / "Wong2020Fast.pt")
    exec(compile(example(), str(README), "exec"), {"__name__": "example"})
    printed = capsys.readouterr().out
    assert "Blur + Wong2020Fast: 256 images, linf eps 0.03137, quick" in printed
    assert "worst case per image" in printed
    assert "RobustBench reports 83.34 % clean, 43.21 % under AutoAttack, eps 8/255" in printed
    assert (tmp_path / "audit.csv").read_text().startswith("attack,threat_model")
    assert (tmp_path / "audit.png").stat().st_size > 10_000
