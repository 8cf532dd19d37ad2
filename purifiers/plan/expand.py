"""From a declared cell to the runs that give its number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from purifiers.core import registry
from purifiers.core.errors import UserError, did_you_mean
from purifiers.core.numbers import check_linf_length, fraction, is_fraction, is_linf_length
from purifiers.plan.cells import Cell, Document
from purifiers.plan.declarations import Paper, blocks_of
from purifiers.plan.runs import Run, component, make_run, passes
from purifiers.plan.scale import Scale, UsedDataset

THREAT_MODELS = ("oblivious", "white_box")
GRADIENTS = ("exact", "bpda")
METRICS = ("accuracy",)
SUPPORTED = frozenset(
    [
        "dataset",
        "classifier",
        "training",
        "methods",
        "attack",
        "threat_model",
        "gradient",
        "metric",
        "unit",
        "worst_of",
        "worst_over",
        "override",
        "quoted",
        "flags",
    ]
)
SUBSET_SEED = 0  # which test images a reduced scale takes; the same for every seed


class _NotImplementedHere(Exception):
    """A cell needs something the suite does not have yet; its text names it."""


@dataclass(frozen=True)
class Setting:
    """A cell's declaration with everything needed to resolve it."""

    paper: Paper
    scale: Scale
    where: str
    cell: dict[str, Any]
    used: UsedDataset

    def recipe(self, kind: str, name: str) -> dict[str, Any]:
        """A recipe as a component spec: settings filled in, budgets and overrides applied.

        Raises:
            UserError: unknown recipe, parameter or setting, or a length out of range.
        """
        where = f"{self.where}: {kind}.{name}"
        declared = self.paper.recipe(kind, name, self.where)
        component_name = declared.pop("component")
        if not registry.exists(kind, component_name):
            raise _NotImplementedHere(f"{kind} {component_name} is not implemented")
        described = registry.describe(kind, component_name)
        override = self.cell.get("override", {}).get(f"{kind}.{name}", {})
        budget = self.scale.budget(kind, component_name, self.used)
        parameters = {**declared, **budget, **override}
        described.check_parameters(parameters, where)
        settings = self.paper.settings(self.used.name) if _has_reference(parameters) else {}
        resolved = {key: _resolve(key, value, settings, where) for key, value in parameters.items()}
        return component(kind, component_name, resolved)


def _has_reference(parameters: dict[str, Any]) -> bool:
    return any(isinstance(value, str) and value.startswith("$") for value in parameters.values())


def _resolve(parameter: str, value: Any, settings: dict[str, Any], where: str) -> Any:
    if isinstance(value, str) and value.startswith("$"):
        if value[1:] not in settings:
            raise UserError(
                f"{where}: settings has no {value[1:]!r}{did_you_mean(value[1:], settings)}"
            )
        value = settings[value[1:]]
    if is_fraction(value):
        value = fraction(value)
    if is_linf_length(parameter) and value is not None:
        value = fraction(value)
        check_linf_length(parameter, value, where)
    return value


