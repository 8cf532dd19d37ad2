"""The folder is the registry, and the sources are read without being run."""

from __future__ import annotations

import textwrap

import pytest

import purifiers
from purifiers.core import registry
from purifiers.core.errors import UserError
from purifiers.core.traits import AttackTraits, Note, TrainingTraits


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty registry; ``folder(path, source)`` puts a file into it."""
    monkeypatch.setattr(registry, "_ROOT", tmp_path)
    registry.names.cache_clear()
    registry.describe.cache_clear()

    def put(path: str, source: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(source))
        registry.names.cache_clear()
        registry.describe.cache_clear()

    yield put
    monkeypatch.undo()
    registry.names.cache_clear()
    registry.describe.cache_clear()


def test_names_are_the_files(folder):
    for path in (
        "attacks/b.py",
        "attacks/a.py",
        "attacks/_c.py",
        "attacks/__init__.py",
        "methods/d.py",
    ):
        folder(path, "")
    assert registry.names("attack") == ("a", "b")
    assert registry.exists("method", "d") and not registry.exists("attack", "_c")


def test_class_name():
    assert registry.class_name("cw_l2") == "CwL2"
    assert registry.class_name("wide_resnet") == "WideResnet"
    assert registry.class_name("_template") == "Template"


def test_describe_reads_without_running(folder):
    folder(
        "attacks/my_attack.py",
        '''
        """What it does (Somebody 2020).

        More."""
        import no_such_module
        COMPUTED = 1 + len("x")
        raise SystemExit

        class MyAttack(Base):
            traits = AttackTraits(
                version=3,
                budget=("steps", "restarts"),
                passes="3 * steps",
                norm="l2",
                refused=(Note(when={"steps": (-1, None)}, text="{steps} steps are none"),),
            )

            def __init__(self, target, *, steps: int = 4, eps="8/255", restarts, sizes=(1, 2)):
                pass
        ''',
    )
    found = registry.describe("attack", "my_attack")
    assert (found.kind, found.name, found.version) == ("attack", "my_attack", 3)
    assert found.summary == "What it does (Somebody 2020)."
    assert found.parameters == {"steps": 4, "eps": "8/255", "restarts": None, "sizes": (1, 2)}
    assert found.required == ("restarts",)
    assert found.traits == AttackTraits(
        version=3,
        budget=("steps", "restarts"),
        passes="3 * steps",
        norm="l2",
        refused=(Note(when={"steps": (-1, None)}, text="{steps} steps are none"),),
    )


def test_common_parameters_are_inherited_across_files(folder):
    folder(
        "training/_base.py",
        """
        class Training:
            def __init__(self, *, epochs=10, batch_size=128, rate): pass
        """,
    )
    folder(
        "training/middle.py",
        """
        from purifiers.training._base import Training
        class Middle(Training):
            traits = TrainingTraits(version=1, passes="3 * epochs")
            def __init__(self, *, steps=7, rate=0.1, **common): pass
        """,
    )
    folder(
        "training/last.py",
        """
        from purifiers.training.middle import Middle
        class Near(Middle):
            def __init__(self, *, gamma, **common): pass
        class Last(Near):
            '''No __init__ of its own.'''
        """,
    )
    middle, last = (registry.describe("training", name) for name in ("middle", "last"))
    assert middle.parameters == {"epochs": 10, "batch_size": 128, "rate": 0.1, "steps": 7}
    assert middle.required == ()
    assert last.parameters == middle.parameters | {"gamma": None}
    assert last.required == ("gamma",)
    assert last.traits == middle.traits == TrainingTraits(version=1, passes="3 * epochs")


def test_nothing_is_inherited_without_common(folder):
    folder(
        "training/own.py",
        """
        class Base:
            def __init__(self, *, hidden=1): pass
        class Own(Base):
            traits = TrainingTraits(version=1, passes="0")
            def __init__(self, *, shown=2): pass
        """,
    )
    assert registry.describe("training", "own").parameters == {"shown": 2}


def test_the_real_recipes_inherit():
    avmixup = registry.describe("training", "avmixup").parameters
    assert {"gamma": 2.0, "eps": "8/255", "steps": 10, "batch_size": 128}.items() <= avmixup.items()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("class Bad: pass", r"class Bad declares no traits: write `traits = MethodTraits\("),
        ("class Bad(Method): pass", "class Bad declares no traits"),
        ("class Other: pass", "expected a class Bad"),
    ],
)
def test_incomplete_files_are_refused(folder, source, message):
    folder("methods/bad.py", source)
    with pytest.raises(UserError, match=rf"bad\.py: .*{message}"):
        registry.describe("method", "bad")


def test_a_file_that_python_cannot_read_is_named(folder):
    folder("methods/bad.py", "\nclass Bad(:\n")
    with pytest.raises(UserError, match=r"bad\.py, line 2: invalid syntax$"):
        registry.describe("method", "bad")


def test_unknown_names_get_a_suggestion():
    with pytest.raises(UserError, match=r"there is no attack 'pdg' \(did you mean 'pgd'\?\)"):
        purifiers.attack("pdg")
    with pytest.raises(UserError, match=r"there is no method 'qqqqqqq'$"):
        purifiers.method("qqqqqqq")
    with pytest.raises(UserError, match="there is no classifier"):
        registry.load("classifier", "_template")


def test_unknown_parameters_get_a_suggestion():
    with pytest.raises(
        UserError, match=r"'pgd' has no parameter 'step' \(did you mean 'steps'\?\)"
    ):
        purifiers.attack("pgd", step=3)


def test_parameters_are_checked_with_their_place(folder):
    folder(
        "methods/strict.py",
        """
        class Strict:
            traits = MethodTraits(version=1)
            def __init__(self, *, path, size=1): pass
        """,
    )
    described = registry.describe("method", "strict")
    described.check_parameters({"path": "x"}, "table_3.yaml")
    with pytest.raises(UserError, match=r"table_3\.yaml: method 'strict' needs 'path'"):
        described.check_parameters({"size": 2}, "table_3.yaml")
    with pytest.raises(UserError, match="did you mean 'size'"):
        described.check_parameters({"path": "x", "sise": 2}, "table_3.yaml")


def test_load_gives_the_class():
    from purifiers.attacks.cw_l2 import CwL2

    assert registry.load("attack", "cw_l2") is CwL2
