"""From records on disk to the signs beside the numbers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from purifiers.core.spec import Eot, MethodSpec
from purifiers.plan.cells import Cell, Combine, Document, ScaleInfo
from purifiers.report.aggregate import aggregate
from purifiers.report.audit_chart import audit_rows
from purifiers.report.latex import latex_text
from purifiers.report.results import Results
from purifiers.report.signs import NOT_PROBED
from purifiers.report.tables import markdown_text
from purifiers.report.write import write_document

Make = Callable[..., Any]
EPS = 8 / 255
PGD = {
    "eps": EPS,
    "step_size": EPS / 4,
    "steps": 20,
    "random_start": True,
    "restarts": 1,
    "stop": "never",
}
NOISE = MethodSpec(component="noise", version=1, parameters={"sigma": 0.1}, run=None)
HONEST = {
    **{"images": 64, "zero_gradient": 0, "nonfinite_gradient": 0},
    **{"loss_clean": 0.4, "loss_adversarial": 3.1, "loss_rose": 63},
}
MASKED = {**HONEST, "zero_gradient": 64, "loss_adversarial": 0.4, "loss_rose": 0}
QUERIES = {"attack": "pgd", "parameters": {**PGD, "steps": 999}}
"""Stands for an attack that asks for scores; which one does not matter here."""

BLIND = {**HONEST, "zero_gradient": None, "nonfinite_gradient": None}


@pytest.fixture
def attacked_cell(a_cell: Make, attack_run: Make, purify_run: Make, score: Make) -> Make:
    """A cell of an attack on a purified classifier, with all its runs, under one seed."""

    def make(
        column: str,
        correct: int,
        threat_model: str = "white_box",
        probe: dict[str, Any] | None = HONEST,
        attack: str = "pgd",
        parameters: dict[str, Any] = PGD,
        gradient: str = "exact",
        method: MethodSpec = NOISE,
        eot: int | None = None,
        **cell: Any,
    ) -> Cell:
        name = f"{column}-{len(cell)}-{correct}"
        sees = threat_model in ("white_box", "black_box")
        attack_run(
            f"a-{name}",
            probe,
            attack,
            parameters,
            methods=[method] if sees else [],
            gradient="none" if threat_model == "black_box" else gradient,
            eot=None if eot is None else Eot(samples=eot, combine="mean"),
        )
        purify_run(f"p-{name}", f"a-{name}", method)
        right = [1] * correct + [0] * (512 - correct)
        given = {"made_by": f"p-{name}", "stage": "purify", "parameters": parameters}
        run = score(f"s-{name}", right, attack=attack, labels=[i % 10 for i in range(512)], **given)
        fields = {"row": "noise", "row_label": "Noise", "document": "audit", "published": None}
        fields |= {"column": column, "column_label": column, "attack": attack, "seeds": (0,)}
        fields |= {"threat_model": threat_model, "methods": ("noise",), "scores": ((run,),)}
        return a_cell(**(fields | cell))

    return make


@pytest.fixture
def clean(a_cell: Make, score: Make) -> Cell:
    run = score("clean", [1] * 480 + [0] * 32, attack=None)
    return a_cell(
        **{"row": "noise", "row_label": "Noise", "document": "audit", "published": None},
        **{"column": "clean", "column_label": "clean", "attack": "none"},
        **{"scores": ((run,),), "seeds": (0,)},
    )


@pytest.fixture
def told(runs_root: Path, smoke_scale: ScaleInfo, a_document: Make) -> Make:
    """The column ``warnings`` of a document of cells, by column.

    A cell is marked suspicious for any warning beside that of its missing probe.
    """

    def tell(*cells: Cell) -> dict[str, str]:
        frame = aggregate(a_document(*cells), smoke_scale, Results(runs_root, {}.get))
        assert list(frame["suspicious"]) == [
            text not in ("", NOT_PROBED) for text in frame["warnings"]
        ]
        return dict(zip(frame["column"], frame["warnings"], strict=True))

    return tell


@pytest.fixture
def masked(attacked_cell: Make, clean: Cell, a_document: Make) -> Document:
    """A random defence whose gradient is gone: only queries break it."""
    half = {**PGD, "eps": 0.5, "step_size": 0.125}
    random = {"stochastic": True}
    return a_document(
        clean,
        attacked_cell("oblivious", 440, "oblivious", **random),
        attacked_cell("square", 150, "black_box", BLIND, **QUERIES, eot=20, **random),
        attacked_cell("pgd", 460, probe=MASKED, **random),
        attacked_cell("pgd at 0.5", 470, probe=MASKED, parameters=half, **random),
        plot="audit",
    )


def test_a_masked_gradient_shows_every_sign(
    masked: Document, runs_root: Path, smoke_scale: ScaleInfo
) -> None:
    frame = aggregate(masked, smoke_scale, Results(runs_root, {}.get))
    both = [
        "zero gradient at 64 of 64 probed images",
        "loss does not rise: 0.4 on clean and 0.4 on adversarial images, higher on 0 of 64",
    ]
    beaten = "beaten by 'Noise / square' (black_box): {} points lower accuracy"
    eot = "random defence attacked without EOT"
    assert frame["suspicious"].tolist() == [False, False, False, True, True]
    assert frame["warnings"].tolist() == [
        *("", "", ""),
        "; ".join([*both, beaten.format("60.5"), eot]),
        "; ".join(
            [
                *both,
                beaten.format("62.5"),
                "accuracy rises with eps: 2.0 points above 'Noise / pgd'",
                "accuracy 91.8 % at eps 0.5, where every image can become the same grey image and "
                "at most 10.2 % can be correct",
                eot,
            ]
        ),
    ]


def test_an_honest_defence_shows_none(attacked_cell: Make, clean: Cell, told: Make) -> None:
    random = {"stochastic": True}
    half = {**PGD, "eps": 0.5, "step_size": 0.125}
    found = told(
        clean,
        attacked_cell("oblivious", 440, "oblivious", **random),
        attacked_cell("square", 300, "black_box", BLIND, **QUERIES, eot=20, **random),
        attacked_cell("pgd", 250, eot=20, **random),
        attacked_cell("pgd at 0.5", 0, parameters=half, eot=20, **random),
    )
    assert set(found.values()) == {""}


def test_the_table_shows_them(masked: Document, runs_root: Path, smoke_scale: ScaleInfo) -> None:
    frame = aggregate(masked, smoke_scale, Results(runs_root, {}.get))
    text = markdown_text(masked, frame, smoke_scale)
    table, _, section = text.partition("\n\n## Signs of a weak attack\n\n")
    assert "| Noise | 93.8 ±2.1 | 85.9 ±3.0 | 29.3 ±3.9 | 89.8 ±2.6 ! | 91.8 ±2.4 ! |" in table
    lines = section.splitlines()
    assert lines[0] == "An accuracy marked ! may be high only because its attack failed."
    assert lines[2].startswith("- Noise / pgd: zero gradient at 64 of 64 probed images; loss ")
    assert lines[3].startswith("- Noise / pgd at 0.5: zero gradient")
    assert lines[4:] == ["- No sign found in 2 other attacked cells."]

    latex = latex_text(masked, frame, smoke_scale)
    note = latex.partition(r"\paragraph{Signs of a weak attack.}")[2]
    assert r"89.8 $\pm$2.6 ! & 91.8 $\pm$2.4 ! \\" in latex
    assert r"\item Noise / pgd: zero gradient at 64 of 64 probed images; " in note
    assert r"\item No sign found in 2 other attacked cells." in note
    assert latex.isascii() and latex.count(r"\begin{") == latex.count(r"\end{")


def test_the_pictures_mark_them(
    masked: Document,
    a_document: Make,
    runs_root: Path,
    smoke_scale: ScaleInfo,
    tmp_path: Path,
) -> None:
    frame = aggregate(masked, smoke_scale, Results(runs_root, {}.get))
    (found,) = audit_rows(masked, frame)["MNIST"]
    assert (found.label, found.weak) == ("Noise", True)
    assert (found.oblivious, found.audit) == pytest.approx((100 * 440 / 512, 100 * 150 / 512))
    figure = a_document(*masked.cells, document="figure_9", plot="curves")
    for document in (masked, figure):
        write_document(document, smoke_scale, runs_root, tmp_path, {}.get)
        picture = (tmp_path / f"{document.document}.svg").read_text()
        assert "signs of a weak attack" in picture
    assert pd.read_csv(tmp_path / "figure_9.csv")["warnings"].notna().sum() == 2

    honest = a_document(*masked.cells[:3], document="figure_9", plot="curves")
    write_document(honest, smoke_scale, runs_root, tmp_path, {}.get)
    assert "signs of a weak attack" not in (tmp_path / "figure_9.svg").read_text()


def test_no_sign_is_said(
    attacked_cell: Make, clean: Cell, a_document: Make, runs_root: Path, smoke_scale: ScaleInfo
) -> None:
    def section(*cells: Cell) -> str:
        document = a_document(*cells)
        frame = aggregate(document, smoke_scale, Results(runs_root, {}.get))
        text = markdown_text(document, frame, smoke_scale)
        assert "\n\n\n" not in text
        return text.partition("marked ! may be high only because its attack failed.\n\n")[2]

    good = attacked_cell("pgd", 250)
    old = attacked_cell("old", 250, probe=None)
    assert section(clean, good) == "- No sign found in 1 attacked cell.\n"
    assert section(clean, old) == (
        "- 1 attacked cell not probed: gradients and losses were not recorded; no other sign "
        "found.\n"
    )
    assert section(good, old).startswith("- No sign found in 1 attacked cell.\n- 1 attacked cell ")
    assert section(clean) == ""


def test_older_runs_are_not_probed(attacked_cell: Make, told: Make) -> None:
    rival = attacked_cell("square", 100, "black_box", None, **QUERIES)
    found = told(rival, attacked_cell("pgd", 250, probe=None))
    assert found["square"] == NOT_PROBED
    assert found["pgd"].startswith("beaten by 'Noise / square' ")
    assert found["pgd"].endswith(f"; {NOT_PROBED}")


@pytest.mark.parametrize("stage", ["attack", "purify"])
def test_without_its_record_nothing_is_claimed(
    attacked_cell: Make, told: Make, runs_root: Path, stage: str
) -> None:
    cells = [
        attacked_cell("square", 100, "black_box", BLIND, **QUERIES),
        attacked_cell("pgd", 250, probe=MASKED, stochastic=True),
    ]
    (folder,) = (runs_root / stage).glob("*-pgd-*")
    shutil.rmtree(folder)
    assert told(*cells)["pgd"] == NOT_PROBED


def test_without_their_purifiers_two_runs_are_not_compared(
    a_cell: Make, attack_run: Make, purify_run: Make, score: Make, told: Make, runs_root: Path
) -> None:
    """The second purifier's record leads to an attack, the first one's is gone."""
    cells = []
    for name, correct in (("oblivious", 20), ("pgd", 40)):
        attack_run(f"{name}-a", HONEST, methods=[] if name == "oblivious" else [NOISE, NOISE])
        purify_run(f"{name}-1", f"{name}-a", NOISE)
        purify_run(f"{name}-2", f"{name}-1", NOISE, "purify")
        right = [1] * correct + [0] * (100 - correct)
        run = score(name, right, made_by=f"{name}-2", stage="purify")
        cells.append(a_cell(column=name, scores=((run,),), seeds=(0,)))
    assert told(*cells)["pgd"].startswith("beaten by")
    shutil.rmtree(runs_root / "purify" / "oblivious-1")
    assert told(*cells) == {"oblivious": NOT_PROBED, "pgd": ""}


def test_another_purifier_is_another_model(attacked_cell: Make, told: Make) -> None:
    stronger = replace(NOISE, parameters={"sigma": 0.2})
    rival = attacked_cell("square", 100, "black_box", BLIND, **QUERIES, method=stronger)
    assert told(rival, attacked_cell("pgd", 250))["pgd"] == ""


def test_a_chain_is_attacked_in_its_order(
    a_cell: Make, attack_run: Make, purify_run: Make, score: Make, told: Make
) -> None:
    chain = [NOISE, replace(NOISE, component="jpeg")]
    cells = []
    for name, methods, correct in (("oblivious", [], 20), ("pgd", chain, 40)):
        attack_run(f"{name}-a", HONEST, methods=methods)
        purify_run(f"{name}-1", f"{name}-a", chain[0])
        purify_run(f"{name}-2", f"{name}-1", chain[1], "purify")
        right = [1] * correct + [0] * (100 - correct)
        run = score(name, right, made_by=f"{name}-2", stage="purify")
        cells.append(a_cell(column=name, scores=((run,),), seeds=(0,)))
    found = told(*cells)
    assert found["oblivious"] == ""
    assert found["pgd"].startswith("beaten by 'Madry / PGD' (oblivious): 20.0 points")


def test_a_single_gradient_is_told_by_what_it_costs(attacked_cell: Make, told: Make) -> None:
    """FGSM costs three passes; PGD with one step, too."""
    for rival, parameters in (("fgsm", {"eps": EPS}), ("pgd", {**PGD, "steps": 1})):
        column = f"{rival} once"
        cells = [attacked_cell(column, 100, attack=rival, parameters=parameters)]
        cells.append(attacked_cell(f"pgd against {rival}", 250))
        found = told(*cells)
        assert found[column] == ""
        assert found[f"pgd against {rival}"] == (
            f"beaten by 'Noise / {column}' (exact gradient, one step): 29.3 points lower accuracy"
        )


def test_a_stored_set_took_no_gradient(attacked_cell: Make, told: Make) -> None:
    """It beats a weak attack, but not as one of a single step, and promises nothing itself."""
    theirs = {"path": "theirs.npz", "eps": EPS, "radius": None}
    strong, weak = (
        attacked_cell(column, correct, "oblivious", attack="stored", parameters=theirs)
        for column, correct in (("strong", 100), ("weak", 400))
    )
    found = told(strong, weak, attacked_cell("pgd", 250))
    assert found["strong"] == found["weak"] == ""
    assert found["pgd"] == ("beaten by 'Noise / strong' (oblivious): 29.3 points lower accuracy")
    own = attacked_cell("own", 100, attack="stored", parameters=theirs)
    assert "one step" not in told(own, attacked_cell("pgd again", 250))["pgd again"]


def test_the_bare_classifier_is_attacked_directly(
    a_cell: Make, attack_run: Make, score: Make, told: Make
) -> None:
    """Whatever the declaration calls it: the scored model is the attacked one."""
    attack_run("a", HONEST)
    attack_run("t", HONEST, classifier="substitute")
    cells = [
        a_cell(
            column=name,
            scores=((score(name, [1] * n + [0] * (100 - n), made_by=run),),),
            seeds=(0,),
            threat_model=threat_model,
        )
        for name, run, n, threat_model in (("pgd", "a", 40, ""), ("transfer", "t", 20, "transfer"))
    ]
    found = told(*cells)
    assert found["transfer"] == ""
    assert found["pgd"].startswith("beaten by 'Madry / PGD' (transfer): 20.0 points")


def test_worst_of_has_the_signs_of_what_decides_it(
    attacked_cell: Make, clean: Cell, a_cell: Make, told: Make
) -> None:
    """The oblivious attack decides; the one on the defence, which should have, failed."""
    oblivious = attacked_cell("oblivious", 100, "oblivious")
    adaptive = attacked_cell("pgd", 250, probe=MASKED)
    weaker = attacked_cell("weak", 400, probe={**MASKED, "nonfinite_gradient": 1})
    parts = [clean, oblivious, adaptive, weaker]
    scores = (tuple(run for cell in parts for run in cell.scores[0]),)
    combined = {"combine": Combine("worst", ("all", "columns")), "threat_model": "", "seeds": (0,)}
    worst = a_cell(column="worst", scores=scores, **combined)
    found = told(*parts, worst)
    assert found["oblivious"] == ""
    assert found["worst"] == f"pgd: {', '.join(found['pgd'].split('; '))}"
    assert told(worst, *parts)["worst"] == found["worst"]
    assert "NaN" in found["weak"] and "NaN" not in found["worst"]
    good = attacked_cell("good", 50)
    scores = ((*scores[0], *good.scores[0]),)
    worst = a_cell(column="worst", scores=scores, **combined)
    assert told(*parts, good, worst)["worst"] == ""


def test_worst_over_attacks_names_them(attacked_cell: Make, a_cell: Make, told: Make) -> None:
    """Attacks without a cell of their own go by their component."""
    runs = [
        attacked_cell("a", 250, probe=MASKED).scores[0][0],
        attacked_cell("b", 300, attack="fgsm", parameters={"eps": EPS}).scores[0][0],
    ]
    combine = Combine("worst", ("a", "b"))
    cell = a_cell(column="worst", combine=combine, scores=(tuple(runs),), seeds=(0,))
    assert told(cell)["worst"].startswith("pgd: zero gradient at 64 of 64 probed images, loss ")
    old = attacked_cell("c", 200, probe=None).scores[0][0]
    cell = a_cell(column="worst", combine=combine, scores=((old, runs[1]),), seeds=(0,))
    assert told(cell)["worst"] == NOT_PROBED


def test_blocks_are_named_where_there_are_several(
    attacked_cell: Make, clean: Cell, told: Make
) -> None:
    rival = attacked_cell("square", 100, "black_box", BLIND, **QUERIES, block="b")
    found = told(attacked_cell("pgd", 250, block_label="First"), rival, clean)
    assert found["pgd"].startswith("beaten by 'MNIST / Noise / square' (black_box)")


def test_what_blocks_share_goes_by_its_name_in_each(
    attacked_cell: Make, a_document: Make, runs_root: Path, smoke_scale: ScaleInfo
) -> None:
    """As where one stand-in serves for several data sets."""
    cells = [attacked_cell("oblivious", 100, "oblivious"), attacked_cell("pgd", 250)]
    copies = [replace(cell, block="b", block_label="SVHN") for cell in cells]
    frame = aggregate(a_document(*cells, *copies), smoke_scale, Results(runs_root, {}.get))
    named = [text.split("'")[1] for text in frame["warnings"] if text]
    assert named == ["MNIST / Noise / oblivious", "SVHN / Noise / oblivious"]