class Expander:
    """Expands documents at one scale; equal runs are made once."""

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self.runs: dict[str, Run] = {}

    def document(self, paper: Paper, stem: str) -> Document:
        """All cells of one table or figure."""
        content = paper.documents[stem]
        where = f"benchmarks/{paper.id}/{stem}.yaml"
        cells: list[Cell] = []
        for block in blocks_of(content):
            for row in block["rows"]:
                for place, column in enumerate(block["columns"]):
                    published = block["published"].get(row["id"])
                    value = published[place] if published else None
                    cells.append(self._cell(paper, stem, content, block, row, column, value, where))
        return Document(
            paper=paper.id,
            document=stem,
            title=content["title"],
            where=content["where"],
            notes=tuple(content.get("notes", ())),
            status=content.get("status", "measured"),
            cells=tuple(cells),
        )

    def _cell(
        self,
        paper: Paper,
        stem: str,
        content: dict[str, Any],
        block: dict[str, Any],
        row: dict[str, Any],
        column: dict[str, Any],
        published: Any,
        document_where: str,
    ) -> Cell:
        where = f"{document_where}: {block['id']}/{row['id']}/{column['id']}"
        base = merge(content.get("defaults", {}), block.get("cell", {}), row.get("cell", {}))
        declared = merge(base, column.get("cell", {}))
        state, reason, used = "planned", "", None
        scores: tuple[tuple[str, ...], ...] = ()
        flags = list(declared.get("flags", ()))
        number = isinstance(published, int | float)
        if published is not None and not number:
            flags.append(f"published: {published}")
        if content.get("status", "measured") != "measured":
            state = "configuration"
        elif declared.get("quoted"):
            state = "quoted"
        else:
            try:
                used, scores = self._scores(paper, declared, base, block, where)
            except _NotImplementedHere as missing:
                state, reason = "not implemented", str(missing)
            if state == "planned" and used is None:
                state = "not run"
                reason = f"{declared['dataset']} is not part of scale {self.scale.name}"
        return Cell(
            paper=paper.id,
            table=str(content.get("table") or content.get("figure") or stem),
            document=stem,
            block=block["id"],
            row=row["id"],
            column=column["id"],
            block_label=block.get("label", block["id"]),
            row_label=row.get("label", row["id"]),
            column_label=column.get("label", column["id"]),
            dataset=declared.get("dataset", ""),
            used_dataset=used.name if used else None,
            classifier=declared.get("classifier", ""),
            training=declared.get("training", ""),
            methods=tuple(declared.get("methods", ())),
            attack=_attack_label(declared),
            threat_model=declared.get("threat_model", ""),
            gradient=declared.get("gradient", ""),
            metric=declared.get("metric", "accuracy"),
            unit=declared.get("unit", "percent"),
            published=float(published) if number else None,
            flags=tuple(flags),
            state=state,
            reason=reason,
            scores=scores,
            seeds=self.scale.seeds if scores else (),
        )

    def _scores(
        self,
        paper: Paper,
        declared: dict[str, Any],
        base: dict[str, Any],
        block: dict[str, Any],
        where: str,
    ) -> tuple[UsedDataset | None, tuple[tuple[str, ...], ...]]:
        if "worst_of" in declared:
            parts = []
            by_id = {entry["id"]: entry for entry in block["columns"]}
            for name in declared["worst_of"]:
                if name not in by_id:
                    raise UserError(
                        f"{where}: worst_of: there is no column {name!r}{did_you_mean(name, by_id)}"
                    )
                parts.append(merge(base, by_id[name].get("cell", {})))
        elif "worst_over" in declared:
            rest = {key: value for key, value in declared.items() if key != "worst_over"}
            parts = [{**rest, "attack": name} for name in declared["worst_over"]]
        else:
            parts = [declared]
        used = None
        per_part: list[tuple[str, ...]] = []
        for part in parts:
            setting = self._setting(paper, part, where)
            if setting is None:
                return None, ()
            used = setting.used
            per_part.append(tuple(self._score(setting, seed).id for seed in self.scale.seeds))
        return used, tuple(tuple(dict.fromkeys(ids)) for ids in zip(*per_part, strict=True))

    def _setting(self, paper: Paper, cell: dict[str, Any], where: str) -> Setting | None:
        for key in ("dataset", "classifier", "training"):
            if key not in cell:
                raise UserError(f"{where}: the cell names no {key}")
        datasets = [*paper.declared.get("settings", {}), *self.scale.declared["datasets"]]
        if cell["dataset"] not in datasets:
            raise UserError(
                f"{where}: data set {cell['dataset']!r} has no row in the settings of "
                f"{paper.folder / 'paper.yaml'}{did_you_mean(cell['dataset'], datasets)}"
            )
        for key in sorted(set(cell) - SUPPORTED):
            raise _NotImplementedHere(f"{key} is not implemented")
        for key, known in (
            ("metric", METRICS),
            ("threat_model", THREAT_MODELS),
            ("gradient", GRADIENTS),
        ):
            if cell.get(key, known[0]) not in known:
                raise _NotImplementedHere(f"{key} {cell[key]} is not implemented")
        used = self.scale.dataset(cell["dataset"])
        for kind, name in _named(cell):
            component_name = paper.recipe(kind, name, where)["component"]
            if not registry.exists(kind, component_name):
                raise _NotImplementedHere(f"{kind} {component_name} is not implemented")
        if used is None:
            return None
        return Setting(paper, self.scale, where, cell, used)

    def _keep(self, run: Run) -> Run:
        return self.runs.setdefault(run.id, run)

    def _dataset(self, used: UsedDataset) -> Run:
        spec = {"dataset": component("dataset", used.name, used.parameters)}
        constants = registry.describe("dataset", used.name).constants
        pixels = math.prod(constants["SHAPE"]) * (constants["TRAIN"] + constants["TEST"])
        return self._keep(make_run("dataset", used.name, spec, size_bytes=pixels))

    def _classifier(self, setting: Setting, seed: int) -> Run:
        data = self._dataset(setting.used)
        classifier = setting.recipe("classifier", setting.cell["classifier"])
        training = setting.recipe("training", setting.cell["training"])
        spec = {
            "data": data.id,
            "train": setting.used.train,
            "classifier": classifier,
            "training": training,
            "seed": seed,
        }
        shape = registry.describe("dataset", setting.used.name).constants["SHAPE"]
        network = network_key(classifier, shape)
        cost = passes("training", training, "FIT_PASSES") * setting.used.train
        slug = f"{setting.used.name}-{classifier['component']}-{training['component']}-s{seed}"
        return self._keep(make_run("classifier", slug, spec, (data,), passes=cost, network=network))

    def _method(self, setting: Setting, name: str, seed: int) -> tuple[dict[str, Any], Run | None]:
        """A method's spec, and the run that fits it if it has to be fitted."""
        method = setting.recipe("method", name)
        constants = registry.describe("method", method["component"]).constants
        if "FIT_PASSES" not in constants:
            return {**method, "run": None}, None
        classifier = self._classifier(setting, seed)
        spec = {
            "data": classifier.spec["data"],
            "train": setting.used.train,
            "classifier": classifier.id,
            "method": method,
            "seed": seed,
        }
        cost = passes("method", method, "FIT_PASSES") * setting.used.train
        slug = f"{_base(classifier)}-{method['component']}-s{seed}"
        run = self._keep(
            make_run(
                "purifier",
                slug,
                spec,
                (*classifier.inputs, classifier),
                classifier.lineage,
                cost,
                classifier.network,
            )
        )
        return {**method, "run": run.id}, run

    def _score(self, setting: Setting, seed: int) -> Run:
        classifier = self._classifier(setting, seed)
        data = classifier.inputs[0]
        methods = [self._method(setting, name, seed) for name in setting.cell.get("methods", ())]
        white_box = setting.cell.get("threat_model", "oblivious") == "white_box"
        subset = {"split": "test", "n": setting.used.test, "seed": SUBSET_SEED}
        images: dict[str, Any] = {"data": data.id, "subset": subset, "run": None}
        made_by: Run = data
        story = ["clean"]
        attack: dict[str, Any] | None = None
        pixels = 4 * math.prod(registry.describe("dataset", setting.used.name).constants["SHAPE"])
        name = setting.cell.get("attack", "none")
        if name != "none":
            attack = setting.recipe("attack", name)
            attacked = methods if white_box else []
            gradient = setting.cell.get("gradient", "exact") if attacked else "exact"
            spec = {
                "images": images,
                "classifier": classifier.id,
                "methods": [spec for spec, _ in attacked],
                "gradient": gradient,
                "attack": attack,
                "seed": seed,
            }
            per_query = 1 + sum(passes("method", spec, "PASSES") for spec, _ in attacked) / 3
            cost = passes("attack", attack, "PASSES") * per_query * setting.used.test
            story = [attack["component"]]
            if attacked:
                chain = "_".join(spec["component"] for spec, _ in attacked)
                story.append(f"{gradient}_{chain}")
            slug = "-".join([_base(classifier), *story, f"s{seed}"])
            inputs = (data, classifier, *(run for _, run in attacked if run))
            size = setting.used.test * pixels
            made_by = self._keep(
                make_run(
                    "attack", slug, spec, inputs, passes=cost, size_bytes=size, **_like(classifier)
                )
            )
            images = {**images, "run": made_by.id, "stage": "attack"}
        for method, fitted in methods:
            spec = {"images": images, "classifier": classifier.id, "method": method, "seed": seed}
            cost = passes("method", method, "PASSES") * setting.used.test
            story.append(method["component"])
            slug = "-".join([_base(classifier), *story, f"s{seed}"])
            inputs = (data, classifier, made_by, *([fitted] if fitted else []))
            made_by = self._keep(
                make_run(
                    "purify",
                    slug,
                    spec,
                    tuple(dict.fromkeys(inputs)),
                    passes=cost,
                    size_bytes=setting.used.test * pixels,
                    **_like(classifier),
                )
            )
            images = {**images, "run": made_by.id, "stage": "purify"}
        spec = {"images": images, "classifier": classifier.id, "attack": attack}
        slug = "-".join([_base(classifier), *story, f"s{seed}"])
        inputs = tuple(dict.fromkeys((data, classifier, made_by)))
        return self._keep(
            make_run("score", slug, spec, inputs, passes=setting.used.test, **_like(classifier))
        )


