"""Read scales, which set data, sizes and budgets and never change a code path."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from purifiers.core import registry
from purifiers.core.data import data_root
from purifiers.core.data_layouts import SPLITS, found_once
from purifiers.core.errors import UserError, did_you_mean
from purifiers.plan.cells import ScaleInfo
from purifiers.plan.declarations import read_checked


@dataclass(frozen=True)
class UsedDataset:
    """The data set that a scale uses for a paper's data set.

    Attributes:
        name: the data set's component.
        parameters: its parameters.
        train, test: number of images used.
        seeds: seeds of training, attack and purification.
        available: number of images that there are, by split.
        budgets: parameter changes for this data set only, by ``kind.component``.
        stand_in: whether it replaces the paper's data set.
    """

    name: str
    parameters: dict[str, Any]
    train: int
    test: int
    seeds: tuple[int, ...]
    available: dict[str, int]
    budgets: dict[str, dict[str, Any]]
    stand_in: bool


@dataclass(frozen=True)
class Scale:
    """The content of ``workflow/scales/<name>.yaml``."""

    name: str
    declared: dict[str, Any]

    def jobs(self, stage: str) -> int | str | dict[str, float]:
        """How the runs of a stage are grouped: see ``_groups`` in :mod:`purifiers.plan.batches`."""
        return self.declared.get("jobs", {}).get(stage, "run")

    def setting(self, name: str, default: Any) -> Any:
        """Value of an optional top-level key."""
        return self.declared.get(name, default)

    @property
    def first(self) -> str:
        """The document whose jobs start before all others; empty: none."""
        return str(self.declared.get("first", ""))

    def limits(self, paper: str, document: str = "") -> dict[str, Any]:
        """Largest numbers in the cells of a paper or of one of its documents, see
        :mod:`purifiers.plan.limits`."""
        entries = (self.declared, self._of_paper(paper), self._of_document(paper, document))
        return {name: most for entry in entries for name, most in entry.get("limits", {}).items()}

    def omits(self, paper: str, document: str) -> bool:
        """Whether a paper's document is not run at this scale."""
        return bool(self._of_document(paper, document).get("omitted", False))

    def for_cell(
        self, used: UsedDataset, paper: str, document: str, row: str, published: int | None
    ) -> UsedDataset:
        """A data set with the images and seeds of a paper's cell: the entry of its row counts
        most, then that of its document.

        Args:
            published: number of test images behind the paper's numbers; None: not declared. Some
                attacks take hours per image.
        """
        of_paper = self._of_paper(paper)
        entry = {
            **of_paper,
            **self._of_document(paper, document),
            **of_paper.get("rows", {}).get(row, {}),
        }
        test = [used.test, entry.get("images"), published]
        train = [used.train, entry.get("train")]
        return replace(
            used,
            test=min(n for n in test if n is not None),
            train=min(n for n in train if n is not None),
            seeds=tuple(entry.get("seeds", used.seeds)),
        )

    def _of_paper(self, paper: str) -> dict[str, Any]:
        changes: dict[str, Any] = self.setting("papers", {}).get(paper, {})
        return changes

    def _of_document(self, paper: str, document: str) -> dict[str, Any]:
        changes: dict[str, Any] = self._of_paper(paper).get("documents", {}).get(document, {})
        return changes

    def info(self) -> ScaleInfo:
        """The part of the scale that reports print."""
        note = self.declared.get("note", "")
        return ScaleInfo(self.name, self.declared["label"], note, self.declared["reduced"])

    def dataset(self, name: str) -> UsedDataset | None:
        """Look up the data set used for a paper's data set; None if the scale leaves it out.

        Raises:
            UserError: the scale uses a data set that does not exist, or more images than it has;
                or only the files can tell the number of images, and there are none.
        """
        entry = self.declared["datasets"].get(name)
        if entry is None:
            return None
        available = self._available(name, entry)
        return UsedDataset(
            entry["use"],
            entry.get("parameters", {}),
            entry.get("train") or available["train"],
            entry.get("test") or available["test"],
            tuple(entry.get("seeds", self.declared["seeds"])),
            available,
            entry.get("budgets", {}),
            stand_in=entry["use"] != name,
        )

    def _available(self, name: str, entry: dict[str, Any]) -> dict[str, int]:
        """Number of images by split: the declared one, else the number of files."""
        described = registry.describe("dataset", entry["use"])
        declared = {split: getattr(described.traits, split) for split in SPLITS}
        if None not in declared.values():
            return declared
        where = f"workflow/scales/{self.name}.yaml: datasets.{name}"
        parameters = {**described.parameters, **entry.get("parameters", {})}
        files = found_once(described.traits, parameters)
        counted = {split: len(files.of[split]) if files else 0 for split in SPLITS}
        for split, count in counted.items():
            if not count:
                layout = described.traits.reads[0].files[0]
                place = layout.format(**{**parameters, "split": split})
                raise UserError(
                    f"{where}: no {split} images in {data_root()}: put them at {place}, or set "
                    "PURIFYBENCH_DATA to the folder that holds them"
                )
            _check_size(entry, split, count, where)
        return counted

    def budget(self, kind: str, component: str, used: UsedDataset, paper: str) -> dict[str, Any]:
        """Parameter changes for a component: the scale's, the data set's, the paper's, in order."""
        budgets = (
            self.setting("budgets", {}),
            used.budgets,
            self._of_paper(paper).get("budgets", {}),
        )
        changes: dict[str, Any] = {}
        for budget in budgets:
            changes |= budget.get(f"{kind}.{component}", {})
        return changes


