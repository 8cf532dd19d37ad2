"""The site of a made-up paper: pages, links and numbers, and one line for damaged files."""

from __future__ import annotations

import csv
import gzip
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from purifiers.__main__ import main
from purifiers.core.errors import UserError
from purifiers.report.compare import VERDICTS
from purifiers.report.ranking import Ranked
from purifiers.site.build import write_site
from purifiers.site.cells import KEYS, MEANINGS, SIGNS, details, shown
from purifiers.site.links import page_of, rewrite
from purifiers.site.pages import rank_data
from purifiers.site.results import NUMBERS, TEXTS, Row, Table

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path("results/tables/tiny/toy/table_1.csv")
COLUMNS = ("paper", "document", *TEXTS, *NUMBERS, "scale")
HOSTILE = "</script><b>bold</b>"

Root = Callable[[], Path]


def cell(row: str, column: str, verdict: str, **values: str) -> Row:
    """A line of the CSV of ``toy/table_1``."""
    common = dict(paper="toy", document="table_1", block="digits", dataset="digits", scale="tiny")
    measured = dict(metric="accuracy", unit="percent", row=row, column=column, verdict=verdict)
    return {**dict.fromkeys(COLUMNS, ""), **common, **measured, **values}


ROWS = [
    cell("natural", "clean", "match", published="95.0", reproduced="94.5312", ci_low="87.1",
         ci_high="97.9", n_correct="121", n="128", images="64", seeds="2", seed_low="93.7",
         seed_high="95.3", deviation="-0.4688"),
    cell("natural", "pgd", "differs", published="1.0", reproduced="31.25", ci_low="21.2",
         ci_high="43.4", n_correct="20", n="64", images="64", seeds="1", seed_low="31.25",
         seed_high="31.25", deviation="30.25", warnings=f"loss does not rise {HOSTILE}"),
    cell("natural", "worst", "not run", published="1.0", flags="doubtful: too low"),
    cell("madry", "clean", "quoted", published="88.0"),
    cell("madry", "pgd", "not implemented", published="40.5", flags="method x is not implemented"),
    cell("gone", "pgd", "no published value", reproduced="0.01234", metric="mean_l2",
         unit="pixels", seeds="1"),
]  # fmt: skip


def write_rows(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def make_root(root: Path) -> Path:
    """A repository with one paper at one scale and its committed results."""
    here = ROOT / "tests" / "workflow"
    for name in ("schemas", "scales"):
        shutil.copytree(ROOT / "workflow" / name, root / "workflow" / name)
    shutil.copy(here / "tiny.yaml", root / "workflow" / "scales")
    shutil.copytree(here / "toy", root / "benchmarks" / "toy")
    (root / "benchmarks" / "toy" / "README.md").write_text(
        "# Toy: a paper\n\nSee [the table](../../results/tables/tiny/toy/table_1.md), "
        "[code](paper.yaml), [below](#more).\n\n## More\n\nText.\n"
    )
    write_rows(root / TABLE, ROWS)
    folder = (root / TABLE).parent
    (folder / "table_1.md").write_text(
        "**Scale tiny.**\n\n# Table 1\n\n| | Clean |\n|:--|--:|\n| Natural | 95 |\n\n"
        "- A note, see [the claims](README.md).\n\n## Signs of a weak attack\n\n- One.\n"
    )
    provenance = {"device": ["cpu"], "elapsed_seconds": 7200.0, "finished": ["2026-11-21T14:57"],
                  "git": ["04171fc9374e"], "runs": {"score": 3}, "torch": None}  # fmt: skip
    (folder / "table_1.provenance.json").write_text(json.dumps(provenance))
    Image.new("RGB", (20, 10), "red").save(folder / "table_1_images.png")
    (folder / "claims.csv").write_text(
        "id,text,where,verdict,evidence,scale,stand_in,identity\n"
        "x,A <holds>.,section 1,supported,+1 pp,tiny,,1f\n"
        "y,B.,section 2,undecided,0 pp,tiny,digits,2e\n"
    )
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("small") / "root")


