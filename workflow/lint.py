"""Run `snakemake --lint` and fail on every lint it prints, except one.

Snakemake wants a conda environment or a container in each rule. This project pins one environment
for all rules in requirements.lock, with hashes, so that lint would stand for ever and hide the
others; its option for JSON output is not honoured on the command line, hence the reading of text.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ALLOWED = "Specify a conda environment or container for each rule."


def lints(output: str) -> list[str]:
    """The lints in Snakemake's `output`: the place and the title of each."""
    found, place = [], ""
    for line in output.splitlines():
        if line.startswith("Lints for "):
            place = line.removeprefix("Lints for ").rstrip(":")
        elif title := re.match(r" {4}\* (.+?):?$", line):
            found.append(f"{place}: {title[1]}")
    return found


def main() -> int:
    """Print Snakemake's whole answer if there is anything to mend; return the exit status."""
    snakemake = Path(sys.executable).parent / "snakemake"
    run = subprocess.run([snakemake, "--lint"], capture_output=True, text=True, check=False)
    output = run.stdout + run.stderr
    found = lints(output)
    remaining = [lint for lint in found if not lint.endswith(ALLOWED)]
    unread = run.returncode != 0 and not found  # a syntax error, or lints printed in a new form
    if remaining or unread:
        print(output, file=sys.stderr)
        print("\n".join(remaining) or "snakemake --lint failed, see above", file=sys.stderr)
        return 1
    print("snakemake --lint: nothing to mend")
    return 0


if __name__ == "__main__":
    sys.exit(main())