def merge(*fragments: dict[str, Any]) -> dict[str, Any]:
    """Later fragments win; ``override`` and ``flags`` add up."""
    merged: dict[str, Any] = {}
    for fragment in fragments:
        for key, value in fragment.items():
            if key == "override":
                known = merged.get("override", {})
                names = [*known, *(name for name in value if name not in known)]
                merged["override"] = {n: {**known.get(n, {}), **value.get(n, {})} for n in names}
            elif key == "flags":
                merged["flags"] = [*merged.get("flags", []), *value]
            else:
                merged[key] = value
    return merged


def network_key(classifier: dict[str, Any], shape: tuple[int, ...]) -> str:
    """What one forward pass is a pass of: architecture, sizes and image shape."""
    sizes = ",".join(f"{key}={value}" for key, value in sorted(classifier["parameters"].items()))
    return f"{classifier['component']}({sizes})@{'x'.join(map(str, shape))}"


def _like(classifier: Run) -> dict[str, Any]:
    return {"lineage": classifier.lineage, "network": classifier.network}


def _base(classifier: Run) -> str:
    return classifier.id.rsplit("-", 2)[0]


def _named(cell: dict[str, Any]) -> list[tuple[str, str]]:
    found = [("classifier", cell["classifier"]), ("training", cell["training"])]
    found += [("method", name) for name in cell.get("methods", ())]
    if cell.get("attack", "none") != "none":
        found.append(("attack", cell["attack"]))
    return found


def _attack_label(declared: dict[str, Any]) -> str:
    if "worst_of" in declared:
        return "worst of " + ", ".join(declared["worst_of"])
    if "worst_over" in declared:
        return "worst of " + ", ".join(declared["worst_over"])
    return str(declared.get("attack", "none"))