def scale_names(root: Path) -> list[str]:
    """Names of all scales."""
    return sorted(path.stem for path in (root / "workflow" / "scales").glob("*.yaml"))


def load_scale(root: Path, name: str) -> Scale:
    """Read a scale and check that it changes budgets only.

    Raises:
        UserError: an unknown scale, a file that breaks its schema, an unknown data set parameter,
            more images than the data set has, a parameter that is not a budget, or a learning
            rate without its optimizer.
    """
    path = root / "workflow" / "scales" / f"{name}.yaml"
    if not path.exists():
        raise UserError(f"there is no scale {name!r}{did_you_mean(name, scale_names(root))}")
    declared = read_checked(path, "scale", root)
    all_budgets = [("budgets", declared.get("budgets", {}))]
    for dataset, entry in declared["datasets"].items():
        if entry:
            _check_dataset(entry, f"workflow/scales/{name}.yaml: datasets.{dataset}")
            all_budgets.append((f"datasets.{dataset}.budgets", entry.get("budgets", {})))
    for paper, entry in declared.get("papers", {}).items():
        all_budgets.append((f"papers.{paper}.budgets", entry.get("budgets", {})))
    for key_path, budgets in all_budgets:
        for key, changes in budgets.items():
            kind, _, component = key.partition(".")
            allowed = registry.describe(kind, component).traits.budget
            for parameter in changes:
                if parameter not in allowed:
                    raise UserError(
                        f"workflow/scales/{name}.yaml: {key_path}.{key}: {parameter!r} "
                        f"is not a budget{did_you_mean(parameter, allowed)}; a scale may change "
                        f"{', '.join(allowed) or 'nothing'} there"
                    )
            if "learning_rate" in changes and "optimizer" in set(allowed) - set(changes):
                raise UserError(
                    f"workflow/scales/{name}.yaml: {key_path}.{key}: learning_rate without "
                    "optimizer, but recipes with different optimizers share this budget: add "
                    "`optimizer: <name>`"
                )
    return Scale(name, declared)


def _check_dataset(entry: dict[str, Any], where: str) -> None:
    """Check the parameters and the number of images of a data set."""
    described = registry.describe("dataset", entry["use"])
    parameters = entry.get("parameters", {})
    described.check_parameters(parameters, where)
    for parameter, value in parameters.items():
        parameters[parameter] = described.checked(parameter, value, where)
    for split in SPLITS:
        available = getattr(described.traits, split)
        if available is not None:
            _check_size(entry, split, available, where)


def _check_size(entry: dict[str, Any], split: str, available: int, where: str) -> None:
    if entry.get(split, 0) > available:
        raise UserError(
            f"{where}.{split} is {entry[split]}, but there are {available} images: lower it"
        )
