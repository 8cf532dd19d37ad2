"""Traits: read from the source, inherited, and refused in one line where they are wrong."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from purifiers.core.errors import UserError
from purifiers.core.formula import check_formula, evaluate
from purifiers.core.registry import Description, describe_file
from purifiers.core.traits import Fit, Images, MethodTraits, Network, Note, TrainedWith, met

Describe = Callable[..., Description]


@pytest.fixture
def describe(tmp_path: Path) -> Describe:
    """``describe(traits)``: a component ``bad`` with three parameters and these traits."""

    def read(traits: str, kind: str = "method") -> Description:
        path = tmp_path / "bad.py"
        path.write_text(
            f"class Bad(Base):\n    traits = {traits}\n"
            '    def __init__(self, *, steps=4, task="a", eps: Length = "8/255"): pass\n'
        )
        return describe_file(kind, "bad", path)

    return read


def refused(message: str) -> pytest.RaisesExc:
    """An error of one line that names the file, then ``traits`` and the message."""
    return pytest.raises(UserError, match=rf"^[^\n]*bad\.py(, line 2)?: traits{message}[^\n]*$")


# Fields


def test_every_field_is_read(describe: Describe) -> None:
    found = describe(
        """MethodTraits(
            version=2,
            budget=("steps",),
            joined_later=("task", "eps"),
            passes="3 * steps",
            random={"task": ("a", None, 1, True)},
            differentiable=False,
            provides=("verdict",),
            fit=Fit(
                passes="2",
                uses_classifier=False,
                several_classifiers=True,
                inference_only=("eps",),
                stored_examples=True,
            ),
            network=Network(sized_by=("steps",), passes="1", fit_passes="images / 2"),
            images=Images(
                channels=(1, 3), square_above=4, side_multiple="2 ** steps", windows=("steps",)
            ),
            trained_with=TrainedWith(training="soap", same=("task",)),
        )"""
    )
    assert found.traits == MethodTraits(
        version=2,
        budget=("steps",),
        joined_later=("task", "eps"),
        passes="3 * steps",
        random={"task": ("a", None, 1, True)},
        differentiable=False,
        provides=("verdict",),
        fit=Fit(
            passes="2",
            uses_classifier=False,
            several_classifiers=True,
            inference_only=("eps",),
            stored_examples=True,
        ),
        network=Network(sized_by=("steps",), passes="1", fit_passes="images / 2"),
        images=Images(
            channels=(1, 3), square_above=4, side_multiple="2 ** steps", windows=("steps",)
        ),
        trained_with=TrainedWith(training="soap", same=("task",)),
    )
    assert found.version == 2


def test_defaults_are_those_of_the_class(describe: Describe) -> None:
    assert describe("MethodTraits(version=1)").traits == MethodTraits(version=1)


@pytest.mark.parametrize(
    ("traits", "message"),
    [
        ('MethodTraits(version=1, pases="1")', r"\.pases: no such field \(did you mean 'passes'\?"),
        ("MethodTraits(version=1, fit_pases='1')", r"\.fit_pases: no such field"),
        ("MethodTraits(version=1, fit=Fit(pases='1'))", r"\.fit\.pases: .* mean 'passes'\?\)"),
        ("MethodTraits(version=1, zzz=1)", r"\.zzz: no such field$"),
        ("MethodTraits(version=1, fit=Fitt())", r"\.fit: Fitt is none of .*did you mean 'Fit'\?"),
        ("MethodTraits(version=1, network=Network(passes='1'))", r"\.network\.sized_by is missing"),
        ("MethodTraits()", r"\.version is missing"),
    ],
)
def test_a_misspelt_or_missing_field_is_named(
    describe: Describe, traits: str, message: str
) -> None:
    with refused(message):
        describe(traits)


def test_a_misspelt_field_of_a_note_is_named_before_the_one_it_leaves_out(
    describe: Describe,
) -> None:
    note = "Note(wen={'steps': (1,)}, text='no')"
    with refused(r"\.refused\.0\.wen: no such field \(did you mean 'when'\?\)"):
        describe(f"AttackTraits(version=1, passes='1', refused=({note},))", "attack")


@pytest.mark.parametrize(
    ("traits", "message"),
    [
        ('MethodTraits(version="1")', r"\.version is '1': input should be a valid integer"),
        ("MethodTraits(version=True)", r"\.version is True: .*integer"),
        ("MethodTraits(version=1.0)", r"\.version is 1\.0: .*integer"),
        ("MethodTraits(version=1, passes=3)", r"\.passes is 3: .*string"),
        ("MethodTraits(version=1, differentiable='no')", r"\.differentiable is 'no': .*boolean"),
        ("MethodTraits(version=1, random=1)", r"\.random is 1: .*boolean"),
        ("MethodTraits(version=1, fit=True)", r"\.fit is True: .*object"),
        ("MethodTraits(version=1, provides=('a', 1))", r"\.provides\.1 is 1: .*string"),
        ("MethodTraits(version=1, images=Images(channels=(1, '3')))", r"\.images\.channels\.1 is"),
    ],
)
def test_a_wrong_type_is_refused(describe: Describe, traits: str, message: str) -> None:
    with refused(message):
        describe(traits)


@pytest.mark.parametrize(
    ("field", "place"),
    [
        ('budget=["steps"]', "budget"),
        ('budget={"steps"}', "budget"),
        ('budget=("steps")', "budget"),
        ("images=Images(channels=3)", r"images\.channels"),
        ('random={"task": "a"}', r"random\.task"),
        ('random={"task": ["a"]}', "random"),
    ],
)
def test_what_is_no_tuple_is_refused_with_the_mend(
    describe: Describe, field: str, place: str
) -> None:
    """The class would hold a list where planning reads a tuple."""
    with refused(rf"\.{place}( is|:) .*: write a tuple, \('a', 'b'\) or \('a',\)"):
        describe(f"MethodTraits(version=1, {field})")


@pytest.mark.parametrize(
    ("traits", "message"),
    [
        (
            'MethodTraits(version=1, budget=COMMON + ("a",))',
            r"\.budget: COMMON \+ .* not a literal",
        ),
        ("MethodTraits(version=VERSION)", r"\.version: VERSION is not a literal"),
        ("MethodTraits(version=1, budget=(STEPS,))", r"\.budget: STEPS is not a literal"),
        ("MethodTraits(version=1, passes=b'1')", r"\.passes: b'1' is not a literal"),
        ("MethodTraits(version=1, fit=Fit(passes=COST))", r"\.fit\.passes: COST is not a literal"),
        ("MethodTraits(version=1, **MORE)", r": \*\*MORE is not read; write the fields out"),
        ("MethodTraits(version=1, fit=Fit(**MORE))", r"\.fit: \*\*MORE is not read"),
        ("MethodTraits(1)", r": expected MethodTraits\(\.\.\.\) or <base class>\.traits\.replace"),
        ("AttackTraits(version=1, passes='1')", r": expected MethodTraits\(\.\.\.\) or"),
        ("COMMON", r": expected MethodTraits\(\.\.\.\) or"),
    ],
)
def test_what_is_no_literal_is_refused_with_its_line(
    describe: Describe, traits: str, message: str
) -> None:
    with pytest.raises(UserError, match=rf"^[^\n]*bad\.py, line 2: traits{message}[^\n]*$"):
        describe(traits)


@pytest.mark.parametrize("version", [0, -1])
def test_versions_count_from_1(describe: Describe, version: int) -> None:
    with refused(rf"\.version is {version}: count from 1"):
        describe(f"MethodTraits(version={version})")


def test_whether_a_fit_uses_a_classifier_may_depend_on_parameters() -> None:
    fit = Fit(uses_classifier={"tune": (True,)})
    assert fit.is_using_classifier({"tune": True}) and not fit.is_using_classifier({"tune": False})
    assert Fit().is_using_classifier({}) and not Fit(uses_classifier=False).is_using_classifier({})


# Lists of parameters and formulas


@pytest.mark.parametrize(
    ("field", "place"),
    [
        ('budget=("step",)', "budget"),
        ('joined_later=("step",)', "joined_later"),
        ('random={"step": (1,)}', "random"),
        ('fit=Fit(inference_only=("eps", "step"))', r"fit\.inference_only"),
        ('fit=Fit(uses_classifier={"step": (1,)})', r"fit\.uses_classifier"),
        ('images=Images(resized_to="step")', r"images\.resized_to"),
        ('network=Network(sized_by=("step",), passes="1")', r"network\.sized_by"),
        ('trained_with=TrainedWith(training="soap", same=("step",))', r"trained_with\.same"),
    ],
)
def test_a_list_of_parameters_names_parameters(describe: Describe, field: str, place: str) -> None:
    with refused(rf"\.{place}: Bad has no 'step' \(did you mean 'steps'\?\)"):
        describe(f"MethodTraits(version=1, {field})")


@pytest.mark.parametrize(
    ("kind", "field"), [("attack", "refused"), ("attack", "remarks"), ("training", "remarks")]
)
@pytest.mark.parametrize(
    "note",
    ['when={"step": (1,)}, text="no"', 'when={"steps": (1,)}, text="{step} is none"'],
)
def test_a_note_is_about_parameters(describe: Describe, kind: str, field: str, note: str) -> None:
    with refused(rf"\.{field}: Bad has no 'step' \(did you mean 'steps'\?\)"):
        traits = f"{kind.capitalize()}Traits(version=1, passes='1', {field}=(Note({note}),))"
        describe(traits, kind)


FORMULA_FIELDS = [
    ("passes={}", "passes"),
    ("fit=Fit(passes={})", r"fit\.passes"),
    ('network=Network(sized_by=("steps",), passes={})', r"network\.passes"),
    ('network=Network(sized_by=("steps",), passes="1", fit_passes={})', r"network\.fit_passes"),
    ("images=Images(side_multiple={})", r"images\.side_multiple"),
    ("images=Images(smallest_side={})", r"images\.smallest_side"),
]


@pytest.mark.parametrize(("field", "place"), FORMULA_FIELDS)
def test_a_formula_of_a_method_is_arithmetic_over_parameters(
    describe: Describe, field: str, place: str
) -> None:
    with refused(rf"\.{place} is '3 \* step': there is no parameter 'step' \(did you mean 'steps'"):
        describe(f"MethodTraits(version=1, {field.format(repr('3 * step'))})")
    with refused(rf"\.{place} is '3 \*': not arithmetic such as"):
        describe(f"MethodTraits(version=1, {field.format(repr('3 *'))})")
    describe(f"MethodTraits(version=1, {field.format(repr('3 * steps'))})")


@pytest.mark.parametrize("kind", ["attack", "training"])
def test_a_formula_of_an_attack_or_training_is_too(describe: Describe, kind: str) -> None:
    with refused(r"\.passes is '3 \* step': there is no parameter 'step' \(did you mean 'steps'"):
        describe(f"{kind.capitalize()}Traits(version=1, passes='3 * step')", kind)
    with refused(r"\.passes is missing"):
        describe(f"{kind.capitalize()}Traits(version=1)", kind)


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("", "not arithmetic such as"),
        ("steps steps", "not arithmetic such as"),
        ("steps()", r"steps\(\) is not a number, a parameter or"),
        ("-steps", "-steps is not a number"),
        ("steps if steps else 1", "is not a number"),
        ("True", "True is not a number"),
        ("'3'", "is not a number"),
        ("max(steps, 1)", "there is no parameter 'max'"),
        ("mean(steps)", "there is no parameter 'mean'"),
        ("mean(attacks, pgd=stepss)", "there is no parameter 'attacks'"),
        ("mean(steps, pgd=stepss)", "there is no parameter 'stepss' .did you mean"),
        ("mean(steps, pgd='3')", "'3' is not a number"),
        ("1 / 0", "division by zero"),
        ("10.0 ** 400", "out of range"),
        ("10 ** 400 * 1.0", "too large"),
        ("(steps - 2) ** 0.5", "complex"),
    ],
)
def test_what_is_no_formula_is_one_line(formula: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"^here is [^\n]*: [^\n]*{message}[^\n]*$"):
        check_formula(formula, ("steps", "images"), "here")


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("3", 3.0),
        ("3 * steps + 1", 13.0),
        ("(steps + 1) * steps / 2", 10.0),
        ("2 ** (steps - 1)", 8.0),
        ("steps * 0.5", 2.0),
        ("1 + mean(attacks, pgd=3 * steps, cw=60)", 1 + (12 + 60 + 0) / 3),
    ],
)
def test_evaluate(formula: str, value: float) -> None:
    check_formula(formula, ("steps", "attacks"), "here")
    values = {"steps": 4, "attacks": ["pgd", "cw", "free"]}
    assert evaluate(formula, values) == value
    assert type(evaluate(formula, values)) is float


# Inheritance

BASE = """
class Base(Method):
    traits = MethodTraits(version=1, budget=("steps",), passes="steps", fit=Fit(passes="2"))
    def __init__(self, *, steps=4): pass
