"""What the declarations of all papers have in common beyond what their schemas hold."""

from __future__ import annotations

import re

import pytest
import yaml

from purifiers.core import registry
from purifiers.core.numbers import fraction, length_kind
from purifiers.plan.declarations import RECIPES, blocks_of
from purifiers.plan.plan import Plan
from purifiers.report.claim_parts import questions_of

from .published import DOCUMENTS, MEASURED, PAPERS, PLACES, ROOT, cells, numbers

EXPECTED = {
    "aid": "table_1 table_2 table_3 table_4 table_5 table_6 table_7 table_8 table_9 table_10 "
    "table_11a table_11b table_12 table_13 table_14a table_14b table_14c table_15 table_16 "
    "table_17 table_18 table_19 figure_4 figure_5 figure_6 audit audit_eps audit_strong "
    "audit_variants audit_diff_pure audit_pixel_defend audit_precision",
    "advae": "table_1 table_2 table_3 table_4 audit audit_strong audit_eps audit_distance "
    "audit_diff_pure audit_variants audit_precision",
    "adp": "table_5 table_6 table_7 table_8 table_9 table_10 table_11 figure_5 figure_6 figure_7 "
    "figure_8 figure_9 figure_10 audit audit_diff_pure audit_strength audit_variants certified "
    "predicted",
    "atop": "table_1 table_6 table_7 figure_1 figure_3 figure_4a audit audit_autoattack audit_cost "
    "audit_selection",
    "idfr": "table_1 table_2 table_3 table_4 table_5 table_6 table_7 figure_1 figure_2 figure_3 "
    "audit audit_diff_pure audit_fast_at audit_leak audit_steps audit_variants",
    "field": "ranking",
}
QUOTED = [place for place in PLACES if "quoted" in str(DOCUMENTS[place.values])]


@pytest.mark.parametrize("paper", PAPERS)
def test_every_table_and_figure_of_the_paper_is_declared(paper: str) -> None:
    assert {stem for other, stem in DOCUMENTS if other == paper} == set(EXPECTED[paper].split())
    assert PAPERS[paper].declared["id"] == paper
    assert (ROOT / "benchmarks" / paper / "README.md").exists()


@pytest.mark.parametrize(("paper", "stem"), PLACES)
def test_a_document_is_called_after_its_number(paper: str, stem: str) -> None:
    document = DOCUMENTS[paper, stem]
    kind = "figure" if "figure" in document else "table"
    assert stem in (f"{kind}_{document[kind]}", document[kind])


@pytest.mark.parametrize(("paper", "stem"), PLACES)
def test_a_block_has_all_its_published_rows_or_none(paper: str, stem: str) -> None:
    blocks = list(blocks_of(DOCUMENTS[paper, stem]))
    assert len({block["id"] for block in blocks}) == len(blocks)
    for block in blocks:
        row_ids = [row["id"] for row in block["rows"]]
        assert row_ids and block["columns"]
        assert list(block["published"]) in ([], row_ids), block["id"]


def test_only_figures_and_audits_have_no_published_numbers() -> None:
    empty = {place for place in DOCUMENTS if not numbers(*place)}
    assert empty == {place for place in DOCUMENTS if not place[1].startswith("table")}


@pytest.mark.parametrize(("paper", "stem"), MEASURED)
def test_measured_cells_are_complete(paper: str, stem: str) -> None:
    for cell in cells(DOCUMENTS[paper, stem]):
        assert {"dataset", "classifier", "training", "methods"} <= set(cell)
        assert {"attack", "mean_of", "worst_of", "worst_over", "worst_image_of"} & set(cell)
        assert cell["dataset"] in PAPERS[paper].declared["settings"]
        if "source" in cell:
            assert cell["threat_model"] in ("transfer", "black_box")


@pytest.mark.parametrize(("paper", "stem"), QUOTED)
def test_quoted_cells_name_recipes_of_their_paper(paper: str, stem: str) -> None:
    """Also where a component is missing, so that nothing else is checked."""
    for cell in cells(DOCUMENTS[paper, stem]):
        if not cell.get("quoted"):
            continue
        source = cell.get("source", {})
        named = [("classifier", name) for name in cell.get("fit_classifiers", [])]
        named += [("method", name) for name in cell.get("methods", [])]
        for kind in ("classifier", "training", "attack"):
            named += [(kind, fragment[kind]) for fragment in (cell, source) if kind in fragment]
        named += [tuple(key.split(".", 1)) for key in cell.get("override", {})]
        for kind, name in named:
            if (kind, name) != ("attack", "none"):
                PAPERS[paper].recipe(kind, name, stem)


@pytest.mark.parametrize("paper", PAPERS)
def test_every_data_set_has_every_setting_and_no_other(paper: str) -> None:
    declared = PAPERS[paper].declared
    documents = [document for (other, _), document in DOCUMENTS.items() if other == paper]
    recipes = [declared[kind] for kind in RECIPES.values()]
    used = set(re.findall(r"\$(\w+)", yaml.safe_dump([recipes, documents])))
    assert used
    for dataset in ("digits", *declared["settings"]):
        assert set(declared["settings"][dataset]) == used, dataset


@pytest.mark.parametrize("paper", PAPERS)
def test_lengths_lie_on_the_pixel_scale(paper: str) -> None:
    """On every data set and in every recipe, also where no scale plans it."""
    declared = PAPERS[paper].declared
    lengths = 0
    for kind, recipes in RECIPES.items():
        for recipe in declared[recipes].values():
            component = recipe["component"]
            exists = registry.exists(kind, component)
            types = registry.describe(kind, component).types if exists else None
            for name, value in recipe.items():
                if (
                    length_kind(types.get(name, ())) == "Length"
                    if types is not None
                    else re.fullmatch(r"(\w+_)?(eps|step)|step_size", name)  # not implemented
                ):
                    by_name = [
                        row[str(value)[1:]]
                        for row in declared["settings"].values()
                        if str(value)[0] == "$"
                    ]
                    assert all(0 < fraction(length) <= 1 for length in by_name or [value])
                    lengths += 1
    assert lengths


@pytest.mark.parametrize("paper", PAPERS)
def test_claims_name_cells_that_exist_and_compare(paper: str, plans: dict[str, Plan]) -> None:
    documents = plans["smoke"].documents
    cells = [
        cell for name in documents if name.startswith(f"{paper}/") for cell in documents[name].cells
    ]
    for claim in PAPERS[paper].claims:
        assert list(questions_of(claim, cells)), claim["id"]


def test_claims_have_different_names_and_say_where_they_stand() -> None:
    claims = [claim for paper in PAPERS.values() for claim in paper.claims]
    for key in ("id", "text"):
        assert len({claim[key] for claim in claims}) == len(claims)
    assert all(claim["text"] and claim["where"] for claim in claims)
