"""Run `snakemake --lint` and fail on every lint except one.

The exception requires a conda environment or a container in each rule. This project pins one
environment for all rules in requirements.lock, with hashes. The text output is parsed because
Snakemake ignores its option for JSON output on the command line.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ALLOWED = "Specify a conda environment or container for each rule."


def lints(output: str) -> list[str]:
    """The lints in the `output` of Snakemake, each as "place: title"."""
    titles, place = [], ""
    for line in output.splitlines():
        if line.startswith("Lints for "):
            place = line.removeprefix("Lints for ").rstrip(":")
        elif title := re.match(r" {4}\* (.+?):?$", line):
            titles.append(f"{place}: {title[1]}")
    return titles


def main() -> int:
    """Print the output of Snakemake if it has lints; return the exit status."""
    snakemake = Path(sys.executable).parent / "snakemake"
    run = subprocess.run([snakemake, "--lint"], capture_output=True, text=True, check=False)
    output = run.stdout + run.stderr
    all_lints = lints(output)
    remaining = [lint for lint in all_lints if not lint.endswith(ALLOWED)]
    unparsed = run.returncode != 0 and not all_lints  # a syntax error, or another output format
    if remaining or unparsed:
        print(output, file=sys.stderr)
        print("\n".join(remaining) or "snakemake --lint failed, see above", file=sys.stderr)
        return 1
    print("snakemake --lint: no lints")
    return 0


if __name__ == "__main__":
    sys.exit(main())
