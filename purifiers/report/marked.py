"""Blocks that a command writes into a page, between two marks that a reader does not see."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from purifiers.core.artifacts import write_text
from purifiers.core.errors import UserError

COMMAND = "python -m purifiers status"


@dataclass(frozen=True)
class MarkedBlock:
    """A block of a page.

    Attributes:
        page: the page, relative to the repository.
        name: names the block in its marks and messages.
    """

    page: str
    name: str

    @property
    def start(self) -> str:
        """The line before the block."""
        return f"<!-- {self.name}: written by `{COMMAND}` -->"

    @property
    def end(self) -> str:
        """The line after the block."""
        return f"<!-- end of {self.name} -->"

    def renew(self, root: Path, content: str, check: bool) -> bool:
        """Replace the block by ``content``, or check that it is up to date.

        Args:
            check: write nothing; print a message if the block is out of date.

        Returns:
            Whether the block was out of date.

        Raises:
            UserError: the page lacks the two marks.
        """
        path = root / self.page
        text = path.read_text(encoding="utf-8")
        before, start, rest = text.partition(self.start)
        _, end, after = rest.partition(self.end)
        if not start or not end:
            raise UserError(f"{path}: the lines {self.start} and {self.end} are missing; add them")
        renewed = f"{before}{start}\n\n{content}\n{end}{after}"
        if renewed == text:
            return False
        if check:
            print(f"{self.page}: the {self.name} block is out of date; run `{COMMAND}`")
        else:
            write_text(path, renewed)
        return True