"""


def described(tmp_path: Path, source: str) -> Description:
    path = tmp_path / "own.py"
    path.write_text(BASE + textwrap.dedent(source))
    return describe_file("method", "own", path)


def test_a_class_without_traits_has_those_of_its_base(tmp_path: Path) -> None:
    found = described(tmp_path, "class Own(Base):\n    pass")
    assert found.traits == MethodTraits(
        version=1, budget=("steps",), passes="steps", fit=Fit(passes="2")
    )


def test_replace_keeps_the_fields_of_the_base(tmp_path: Path) -> None:
    found = described(
        tmp_path,
        """
        class Middle(Base):
            traits = Base.traits.replace(version=2, random=True)
        class Between(Middle):
            pass
        class Own(Between):
            traits = Middle.traits.replace(budget=("steps", "size"), fit=None)
            def __init__(self, *, size=1, **common): pass
        """,
    )
    assert found.traits == MethodTraits(
        version=2, budget=("steps", "size"), passes="steps", random=True
    )


def test_a_part_that_replace_sets_is_replaced_whole(tmp_path: Path) -> None:
    source = "class Own(Base):\n    traits = Base.traits.replace(fit=Fit(uses_classifier=False))"
    assert described(tmp_path, source).traits.fit == Fit(uses_classifier=False)


def test_own_traits_inherit_nothing(tmp_path: Path) -> None:
    found = described(tmp_path, "class Own(Base):\n    traits = MethodTraits(version=3)")
    assert found.traits == MethodTraits(version=3)


@pytest.mark.parametrize("base", ["Other", "Missing"])
def test_replace_takes_a_base_class(tmp_path: Path, base: str) -> None:
    source = f"""
    class Other:
        traits = MethodTraits(version=1)
    class Own(Base):
        traits = {base}.traits.replace(version=2)
    """
    with pytest.raises(UserError, match=rf"own\.py, line \d+: traits: {base} is no base class of"):
        described(tmp_path, source)


def test_inherited_lists_need_their_parameters(tmp_path: Path) -> None:
    source = "class Own(Base):\n    def __init__(self, *, size=1): pass"
    with pytest.raises(UserError, match=r"own\.py: traits\.budget: Own has no 'steps'$"):
        described(tmp_path, source)


# Conditions


def test_a_condition_is_met_where_every_parameter_has_one_of_its_values() -> None:
    condition = {"task": ("a", "b"), "steps": (1,)}
    assert met(condition, {"task": "b", "steps": 1, "more": 0})
    assert not met(condition, {"task": "b", "steps": 2})
    assert not met(condition, {"task": "c", "steps": 1})
    assert met({}, {})


def test_random_is_a_truth_or_a_condition() -> None:
    sometimes = MethodTraits(version=1, random={"task": ("a",)})
    assert sometimes.is_random({"task": "a"}) and not sometimes.is_random({"task": "b"})
    assert MethodTraits(version=1, random=True).is_random({})
    assert not MethodTraits(version=1).is_random({})


def test_a_note_is_filled_in_where_it_applies() -> None:
    note = Note(when={"steps": (1, 2)}, text="{steps} steps of {task} are too few")
    assert note.applies({"steps": 2, "task": "a"}) == "2 steps of a are too few"
    assert note.applies({"steps": 3, "task": "a"}) is None
