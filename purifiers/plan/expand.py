"""Expand declared tables into cells, each with the runs that measure it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from purifiers.core import registry
from purifiers.core.errors import UserError, did_you_mean
from purifiers.core.spec import ClassifierSpec, ComponentSpec, ScoreSpec, SubstituteSpec
from purifiers.plan.cells import STAGE_OF, Cell, Combine, Document, Flag, ImageGrid, Lowered
from purifiers.plan.declarations import Paper, blocks_of
from purifiers.plan.graph import Graph, Run, with_ancestors
from purifiers.plan.limits import limited, lowered
from purifiers.plan.resolve import NotImplementedHere, Setting, merge, notes_on
from purifiers.plan.scale import Scale, UsedDataset
from purifiers.plan.score_runs import MEASURED
from purifiers.plan.threats import (
    CellMethod,
    CellParts,
    attacked_methods,
    check_threat,
    eot_samples,
)

COMBINED = ("worst_of", "worst_over", "worst_image_of", "mean_of", "mean_over")
"""Keys that declare a cell as the lowest value, the worst case per image or the mean of several."""
_DRAWS = {
    "logits": "prediction: mean of the logits of {draws} random draws",
    "softmax": "prediction: mean of the probabilities of {draws} random draws",
    "argmax": "prediction: majority of {draws} random draws",
    "any": "an image counts as correct if all of {draws} random draws classify it correctly",
}
"""Remark of a table on cells with several random draws, by ``combine_draws``."""
_HOW: dict[str, Literal["worst", "worst_image", "mean"]] = {
    "worst_of": "worst",
    "worst_over": "worst",
    "worst_image_of": "worst_image",
    "mean_of": "mean",
}


class Expander:
    """Expand documents at one scale.

    Attributes:
        scale: the scale.
        graph: the runs of all documents expanded so far.
    """

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self.graph = Graph()
        self._resolved: dict[tuple[str, ...], ComponentSpec] = {}

    def document(self, paper: Paper, stem: str) -> Document:
        """Expand one table or figure into its cells, and add their runs to the graph."""
        content = paper.documents[stem]
        where = f"benchmarks/{paper.id}/{stem}.yaml"
        cells: list[Cell] = []
        for block in blocks_of(content):
            for row in block["rows"]:
                for position, column in enumerate(block["columns"]):
                    published = block["published"].get(row["id"])
                    value = published[position] if published else None
                    cells.append(self._cell(paper, stem, content, block, row, column, value, where))
        return Document(
            paper=paper.id,
            document=stem,
            title=content["title"],
            where=content["where"],
            notes=tuple(content.get("notes", ())),
            status=content.get("status", "measured"),
            cells=tuple(cells),
            plot=content.get("plot", "curves" if "figure" in content else ""),
            axis=content.get("axis", ""),
            images=_image_grid(content),
            choose_on=content.get("choose_on", 0),
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
        whole = _completed(merge(base, column.get("cell", {})))
        limits = self.scale.limits(paper.id, stem)
        declared = limited(whole, limits)
        state, reason, used = "planned", "", None
        fewer: tuple[Lowered, ...] = ()
        scores: tuple[tuple[str, ...], ...] = ()
        flags = [Flag("note", text) for text in declared.get("flags", ())]
        is_number = isinstance(published, int | float)
        if published is not None and not is_number:
            flags.append(Flag("words", str(published)))
        if doubt := block["doubts"].get(row["id"], {}).get(column["id"]):
            flags.append(Flag("doubt", doubt))
        if content.get("status", "measured") != "measured":
            state = "configuration"
        else:
            try:
                parts = _parts(declared, base, block, limits, where)
                used, scores = self._scores(paper, stem, row["id"], parts, where)
                if used and (fewer := lowered(whole, declared)):
                    flags.append(Flag("remark", f"this scale runs {', '.join(map(str, fewer))}"))
                flags += _remarks(self._runs(scores)) if used else []
            except NotImplementedHere as error:
                state, reason = "not implemented", str(error)
            if declared.get("quoted"):
                if used is None:
                    state, reason = "quoted", ""
                else:
                    flags.append(Flag("note", "the published value is quoted"))
            if state == "planned" and used is None:
                omitted = stem if self.scale.omits(paper.id, stem) else declared["dataset"]
                state, reason = "not run", f"{omitted} is not part of scale {self.scale.name}"
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
            attack=str(declared.get("attack", "none")),
            threat_model=declared.get("threat_model", ""),
            gradient=declared.get("gradient", ""),
            metric=declared.get("metric", "accuracy"),
            unit=declared.get("unit", "percent"),
            published=float(published) if is_number else None,
            flags=tuple(flags),
            state=state,
            reason=reason,
            eot=eot_samples(declared),
            stochastic=state == "planned" and _is_random(paper, declared, where),
            source=_source_label(declared),
            scores=scores,
            seeds=used.seeds if used and scores else (),
            combine=_combine(declared),
            model_free=state == "planned" and _is_model_free(self._runs(scores)),
            lowered=fewer,
        )

    def _scores(
        self, paper: Paper, stem: str, row: str, parts: list[dict[str, Any]], where: str
    ) -> tuple[UsedDataset | None, tuple[tuple[str, ...], ...]]:
        """Plan the runs of a cell's parts.

        Returns:
            The data set that is used (None where the scale leaves it out) and the run ids per
            seed.
        """
        settings = [self._setting(paper, stem, row, part, where) for part in parts]
        used = None
        per_part: list[tuple[str, ...]] = []
        for part, setting in zip(parts, settings, strict=True):
            if setting is None:
                return None, ()
            used = setting.used
            stage = STAGE_OF.get(part.get("metric", "accuracy"), "score")
            runs = [MEASURED[stage](self.graph, setting, seed) for seed in used.seeds]
            per_part.append(tuple(run.id for run in runs))
        return used, tuple(tuple(dict.fromkeys(ids)) for ids in zip(*per_part, strict=True))

    def _runs(self, scores: tuple[tuple[str, ...], ...]) -> list[Run]:
        return [self.graph.runs[run] for ids in scores for run in ids]

    def _setting(
        self, paper: Paper, stem: str, row: str, cell: dict[str, Any], where: str
    ) -> Setting | None:
        """Check a plain cell; None where the scale leaves its data set out.

        Raises:
            UserError: a missing key, an unknown name or a refused threat model.
            NotImplementedHere: the cell needs something that is not implemented.
        """
        for key in ("dataset", "classifier", "training"):
            if key not in cell:
                raise UserError(
                    f"{where}: the cell has no {key}: add `{key}: <name>` to the cell, its row, "
                    "column or block, or the defaults"
                )
        for key in cell.get("override", {}):
            kind, _, name = key.partition(".")
            paper.recipe(kind, name, f"{where}: override")
        datasets = [*paper.declared.get("settings", {}), *self.scale.declared["datasets"]]
        if cell["dataset"] not in datasets:
            raise UserError(
                f"{where}: data set {cell['dataset']!r} has no row in the settings of "
                f"{paper.folder / 'paper.yaml'}{did_you_mean(cell['dataset'], datasets)}"
            )
        used = self.scale.dataset(cell["dataset"])
        for kind, name in _components(cell):
            component_name = paper.recipe(kind, name, where)["component"]
            if not registry.exists(kind, component_name):
                raise NotImplementedHere(f"{kind} {component_name} is not implemented")
        check_threat(cell, _threat_parts(paper, cell, where), where)
        if used is None or self.scale.omits(paper.id, stem):
            return None
        published = paper.documents[stem].get("test_images")
        if published is None:
            published = paper.declared.get("published_n", {}).get(cell["dataset"])
        used = self.scale.for_cell(used, paper.id, stem, row, published)
        setting = Setting(paper, self.scale, where, cell, used, self._resolved)
        if cell.get("attack", "none") != "none":
            attack = setting.recipe("attack", cell["attack"])
            traits = registry.attack_traits(attack.component)
            for reason in notes_on(attack, traits.refused):
                raise NotImplementedHere(reason)
            if traits.images_of not in ("", used.name):
                raise NotImplementedHere(
                    f"{attack.component} has images of {traits.images_of} only, not of {used.name}"
                )
        return setting


def _methods(
    paper: Paper, cell: dict[str, Any], names: Sequence[str], where: str
) -> list[CellMethod]:
    """Look up methods with their parameters; budgets are left out, as they change no mode."""
    methods = []
    for name in names:
        recipe = paper.recipe("method", name, where)
        described = registry.describe("method", recipe.pop("component"))
        override = cell.get("override", {}).get(f"method.{name}", {})
        parameters = {**described.parameters, **recipe, **override}
        methods.append(CellMethod(name, described.traits, parameters))
    return methods


def _threat_parts(paper: Paper, cell: dict[str, Any], where: str) -> CellParts:
    """The components of a cell that decide which attacks are possible."""

    def method_at(key: str) -> CellMethod | None:
        return _methods(paper, cell, [cell[key]], where)[0] if key in cell else None

    name = cell.get("attack", "none")
    attack = None if name == "none" else paper.recipe("attack", name, where)["component"]
    return CellParts(
        methods=_methods(paper, cell, attacked_methods(cell), where),
        attack=None if attack is None else registry.attack_traits(attack),
        auxiliary=method_at("auxiliary") if attack else None,
        detector=method_at("detector"),
    )


def _image_grid(content: dict[str, Any]) -> ImageGrid | None:
    if (declared := content.get("images")) is None:
        return None
    rows, columns = (tuple(declared.get(axis, ())) for axis in ("rows", "columns"))
    return ImageGrid(declared["each"], rows, columns)


def _completed(declared: dict[str, Any]) -> dict[str, Any]:
    """Give a transfer attack's source the cell's own training if it declares none."""
    if "source" not in declared or "training" not in declared:
        return declared
    return {**declared, "source": {"training": declared["training"], **declared["source"]}}


def _parts(
    declared: dict[str, Any],
    base: dict[str, Any],
    block: dict[str, Any],
    limits: dict[str, Any],
    where: str,
) -> list[dict[str, Any]]:
    """List the plain cells of a cell: itself, or the cells that it combines.

    Raises:
        UserError: an unknown column, a mean over a parameter without an attack, or a combination
            of columns that combine cells in another way.
    """
    key = next((key for key in COMBINED if key in declared), None)
    if key is None:
        return [declared]
    if key.endswith("_of"):
        by_id = {entry["id"]: entry.get("cell", {}) for entry in block["columns"]}
        parts = []
        for name in declared[key]:
            if name not in by_id:
                raise UserError(
                    f"{where}: {key}: there is no column {name!r}{did_you_mean(name, by_id)}"
                )
            part = limited(_completed(merge(base, by_id[name])), limits)
            inner = next((inner for inner in COMBINED if inner in part), None)
            if inner and inner != key.replace("_of", "_over"):
                raise UserError(
                    f"{where}: {key}: column {name!r} has its own {inner}: combine plain "
                    "columns only"
                )
            parts += _parts(part, base, block, limits, where)
        return parts
    rest = {name: value for name, value in declared.items() if name not in COMBINED}
    if key == "worst_over":
        return [{**rest, "attack": name} for name in declared[key]]
    if rest.get("attack", "none") == "none":
        raise UserError(
            f"{where}: mean_over needs an attack, but the cell has none: add `attack: <name>`"
        )
    ((parameter, values),) = declared[key].items()
    name = f"attack.{rest['attack']}"
    return [merge(rest, {"override": {name: {parameter: value}}}) for value in values]


def _combine(declared: dict[str, Any]) -> Combine | None:
    """How the runs of a cell are combined; None for a single run."""
    match next((key for key in COMBINED if key in declared), None):
        case None:
            return None
        case "mean_over":
            ((parameter, values),) = declared["mean_over"].items()
            return Combine("mean", tuple(map(str, values)), parameter)
        case key:
            return Combine(_HOW[key], tuple(declared[key]))


def _remarks(runs: Iterable[Run]) -> list[Flag]:
    """Remarks that the table must print about a cell's trainings, attacks and detector."""
    runs = list(runs)
    texts: list[str] = []
    for spec in (run.spec for run in with_ancestors(runs)):
        if isinstance(spec, ClassifierSpec | SubstituteSpec):
            traits = registry.training_traits(spec.training.component)
            texts += notes_on(spec.training, traits.remarks)
    for spec in (run.spec for run in runs):
        if isinstance(spec, ScoreSpec) and spec.attack is not None:
            texts += notes_on(spec.attack, registry.attack_traits(spec.attack.component).remarks)
        if isinstance(spec, ScoreSpec) and spec.detector is not None:
            name = spec.detector.component
            texts.append(
                f"images that {name} detects count as correct when attacked, as wrong when clean"
            )
        if isinstance(spec, ScoreSpec) and spec.predictions:
            text = _DRAWS[spec.combine_draws].format(draws=spec.draws)
            texts.append(f"{text}, each with the images of all steps" if spec.all_steps else text)
    return [Flag("remark", text) for text in dict.fromkeys(texts)]


