"""The numbers of the AdvAE, ADP, AToP and IDFR declarations follow from each other, as far as
they can."""

from __future__ import annotations

from itertools import pairwise
from math import fsum
from statistics import fmean

import pytest

from purifiers.plan.declarations import blocks_of
from purifiers.report.claim_parts import parts_of

from .published import DOCUMENTS, MEASURED, PAPERS, Json, cells, numbers, table

OTHERS = ("advae", "adp", "atop", "idfr")
CONTRADICTED_BY_ITS_PAPER = {
    "idfr_rises_with_eps",  # not ID+FR on SVHN under CW, Table 5
    "idfr_mean_margin_imagenet",  # 5.4 by Table 3, printed as 5.8
    "idfr_largest_mean_margin",  # 23.0, 20.6 and 7.4, printed as 25.5, 21.1 and 8.9
    "idfr_mean_loss_imagenet",  # 3.8, printed as 2.2
    "baselines_largest_mean_loss_imagenet",  # 11.2, printed as 11.9
    "transfer_to_fully_connected_costs_20_to_30_points",  # 32.5 under C&W, AdvAE's Table 3
}
"""Claims that the paper's own numbers do not bear out."""
NOT_PRINTED = {
    *("runs_help_up_to_ten", "more_than_ten_runs_change_nothing"),  # ADP's Figure 8
    "attacked_images_have_larger_scores",  # ADP's Figure 9
    "joint_attacks_hide_their_norm",
    "purification_brings_features_back",  # ADP's Figure 10
    *("atop_costs_training", "complex_purifiers_cost_more_training"),
    "vanilla_model_has_no_robustness",  # Table 1 has words, Figure 4a no values
    *("adversarial_training_costs_most_clean_accuracy", "purification_costs_clean_accuracy"),
    *("purification_is_weaker_on_known_attacks", "purification_generalises"),
}
"""Claims over cells for which the seed documents have no values."""


def values(paper: str, stem: str, block: str, row: str) -> Json:
    """A published row: column id to value."""
    return table(paper, stem, block)[row]


# Counts


@pytest.mark.parametrize(
    ("paper", "stem"), [place for place in MEASURED if place.values[0] in OTHERS]
)
def test_percentages_are_percentages(paper: str, stem: str) -> None:
    assert all(0 <= value <= 100 for value in numbers(paper, stem))


@pytest.mark.parametrize(
    ("paper", "stem", "count", "total"),
    [
        ("advae", "table_1", 26, 1902.6),
        ("advae", "table_3", 36, 3168.1),
        ("advae", "table_4", 22, 934.3),
        ("adp", "table_5", 30, 1402100.196494),
        ("adp", "table_6", 27, 1901.2),
        ("adp", "table_7", 24, 1780.55),
        ("adp", "table_8", 7, 499.47),
        ("adp", "table_9", 15, 928.27),
        ("adp", "table_10", 12, 815.0),
        ("adp", "table_11", 256, 20429.66),
        ("atop", "table_6", 36, 1730.1),
        ("atop", "table_7", 30, 1923.98),
        ("idfr", "table_1", 240, 18179.1),
        ("idfr", "table_2", 240, 15012.7),
        ("idfr", "table_3", 40, 2507.2),
        ("idfr", "table_4", 120, 8208.5),
        ("idfr", "table_5", 36, 2535.9),
    ],
)
def test_number_and_sum_of_published_cells(paper: str, stem: str, count: int, total: float) -> None:
    """The sums were checked against the seed documents: no value changes unnoticed."""
    assert len(numbers(paper, stem)) == count
    assert fsum(numbers(paper, stem)) == pytest.approx(total, abs=1e-6, rel=0)


