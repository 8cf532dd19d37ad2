"""From a declared table to its cells, each with the score runs that give its number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from purifiers.core import registry
from purifiers.core.errors import UserError, did_you_mean
from purifiers.core.traits import AttackTraits
from purifiers.plan.cells import DOUBT, STAGE_OF, WORDS, Cell, Document, ImageGrid
from purifiers.plan.declarations import Paper, blocks_of
from purifiers.plan.lineage import Lineage
from purifiers.plan.measurements import Measurements
from purifiers.plan.resolve import NotImplementedHere, Setting, merge, notes_on
from purifiers.plan.scale import Scale, UsedDataset
from purifiers.plan.threats import GRADIENTS, THREAT_MODELS, Method, Parts, check_threat, eot

COMBINED = ("worst_of", "worst_over", "mean_of", "mean_over")
"""Keys of a cell whose number is the lowest, or the mean, of several."""
METRICS = ("accuracy", "mean_l2", "mean_linf", *STAGE_OF)
SUPPORTED = frozenset(
    "dataset classifier training methods attack threat_model gradient metric unit "  # noqa: SIM905
    "eot source auxiliary detector fit_classifiers override quoted flags".split()
)


class Expander:
    """Expands documents at one scale.

    Attributes:
        lineage: the runs behind all documents expanded so far.
    """

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self.lineage = Measurements()

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
            plot=content.get("plot", "curves" if "figure" in content else ""),
            axis=content.get("axis", ""),
            images=_image_grid(content),
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
            flags.append(f"{WORDS}{published}")
        if doubt := block["doubts"].get(row["id"], {}).get(column["id"]):
            flags.append(f"{DOUBT}{doubt}")
        if content.get("status", "measured") != "measured":
            state = "configuration"
        elif declared.get("quoted"):
            state = "quoted"
        else:
            try:
                parts = _parts(declared, base, block, where)
                used, scores = self._scores(paper, parts, where)
                flags += _remarks(self.lineage, scores) if used else []
            except NotImplementedHere as missing:
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
            eot=_draws(declared),
            stochastic=state == "planned" and _is_random(paper, declared, where),
            source=_source_label(declared),
            scores=scores,
            seeds=self.scale.seeds if scores else (),
            mean=_is_mean(declared),
            blind=state == "planned" and _is_blind(self.lineage, scores),
        )

    def _scores(
        self, paper: Paper, parts: list[dict[str, Any]], where: str
    ) -> tuple[UsedDataset | None, tuple[tuple[str, ...], ...]]:
        """The data set that is used, and per seed the runs of a cell's parts."""
        settings = [self._setting(paper, part, where) for part in parts]
        used = None
        per_part: list[tuple[str, ...]] = []
        for part, setting in zip(parts, settings, strict=True):
            if setting is None:
                return None, ()
            used = setting.used
            stage = STAGE_OF.get(part.get("metric", "accuracy"), "score")
            runs = [getattr(self.lineage, stage)(setting, seed) for seed in self.scale.seeds]
            per_part.append(tuple(run.id for run in runs))
        return used, tuple(tuple(dict.fromkeys(ids)) for ids in zip(*per_part, strict=True))

    def _setting(self, paper: Paper, cell: dict[str, Any], where: str) -> Setting | None:
        for key in ("dataset", "classifier", "training"):
            if key not in cell:
                raise UserError(f"{where}: the cell names no {key}")
        for key in cell.get("override", {}):
            kind, _, name = key.partition(".")
            paper.recipe(kind, name, f"{where}: override")
        datasets = [*paper.declared.get("settings", {}), *self.scale.declared["datasets"]]
        if cell["dataset"] not in datasets:
            raise UserError(
                f"{where}: data set {cell['dataset']!r} has no row in the settings of "
                f"{paper.folder / 'paper.yaml'}{did_you_mean(cell['dataset'], datasets)}"
            )
        for key in sorted(set(cell) - SUPPORTED):
            raise NotImplementedHere(f"{key} is not implemented")
        for key, known in (
            ("metric", METRICS),
            ("threat_model", THREAT_MODELS),
            ("gradient", GRADIENTS),
        ):
            if cell.get(key, known[0]) not in known:
                raise NotImplementedHere(f"{key} {cell[key]} is not implemented")
        used = self.scale.dataset(cell["dataset"])
        for kind, name in _components(cell):
            component_name = paper.recipe(kind, name, where)["component"]
            if not registry.exists(kind, component_name):
                raise NotImplementedHere(f"{kind} {component_name} is not implemented")
        check_threat(cell, _threat_parts(paper, cell, where), where)
        if used is None:
            return None
        # no more images than the paper looked at: some of its attacks cost hours for each
        most = paper.declared.get("published_n", {}).get(cell["dataset"], used.test)
        used = replace(used, test=min(used.test, most))
        setting = Setting(paper, self.scale, where, cell, used)
        if cell.get("attack", "none") != "none":
            attack = setting.recipe("attack", cell["attack"])
            for reason in notes_on(attack, _attack_traits(attack).refused):
                raise NotImplementedHere(reason)
        return setting


def _attack_traits(attack: dict[str, Any]) -> AttackTraits:
    traits: AttackTraits = registry.describe("attack", attack["component"]).traits
    return traits


