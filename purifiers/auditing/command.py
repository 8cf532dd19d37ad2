"""``python -m purifiers audit``: audit your own network from the shell."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import nn

import purifiers
from purifiers.auditing.data import Labelled, load_images
from purifiers.auditing.protocol import BUDGETS, NORMS
from purifiers.core.artifacts import write_text
from purifiers.core.component import Classifier, Method
from purifiers.core.errors import UserError
from purifiers.core.parameters import argument
from purifiers.stages.job import choose_device


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m purifiers audit", description=__doc__)
    add = parser.add_argument
    add(
        "--model",
        required=True,
        help="file.py:factory (with --weights), the folder of a classifier's run, or a classifier "
        "that brings its weights, such as 'robustbench entry=Wong2020Fast'",
    )
    add("--weights", type=Path, help="safetensors, or a state_dict written by torch.save")
    add("--data", required=True, help="a data set such as cifar10, or a folder <split>/<class>/")
    add("--shape", default="3,32,32", help="channels,height,width of a folder's images")
    add(
        "--method",
        action="append",
        default=[],
        help="a purifier and its parameters, such as 'random_sign eps=8/255', or <name>=<folder of "
        "its run>; repeat it for a chain",
    )
    add(
        "--fit",
        type=argument("Whole"),
        default=0,
        metavar="N",
        help="fit the methods on N training images",
    )
    add("--eps", default="8/255", help="radius of the perturbation (default 8/255)")
    add("--norm", default="linf", choices=NORMS)
    add("--budget", default="quick", choices=tuple(BUDGETS))
    add("--n", type=argument("Count"), default=256, help="number of test images (default 256)")
    add("--seed", type=int, default=0)
    add("--device", default="auto", help="cpu, cuda or auto (the default)")
    add("--out", type=Path, help="folder for audit.csv, audit.txt and audit.png")
    return _run(parser.parse_args(arguments))


def _run(arguments: argparse.Namespace) -> int:
    """Audit, print the report and write its files."""
    arguments.device = choose_device(arguments.device)
    test = _images(arguments, "test", arguments.n)
    classifier = _classifier(arguments, test).to(arguments.device)
    train = _images(arguments, "train", arguments.fit) if arguments.fit else None
    methods = [_method(text, classifier, train, arguments) for text in arguments.method]
    report = purifiers.audit(
        purifiers.defend(classifier.eval(), methods),
        test.images,
        test.labels,
        eps=arguments.eps,
        norm=arguments.norm,
        budget=arguments.budget,
        indices=test.indices,
        seed=arguments.seed,
    )
    note = f"\ndata: {test.note}" if test.note else ""
    print(f"{report}{note}")
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        report.to_frame().to_csv(arguments.out / "audit.csv", index=False)
        text = f"{report}{note}\n{dict(report.provenance)}\n"
        write_text(arguments.out / "audit.txt", text)
        report.plot().savefig(arguments.out / "audit.png", dpi=150)
    return 0


def _images(arguments: argparse.Namespace, split: str, n: int) -> Labelled:
    folder: dict[str, Any] = {}
    if Path(arguments.data).is_dir():
        try:
            folder = {"shape": [int(side) for side in arguments.shape.split(",")]}
        except ValueError:
            raise UserError(
                f"--shape is {arguments.shape!r}: write channels,height,width, such as 3,32,32"
            ) from None
    return load_images(arguments.data, n, split, **folder)


def _classifier(arguments: argparse.Namespace, test: Labelled) -> nn.Module:
    model: str = arguments.model
    if Path(model).is_dir():
        return purifiers.load_classifier(model)
    path, colon, factory = model.rpartition(":")
    parameters: dict[str, Any]
    if colon and path.endswith(".py"):
        name, parameters = "file", {"path": path, "factory": factory}
    else:
        name, parameters = read_component(model, "--model")
    if arguments.weights is not None:
        parameters["weights"] = str(arguments.weights)
    shape = tuple(test.images.shape[1:])
    classifier: Classifier = purifiers.classifier(name, shape, test.classes, **parameters)
    # the factory of a file may load weights itself
    if name != "file" and not classifier.traits.is_pretrained(parameters):
        raise UserError(
            f"--model {model}: its weights are untrained: give a file, a run's folder or an entry "
            "of RobustBench's zoo"
        )
    return classifier.eval().requires_grad_(False)


def _method(
    text: str, classifier: nn.Module, train: Labelled | None, arguments: argparse.Namespace
) -> Method:
    name, equals, folder = text.partition("=")
    if equals and " " not in text:
        method: Method = purifiers.load_method(folder, classifier)
        if type(method).__module__ != f"purifiers.methods.{name}":
            raise UserError(
                f"--method {text}: {folder} holds {type(method).__name__}, not {name!r}"
            )
        return method.to(arguments.device)
    name, parameters = read_component(text, "--method")
    method = purifiers.method(name, **parameters)
    if method.traits.fit is not None:
        if train is None:
            raise UserError(
                f"--method {text}: {name} has to be fitted: add --fit 10000, or name a run, "
                f"--method {name}=results/runs/purifier/<id>"
            )
        return purifiers.fit(method, classifier, train.images, train.labels, seed=arguments.seed)
    method.bind(classifier, _shape_of(classifier, arguments))
    return method.to(arguments.device)


def _shape_of(classifier: nn.Module, arguments: argparse.Namespace) -> Sequence[int]:
    shape: Sequence[int] = getattr(classifier, "shape", ())
    return shape or [int(side) for side in arguments.shape.split(",")]


def read_component(text: str, where: str) -> tuple[str, dict[str, Any]]:
    """Name and parameters of a component written as ``name key=value key=value``.

    Values are YAML, such as ``8/255``, ``10`` or ``[layer1, layer3]``.

    Args:
        where: begins the error message.

    Raises:
        UserError: something other than ``key=value``.
    """
    name, *assignments = shlex.split(text) or [""]
    parameters = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key:
            raise UserError(f"{where} {text!r}: {assignment!r} is not of the form key=value")
        parameters[key] = yaml.safe_load(value)
    return name, parameters
