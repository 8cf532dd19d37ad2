"""A record names the components' files that the commit does not hold in the form that ran."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from purifiers.core import provenance
from purifiers.core.artifacts import RunFolder
from purifiers.core.provenance import git_commit, uncommitted
from purifiers.core.sources import PACKAGE, component_sources
from purifiers.core.spec import (
    AttackSpec,
    ClassifierSpec,
    ComponentSpec,
    DatasetSpec,
    ImagesSpec,
    MethodSpec,
    Oracle,
    Subset,
    SubstituteSpec,
)
from purifiers.plan.graph import component_spec
from purifiers.stages.job import run_batch

FILES = {
    "__init__.py": "",
    "core/component.py": "import torch",
    "core/loop.py": "",
    "methods/plain.py": "from purifiers.core.component import Method",
    "methods/_mine.py": "import purifiers.core.loop",
    "methods/other.py": "",
    "attacks/pgd.py": "from purifiers.core import component, noise",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package in a folder of a repository where all its files are committed."""
    package = tmp_path / "repository" / "suite" / "purifiers"
    for name, source in FILES.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(source)
    git(package, "init", "-q")
    commit(package)
    return package


def test_another_repository_around_the_package_is_not_its_own(package: Path) -> None:
    """As in an environment inside a user's repository: installed, ignored or untracked."""
    shutil.rmtree(package.parent / ".git")
    outer = package.parent
    (outer / "mine.txt").write_text("another project")
    git(package, "init", "-q")
    sources = frozenset([package / "methods" / "plain.py"])
    for ignored in ("purifiers/", "# nothing"):
        (outer / ".gitignore").write_text(ignored)
        git(package, "add", "mine.txt", ".gitignore")
        git(package, "commit", "-qm", "mine")
        git_commit.cache_clear()
        uncommitted.cache_clear()
        assert git_commit(sources, package) == "unknown"
        assert uncommitted(sources, package) == ()


def git(package: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    command = ["git", *identity, *arguments]
    done = subprocess.run(command, cwd=package.parent, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(package: Path) -> None:
    git(package, "add", ".")
    git(package, "commit", "-qm", "all")
    git_commit.cache_clear()
    uncommitted.cache_clear()


def spec(*methods: str, attack: str = "pgd") -> AttackSpec:
    clean = ImagesSpec(data="digits-1", subset=Subset(split="test", n=4, seed=0), run=None)
    parts = [MethodSpec(component=n, version=1, parameters={}, run=None) for n in methods]
    return AttackSpec(
        images=clean,
        classifier="net-1",
        methods=tuple(parts),
        gradient="exact",
        attack=ComponentSpec(component=attack, version=1, parameters={}),
        seed=0,
    )


def told(package: Path, *methods: str) -> tuple[bool, list[str]]:
    """Whether the commit is marked, and the files, for an attack on some methods."""
    git_commit.cache_clear()
    uncommitted.cache_clear()
    sources = component_sources(spec(*methods), package)
    text = git_commit(sources, package)
    assert text.removesuffix("+changes") == git(package, "rev-parse", "--short=12", "HEAD")
    return text.endswith("+changes"), list(uncommitted(sources, package))


def test_a_spec_lists_its_components() -> None:
    components = spec("plain", "mine").components()
    assert [(kind, part.component) for kind, part in components] == [
        *(("method", "plain"), ("method", "mine"), ("attack", "pgd"))
    ]
    recipe = ComponentSpec(component="any", version=1, parameters={})
    trained = ClassifierSpec(data="d", train=1, classifier=recipe, training=recipe, seed=0)
    assert [kind for kind, _ in trained.components()] == ["classifier", "training"]
    substitute = SubstituteSpec(
        data="d",
        seeds=Subset(split="test", n=4, seed=0),
        classifier=recipe,
        training=recipe,
        oracle=Oracle(classifier="net-1", methods=spec("plain").methods),
        seed=0,
    )
    assert [kind for kind, _ in substitute.components()] == ["classifier", "training", "method"]


def test_sources_are_the_components_and_what_they_import(package: Path) -> None:
    (package / "methods" / "mine.py").write_text("from ._mine import Base\nfrom json import loads")
    found = component_sources(spec("mine"), package)
    assert {str(path.relative_to(package)) for path in found} == {
        *("methods/mine.py", "methods/_mine.py", "core/loop.py", "attacks/pgd.py"),
        "core/component.py",
    }


def test_what_is_committed_is_not_listed(package: Path) -> None:
    assert told(package, "plain") == (False, [])


def test_an_untracked_component_marks_the_runs_that_use_it(package: Path) -> None:
    (package / "methods" / "mine.py").write_text("from purifiers.methods._mine import Base")
    assert told(package, "mine", "plain") == (True, ["purifiers/methods/mine.py"])
    assert told(package, "plain") == (False, [])
    git(package, "add", ".")  # not committed yet
    assert told(package, "mine") == (True, ["purifiers/methods/mine.py"])
    commit(package)
    assert told(package, "mine") == (False, [])


def test_a_modified_file_that_a_component_imports_is_listed(package: Path) -> None:
    (package / "core" / "component.py").write_text("import numpy")
    assert told(package, "other") == (True, ["purifiers/core/component.py"])  # the attack's
    commit(package)
    (package / "core" / "loop.py").write_text("1")
    assert told(package, "other") == (True, [])  # changed, but behind none of its components


def test_an_ignored_component_is_listed(package: Path) -> None:
    (package / ".gitignore").write_text("secret.py\n")
    commit(package)
    (package / "methods" / "secret.py").write_text("")
    assert told(package, "secret") == (True, ["purifiers/methods/secret.py"])


def test_without_git_nothing_is_known(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = component_sources(spec("plain"), package)
    git_commit.cache_clear()
    uncommitted.cache_clear()
    monkeypatch.setattr(provenance, "_git", lambda *_: None)
    assert git_commit(sources, package) == "unknown" and uncommitted(sources, package) == ()


def test_a_job_looks_at_the_components_of_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def every(sources: frozenset[Path], package: Path = PACKAGE) -> tuple[str, ...]:
        return tuple(sorted(path.name for path in sources))

    monkeypatch.setattr(provenance, "uncommitted", every)
    digits = DatasetSpec(dataset=component_spec("dataset", "digits", {}))
    run = {"id": "digits-1", "spec": digits.to_json(), "passes": 0.0, "size_bytes": 0}
    batch = {"stage": "dataset", "batch": "dataset-1", "device": "cpu", "batch_size": 16}
    batch |= {"checkpoint_seconds": 60.0, "runs": [run]}
    assert run_batch(batch, tmp_path / "done.json", tmp_path / "runs", 1) == 0
    stored = RunFolder(tmp_path / "runs", "dataset", "digits-1").record().provenance
    assert {"digits.py", "_base.py"} <= set(stored["uncommitted"])
    assert "pgd.py" not in stored["uncommitted"]
