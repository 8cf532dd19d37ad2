"""Files below the data folder that a component reads, found as its trait ``reads`` declares.

The plan and the loaders find the files here, so that the content in a run's identity is the content
that the run reads.
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from purifiers.core.data import data_root
from purifiers.core.errors import UserError
from purifiers.core.files import check_readable, digest_of, memoized
from purifiers.core.spec import ComponentSpec
from purifiers.core.traits import Layout, Traits, met

SPLITS = ("train", "test")
COLUMNS = (
    "{folder}/{split}.parquet",
    "{folder}/{split}-*.parquet",  # Hugging Face's hub
    "{folder}/*/{split}-*.parquet",  # the same, in data/ or in a folder named after a configuration
    "{folder}/{split}/data-*.arrow",  # save_to_disk of Hugging Face's datasets
    "{folder}/{split}.npz",
    "{folder}.npz",  # Keras: both splits in one file
)
"""Patterns of a layout with ``columns``, in order of preference."""
_TEST_NAMES = ("test", "validation", "valid", "val")
_NUMBERED = re.compile(r"-\d+-of-(\d+)\.\w+$")


@dataclass(frozen=True)
class Files:
    """The files of the layout that is read.

    Attributes:
        layout: the layout.
        root: the data folder.
        of: train and test to paths; a file with both splits is in both.
    """

    layout: Layout
    root: Path
    of: Mapping[str, tuple[Path, ...]]

    @property
    def paths(self) -> list[Path]:
        """All files, each once, ordered by path."""
        return sorted({path for paths in self.of.values() for path in paths})

    def names(self) -> Iterator[tuple[str, Path]]:
        """Yield name relative to the data folder and path of each file."""
        for path in self.paths:
            yield Path(os.path.relpath(path, self.root)).as_posix(), path

    @property
    def place(self) -> str:
        """The deepest folder of all files, or the only file, relative to the data folder."""
        if len(self.paths) == 1:
            return os.path.relpath(self.paths[0], self.root)
        return os.path.relpath(os.path.commonpath(self.paths), self.root) + "/"

    @property
    def described(self) -> str:
        """Kind and place of the files, such as ``parquet files in cifar10/``."""
        kind = self.paths[0].suffix.removeprefix(".")
        return self.place if self.place[-1] != "/" else f"{kind} files in {self.place}"


def find(reads: Iterable[Layout], parameters: Mapping[str, Any], root: Path) -> Files | None:
    """The files of the first layout of which at least one file exists.

    Args:
        reads: layouts in order of preference.
        parameters: values of the parameters in the patterns' braces.
        root: the data folder.

    Returns:
        None if no layout has a file.

    Raises:
        UserError: files of two data sets are mixed, or one of a numbered series is missing.
    """
    for layout in reads:
        if met(layout.when, parameters):
            for patterns in _alternatives(layout, root):
                of = {
                    split: _matches(patterns, layout, parameters, root, split) for split in SPLITS
                }
                if any(of.values()):
                    if layout.columns:
                        _check_series([path for paths in of.values() for path in paths])
                    return Files(layout, root, of)
    return None


def _alternatives(layout: Layout, root: Path) -> Iterator[tuple[str, ...]]:
    yield layout.files
    if layout.columns:
        stems = {
            name.removesuffix(".npz") for name in glob.glob(f"{layout.columns}*", root_dir=root)
        }
        for folder in sorted(name for name in stems if fnmatch.fnmatch(name, layout.columns)):
            for pattern in COLUMNS:
                yield (pattern.replace("{folder}", glob.escape(folder)),)


def _matches(
    patterns: Sequence[str], layout: Layout, parameters: Mapping[str, Any], root: Path, split: str
) -> tuple[Path, ...]:
    """Files of a split; hidden ones are left out."""
    values = {name: glob.escape(str(value)) for name, value in parameters.items()}
    for name in _TEST_NAMES if layout.columns and split == "test" else (split,):
        paths = sorted(
            root / found
            for pattern in patterns
            for found in glob.glob(pattern.format(**{**values, "split": name}), root_dir=root)
            if not layout.endings or Path(found).suffix.lower() in layout.endings
        )
        if paths:
            return tuple(paths)
    return ()


def _check_series(paths: Sequence[Path]) -> None:
    """Refuse files in several folders of configurations, and incomplete numbered series."""
    folders = sorted({path.parent for path in paths if path.suffix == ".parquet"})
    if len(folders) > 1:
        listed = ", ".join(f"{folder.name}/" for folder in folders)
        raise UserError(
            f"{folders[0].parent}: {listed} hold different configurations of the data set: keep one"
        )
    series: dict[str, set[Path]] = defaultdict(set)
    for path in paths:
        series[str(path.with_name(re.sub(r"-\d+-of-", "-*-of-", path.name)))].add(path)
    for pattern, members in series.items():
        numbered = _NUMBERED.search(min(members).name)
        if numbered and len(members) != int(numbered[1]):
            raise UserError(
                f"{pattern}: {len(members)} of {int(numbered[1])} files are there: add the others"
            )


def content_of(traits: Traits, parameters: Mapping[str, Any]) -> str | None:
    """SHA-256 of the content of the files that a component reads below the data folder.

    It is that of the lines ``<SHA-256>  <name>``, ordered by name, as ``sha256sum`` prints them for
    the names relative to the data folder.

    Returns:
        None if the content is that of the official files or decided by nothing but the parameters:
        no file is needed or there, the loader refuses other content, or the files' checksums are
        declared as ``official``.

    Raises:
        UserError: a file that cannot be read.
    """
    files = found_once(traits, parameters)
    if files is None or files.layout.verified:
        return None
    return memoized((id(files), "content"), lambda: _content(files, traits.official))


def found_once(traits: Traits, parameters: Mapping[str, Any]) -> Files | None:
    """:func:`find` below the data folder, once per plan; None where no file is ever read."""
    if not any(met(layout.when, parameters) for layout in traits.reads):
        return None
    root = data_root()
    key = (root, repr(traits.reads), repr(sorted(parameters.items())))
    return memoized(key, lambda: find(traits.reads, parameters, root))


def verify_content(traits: Traits, parameters: Mapping[str, Any], spec: ComponentSpec) -> None:
    """Check that the files below the data folder are those that a component was planned with.

    Raises:
        UserError: their content has changed since planning.
    """
    if content_of(traits, parameters) != spec.content:
        raise UserError(
            f"{data_root()}: the files of {spec.component} have changed since it was planned: plan "
            "again by starting the command again, or restore the files"
        )


def _content(files: Files, official: Sequence[str]) -> str | None:
    digests = {}
    for name, path in files.names():
        check_readable(path)
        digests[name] = digest_of(path)
    if set(digests.values()) <= set(official):
        return None
    lines = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    return hashlib.sha256(lines.encode()).hexdigest()