def _methods(paper: Paper, cell: dict[str, Any], names: Sequence[str], where: str) -> list[Method]:
    """Traits and parameters of methods at any scale: a budget changes no choice between modes."""
    methods = []
    for name in names:
        recipe = paper.recipe("method", name, where)
        described = registry.describe("method", recipe.pop("component"))
        override = cell.get("override", {}).get(f"method.{name}", {})
        parameters = {**described.parameters, **recipe, **override}
        methods.append(Method(name, described.traits, parameters))
    return methods


def _threat_parts(paper: Paper, cell: dict[str, Any], where: str) -> Parts:
    def one(key: str) -> Method | None:
        return _methods(paper, cell, [cell[key]], where)[0] if key in cell else None

    attack = cell.get("attack", "none")
    return Parts(
        methods=_methods(paper, cell, cell.get("methods", ()), where),
        attack=None if attack == "none" else _attack_traits(paper.recipe("attack", attack, where)),
        auxiliary=one("auxiliary") if attack != "none" else None,
        detector=one("detector"),
    )


def _image_grid(content: dict[str, Any]) -> ImageGrid | None:
    if (asked := content.get("images")) is None:
        return None
    return ImageGrid(asked["each"], *(tuple(asked.get(axis, ())) for axis in ("rows", "columns")))


def _parts(
    declared: dict[str, Any], base: dict[str, Any], block: dict[str, Any], where: str
) -> list[dict[str, Any]]:
    """The plain cells behind a cell: itself, or those that it combines.

    Raises:
        UserError: a column that is not there, a mean over a parameter of no attack, a combination
            of columns that are combined in another way.
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
            part = merge(base, by_id[name])
            inner = next((inner for inner in COMBINED if inner in part), None)
            if inner and inner != key.replace("_of", "_over"):
                raise UserError(f"{where}: {key}: column {name!r} has a {inner} of its own")
            parts += _parts(part, base, block, where)
        return parts
    rest = {name: value for name, value in declared.items() if name not in COMBINED}
    if key == "worst_over":
        return [{**rest, "attack": name} for name in declared[key]]
    if rest.get("attack", "none") == "none":
        raise UserError(f"{where}: mean_over takes a parameter of the attack, and there is none")
    ((parameter, values),) = declared[key].items()
    name = f"attack.{rest['attack']}"
    return [merge(rest, {"override": {name: {parameter: value}}}) for value in values]


def _is_mean(declared: dict[str, Any]) -> bool:
    key = next((key for key in COMBINED if key in declared), "")
    return key.startswith("mean")


def _remarks(lineage: Lineage, scores: tuple[tuple[str, ...], ...]) -> list[str]:
    """What a table must add about a cell's attacks and its detector."""
    remarks: list[str] = []
    for spec in (lineage.runs[run].spec for ids in scores for run in ids):
        if spec.get("attack"):
            remarks += notes_on(spec["attack"], _attack_traits(spec["attack"]).remarks)
        if "detector" in spec:
            name = spec["detector"]["component"]
            remarks.append(
                f"images that {name} detects count as correct when attacked, as wrong when clean"
            )
    return list(dict.fromkeys(remarks))


def _is_blind(lineage: Lineage, scores: tuple[tuple[str, ...], ...]) -> bool:
    attacks = [lineage.runs[run].spec.get("attack") for ids in scores for run in ids]
    return all(attack and _attack_traits(attack).model_free for attack in attacks)


def _components(cell: dict[str, Any]) -> list[tuple[str, str]]:
    """Kind and recipe name of everything that a cell names."""
    named = [("classifier", cell["classifier"]), ("training", cell["training"])]
    named += [("classifier", name) for name in cell.get("fit_classifiers", ())]
    named += [("method", name) for name in cell.get("methods", ())]
    if "detector" in cell:
        named.append(("method", cell["detector"]))
    if cell.get("attack", "none") != "none":
        named.append(("attack", cell["attack"]))
        if "auxiliary" in cell:
            named.append(("method", cell["auxiliary"]))
        if "source" in cell:
            named += [(kind, cell["source"][kind]) for kind in ("classifier", "training")]
    return named


def _draws(declared: dict[str, Any]) -> int:
    """Draws behind each of the attacker's gradients; 0 where nothing is said."""
    return eot(declared["eot"])["samples"] if "eot" in declared else 0


def _is_random(paper: Paper, declared: dict[str, Any], where: str) -> bool:
    methods = _methods(paper, declared, declared.get("methods", ()), where)
    return any(method.random for method in methods)


def _source_label(declared: dict[str, Any]) -> str:
    source = declared.get("source")
    return f"{source['classifier']}, {source['training']}" if source else ""


def _attack_label(declared: dict[str, Any]) -> str:
    key = next((key for key in COMBINED if key in declared), None)
    attack = str(declared.get("attack", "none"))
    if key is None:
        return attack
    if key == "mean_over":
        ((parameter, values),) = declared[key].items()
        return f"{attack}, mean over {parameter} {', '.join(map(str, values))}"
    return f"{key.split('_')[0]} of {', '.join(declared[key])}"
