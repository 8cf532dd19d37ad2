"""The files that describe the package agree with each other and with what the code imports."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
LOCK = (ROOT / "requirements.lock").read_text()

# Parts of the package that every start of Snakemake imports, on each node of a cluster.
LIGHT = [
    "purifiers.core.artifacts",
    "purifiers.core.errors",
    "purifiers.core.numbers",
    "purifiers.core.provenance",
    "purifiers.core.registry",
    "purifiers.plan",
    "purifiers.report",
]


def normalised(name: str) -> str:
    """The name of a distribution as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def distribution(requirement: str) -> str:
    """`Foo_bar[x]>=1` -> `foo-bar`."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return normalised(match[0])


def declared(*extras: str) -> set[str]:
    requirements = [*PROJECT["dependencies"], *(r for extra in extras for r in EXTRAS[extra])]
    return {distribution(requirement) for requirement in requirements}


def locked() -> dict[str, list[str]]:
    """Requirement line of the lock -> its hashes."""
    entries: dict[str, list[str]] = {}
    for line in LOCK.splitlines():
        if line.startswith("    --hash="):
            entries[list(entries)[-1]].append(line.strip(" \\"))
        elif line and not line.startswith("#"):
            entries[line.rstrip(" \\")] = []
    return entries


def committed() -> Iterator[tuple[str, str]]:
    """(path, text) of every text file that git tracks or would track."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    run = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        pytest.skip(f"not a git checkout: {run.stderr.strip()}")
    for name in filter(None, run.stdout.split("\0")):
        path = ROOT / name
        content = path.read_bytes() if path.is_file() else b""
        if b"\0" not in content:
            yield name, content.decode()


def third_party_imports(folder: str) -> Iterator[tuple[str, str]]:
    """(file, top-level module) of each absolute import that is neither ours nor Python's."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                modules = [node.module]
            for module in modules:
                top = module.partition(".")[0]
                folders = (
                    path.parent,
                    ROOT / "tests",
                )  # a script's own folder, pytest's pythonpath
                beside = any((f / f"{top}.py").exists() or (f / top).is_dir() for f in folders)
                if top not in sys.stdlib_module_names and top != "purifiers" and not beside:
                    yield str(path.relative_to(ROOT)), top


@pytest.mark.parametrize(
    ("folder", "extras"), [("purifiers", ("site",)), ("workflow", ()), ("tests", ("test",))]
)
def test_every_import_is_a_declared_dependency(folder: str, extras: tuple[str, ...]) -> None:
    allowed, owners = declared(*extras), packages_distributions()
    missing = {
        f"{path} imports {module}"
        for path, module in third_party_imports(folder)
        if not allowed & {normalised(owner) for owner in owners.get(module, [])}
    }
    assert not missing


def test_lock_names_no_address_and_hashes_every_package() -> None:
    assert "://" not in LOCK
    assert locked()
    assert [requirement for requirement, hashes in locked().items() if not hashes] == []


def test_lock_holds_every_direct_dependency_at_its_pinned_version() -> None:
    versions: dict[str, set[str]] = {}
    for requirement in locked():
        version = requirement.partition("==")[2].partition(" ")[0]
        versions.setdefault(distribution(requirement), set()).add(version)
    direct = [*PROJECT["dependencies"], *(r for extra in EXTRAS.values() for r in extra)]
    assert {distribution(requirement) for requirement in direct} <= set(versions)
    pins = [requirement.split("==") for requirement in direct if "==" in requirement]
    assert {name: versions[distribution(name)] for name, _ in pins} == {n: {v} for n, v in pins}


def test_conda_environment_restates_nothing() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, installed = environment["dependencies"]
    assert python == f"python {PROJECT['requires-python']}"
    assert pip == "pip"
    (editable,) = installed["pip"]
    extras = re.fullmatch(r"-e \.\[([\w,]+)\]", editable)
    assert extras and set(extras[1].split(",")) == {"test", "lint", "site", "slurm"} <= set(EXTRAS)


def test_conda_environment_names_the_locked_versions() -> None:
    comment = (ROOT / "environment.yml").read_text().partition("name: purifybench")[0]
    pairs = re.findall(r"([\w-]+) (\d+\.\d+\.\d+)(\*?)", comment)
    assert {"torch", "torchvision", "snakemake"} <= {name for name, *_ in pairs}
    pinned = {requirement.partition(" ")[0] for requirement in locked()}
    assert [name for name, version, _ in pairs if f"{name}=={version}" not in pinned] == []
    ours = [f"{name}=={version}" for name, version, star in pairs if star]
    assert set(ours) == {one for one in PROJECT["dependencies"] if "==" in one}
    first, last = re.findall(r"Python (3\.\d+) to 3\.(\d+)", comment)[0]
    assert PROJECT["requires-python"] == f">={first},<3.{int(last) + 1}"


@pytest.mark.parametrize("target", ["test", "bench"])
def test_make_in_a_conda_environment_fetches_uv_before_it_is_called(
    target: str, tmp_path: Path
) -> None:
    for name in ("Makefile", "benchmarks/timing/peers.lock"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    snakemake = tmp_path / "conda" / "bin" / "snakemake"
    snakemake.parent.mkdir(parents=True)
    snakemake.touch()
    dry_run = ["make", "--dry-run", target, f"CONDA_PREFIX={tmp_path / 'conda'}"]
    run = subprocess.run(dry_run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert ".venv" not in run.stdout
    fetched, called = (run.stdout.find(part) for part in ("--target .uv uv", ".uv/bin/uv pip"))
    assert 0 <= fetched < called, run.stdout


def test_citation_and_changelog_name_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest and newest[1] == PROJECT["version"]


def test_no_file_names_a_package_index_or_a_place_on_one_machine() -> None:
    # Written with "[.]" so that this file does not match itself.
    index = re.compile(r"pypi[.]org|python[h]osted[.]org|anaconda[.]org|debian[.]org")
    place = re.compile(r"(?<![\w.~/-])/(?:home|root|Users|work|opt)/\w")
    found = [
        f"{name}:{number}: {line.strip()[:80]}"
        for name, text in committed()
        for number, line in enumerate(text.splitlines(), start=1)
        if index.search(line) or place.search(line)
    ]
    assert found == []


def test_declarations_are_read_without_torch() -> None:
    """The import contracts read the sources; this runs them, package __init__ files included."""
    code = (
        "import importlib, pkgutil, sys\n"
        f"for name in {LIGHT!r}:\n"
        "    module = importlib.import_module(name)\n"
        "    for inner in pkgutil.walk_packages(getattr(module, '__path__', []), name + '.'):\n"
        "        importlib.import_module(inner.name)\n"
        "sys.exit('torch was imported' if 'torch' in sys.modules else 0)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the committed files."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name, text in committed():
        if name.startswith("purifiers/") or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_text(text)
    build = (
        "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
    )
    command = [sys.executable, "-c", build, str(folder)]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-2000:]
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_gives_the_python_face_without_a_checkout(wheel: Path, tmp_path: Path) -> None:
    """Unpacked, and used from another folder."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    assert_face(
        Path(sys.executable), tmp_path / "installed", PYTHONPATH=str(tmp_path / "installed")
    )