@pytest.fixture(scope="module")
def built(root: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(["site"]) == 0
    return root / "results" / "site"


def test_links_and_texts(built: Path, problems: Callable[[Path], list[str]]) -> None:
    assert problems(built) == []
    (picture,) = (built / "_images").iterdir()
    with Image.open(picture) as image:
        assert image.convert("RGB").getpixel((3, 3)) == (255, 0, 0)
    readme = (built / "toy" / "differences.html").read_text()
    assert 'href="table_1.html"' in readme and "paper.yaml" not in readme


def test_numbers_are_those_of_the_csv(built: Path) -> None:
    page = (built / "toy" / "table_1.html").read_text()
    data = re.search(r'<script type="application/json" id="cells">(.*?)</script>', page, re.DOTALL)
    assert data
    cells = json.loads(data[1])
    assert len(cells["cells"]) == len(ROWS)
    for row, listed in zip(ROWS, cells["cells"], strict=True):
        texts = [cells["texts"][position] for position in listed["values"]]
        values = dict(zip(cells["labels"], texts, strict=True))
        for label, name in (("Published", "published"), ("Reproduced", "reproduced")):
            assert values[label].split(" ")[0] == row[name]
        assert values["Signs of a weak attack"] == row["warnings"]
        assert values["Verdict"].endswith(row["verdict"])
    title = [cells["texts"][position] for position in cells["cells"][0]["title"]]
    assert title == ["Natural", "Clean"]
    assert len(set(cells["texts"])) == len(cells["texts"])
    shared = cells["scales"]["tiny"]
    assert shared["Command"] == "make table T=toy/1 SCALE=tiny"
    assert "2026-11-21" in shared["Provenance"] and "2 hours" in shared["Provenance"]
    first = re.search(r'data-cell="0">(.*?)</button>', page, re.DOTALL)
    assert first and re.sub(r"<[^>]+>", "", first[1]).split() == ["95", "≈", "94.5", "±5.4"]
    assert (
        gzip.decompress((built / "data/tiny/toy/table_1.csv.gz").read_bytes()).decode()
        == (built.parents[1] / TABLE).read_text()
    )


def test_text_of_results_is_never_markup(built: Path) -> None:
    for page in ("toy/table_1", "claims", "tables"):
        text = (built / f"{page}.html").read_text()
        assert "<b>bold" not in text and "<holds>" not in text
    assert "&lt;holds&gt;" in (built / "claims.html").read_text()


def test_the_index_counts_papers(built: Path) -> None:
    """The suite's own ranking is none."""
    assert "1 tables and figures of 1 paper<" in (built / "index.html").read_text()


def test_details_of_a_ranking() -> None:
    names = (*Ranked.__annotations__, "scale")
    values = dict.fromkeys(names, "") | {"rank": "2", "rank_low": "1", "rank_high": "4"}
    row = values | {"defence": "AID", "audit": "40.5", "audit_low": "30.25", "audit_high": "51.5"}
    row |= {"images": "64", "seeds": "3", "warnings": f"loss does not rise {HOSTILE}"}
    text = rank_data([("tiny", "digits", row)], {"tiny": {"Scale": "tiny"}})
    assert HOSTILE not in text and "</" not in text
    data = json.loads(text)
    (entry,) = data["cells"]
    assert [data["texts"][k] for k in entry["title"]] == ["digits", "AID"]
    shown = dict(zip(data["labels"], (data["texts"][k] for k in entry["values"]), strict=True))
    assert shown["Rank"] == "2 (1 to 4)" and shown["Audit"] == "40.5 (30.25 to 51.5)"
    assert (shown["n"], shown["Seeds"]) == ("64 images", "3")
    assert shown["Signs of a weak attack"] == row["warnings"]


def test_the_overview_counts_every_verdict(built: Path) -> None:
    text = re.sub(r"<[^>]+>", "", (built / "index.html").read_text())
    for verdict in ("match", "differs", "not run", "quoted", "not implemented"):
        assert re.search(rf"\b1 {verdict}", text), verdict
    prices = (built / "prices.html").read_text()
    assert "toy/table_1" in prices and ">2<" in prices


def test_a_second_build_replaces_the_first(root: Path, built: Path, tmp_path: Path) -> None:
    out = tmp_path / "site"
    shutil.copytree(built, out)
    (out / "stale.html").write_text("old")
    write_site(root, out)
    names = {path.relative_to(built) for path in built.rglob("*")}
    assert {path.relative_to(out) for path in out.rglob("*")} == names
    assert list(tmp_path.iterdir()) == [out]


def test_every_verdict_has_a_mark_a_colour_and_a_meaning() -> None:
    assert set(KEYS) == set(SIGNS) == set(MEANINGS) == set(VERDICTS)
    style = (ROOT / "purifiers/site/static/site.css").read_text()
    assert [key for key in KEYS.values() if f".v-{key}" not in style] == []


def test_marks_of_a_cell() -> None:
    weak = shown(ROWS[1], bare=False)
    assert (weak.weak, weak.mark, weak.key) == (True, "≠", "differs")
    assert shown(ROWS[2], bare=False).published == "1†"
    assert not shown({**ROWS[1], "warnings": "not probed"}, bare=False).weak
    assert shown(ROWS[5], bare=True).reproduced == "0.0123"
    words = shown({**ROWS[2], "flags": "published: ReLU; nothing to run"}, bare=False)
    assert (words.published, words.mark) == ("ReLU", "")
    assert "121 of 128 correct (64 images)" in details(ROWS[0])


def test_commands_name_the_document() -> None:
    common = ((), "", "", {}, (), Path())
    assert Table("aid", "table_11a", "desk", *common).command == "make table T=aid/11a SCALE=desk"
    assert Table("aid", "audit", "desk", *common).command == "make table T=aid/audit SCALE=desk"


def test_links_between_pages() -> None:
    assert page_of("benchmarks/aid/README.md") == "/aid/differences.md"
    assert page_of("results/tables/desk/aid/README.md") == "/aid/index.md"
    text = "[a [b]](../FIDELITY.md#x) ![i](i.png) [w](https://w.org) `x`\n```\n[c](d.md)\n```"
    assert rewrite(text, "benchmarks/aid", {"/fidelity.md"}) == (
        "[a [b]](/fidelity.md) i [w](https://w.org) `x`\n```\n[c](d.md)\n```"
    )


def _replace(old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        text = (root / TABLE).read_text()
        assert old in text
        (root / TABLE).write_text(text.replace(old, new, 1))

    return change


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "number": (_replace("94.5312", "94,5"), "line 2: needs"),
    "word": (_replace("94.5312", "high"), "line 2: reproduced is 'high', but must be a number"),
    "nan": (_replace("94.5312", "nan"), "line 2: reproduced is 'nan'"),
    "verdict": (_replace("match", "mach"), "line 2: verdict is 'mach'"),
    "column": (_replace("published", "printed"), "table_1.csv: has no column 'published'"),
    "binary": (lambda r: (r / TABLE).write_bytes(b"\xff\x00"), "not readable as CSV"),
    "empty": (lambda r: (r / TABLE).write_text(""), "has no column"),
    "provenance": (
        lambda r: (r / TABLE).with_suffix(".provenance.json").write_text("{"),
        "table_1.provenance.json: not readable as JSON",
    ),
    "picture": (
        lambda r: (r / TABLE).with_name("table_1_images.png").write_text("no"),
        "table_1_images.png: not readable as an image",
    ),
    "claims": (
        lambda r: (r / TABLE).with_name("claims.csv").write_text("id\n1\n"),
        "claims.csv: has no column 'text'",
    ),
    "paper": (
        lambda r: shutil.copytree((r / TABLE).parent, (r / TABLE).parents[1] / "other"),
        "there is no paper benchmarks/other",
    ),
    "readme": (
        lambda r: (r / "benchmarks/toy/README.md").write_text("# T\n\n[x](#nowhere)\n"),
        "mend the Markdown: toy/differences.md:3",
    ),
    "nothing": (lambda r: shutil.rmtree(r / "results"), "has no tables; run make reproduce"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_line(damage: str, tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    change, message = DAMAGES[damage]
    change(root)
    with pytest.raises(UserError) as error:
        write_site(root, tmp_path / "site")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_a_folder_that_is_no_site_is_kept(root: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="exists and is not a site"):
        write_site(root, tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_outside_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["site"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