def _is_model_free(runs: Iterable[Run]) -> bool:
    attacks = [run.spec.attack if isinstance(run.spec, ScoreSpec) else None for run in runs]
    return all(attack and registry.attack_traits(attack.component).model_free for attack in attacks)


def _components(cell: dict[str, Any]) -> list[tuple[str, str]]:
    """Kind and recipe name of every component that a cell uses."""
    components = [("classifier", cell["classifier"]), ("training", cell["training"])]
    components += [("classifier", name) for name in cell.get("fit_classifiers", ())]
    components += [
        ("method", name) for key in ("methods", "attacked_methods") for name in cell.get(key, ())
    ]
    if "detector" in cell:
        components.append(("method", cell["detector"]))
    if cell.get("attack", "none") != "none":
        components.append(("attack", cell["attack"]))
        if "auxiliary" in cell:
            components.append(("method", cell["auxiliary"]))
        if "source" in cell:
            components += [(kind, cell["source"][kind]) for kind in ("classifier", "training")]
    return components


def _is_random(paper: Paper, declared: dict[str, Any], where: str) -> bool:
    methods = _methods(paper, declared, declared.get("methods", ()), where)
    return any(method.random for method in methods)


def _source_label(declared: dict[str, Any]) -> str:
    source = declared.get("source")
    return f"{source['classifier']}, {source['training']}" if source else ""