def test_the_wheel_installs_what_it_needs(wheel: Path, tmp_path: Path) -> None:
    """Into an empty environment, with the locked versions, most of them from uv's cache."""
    uv = shutil.which("uv", path=f"{ROOT / '.uv' / 'bin'}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        pytest.skip("needs uv: make test fetches it")
    probe = [uv, "pip", "compile", "--quiet", "--no-deps", "--no-cache", "-"]
    looked_up = subprocess.run(
        probe, cwd=tmp_path, input="packaging", capture_output=True, text=True, check=False
    )
    if looked_up.returncode != 0:
        pytest.skip(f"no package index is reachable: {looked_up.stderr.strip()}")
    environment = tmp_path / "environment"
    python = environment / "bin" / "python"
    target, versions = ["--python", str(python)], ["--constraint", str(ROOT / "requirements.lock")]
    for command in (
        ["venv", "--python", sys.executable, str(environment)],
        ["pip", "install", *target, *versions, str(wheel)],
    ):
        run = subprocess.run(
            [uv, *command], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr[-2000:]
    assert_face(python, environment)
    shutil.rmtree(environment)  # pytest would keep it, gigabytes of it


def assert_face(python: Path, installed: Path, **variables: str) -> None:
    """From a folder without the checkout, ``purifiers`` attacks, purifies and audits."""
    (empty := installed.parent / "empty").mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    used = subprocess.run(
        [python, "-c", FACE], cwd=empty, env=environment | variables, capture_output=True, text=True
    )
    assert used.returncode == 0, used.stderr[-2000:]
    package, *checks = used.stdout.split()
    assert Path(package).is_relative_to(installed)
    assert checks == ["True", "True"]


FACE = """
import torch
import purifiers

torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)).eval()
images, labels = torch.rand(6, 1, 8, 8), torch.arange(6) % 3
defence = purifiers.defend(network, [purifiers.method("jpeg")], gradient="bpda")
adversarial = purifiers.attack("pgd", eps=0.1, steps=2)(defence, images, labels)
report = purifiers.audit(defence, images, labels, eps=0.1, budget="quick")
print(purifiers.__file__, adversarial.shape == images.shape, "clean" in str(report))
"""
