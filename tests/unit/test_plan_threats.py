"""Threat models: what the planner makes of them, and what it refuses."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from purifiers.core import registry
from purifiers.core.errors import UserError
from purifiers.core.spec import Eot
from purifiers.plan.graph import Run, with_ancestors
from purifiers.plan.plan import Plan, make_plan

ROOT = Path(__file__).resolve().parents[2]
PGD = {"component": "pgd", "eps": 0.1, "steps": 4, "step_size": 0.03}
PAPER = {
    "id": "toy",
    "title": "A paper of the tests' own",
    "seed_document": "none",
    "settings": {"digits": {}},
    "classifiers": {"small": {"component": "wide_resnet", "depth": 10, "widen_factor": 1}},
    "trainings": {
        "natural": {"component": "natural"},
        "madry": {"component": "madry"},
        "substitute": {"component": "jacobian_substitute", "seed_images": 10},
    },
    "methods": {
        "identity": {"component": "identity"},
        "random": {"component": "random_sign"},
        "aid": {"component": "aid"},
        "pixel_defend": {"component": "pixel_defend"},
        "mine": {"component": "mine"},
        "tent": {"component": "tent"},
    },
    "attacks": {
        "pgd": PGD,
        "early": PGD | {"stop": "success"},
        "autoattack": {"component": "autoattack"},
        "lucky": {"component": "autoattack", "lucky_draws": True},
        "square": {"component": "square", "queries": 10},
        "auxiliary_aware": {"component": "auxiliary_aware", "steps": 4},
        "joint_score": {"component": "joint_score", "steps": 4},
    },
}
DEFAULTS = {"dataset": "digits", "classifier": "small", "training": "natural", "methods": []}
SOURCE = {"classifier": "small", "training": "natural", "seed_offset": 1}
MADRY = {"training": "madry"}

Make = Callable[..., Plan]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """``make(row={...}, other={...})``: the plan of a table with one cell per row."""
    shutil.copytree(ROOT / "workflow", tmp_path / "workflow")
    shutil.copy(ROOT / "tests/workflow/tiny.yaml", tmp_path / "workflow/scales")
    folder = tmp_path / "benchmarks" / "toy"
    folder.mkdir(parents=True)
    (folder / "paper.yaml").write_text(yaml.safe_dump(PAPER))

    def plan(**rows: dict[str, Any]) -> Plan:
        table = {
            "table": "1",
            "title": "Threats",
            "where": "nowhere",
            "defaults": {**DEFAULTS, "attack": "pgd"},
            "rows": [{"id": name, "cell": cell} for name, cell in rows.items()],
            "columns": [{"id": "column"}],
            "blocks": [{"id": "block"}],
        }
        (folder / "table_1.yaml").write_text(yaml.safe_dump(table))
        return make_plan(tmp_path, "tiny", ["toy/table_1"])

    return plan


def attacks(plan: Plan) -> dict[str, Run]:
    """The attack behind each row."""
    found = {}
    for cell in plan.documents["toy/table_1"].cells:
        (ids,) = cell.scores
        behind = with_ancestors([plan.runs[ids[0]]])
        (found[cell.row],) = [run for run in behind if run.stage == "attack"]
    return found


# What the attacker sees


def test_oblivious_sees_the_classifier(make: Make) -> None:
    made = attacks(
        make(
            none={"methods": []},
            aid={"methods": ["aid"], "gradient": "bpda"},
            random={"methods": ["random"], "eot": 5},
        )
    )
    assert len({run.id for run in made.values()}) == 1
    spec = made["aid"].spec
    assert spec.methods == () and spec.gradient == "exact" and spec.eot is None
    assert "eot" not in spec.to_json()


@pytest.mark.parametrize("gradient", ["exact", "bpda", "one_step"])
def test_white_box_sees_the_defence_with_the_gradient_of_the_cell(
    make: Make, gradient: str
) -> None:
    cell = {"methods": ["aid"], "threat_model": "white_box", "gradient": gradient}
    run = attacks(make(row=cell))["row"]
    assert run.spec.gradient == gradient
    (method,) = run.spec.methods
    assert method.component == "aid" and method.run in {i.id for i in run.inputs}


@pytest.mark.parametrize(
    ("key", "misspelt", "meant"),
    [
        ("gradient", "pbda", "bpda"),
        ("metric", "accuraccy", "accuracy"),
        ("threat_model", "whitebox", "white_box"),
    ],
)
def test_a_misspelt_value_is_refused_by_the_schema(
    make: Make, key: str, misspelt: str, meant: str
) -> None:
    """Not planned as one that the suite does not have yet."""
    cell = {"methods": ["aid"], "threat_model": "white_box", key: misspelt}
    with pytest.raises(UserError) as caught:
        make(fine={}, row=cell)
    line = str(caught.value)
    assert line.startswith(f"benchmarks/toy/table_1.yaml: rows.1.cell.{key}: {misspelt!r} is not ")
    assert line.endswith(f" (did you mean {meant!r}?)")
    assert "\n" not in line and "not implemented" not in line


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"metric": "score_norm"}, "needs exactly one method, not 0"),
        ({"metric": "score_norm", "methods": ["random"]}, "a method with a learned score"),
        ({"metric": "purified_distance"}, "needs exactly one method, not 0"),
        ({"metric": "smoothed_accuracy"}, "needs the noise: add `smoothing"),
        (
            {"metric": "smoothed_accuracy", "smoothing": {"sigma": 0.1, "estimation": 5}},
            "5 votes cannot certify and predict at alpha 0.001, even if all agree: set ",
        ),
    ],
)
def test_metrics_that_need_more_than_the_cell_has(
    make: Make, cell: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        make(row=cell)


def test_an_attack_may_meet_other_methods_than_the_scored_ones(make: Make) -> None:
    """As a single draw of an ensemble; one set serves every cell that declares it."""
    cell = {"threat_model": "white_box", "gradient": "bpda", "eot": 3}
    plan = make(
        own={**cell, "methods": ["random"]},
        scored={**cell, "methods": ["identity"], "attacked_methods": ["random"]},
        other={**cell, "methods": ["aid"], "attacked_methods": ["random"]},
    )
    made = attacks(plan)
    assert len({run.id for run in made.values()}) == 1
    spec = made["scored"].spec
    assert [method.component for method in spec.methods] == ["random_sign"] and spec.eot is not None
    scores = {cell.row: cell.scores for cell in plan.documents["toy/table_1"].cells}
    assert scores["own"] != scores["scored"] != scores["other"]


def test_attacked_methods_are_checked_like_the_cells_own(make: Make) -> None:
    cell = {"methods": ["identity"], "attacked_methods": ["random"]}
    with pytest.raises(UserError, match="attacked white_box without EOT"):
        make(row={**cell, "threat_model": "white_box"})
    with pytest.raises(UserError, match="threat model oblivious queries no method"):
        make(row=cell)
    with pytest.raises(UserError, match="method 'aidd' is not in"):
        make(row={**cell, "attacked_methods": ["aidd"], "threat_model": "white_box"})


def test_a_source_is_trained_like_its_target_by_default(make: Make) -> None:
    cell = {"threat_model": "transfer", "training": "madry"}
    unsaid, said = ({"classifier": "small", "seed_offset": 1} | more for more in ({}, MADRY))
    plan = make(unsaid={**cell, "source": unsaid}, said={**cell, "source": said})
    made = attacks(plan)
    assert made["unsaid"].id == made["said"].id
    assert {cell.source for cell in plan.documents["toy/table_1"].cells} == {"small, madry"}


def test_a_query_attack_gets_no_gradient(make: Make) -> None:
    cell = {"threat_model": "black_box", "attack": "square", "gradient": "exact"}
    made = attacks(make(none=cell, aid={**cell, "methods": ["aid"]}))
    assert {run.spec.gradient for run in made.values()} == {"none"}
    assert [method.component for method in made["aid"].spec.methods] == ["aid"]
    assert made["none"].id != made["aid"].id


def test_the_auxiliary_method_is_known_and_does_not_purify(make: Make) -> None:
    cell = {"attack": "auxiliary_aware", "auxiliary": "aid"}
    made = attacks(make(before=cell, after={**cell, "methods": ["aid"]}))
    assert made["before"].id == made["after"].id
    spec = made["before"].spec
    assert spec.methods == () and spec.auxiliary.component == "aid"
    assert spec.auxiliary.run in {run.id for run in made["before"].inputs}


# Transfer


def test_transfer_shares_one_set_between_targets(make: Make) -> None:
    cell = {"threat_model": "transfer", "source": SOURCE}
    made = attacks(
        make(
            natural=cell,
            madry={**cell, "training": "madry"},
            natural_aid={**cell, "methods": ["aid"]},
            random={**cell, "methods": ["random"]},  # the attacker meets no draws
        )
    )
    assert len({run.id for run in made.values()}) == 1
    spec = made["madry"].spec
    assert spec.methods == () and spec.gradient == "exact"


def test_the_source_is_another_network_of_its_own_seed(make: Make) -> None:
    cell = {"threat_model": "transfer", "source": SOURCE}
    plan = make(carried=cell, own={}, same={**cell, "source": {**SOURCE, "seed_offset": 0}})
    made = attacks(plan)
    assert made["same"].id == made["own"].id != made["carried"].id
    victims = {row: plan.runs[run.spec.classifier] for row, run in made.items()}
    assert victims["own"].spec.seed == 0 and victims["carried"].spec.seed == 1


def test_transfer_needs_a_source(make: Make) -> None:
    with pytest.raises(UserError, match="threat model transfer needs a `source`"):
        make(row={"threat_model": "transfer"})


@pytest.mark.parametrize(
    "cell",
    [
        {"threat_model": "transfer", "source": SOURCE},
        {"threat_model": "black_box", "source": SOURCE},
        {"methods": ["aid"]},
        {"methods": ["random"], "threat_model": "white_box", "eot": 4},
    ],
    ids=["transfer", "substitute", "purified", "random"],
)
def test_a_first_success_elsewhere_or_by_chance_is_none(make: Make, cell: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"attack 'early' stops at its first success.*to never"):
        make(row={**cell, "attack": "early"})


def test_autoattack_is_not_for_random_defences(make: Make) -> None:
    """A lucky draw counts as success there, and the image comes back unattacked."""
    cell = {"attack": "autoattack", "threat_model": "white_box"}
    plan = make(random={**cell, "methods": ["random"], "eot": 4}, aid={**cell, "methods": ["aid"]})
    states = {cell.row: (cell.state, cell.reason) for cell in plan.documents["toy/table_1"].cells}
    assert states["aid"] == ("planned", "")
    state, reason = states["random"]
    assert state == "not implemented" and "autoattack on a random defence" in reason


def test_lucky_draws_are_told_below_the_table(make: Make) -> None:
    cell = {"threat_model": "white_box", "methods": ["random"], "eot": 1}
    plan = make(lucky={**cell, "attack": "lucky"}, plain={**cell, "attack": "pgd"})
    told = {
        cell.row: [flag.text for flag in cell.flags if "the number is too high" in flag.text]
        for cell in plan.documents["toy/table_1"].cells
    }
    assert len(told["lucky"]) == 1 and told["plain"] == []
    assert {cell.state for cell in plan.documents["toy/table_1"].cells} == {"planned"}


def test_an_attack_on_what_is_scored_may_stop_early(make: Make) -> None:
    make(
        none={"attack": "early"},
        aid={"attack": "early", "methods": ["aid"], "threat_model": "white_box"},
    )


# Random defences


@pytest.mark.parametrize(("threat", "attack"), [("white_box", "pgd"), ("black_box", "square")])
def test_a_random_defence_is_attacked_over_its_draws(make: Make, threat: str, attack: str) -> None:
    cell = {"methods": ["random"], "threat_model": threat, "attack": attack}
    message = f"toy/table_1.yaml: .*a random defence is attacked {threat} without .*`eot: 20`"
    with pytest.raises(UserError, match=message):
        make(row=cell)
    with pytest.raises(UserError, match=message):
        make(row={**cell, "methods": ["identity", "random"]})
    run = attacks(make(row={**cell, "eot": 7}))["row"]
    assert run.spec.eot == Eot(samples=7, combine="mean")


def test_single_draws_have_to_be_said(make: Make) -> None:
    cell = {"methods": ["random"], "threat_model": "white_box"}
    made = attacks(
        make(
            one={**cell, "eot": 1},
            mean={**cell, "eot": 15},
            sign={**cell, "eot": {"samples": 15, "combine": "sign"}},
        )
    )
    assert made["one"].spec.eot == Eot(samples=1, combine="mean")
    assert made["sign"].spec.eot == Eot(samples=15, combine="sign")
    assert made["mean"].passes == made["sign"].passes == 15 * made["one"].passes


# Methods without a gradient

HARD = {"methods": ["identity", "pixel_defend"], "threat_model": "white_box"}
PLACE = r"benchmarks/toy/table_1\.yaml: block/row/column: "


@pytest.mark.parametrize("gradient", ["", "exact", "one_step", "second_order"])
def test_a_gradient_that_a_method_lacks_is_refused(make: Make, gradient: str) -> None:
    """In one line that names document, row and column, and how to mend it."""
    cell = {**HARD, "gradient": gradient} if gradient else HARD
    wanted = f"`gradient: {gradient or 'exact'}`"
    message = f"method 'pixel_defend' has no gradient, but .* {wanted}: write `gradient: bpda`"
    with pytest.raises(UserError, match=rf"^{PLACE}[^\n]*{message}$") as error:
        make(row=cell)
    assert "\n" not in str(error.value)


def test_a_method_without_a_gradient_is_attacked_by_bpda(make: Make) -> None:
    run = attacks(make(row={**HARD, "gradient": "bpda"}))["row"]
    assert run.spec.gradient == "bpda"
    assert [m.component for m in run.spec.methods] == ["identity", "pixel_defend"]


@pytest.mark.parametrize(
    "cell",
    [
        {"threat_model": "oblivious"},
        {"threat_model": "transfer", "source": SOURCE},
        {"threat_model": "black_box", "attack": "square"},
        {"attack": "none"},
    ],
    ids=["oblivious", "transfer", "queries", "clean"],
)
def test_who_takes_no_gradient_of_the_defence_may_face_any(
    make: Make, cell: dict[str, Any]
) -> None:
    (planned,) = make(row={**HARD, **cell}).documents["toy/table_1"].cells
    assert planned.state == "planned"


# A purifier that somebody adds

Register = Callable[[str], None]


@pytest.fixture
def register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Register]:
    """``register(traits)``: a copy of the registry with the template as ``mine``, whose traits are
    these."""
    package = tmp_path / "purifiers"
    shutil.copytree(ROOT / "purifiers", package, ignore=shutil.ignore_patterns("__pycache__"))
    caches = (registry.names, registry.describe)
    monkeypatch.setattr(registry, "_ROOT", package)

    def put(traits: str) -> None:
        template = (package / "methods" / "_template.py").read_text()
        before, _, rest = template.partition("traits = MethodTraits(")
        _, _, after = rest.partition("\n    )\n")
        assert before and after
        source = f"{before}traits = {traits}\n{after}".replace("Template", "Mine")
        (package / "methods" / "mine.py").write_text(source)
        for cache in caches:
            cache.cache_clear()

    yield put
    monkeypatch.undo()
    for cache in caches:
        cache.cache_clear()


MINE = {"methods": ["mine"], "threat_model": "white_box"}


def test_a_new_random_purifier_needs_a_word_on_eot(make: Make, register: Register) -> None:
    register("MethodTraits(version=1, random=True)")
    with pytest.raises(UserError, match=rf"^{PLACE}a random defence .* white_box .*`eot: 20`"):
        make(row=MINE)
    assert attacks(make(row={**MINE, "eot": 3}))["row"].spec.eot.samples == 3
    register('MethodTraits(version=1, random={"levels": (2,)})')
    attacks(make(row=MINE))
    with pytest.raises(UserError, match=rf"^{PLACE}a random defence"):
        make(row={**MINE, "override": {"method.mine": {"levels": 2}}})


def test_a_new_purifier_without_a_gradient_needs_bpda(make: Make, register: Register) -> None:
    register("MethodTraits(version=1, differentiable=False)")
    with pytest.raises(UserError, match=rf"^{PLACE}method 'mine' has no gradient.*bpda`$"):
        make(row=MINE)
    assert attacks(make(row={**MINE, "gradient": "bpda"}))["row"].spec.gradient == "bpda"


def test_a_misspelt_fit_stops_the_plan_and_is_not_taken_for_none(
    make: Make, register: Register
) -> None:
    register('MethodTraits(version=1, fit=Fit(passes="3 * levels"))')
    stages = {run.stage for run in make(row=MINE).runs.values()}
    assert "purifier" in stages
    for traits, message in (
        ('version=1, fti=Fit(passes="3")', r"traits\.fti: no such field \(did you mean 'fit'\?\)"),
        ('version=1, fit=Fit(pases="3")', r"traits\.fit\.pases: no such field \(did you mean"),
        ('version=1, fit=Fit(passes="3 * level")', r"traits\.fit\.passes is .* mean 'levels'\?\)"),
        ('version=1, fit=Fit(passes="3 *")', r"traits\.fit\.passes is '3 \*': not arithmetic"),
    ):
        register(f"MethodTraits({traits})")
        with pytest.raises(UserError, match=rf"^[^\n]*methods/mine\.py: {message}[^\n]*$"):
            make(row=MINE)


# Parts of the defence


def test_an_attack_on_a_detector_needs_one(make: Make) -> None:
    cell = {"attack": "auxiliary_aware"}
    message = "attack 'auxiliary_aware' attacks a method's detector_logit, and none of"
    for refused in (
        cell,
        {**cell, "methods": ["aid"]},  # oblivious: it does not know the method
        {**cell, "methods": ["identity"], "threat_model": "white_box"},
        {**cell, "auxiliary": "identity"},
    ):
        with pytest.raises(UserError, match=message):
            make(row=refused)
    make(row={**cell, "methods": ["identity", "aid"], "threat_model": "white_box"})


def test_a_detector_is_no_score(make: Make) -> None:
    with pytest.raises(UserError, match="'joint_score' attacks a method's score"):
        make(row={"attack": "joint_score", "methods": ["aid"], "threat_model": "white_box"})


@pytest.mark.parametrize("threat", ["transfer", "black_box"])
def test_who_does_not_know_the_defence_knows_no_auxiliary(make: Make, threat: str) -> None:
    """A discriminator trained on the target would hear the source's features."""
    cell = {"attack": "auxiliary_aware", "auxiliary": "aid", "threat_model": threat}
    with pytest.raises(UserError, match=f"threat model {threat} excludes the `auxiliary`"):
        make(row={**cell, "source": SOURCE})


def test_no_attack_no_refusal(make: Make) -> None:
    """Clean columns inherit their row's threat model."""
    make(row={"methods": ["random"], "threat_model": "white_box", "attack": "none"})


def test_what_adapts_to_its_queries_is_not_attacked(make: Make) -> None:
    tent = {"methods": ["tent"]}
    made = make(
        oblivious=tent, before={**tent, "threat_model": "white_box", "attacked_methods": []}
    )
    (scored,) = made.score_runs("toy/table_1")  # both attack the classifier alone
    assert scored.spec.restorers[0].component == "tent"
    for threat in ("white_box", "black_box"):
        with pytest.raises(UserError, match=rf"'tent' adapts .* so it is not attacked {threat}: "):
            make(row={**tent, "threat_model": threat, "gradient": "bpda"})
    substitute = {"classifier": "small", "training": "substitute"}
    with pytest.raises(UserError, match=r"tent adapts .* no substitute is trained on its answers"):
        make(row={**tent, "threat_model": "transfer", "source": substitute})
