"""From a declared table to its cells, each with the score runs that give its number."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

from purifiers.core import registry
from purifiers.core.errors import UserError, did_you_mean
from purifiers.plan.cells import Cell, Document
from purifiers.plan.declarations import Paper, blocks_of
from purifiers.plan.lineage import Lineage, asks_defence, eot, is_random
from purifiers.plan.resolve import NotImplementedHere, Setting, merge
from purifiers.plan.scale import Scale, UsedDataset

THREAT_MODELS = ("oblivious", "white_box", "transfer", "black_box")
GRADIENTS = ("exact", "bpda", "one_step")
METRICS = ("accuracy", "mean_l2", "mean_linf")
SUPPORTED = frozenset(
    "dataset classifier training methods attack threat_model gradient metric unit "  # noqa: SIM905
    "eot source auxiliary fit_classifiers worst_of worst_over override quoted flags".split()
)


class Expander:
    """Expands documents at one scale.

    Attributes:
        lineage: the runs behind all documents expanded so far.
    """

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self.lineage = Lineage()

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
            runs = [self.lineage.score(setting, seed) for seed in self.scale.seeds]
            per_part.append(tuple(run.id for run in runs))
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
            raise NotImplementedHere(f"{key} is not implemented")
        for key, known in (
            ("metric", METRICS),
            ("threat_model", THREAT_MODELS),
            ("gradient", GRADIENTS),
        ):
            if cell.get(key, known[0]) not in known:
                raise NotImplementedHere(f"{key} {cell[key]} is not implemented")
        used = self.scale.dataset(cell["dataset"])
        constants: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for kind, name in _named(cell):
            component_name = paper.recipe(kind, name, where)["component"]
            if not registry.exists(kind, component_name):
                raise NotImplementedHere(f"{kind} {component_name} is not implemented")
            constants[kind].append(registry.describe(kind, component_name).constants)
        _check_threat(cell, constants, where)
        if used is None:
            return None
        # no more images than the paper looked at: some of its attacks cost hours for each
        most = paper.declared.get("published_n", {}).get(cell["dataset"], used.test)
        used = replace(used, test=min(used.test, most))
        return Setting(paper, self.scale, where, cell, used)


def _named(cell: dict[str, Any]) -> list[tuple[str, str]]:
    found = [("classifier", cell["classifier"]), ("training", cell["training"])]
    found += [("classifier", name) for name in cell.get("fit_classifiers", ())]
    found += [("method", name) for name in cell.get("methods", ())]
    if cell.get("attack", "none") != "none":
        found.append(("attack", cell["attack"]))
        if "auxiliary" in cell:
            found.append(("method", cell["auxiliary"]))
        if "source" in cell:
            found += [(kind, cell["source"][kind]) for kind in ("classifier", "training")]
    return found


def _check_threat(
    cell: dict[str, Any], constants: dict[str, list[dict[str, Any]]], where: str
) -> None:
    """Refuse attacks that cannot be, or that would flatter the defence.

    Raises:
        UserError: a random defence attacked without a word on EOT, a transfer without a source,
            a detector attacked by somebody who does not know it, or an attack on a part of the
            defence that it does not have.
    """
    if cell.get("attack", "none") == "none":
        return
    threat = cell.get("threat_model", "oblivious")
    methods = constants["method"][: len(cell.get("methods", ()))]
    random = any(method.get("STOCHASTIC") for method in methods)
    if asks_defence(cell) and random and "eot" not in cell:
        raise UserError(
            f"{where}: a random defence is attacked {threat} without expectation over its draws; "
            "say `eot: 20`, or `eot: 1` if the paper attacked single draws"
        )
    if threat == "transfer" and "source" not in cell:
        raise UserError(f"{where}: threat model transfer needs a `source` to carry over from")
    known = methods if threat == "white_box" else []
    if "auxiliary" in cell:
        if threat not in ("oblivious", "white_box"):
            raise UserError(
                f"{where}: threat model {threat} does not know the `auxiliary` method; take "
                "oblivious or white_box"
            )
        known = [*known, constants["method"][-1]]
    offered = {part for method in known for part in method.get("PROVIDES", ())}
    for part in constants["attack"][0].get("NEEDS", ()):
        if part not in offered:
            raise UserError(
                f"{where}: attack {cell['attack']!r} goes against a method's {part}, and none of "
                "the attacked methods has one"
            )


def _draws(declared: dict[str, Any]) -> int:
    """Draws behind each of the attacker's gradients; 0 where nothing is said."""
    return eot(declared["eot"])["samples"] if "eot" in declared else 0


def _is_random(paper: Paper, declared: dict[str, Any], where: str) -> bool:
    recipes = [paper.recipe("method", name, where) for name in declared.get("methods", ())]
    return any(is_random(recipe["component"]) for recipe in recipes)


def _source_label(declared: dict[str, Any]) -> str:
    source = declared.get("source")
    return f"{source['classifier']}, {source['training']}" if source else ""


def _attack_label(declared: dict[str, Any]) -> str:
    if "worst_of" in declared:
        return "worst of " + ", ".join(declared["worst_of"])
    if "worst_over" in declared:
        return "worst of " + ", ".join(declared["worst_over"])
    return str(declared.get("attack", "none"))