@pytest.mark.parametrize(
    ("paper", "stem", "count"),
    [
        ("adp", "table_6", 20),
        ("adp", "table_9", 6),
        ("adp", "table_10", 8),
        ("adp", "table_11", 48),
        ("atop", "table_6", 28),
    ],
)
def test_number_of_quoted_cells(paper: str, stem: str, count: int) -> None:
    assert sum(cell.get("quoted", False) for cell in cells(DOCUMENTS[paper, stem])) == count


# AdvAE


@pytest.mark.parametrize("attack", ["no_attack", "fgsm", "pgd", "cw"])
def test_advae_x_on_x_is_the_white_box_column_of_table_1(attack: str) -> None:
    white_box = values("advae", "table_1", "mnist", attack)["white_box"]
    assert values("advae", "table_3", "mnist", attack)["x_on_x"] == white_box


def test_advae_drops_of_the_transfer_experiment() -> None:
    drops = {"a": [], "b": [], "c": [], "d": []}
    for attack in ("no_attack", "fgsm", "pgd", "cw"):
        row = values("advae", "table_3", "mnist", attack)
        for other, dropped in drops.items():
            dropped.append(round(row["x_on_x"] - row[f"x_on_{other}"], 1))
    assert max(drops["a"] + drops["b"] + drops["c"]) == 11.0  # "up to 11%"
    assert drops["d"][:3] == [19.4, 23.1, 23.0]  # "20-30%"
    assert drops["d"][3] == 32.5  # which the text does not say


# ADP


def adp_averages() -> dict[str, tuple[float, float]]:
    """Row of Table 11 to its printed average and the mean of its 15 corruptions."""
    found = {}
    for block in blocks_of(DOCUMENTS["adp", "table_11"]):
        for row, (average, *corruptions) in block["published"].items():
            assert block["columns"][0]["id"] == "average" and len(corruptions) == 15
            if average is None:  # trained here
                continue
            found[row] = (average, round(fmean(corruptions), 3))
    return found


def test_adp_averages_of_table_11_recompute_but_for_two() -> None:
    wrong = {row for row, (told, mean) in adp_averages().items() if abs(told - mean) > 0.0051}
    assert wrong == {"deterministic", "deterministic_dct"}
    assert len(adp_averages()) == 16
    assert adp_averages()["deterministic_dct"] == (80.74, 80.97)


def test_adp_jpeg_of_the_deterministic_row_should_be_the_raw_one() -> None:
    row = values("adp", "table_11", "adp", "deterministic")
    raw = values("adp", "table_11", "adp", "raw")["jpeg_compression"]
    assert (row["jpeg_compression"], raw) == (91.77, 77.76)
    mended = row | {"jpeg_compression": raw}
    assert round(fmean(v for c, v in mended.items() if c != "average"), 2) == row["average"]


def test_adp_flags_stand_at_the_two_wrong_rows() -> None:
    rows = DOCUMENTS["adp", "table_11"]["blocks"][0]["rows"]
    flagged = {row["id"] for row in rows if row["cell"].get("flags")}
    assert flagged == {"deterministic", "deterministic_dct"}


def test_adp_rows_of_table_11_on_a_subset() -> None:
    """A mean over five severities of n images moves in steps of 20/n percent: .02 and .04 here."""
    rows = DOCUMENTS["adp", "table_11"]["blocks"][0]["published"]
    hundredths = {row: [round(100 * value) for value in v[1:]] for row, v in rows.items()}
    by_4 = {row for row, v in hundredths.items() if all(value % 4 == 0 for value in v)}
    by_2 = {row for row, v in hundredths.items() if all(value % 2 == 0 for value in v)}
    assert by_4 == {"sigma_10_dct", "deterministic_var", "deterministic_dct_augmix"}
    assert by_2 - by_4 == {"sigma_10"}


