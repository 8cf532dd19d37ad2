"""Options and fixtures of the timing benchmarks; makes the peer libraries importable."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # for the module `plain`
# last, so that it does not replace packages of the environment
sys.path.append(str(HERE.parents[1] / ".peers"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where to measure")
    parser.addoption("--rounds", type=int, help="number of rounds (default: settings.ROUNDS)")
    parser.addoption("--images", type=int, help="number of images (default: settings.PLANS)")


def pytest_report_header() -> str:
    from purifiers.timing import peers

    absent = peers.missing()
    if not absent:
        return "peers: all installed"
    return f"peers missing: {', '.join(absent)} (`make .peers/.ready` installs them)"


@pytest.fixture
def device(pytestconfig: pytest.Config) -> str:
    """Device that is timed; on a processor a single thread."""
    device_type: str = pytestconfig.getoption("--device")
    if device_type == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    torch.set_num_threads(1)
    return device_type
