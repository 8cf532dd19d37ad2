"""Trained classifiers and fitted methods of finished runs, for use from Python."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from purifiers.core import registry
from purifiers.core.artifacts import RunFolder
from purifiers.core.component import Classifier, Method, frozen
from purifiers.core.errors import UserError, did_you_mean
from purifiers.core.image_file import write_image_file
from purifiers.core.spec import SPECS, AttackSpec, ComponentSpec, PurifierSpec, PurifySpec
from purifiers.stages._context import Context, load_weights
from purifiers.stages._opening import new_method, open_classifier, open_data, open_images

RUNS = "results/runs"


def load_classifier(run: str | Path, runs: str | Path = RUNS) -> Classifier:
    """The trained classifier of a finished run, frozen, in evaluation mode, on the CPU.

    Args:
        run: the run's id, such as ``digits-wide_resnet-natural-s0-1a2b3c4d``, or its folder.
        runs: folder of all runs; ignored if ``run`` is a folder.

    Raises:
        UserError: no such run (with a suggestion), a run that is not finished or of another stage,
            or damaged files.
    """
    folder = find_run(run, runs, ("classifier", "substitute"))
    return open_classifier(_context(folder), folder.id, folder.stage)


def load_method(
    run: str | Path,
    classifier: nn.Module | None = None,
    runs: str | Path = RUNS,
    **parameters: Any,
) -> Method:
    """The fitted method of a finished run, bound, frozen, in evaluation mode, on the CPU.

    Args:
        run: the run's id or its folder.
        classifier: the classifier to bind the method to; None: the one that it was fitted on.
        runs: folder of all runs; ignored if ``run`` is a folder.
        parameters: parameters that do not affect the fit, such as ``iterations`` of AID; the
            others are those of the run.

    Raises:
        UserError: as :func:`load_classifier`; a parameter that affects the fit; or a method whose
            code has changed since the run.
    """
    folder = find_run(run, runs, ("purifier",))
    context = _context(folder)
    spec = folder.record(verify=False).spec_as(PurifierSpec)  # load_weights verifies the checksum
    component = _with_parameters(spec.method, parameters, folder)
    shape = open_data(context, spec.data).shape
    if classifier is None and spec.classifier is not None:
        classifier = open_classifier(context, spec.classifier)
    method = new_method(component, classifier, shape, context)  # type: ignore[arg-type]
    load_weights(method, folder)
    frozen(method)
    return method


def export_images(run: str | Path, path: Path, runs: str | Path = RUNS) -> int:
    """Write the images of a finished attack or purification with labels, indices and provenance.

    Args:
        run: the run's id or its folder.
        path: the file to write, ``.npz`` or ``.parquet``.
        runs: folder of all runs; ignored if ``run`` is a folder.

    Returns:
        The number of images.

    Raises:
        UserError: as :func:`load_classifier`, or another suffix.
    """
    folder = find_run(run, runs, ("attack", "purify"))
    record = folder.record()
    assert isinstance(record.spec, AttackSpec | PurifySpec)
    itself = replace(record.spec.images, run=folder.id, stage=folder.stage)
    images = open_images(_context(folder), itself)
    origin = {
        "stage": folder.stage,
        "run": folder.id,
        "spec": record.spec.to_json(),
        "ancestors": sorted(f"{stage}/{run}" for stage, run in record.spec.upstream()),
        **record.provenance,
    }
    write_image_file(path, np.array(images.images), images.labels, images.indices, origin)
    return len(images)


def find_run(run: str | Path, runs: str | Path, stages: tuple[str, ...]) -> RunFolder:
    """The folder of a finished run of one of ``stages``.

    Args:
        run: the run's id, or its folder.
        runs: folder of all runs, where ids are looked up.

    Raises:
        UserError: no such run, a run that is not finished, or a run of another stage.
    """
    path, expected = Path(run), " or ".join(stages)
    if path.is_dir():
        path = path.resolve()
        folder = RunFolder(path.parent.parent, path.parent.name, path.name)
    else:
        folder = _by_id(str(run), Path(runs), stages)
    if folder.stage not in stages:
        raise UserError(f"{folder.path}: a run of stage {folder.stage!r}, expected {expected}")
    folder.record(verify=False)
    return folder


def _by_id(run: str, runs: Path, stages: tuple[str, ...]) -> RunFolder:
    others = [stage for stage in SPECS if stage not in stages]
    for stage in (*stages, *others):
        folder = RunFolder(runs, stage, run)
        if folder.path.is_dir():
            return folder
    if not runs.is_dir():
        raise UserError(
            f"there is no run {run!r}: neither a folder nor an id in {runs}, which does not exist; "
            "pass the folder of your runs as `runs`"
        )
    ids = [path.name for stage in stages for path in (runs / stage).glob("*") if path.is_dir()]
    hint = did_you_mean(run, ids) or f"; it has {len(ids)} runs of stage {' or '.join(stages)}"
    raise UserError(f"{runs}: there is no run {run!r}{hint}")


def _context(folder: RunFolder) -> Context:
    return Context(folder.root, "cpu", threads=1, batch_size=1, checkpoint_seconds=60.0)


def _with_parameters(
    spec: ComponentSpec, parameters: dict[str, Any], folder: RunFolder
) -> ComponentSpec:
    """The fitted component with the parameters of its inference."""
    described = registry.describe("method", spec.component)
    if described.version != spec.version:
        raise UserError(
            f"{folder.path}: fitted by version {spec.version} of {spec.component}, but the code "
            f"has version {described.version}: fit it again"
        )
    where = f"load_method {folder.id}"
    described.check_parameters({**spec.parameters, **parameters}, where)
    fit = described.traits.fit
    allowed = fit.without_effect(spec.parameters) if fit else ()
    for name in parameters:
        if name not in allowed:
            listed = ", ".join(allowed) or "none"
            raise UserError(
                f"{where}: {name} affects the fit, so it is the run's: set only {listed}, or fit "
                "again with purifiers.fit"
            )
    return ComponentSpec(
        component=spec.component,
        version=spec.version,
        parameters={**spec.parameters, **parameters},
    )