def test_adp_alternates_along_one_schedule_over_ten_rounds() -> None:
    """Table 11, DCT + AugMix: 0.08 to 0.0008 in ten geometric steps of AugMix, DCT adaptive."""
    rows = {row["id"]: row for row in DOCUMENTS["adp", "table_11"]["blocks"][0]["rows"]}
    recipes = [
        PAPERS["adp"].declared["methods"][name]
        for name in rows["deterministic_dct_augmix"]["cell"]["methods"]
    ]
    dct, augmix = recipes[::2], recipes[1::2]
    assert [len(dct), len(augmix)] == [10, 10]
    assert all(r["step_rule"] == "adaptive" and r["perturbation"] == "dct" for r in dct)
    assert all(r["step_rule"] == "geometric" and r["perturbation"] == "augmix" for r in augmix)
    assert all(r["step_first"] == r["step_last"] and r["iterations"] == 1 for r in augmix)
    schedule = [0.08 * 0.01 ** (k / 9) for k in range(10)]
    assert [r["step_first"] for r in augmix] == pytest.approx(schedule, rel=1e-3)


def test_adp_points_of_figure_8_share_one_adversarial_set() -> None:
    attacks = []
    for cell in cells(DOCUMENTS["adp", "figure_8"]):
        assert 1 <= cell.pop("draws") <= 30
        assert cell.pop("combine_draws") in ("logits", "softmax", "argmax")
        attacks.append(cell)
    assert len(attacks) == 24 and all(cell == attacks[0] for cell in attacks)


def test_adp_base_setting_has_one_value() -> None:
    """sigma .25 with 40 BPDA steps and 15 draws stands in three tables."""
    table_7 = values("adp", "table_7", "cifar10", "sigma_25")
    assert values("adp", "table_6", "adp_natural", "adp")["natural"] == table_7["standard"]
    assert values("adp", "table_6", "adp_robust", "bpda_40")["robust"] == table_7["bpda_eot"]
    assert values("adp", "table_8", "cifar10", "accuracy")["eot_15"] == table_7["bpda_eot"]


def test_adp_text_on_bpda_steps() -> None:
    robust = DOCUMENTS["adp", "table_6"]["blocks"][1]["published"]
    assert round(robust["bpda_40"][0] - robust["bpda_100"][0], 2) == 0.30


def test_adp_table_8_rises_once() -> None:
    row = list(values("adp", "table_8", "cifar10", "accuracy").items())
    rises = [(a, b) for (a, x), (b, y) in pairwise(row) if y > x]
    assert rises == [("eot_10", "eot_15")]


# AToP


def is_share_of_512(percent: float, digits: int) -> bool:
    return percent in {round(100 * k / 512, digits) for k in range(513)}


def test_atop_table_7_counts_512_images_but_for_one() -> None:
    odd = [
        (row, column)
        for row in DOCUMENTS["atop", "table_7"]["blocks"][0]["published"]
        for column, value in values("atop", "table_7", "cifar10", row).items()
        if not is_share_of_512(value, 2)
    ]
    assert odd == [("rt3_atop", "standard")]


def test_atop_ours_of_table_6_counts_512_images_but_for_one() -> None:
    ours = values("atop", "table_6", "atop", "ours")
    assert [c for c, value in ours.items() if not is_share_of_512(value, 1)] == ["linf"]


def test_atop_flags_stand_at_the_odd_rows() -> None:
    for stem, row_id in (("table_6", "ours"), ("table_7", "rt3_atop")):
        content = DOCUMENTS["atop", stem]
        rows = [*content["rows"], *(row for b in content["blocks"] for row in b.get("rows", ()))]
        assert [row["id"] for row in rows if row["cell"].get("flags")] == [row_id]


# IDFR

TABLES = {
    "table_1": ("vgg16", "resnet18"),
    "table_2": ("vgg16", "resnet18"),
    "table_3": ("resnet50", "inception_v3"),
}


def idfr_means(stem: str) -> dict[str, float]:
    """Row to its mean over all cells of both target models, clean included."""
    rows: dict[str, list[float]] = {}
    for block in TABLES[stem]:
        found = next(b for b in DOCUMENTS["idfr", stem]["blocks"] if b["id"] == block)
        for row, published in found["published"].items():
            rows.setdefault(row, []).extend(published)
    return {row: fmean(cells_of_row) for row, cells_of_row in rows.items()}


