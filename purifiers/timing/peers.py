"""Rows of the other libraries, each called as its own documentation describes.

``make bench`` installs them in ``.peers``, never in the suite's environment; a missing one has no
rows. A class has one method per attack of its library.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import types
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from purifiers.core.provenance import version_of
from purifiers.timing import settings
from purifiers.timing.settings import Attack
from purifiers.timing.victims import CLASSES, Victim

Run = Callable[[int], Tensor]
"""Seed, already set in the global generators, to adversarial examples."""


class Peer:
    """A library and its attacks.

    Attributes:
        module: name of the imported module.
        package: name of the installed package.
        weight_gradients: methods in which the library also computes gradients of the parameters
            unless the caller froze them.
    """

    module: ClassVar[str]
    package: ClassVar[str]
    weight_gradients: ClassVar[tuple[str, ...]] = ()

    def __init__(self, victim: Victim, attack: Attack, network: nn.Module) -> None:
        self.victim = victim
        self.attack = attack
        self.network = network
        self.images, self.labels = victim.images, victim.labels
        self.linf = {"eps": victim.eps, "steps": settings.STEPS}

    @classmethod
    def title(cls) -> str:
        """Name of the library in tables."""
        return cls.module.replace("_", "-")

    @classmethod
    def installed(cls) -> bool:
        return importlib.util.find_spec(cls.module) is not None

    @classmethod
    def rows(cls, victim: Victim, attack: Attack, as_is: bool) -> dict[str, Run]:
        """Rows of an attack; empty if the library lacks it or is not installed.

        Args:
            as_is: also measure a network with trainable parameters if that makes a difference.
        """
        if not cls.installed() or not hasattr(cls, attack.method):
            return {}
        name = cls.title()
        networks = {name: victim.frozen()}
        if as_is and attack.method in cls.weight_gradients:
            networks[f"{name}, as is"] = victim.as_is()
        return {
            title: getattr(cls(victim, attack, network), attack.method)()
            for title, network in networks.items()
        }


class Torchattacks(Peer):
    """Harry24k/adversarial-attacks-pytorch."""

    module, package = "torchattacks", "torchattacks"
    weight_gradients = ("cw_l2", "deepfool_l2")

    def _run(self, name: str, **parameters: Any) -> Run:
        attack = getattr(import_module("torchattacks"), name)(self.network, **parameters)

        def run(seed: int) -> Tensor:
            attack.seed = seed  # APGD seeds the generators itself
            return attack(self.images, self.labels)

        return run

    def pgd(self) -> Run:
        return self._run("PGD", alpha=self.victim.step_size, random_start=False, **self.linf)

    def pgd_eot(self) -> Run:
        draws = {"eot_iter": settings.EOT_SAMPLES, "random_start": False}
        return self._run("EOTPGD", alpha=self.victim.step_size, **draws, **self.linf)

    def mim(self) -> Run:
        return self._run("MIFGSM", alpha=self.victim.step_size, decay=1.0, **self.linf)

    def apgd(self) -> Run:
        return self._run("APGD", norm="Linf", loss="ce", **self.linf)

    def deepfool_l2(self) -> Run:
        steps = settings.DEEPFOOL_STEPS
        return self._run("DeepFool", steps=steps, overshoot=settings.OVERSHOOT)

    def cw_l2(self) -> Run:
        """C&W with one value of c; the library has no binary search."""
        const, rate = settings.CW_INITIAL_CONST, self.victim.cw_rate
        return self._run("CW", c=const, kappa=0, steps=settings.CW_STEPS, lr=rate)

    @classmethod
    def rows(cls, victim: Victim, attack: Attack, as_is: bool) -> dict[str, Run]:
        return {} if attack.searches > 1 else super().rows(victim, attack, as_is)


class Foolbox(Peer):
    """bethgelab/foolbox."""

    module, package = "foolbox", "foolbox"
    weight_gradients = ("pgd", "pgd_eot", "mim", "cw_l2", "deepfool_l2")

    def _run(self, name: str, draws: int = 1, eps: float | None = None, **parameters: Any) -> Run:
        foolbox = import_module("foolbox")
        model: Any = foolbox.PyTorchModel(self.network, bounds=(0, 1), device=self.images.device)
        if draws > 1:
            model = foolbox.models.ExpectationOverTransformationWrapper(model, n_steps=draws)
        attack = getattr(foolbox.attacks, name)(**parameters)
        return lambda seed: attack(model, self.images, self.labels, epsilons=eps)[1]

    def _linf(self, name: str, **parameters: Any) -> Run:
        step, steps = self.victim.step_size, settings.STEPS
        return self._run(name, eps=self.victim.eps, abs_stepsize=step, steps=steps, **parameters)

    def pgd(self) -> Run:
        return self._linf("LinfProjectedGradientDescentAttack", random_start=False)

    def pgd_eot(self) -> Run:
        draws = settings.EOT_SAMPLES
        return self._linf("LinfProjectedGradientDescentAttack", draws=draws, random_start=False)

    def mim(self) -> Run:
        return self._linf("LinfMomentumIterativeFastGradientMethod", momentum=1.0)

    def cw_l2(self) -> Run:
        return self._run(
            "L2CarliniWagnerAttack",
            binary_search_steps=self.attack.searches,
            steps=settings.CW_STEPS,
            stepsize=self.victim.cw_rate,
            initial_const=settings.CW_INITIAL_CONST,
        )

    def deepfool_l2(self) -> Run:
        steps, overshoot = settings.DEEPFOOL_STEPS, settings.OVERSHOOT
        return self._run("L2DeepFoolAttack", steps=steps, candidates=CLASSES, overshoot=overshoot)


class Art(Peer):
    """Trusted-AI/adversarial-robustness-toolbox."""

    module, package = "art", "adversarial-robustness-toolbox"
    weight_gradients = ("pgd", "pgd_eot", "mim", "apgd", "cw_l2", "deepfool_l2")

    def _run(self, name: str, defences: Any = None, **parameters: Any) -> Run:
        estimator = import_module("art.estimators.classification").PyTorchClassifier(
            self.network,
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(self.images.shape[1:]),
            nb_classes=CLASSES,
            clip_values=(0.0, 1.0),
            preprocessing_defences=defences,
            device_type="gpu" if self.images.is_cuda else "cpu",
        )
        attack = getattr(import_module("art.attacks.evasion"), name)(
            estimator, batch_size=len(self.images), verbose=False, **parameters
        )

        def run(seed: int) -> Tensor:
            adversarial = attack.generate(x=self.images.cpu().numpy(), y=self.labels.cpu().numpy())
            return torch.from_numpy(adversarial).to(self.images.device)

        return run

    def _linf(self, name: str, **parameters: Any) -> Run:
        return self._run(name, eps=self.victim.eps, max_iter=settings.STEPS, **parameters)

    def pgd(self) -> Run:
        step = self.victim.step_size
        return self._linf("ProjectedGradientDescent", eps_step=step, num_random_init=0)

    def pgd_eot(self) -> Run:
        """PGD on the bare network, with the noise added by ART's preprocessor for EOT."""
        module = import_module("art.preprocessing.expectation_over_transformation")
        deviation = self.victim.noise
        noise = module.EoTGaussianNoisePyTorch(
            settings.EOT_SAMPLES, (0.0, 1.0), (deviation, deviation)
        )
        network: Any = self.network
        self.network = network.network
        step = self.victim.step_size
        return self._linf(
            "ProjectedGradientDescent", defences=noise, eps_step=step, num_random_init=0
        )

    def mim(self) -> Run:
        return self._linf("MomentumIterativeMethod", eps_step=self.victim.step_size, decay=1.0)

    def apgd(self) -> Run:
        # the paper's first step is 2 eps
        step, loss = 2 * self.victim.eps, "cross_entropy"
        return self._linf(
            "AutoProjectedGradientDescent", eps_step=step, nb_random_init=1, loss_type=loss
        )

    def cw_l2(self) -> Run:
        return self._run(
            "CarliniL2Method",
            binary_search_steps=self.attack.searches,
            max_iter=settings.CW_STEPS,
            learning_rate=self.victim.cw_rate,
            initial_const=settings.CW_INITIAL_CONST,
        )

    def deepfool_l2(self) -> Run:
        steps, overshoot = settings.DEEPFOOL_STEPS, settings.OVERSHOOT
        return self._run("DeepFool", max_iter=steps, epsilon=overshoot, nb_grads=CLASSES)


