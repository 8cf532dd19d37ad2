"""Import robustbench, with stand-ins for the modules that it imports and that are missing.

robustbench 1.1.1 imports ``autoattack``, whose package on the registry is called ``pyautoattack``
and has another interface, and ``pkg_resources``, which setuptools 81 and later lack.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import types
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pyautoattack
from torch import Tensor, nn

from purifiers.core.errors import UserError

SUBMODULES = (
    "autopgd_base",
    "checks",
    "fab_base",
    "fab_projections",
    "fab_pt",
    "other_utils",
    "square",
    "state",
)
"""Modules of pyautoattack 0.2.0 that keep their upstream names and need no TensorFlow."""


class AutoAttack(pyautoattack.AutoAttack):
    """pyautoattack behind the interface of github.com/fra31/auto-attack at commit a392200.

    Attacks, losses and budgets are pyautoattack's. Progress goes to the logger ``auto-attack``
    instead of stdout.

    Args:
        model: images (n, C, H, W) in [0, 1] to logits (n, classes).
        norm: ``"Linf"``, ``"L2"`` or ``"L1"``.
        eps: radius of the ball.
        seed: random seed; None: the time.
        verbose: log the progress.
        attacks_to_run: attacks of the version ``"custom"``.
        version: ``"standard"``, ``"plus"``, ``"rand"`` or ``"custom"``.
        is_tf_model: not supported.
        device: of the attacked network.
        log_path: a file that also receives the log.

    Raises:
        UserError: a TensorFlow model.
    """

    attacks_to_run: list[str]

    def __init__(
        self,
        model: nn.Module,
        norm: str = "Linf",
        eps: float = 0.3,
        seed: int | None = None,
        verbose: bool = True,
        attacks_to_run: Sequence[str] = (),
        version: str = "standard",
        is_tf_model: bool = False,
        device: Any = "cuda",
        log_path: str | Path | None = None,
    ) -> None:
        if is_tf_model:
            raise UserError("AutoAttack: TensorFlow models are not supported: pass a torch module")
        attacks = list(attacks_to_run) or None
        super().__init__(
            model, attacks=attacks, device=device, eps=eps, norm=norm, seed=seed, version=version
        )
        self.verbose = verbose
        self.is_tf_model = is_tf_model
        if log_path is not None:
            self.logger.setLevel(logging.DEBUG)
            self.logger.addHandler(logging.FileHandler(log_path, delay=True))

    def run_standard_evaluation(
        self,
        x_orig: Tensor,
        y_orig: Tensor,
        bs: int = 250,
        return_labels: bool = False,
        state_path: Path | None = None,
    ) -> Any:
        """Adversarial images (n, C, H, W), with ``return_labels`` also the predicted labels."""
        images, labels = super().run_standard_evaluation(
            x_orig, y_orig, batch_size=bs, state_path=state_path
        )
        return (images, labels) if return_labels else images

    def run_standard_evaluation_individual(
        self, x_orig: Tensor, y_orig: Tensor, bs: int = 250, return_labels: bool = False
    ) -> dict[str, Any]:
        """Result of :meth:`run_standard_evaluation` by the name of each attack, run alone."""
        attacks, by_attack = self.attacks_to_run, {}
        for attack in attacks:
            self.attacks_to_run = [attack]
            by_attack[attack] = self.run_standard_evaluation(x_orig, y_orig, bs, return_labels)
        self.attacks_to_run = attacks
        return by_attack

    def set_version(self, version: str = "standard") -> None:
        """Set the attacks and their budgets to those of a version."""
        self._set_version(version)


def _resource_filename(package_or_module: str, resource: str) -> str:
    """Path of a file beside a module, as ``pkg_resources.resource_filename`` returns it."""
    file = importlib.import_module(package_or_module).__file__
    return str(Path(file or "").parent / resource)


def import_robustbench() -> None:
    """Import robustbench with stand-ins for missing modules; call it before other imports of it.

    An installed ``autoattack`` or ``pkg_resources`` is left alone. The stand-in of the latter
    serves robustbench alone, because others, such as pytest, expect more of the module.
    """
    if _missing("autoattack"):
        package = _module("autoattack", AutoAttack=AutoAttack, __path__=[])
        for name in SUBMODULES:
            submodule = importlib.import_module(f"pyautoattack.{name}")
            sys.modules[f"autoattack.{name}"] = submodule
            setattr(package, name, submodule)
        _module("autoattack.autoattack", AutoAttack=AutoAttack)
    absent = _missing("pkg_resources")
    if absent:
        _module("pkg_resources", resource_filename=_resource_filename)
    try:
        importlib.import_module("robustbench")
    finally:
        if absent:
            del sys.modules["pkg_resources"]


def _missing(name: str) -> bool:
    return name not in sys.modules and importlib.util.find_spec(name) is None


def _module(name: str, **content: Any) -> types.ModuleType:
    module = types.ModuleType(name, "Stand-in, made by purifiers.core.robustbench_compat.")
    module.__spec__ = ModuleSpec(name, None, is_package="__path__" in content)
    vars(module).update(content)
    sys.modules[name] = module
    return module
