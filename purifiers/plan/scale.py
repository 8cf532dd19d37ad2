"""Scales: what a run may cost. A scale changes data, sizes and budgets, never a code path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from purifiers.core import registry
from purifiers.core.errors import UserError, did_you_mean
from purifiers.plan.cells import ScaleInfo
from purifiers.plan.declarations import read_checked

STAGES = (
    *("dataset", "classifier", "purifier", "substitute", "attack", "purify"),
    *("score", "information", "time"),
)


@dataclass(frozen=True)
class UsedDataset:
    """The data set that a paper's data set becomes at a scale.

    Attributes:
        train, test: how many images are used.
        budgets: changes of sizes and budgets for this data set alone.
    """

    name: str
    parameters: dict[str, Any]
    train: int
    test: int
    budgets: dict[str, dict[str, Any]]
    stand_in: bool


@dataclass(frozen=True)
class Scale:
    """The content of ``workflow/scales/<name>.yaml``."""

    name: str
    declared: dict[str, Any]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of training, attack and purification."""
        return tuple(self.declared["seeds"])

    def jobs(self, stage: str) -> int | str:
        """How the runs of a stage are gathered into jobs."""
        return self.declared.get("jobs", {}).get(stage, "run")

    def setting(self, name: str, default: Any) -> Any:
        """An optional top-level value."""
        return self.declared.get(name, default)

    def info(self) -> ScaleInfo:
        """What reports must say of this scale."""
        note = self.declared.get("note", "")
        return ScaleInfo(self.name, self.declared["label"], note, self.declared["reduced"])

    def dataset(self, name: str) -> UsedDataset | None:
        """What stands for a paper's data set here; None: it is left out.

        Raises:
            UserError: the scale names a data set that does not exist.
        """
        entry = self.declared["datasets"].get(name)
        if entry is None:
            return None
        described = registry.describe("dataset", entry["use"])
        return UsedDataset(
            entry["use"],
            entry.get("parameters", {}),
            entry.get("train") or described.traits.train,
            entry.get("test") or described.traits.test,
            entry.get("budgets", {}),
            stand_in=entry["use"] != name,
        )

    def budget(self, kind: str, component: str, used: UsedDataset) -> dict[str, Any]:
        """Parameter changes for a component, those of the data set over the scale's own."""
        key = f"{kind}.{component}"
        changes = {**self.declared.get("budgets", {}).get(key, {}), **used.budgets.get(key, {})}
        return changes


def scale_names(root: Path) -> list[str]:
    """All scales."""
    return sorted(path.stem for path in (root / "workflow" / "scales").glob("*.yaml"))


def load_scale(root: Path, name: str) -> Scale:
    """Read a scale and check that it changes nothing but budgets.

    Raises:
        UserError: unknown scale, broken schema, a data set without such a parameter or so many
            images, a parameter that is not a budget, or a learning rate that does not say its
            optimizer.
    """
    path = root / "workflow" / "scales" / f"{name}.yaml"
    if not path.exists():
        raise UserError(f"there is no scale {name!r}{did_you_mean(name, scale_names(root))}")
    declared = read_checked(path, "scale", root)
    everywhere = [("budgets", declared.get("budgets", {}))]
    for dataset, entry in declared["datasets"].items():
        if entry:
            _check_dataset(entry, f"workflow/scales/{name}.yaml: datasets.{dataset}")
            everywhere.append((f"datasets.{dataset}.budgets", entry.get("budgets", {})))
    for place, budgets in everywhere:
        for key, changes in budgets.items():
            kind, _, component = key.partition(".")
            allowed = registry.describe(kind, component).traits.budget
            for parameter in changes:
                if parameter not in allowed:
                    raise UserError(
                        f"workflow/scales/{name}.yaml: {place}.{key}: {parameter!r} is not a budget"
                        f"{did_you_mean(parameter, allowed)}; a scale may change "
                        f"{', '.join(allowed) or 'nothing'} there"
                    )
            if "learning_rate" in changes and "optimizer" in set(allowed) - set(changes):
                raise UserError(
                    f"workflow/scales/{name}.yaml: {place}.{key}: learning_rate without optimizer; "
                    "recipes of different optimizers share this budget, so say which it is for"
                )
    return Scale(name, declared)


def _check_dataset(entry: dict[str, Any], where: str) -> None:
    """Its parameters exist, and so do as many images."""
    described = registry.describe("dataset", entry["use"])
    described.check_parameters(entry.get("parameters", {}), where)
    for split in ("train", "test"):
        most = getattr(described.traits, split)
        if most is not None and (entry.get(split) or 0) > most:
            raise UserError(f"{where}.{split} is {entry[split]}, but there are {most} images")