@pytest.mark.parametrize(
    ("stem", "margin", "gap", "baseline_gap", "largest_margin", "largest_gap"),
    [
        ("table_1", 13.5, 4.2, 17.7, 23.0, 27.2),
        ("table_2", 9.4, 2.4, 11.8, 20.6, 23.0),
        ("table_3", 5.4, 3.8, 9.1, 7.4, 11.2),
    ],
)
def test_idfr_means_of_figure_3(
    stem: str,
    margin: float,
    gap: float,
    baseline_gap: float,
    largest_margin: float,
    largest_gap: float,
) -> None:
    """The text has margins 13.3, 9.4, 5.8, gaps 4.2, 2.4, 2.2 and 17.7, 11.8, 9.0, largest margins
    25.5, 21.1, 8.9 and largest gaps 25.5, 21.1, 11.9."""
    means = idfr_means(stem)
    undefended = fmean(values("idfr", stem, block, "no_defence")["clean"] for block in TABLES[stem])
    by_baseline = [v for row, v in means.items() if row not in ("no_defence", "idfr")]
    baselines = fmean(by_baseline)
    assert means["idfr"] - baselines == pytest.approx(margin, abs=0.051)
    assert undefended - means["idfr"] == pytest.approx(gap, abs=0.051)
    assert undefended - baselines == pytest.approx(baseline_gap, abs=0.051)
    assert means["idfr"] - min(by_baseline) == pytest.approx(largest_margin, abs=0.051)
    assert undefended - min(by_baseline) == pytest.approx(largest_gap, abs=0.051)


def above_clean(stem: str, row: str, block: str) -> int:
    clean, *attacked = values("idfr", stem, block, row).values()
    return sum(value > clean for value in attacked)


def test_idfr_accuracy_above_clean_under_attack() -> None:
    assert [above_clean("table_1", "fast_at", block) for block in TABLES["table_1"]] == [7, 7]
    rows = [row["id"] for row in DOCUMENTS["idfr", "table_2"]["rows"]]
    untouched = [
        row for row in rows if not any(above_clean("table_2", row, b) for b in TABLES["table_2"])
    ]
    assert untouched == ["no_defence", "feature_squeezing"]


def test_idfr_clean_columns_disagree() -> None:
    told = {"fast_at": (81.5, 78.6), "nrp": (79.4, 77.6), "jpeg_25": (71.0, 67.5)}
    for row, pair in (told | {"idfr": (91.2, 92.1)}).items():
        clean = [values("idfr", stem, "vgg16", row)["clean"] for stem in ("table_1", "table_4")]
        assert tuple(clean) == pair
    clean = [values("idfr", s, "vgg16", "no_defence")["clean"] for s in ("table_1", "table_4")]
    assert clean[0] == clean[1]  # why Table 4's target model is taken for VGG16


@pytest.mark.parametrize("stem", ["table_1", "table_2", "table_3", "table_4"])
def test_idfr_is_printed_best_in_every_attacked_column_but_for_a_tie(stem: str) -> None:
    ties = []
    for block in blocks_of(DOCUMENTS["idfr", stem]):
        for column in [c["id"] for c in block["columns"] if c["id"] != "clean"]:
            by_row = {
                row: values("idfr", stem, block["id"], row)[column] for row in block["published"]
            }
            best = by_row.pop("idfr")
            assert best >= max(by_row.values()), (block["id"], column)
            ties += [(block["id"], column, row) for row, v in by_row.items() if v == best]
    assert ties == ([("resnet18", "bim_4", "fast_at")] if stem == "table_2" else [])