class Pyautoattack(Peer):
    """AutoAttack's own package (fra31/auto-attack), a dependency of the suite."""

    module, package = "pyautoattack", "pyautoattack"

    def apgd(self) -> Run:
        from pyautoattack.autopgd_base import APGDAttack

        attack = APGDAttack(
            self.network,
            n_iter=settings.STEPS,
            norm="Linf",
            eps=self.victim.eps,
            loss="ce",
            device=self.images.device,
        )

        def run(seed: int) -> Tensor:
            attack.seed = seed  # it seeds the generators itself
            return attack.perturb(self.images, self.labels)

        return run


class AdvLib(Peer):
    """jeromerony/adversarial-library."""

    module, package = "adv_lib", "adv-lib"

    def _run(self, name: str, *arguments: Any, **parameters: Any) -> Run:
        # adv-lib imports the plotting client visdom, which is not needed here
        sys.modules.setdefault("visdom", types.ModuleType("visdom"))
        attack = getattr(import_module("adv_lib.attacks"), name)
        images, labels = self.images, self.labels
        return lambda seed: attack(self.network, images, labels, *arguments, **parameters)

    def pgd(self) -> Run:
        eps, step = self.victim.eps, self.victim.step_size
        return self._run(
            "pgd_linf", eps, steps=settings.STEPS, random_init=False, absolute_step_size=step
        )

    def apgd(self) -> Run:
        steps = settings.STEPS
        return self._run("apgd", self.victim.eps, math.inf, n_iter=steps, loss_function="ce")

    def cw_l2(self) -> Run:
        return self._run(
            "carlini_wagner_l2",
            binary_search_steps=self.attack.searches,
            max_iterations=settings.CW_STEPS,
            learning_rate=self.victim.cw_rate,
            initial_const=settings.CW_INITIAL_CONST,
        )

    def deepfool_l2(self) -> Run:
        return self._run("df", steps=settings.DEEPFOOL_STEPS, overshoot=settings.OVERSHOOT)


def missing() -> list[str]:
    """Packages that are not installed and therefore have no rows."""
    return [peer.package for peer in Peer.__subclasses__() if not peer.installed()]


def versions() -> dict[str, str]:
    """Title of each installed library to its version."""
    installed = (peer for peer in Peer.__subclasses__() if peer.installed())
    return {peer.title(): version_of(peer.package) for peer in installed}


def rows(
    victim: Victim, attack: Attack, as_is: bool, without: Sequence[str] = ()
) -> dict[str, Run]:
    """Rows of every library that has the attack.

    Args:
        as_is: see :meth:`Peer.rows`.
        without: titles of libraries to omit.
    """
    by_title: dict[str, Run] = {}
    for peer in Peer.__subclasses__():
        if peer.title() not in without:
            by_title.update(peer.rows(victim, attack, as_is))
    return by_title
