"""A defence that only hides its gradient, from its one new file to the signs beside its table."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

TABLE = "results/tables/tiny/masked/table_1"
ADAPTIVE = ["pgd", "pgd_wide"]


@pytest.fixture(scope="module")
def table(masked: Any) -> pd.DataFrame:
    done = masked.snakemake(f"{TABLE}.csv")
    assert done.returncode == 0, done.stdout
    read = pd.read_csv(masked.path / f"{TABLE}.csv", keep_default_na=False)
    return read.set_index(["row", "column"])


def test_the_attack_fails_where_others_succeed(table: pd.DataFrame) -> None:
    accuracy = table["reproduced"].astype(float)
    assert accuracy["masked", "pgd"] == accuracy["masked", "clean"] > 80
    assert accuracy["bare", "pgd"] < 20
    assert accuracy["masked", "oblivious"] < 20


@pytest.mark.parametrize("sign", ["zero gradient", "loss does not rise", "beaten by"])
def test_a_masked_defence_shows_every_sign(table: pd.DataFrame, sign: str) -> None:
    for column in ADAPTIVE:
        assert sign in table["warnings"]["masked", column]


def test_a_masked_defence_survives_an_unbounded_eps(table: pd.DataFrame) -> None:
    assert "every image can become the same grey image" in table["warnings"]["masked", "pgd_wide"]


def test_an_honest_model_shows_none(table: pd.DataFrame) -> None:
    assert (table["warnings"]["bare"] == "").all()


def test_signs_stand_under_the_table(masked: Any, table: pd.DataFrame) -> None:
    text = (masked.path / f"{TABLE}.md").read_text()
    told = text[text.index("Signs of a weak attack") :]
    assert "Rounding" in told
    assert "Nothing" not in told