def test_idfr_gains_of_the_ablation_are_those_of_the_text() -> None:
    denoiser, restorer = [], []
    for block in ("cifar10", "svhn"):
        rows = [values("idfr", "table_5", block, row) for row in ("no_defence", "id", "id_fr")]
        for column in rows[0]:
            denoiser.append(round(rows[1][column] - rows[0][column], 1))
            restorer.append(round(rows[2][column] - rows[1][column], 1))
    assert (min(denoiser), max(denoiser)) == (34.0, 85.1)  # "34% to 85%"
    assert (min(restorer), max(restorer)) == (0.4, 16.8)


def test_idfr_figure_3_repeats_the_cells_of_its_tables() -> None:
    shared = [cell for cell in cells(DOCUMENTS["idfr", "figure_3"]) if "mean_of" not in cell]
    tables = [cell for stem in TABLES for cell in cells(DOCUMENTS["idfr", stem])]
    assert len(shared) == len(tables) == 520
    assert all(cell in tables for cell in shared) and all(cell in shared for cell in tables)


def test_idfr_layers_fit_together() -> None:
    layers = list(DOCUMENTS["idfr", "table_6"]["blocks"][0]["published"].values())
    outputs, inputs = [row[1] for row in layers], [row[2] for row in layers]
    assert inputs[5] == outputs[2] + outputs[4]
    assert inputs[7] == outputs[0] + outputs[6]
    plain = [i for i in range(1, 9) if i not in (5, 7)]
    assert [inputs[i] for i in plain] == [outputs[i - 1] for i in plain]
    restorer = list(DOCUMENTS["idfr", "table_7"]["blocks"][0]["published"].values())
    assert [row[1] for row in restorer[:-1]] == [row[2] for row in restorer[1:]]


# Claims


def published_cell(paper: str, reference: Json) -> float | None:
    """The printed value of a cell; None where the seed document has none."""
    kind = "table" if "table" in reference else "figure"
    stem = reference[kind]
    stem = stem if stem.startswith("audit") else f"{kind}_{stem}"
    if (paper, stem) == ("idfr", "figure_3"):  # over Tables 1 to 3
        dataset, _, block = reference["block"].partition("_")
        stem = {"cifar10": "table_1", "cifar100": "table_2", "imagenet": "table_3"}[dataset]
        row = values(paper, stem, block, reference["row"])
        return row["clean"] if reference["column"] == "clean" else fmean(row.values())
    block = table(paper, stem, reference["block"])
    return block[reference["row"]][reference["column"]] if block else None


def published_mean(paper: str, side: Json | list[Json]) -> float | None:
    """The mean of a side's printed values."""
    printed = [
        published_cell(paper, entry) for entry in (side if isinstance(side, list) else [side])
    ]
    return None if None in printed else fmean(printed)


ALL_CLAIMS = [
    pytest.param(paper, claim, id=claim["id"]) for paper in OTHERS for claim in PAPERS[paper].claims
]


@pytest.mark.parametrize(("paper", "claim"), ALL_CLAIMS)
def test_the_papers_own_numbers_bear_its_claims(paper: str, claim: Json) -> None:
    margins: list[float | None] = []
    for part in parts_of(claim):
        if "of" in part:
            value = published_cell(paper, part["of"])
            if value is None:
                margins.append(None)
            elif "at_most" in part:
                margins.append(part["at_most"] - value)
            else:
                margins.append(value - part["at_least"])
            continue
        better, than = (published_mean(paper, part[side]) for side in ("better", "than"))
        assert "times" not in part
        printed = better is not None and than is not None
        margins.append(better - than - part.get("by", 0) if printed else None)
    assert margins
    assert (None in margins) == (claim["id"] in NOT_PRINTED)
    if None not in margins:
        # a bound is included, a difference is not; 1e-9: sums of decimals
        bounds = [
            m > -1e-9 if "of" in part else m > 1e-9
            for part, m in zip(parts_of(claim), margins, strict=True)
        ]
        assert all(bounds) == (claim["id"] not in CONTRADICTED_BY_ITS_PAPER)
