"""Attacks of other libraries on a Defence, beside the suite's own.

`make test` installs the libraries in ``.peers``, as for benchmarks/timing. Without ``.peers`` their
tests are skipped; AutoAttack's package and robustbench are part of the environment.
"""

from __future__ import annotations

import importlib
import logging
import math
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack
from torch import Tensor, nn
from torch.nn import functional

from purifiers.attacks.apgd import Apgd
from purifiers.attacks.autoattack import Autoattack
from purifiers.attacks.pgd import Pgd
from purifiers.core import robustbench_compat
from purifiers.core.component import Attack, Method
from purifiers.core.defence import Defence
from purifiers.core.errors import UserError
from purifiers.methods.random_sign import RandomSign

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".peers"
EPS, NOISE, STEPS, DRAWS = 0.15, 0.1, 10, 5
STEP = EPS / 4
COUNT = 32  # images of robustbench
SHORT = {"fab_steps": 10, "square_queries": 100}  # else 100 and 5000
# images of 64: PGD differs in rounding alone; APGD also in its random start
TOLERANCE = {"pgd": 1, "apgd": 2}
OWN: dict[str, Attack] = {
    "pgd": Pgd(eps=EPS, step_size=STEP, steps=STEPS, random_start=False),
    "apgd": Apgd(eps=EPS, steps=STEPS, loss="ce"),
}


class Blur(Method):
    """The mean of an image and its 3x3 box blur: a deterministic purifier with a gradient."""

    def purify(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        return (images + functional.avg_pool2d(images, 3, stride=1, padding=1)) / 2


@pytest.fixture(scope="module")
def peers() -> Iterator[Callable[[str], Any]]:
    """Imports a module of another library; ``.peers`` is last on the path during this file."""
    if not (PEERS / ".ready").exists():
        pytest.skip("other libraries are not installed: run `make .peers/.ready`")
    visdom = types.ModuleType("visdom")  # adv-lib imports this plotting client
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(PEERS)])
        patch.setitem(sys.modules, "visdom", sys.modules.get("visdom", visdom))
        yield importlib.import_module


Import = Callable[[str], Any]
Images = tuple[Tensor, Tensor]


def torchattacks(load: Import, model: nn.Module, batch: Images, draws: int) -> Tensor:
    library = load("torchattacks")
    linf = {"eps": EPS, "alpha": STEP, "steps": STEPS, "random_start": False}
    if draws > 1:
        return library.EOTPGD(model, eot_iter=draws, **linf)(*batch)
    return library.PGD(model, **linf)(*batch)


def foolbox(load: Import, model: nn.Module, batch: Images, draws: int) -> Tensor:
    library = load("foolbox")
    wrapped = library.PyTorchModel(model, bounds=(0, 1), device="cpu")
    if draws > 1:
        average = load("foolbox.models").ExpectationOverTransformationWrapper
        wrapped = average(wrapped, n_steps=draws)
    attack = library.attacks.LinfProjectedGradientDescentAttack(
        abs_stepsize=STEP, steps=STEPS, random_start=False
    )
    return attack(wrapped, *batch, epsilons=EPS)[1]


def art(load: Import, model: nn.Module, batch: Images, draws: int) -> Tensor:
    """Its expectation over transformation takes only its own transformations: not used here."""
    images, labels = batch
    estimator = load("art.estimators.classification").PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(images.shape[1:]),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    attack = load("art.attacks.evasion").ProjectedGradientDescent(
        estimator,
        eps=EPS,
        eps_step=STEP,
        max_iter=STEPS,
        num_random_init=0,
        batch_size=len(images),
        verbose=False,
    )
    return torch.from_numpy(attack.generate(x=images.numpy(), y=labels.numpy()))


def adv_lib_pgd(load: Import, model: nn.Module, batch: Images, draws: int) -> Tensor:
    attack = load("adv_lib.attacks").pgd_linf
    return attack(model, *batch, EPS, steps=STEPS, random_init=False, absolute_step_size=STEP)


def adv_lib_apgd(load: Import, model: nn.Module, batch: Images, draws: int) -> Tensor:
    attack = load("adv_lib.attacks").apgd
    torch.manual_seed(0)
    return attack(model, *batch, EPS, math.inf, n_iter=STEPS, loss_function="ce", eot_iter=draws)


def autoattack(load: Import, model: nn.Module, batch: Images, draws: int) -> Tensor:
    attack = APGDAttack(
        model,
        n_iter=STEPS,
        norm="Linf",
        eps=EPS,
        loss="ce",
        eot_iter=draws,
        seed=0,
        device="cpu",
        logger=logging.getLogger("auto-attack"),
    )
    return attack.perturb(*batch)


ATTACKS = {
    torchattacks: "pgd",
    foolbox: "pgd",
    art: "pgd",
    adv_lib_pgd: "pgd",
    adv_lib_apgd: "apgd",
    autoattack: "apgd",
}


def correct(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    with torch.no_grad():
        return int((model(images).argmax(dim=1) == labels).sum())


def mean_correct(defence: Defence, images: Tensor, labels: Tensor, draws: int = 20) -> float:
    """Mean number of correct images over fresh draws."""
    return sum(correct(defence, images, labels) for _ in range(draws)) / draws


def check_ball(images: Tensor, adversarial: Tensor) -> None:
    assert adversarial.shape == images.shape and adversarial.dtype == torch.float32
    assert float(adversarial.min()) >= 0.0 and float(adversarial.max()) <= 1.0
    assert 0.0 < float((adversarial - images).abs().max()) <= EPS + 1e-6


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_deterministic_defence_breaks_as_under_our_own_attack(attack, victim, peers):
    batch = victim.images, victim.labels
    defence = Defence(victim.model, [Blur()]).eval()
    adversarial = attack(peers, defence, batch, draws=1).detach()
    check_ball(victim.images, adversarial)
    own = correct(defence, OWN[ATTACKS[attack]](defence, *batch), victim.labels)
    theirs = correct(defence, adversarial, victim.labels)
    assert abs(theirs - own) <= TOLERANCE[ATTACKS[attack]]
    assert theirs < correct(defence, *batch) / 2


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_random_defence_breaks_on_fresh_draws(attack, victim, peers):
    batch = victim.images, victim.labels
    defence = Defence(victim.model, [RandomSign(eps=NOISE)], seed=1).eval()
    adversarial = attack(peers, defence, batch, draws=DRAWS).detach()
    check_ball(victim.images, adversarial)
    judge = Defence(victim.model, [RandomSign(eps=NOISE)], seed=2)
    assert mean_correct(judge, adversarial, victim.labels) < mean_correct(judge, *batch) / 2


@pytest.fixture
def robustbench(victim, monkeypatch) -> Callable[..., tuple[float, float, Tensor]]:
    """robustbench's ``benchmark`` on the victim's images: clean, robust accuracy, images.

    It takes the images of its own data sets only; the victim's replace those of CIFAR-10.
    """
    robustbench_compat.import_robustbench()
    from robustbench import data, eval
    from robustbench.model_zoo.enums import BenchmarkDataset

    def load(count: int, folder: str, transform: Any) -> Images:
        return victim.images[:count], victim.labels[:count]

    class Recorded(eval.AutoAttack):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.fab.n_iter, self.square.n_queries = SHORT["fab_steps"], SHORT["square_queries"]

        def get_seed(self) -> int:
            return 0  # else the time

        def run_standard_evaluation(self, *batch: Any, **options: Any) -> Tensor:
            self.returned.append(super().run_standard_evaluation(*batch, **options))
            return self.returned[-1]

    Recorded.returned = []
    monkeypatch.setattr(eval, "AutoAttack", Recorded)
    monkeypatch.setitem(data._clean_dataset_loaders, BenchmarkDataset.cifar_10, load)

    def run(model: nn.Module, count: int) -> tuple[float, float, Tensor]:
        clean, robust = eval.benchmark(model, n_examples=count, eps=EPS, batch_size=count)
        return clean, robust, Recorded.returned.pop()

    return run


def test_robustbench_gives_our_accuracies_for_a_deterministic_defence(robustbench, victim):
    images, labels = victim.images[:COUNT], victim.labels[:COUNT]
    defence = Defence(victim.model, [Blur()]).eval()
    clean, robust, adversarial = robustbench(defence, COUNT)
    check_ball(images, adversarial)
    own = Autoattack(eps=EPS, **SHORT)(defence, images, labels)
    assert clean == correct(defence, images, labels) / COUNT
    assert robust == correct(defence, adversarial, labels) / COUNT
    assert robust == correct(defence, own, labels) / COUNT
    assert 0 < robust < clean


def test_robustbench_runs_on_a_random_defence(robustbench, victim):
    images, labels = victim.images[:COUNT], victim.labels[:COUNT]
    defence = Defence(victim.model, [RandomSign(eps=NOISE)], seed=1).eval()
    clean, robust, adversarial = robustbench(defence, COUNT)
    check_ball(images, adversarial)
    judge = Defence(victim.model, [RandomSign(eps=NOISE)], seed=2)
    assert robust < clean
    assert mean_correct(judge, adversarial, labels) < mean_correct(judge, images, labels)


def test_the_stand_in_has_the_interface_of_autoattack(victim, tmp_path):
    batch = victim.images[:8], victim.labels[:8]
    options = {"norm": "Linf", "eps": EPS, "seed": 0, "device": "cpu", "verbose": False}
    suite = robustbench_compat.AutoAttack(
        victim.model,
        attacks_to_run=["apgd-ce"],
        version="custom",
        log_path=tmp_path / "log",
        **options,
    )
    adversarial, labels = suite.run_standard_evaluation(*batch, bs=4, return_labels=True)
    assert torch.equal(suite.run_standard_evaluation(*batch, bs=4), adversarial)
    assert torch.equal(victim.model(adversarial).argmax(dim=1), labels)
    alone = suite.run_standard_evaluation_individual(*batch, bs=4)
    assert torch.equal(alone["apgd-ce"], adversarial)
    assert "running apgd-ce" in (tmp_path / "log").read_text()
    with pytest.raises(ValueError, match="version='custom'"):
        robustbench_compat.AutoAttack(victim.model, attacks_to_run=["square"], **options)
    with pytest.raises(UserError, match="TensorFlow"):
        robustbench_compat.AutoAttack(victim.model, is_tf_model=True, **options)


def test_installed_modules_are_left_alone(monkeypatch):
    robustbench_compat.import_robustbench()  # which fails on the empty modules below
    installed = {name: types.ModuleType(name) for name in ("autoattack", "pkg_resources")}
    for name, module in installed.items():
        monkeypatch.setitem(sys.modules, name, module)
    robustbench_compat.import_robustbench()
    assert all(sys.modules[name] is module for name, module in installed.items())


def test_the_stand_in_of_pkg_resources_serves_robustbench_alone(monkeypatch):
    robustbench_compat.import_robustbench()
    locate = importlib.import_module("robustbench.loaders").pkg_resources.resource_filename
    file = locate("robustbench.loaders", "helper_files/imagenet_test_image_ids.txt")
    assert Path(file).is_file()
    monkeypatch.syspath_prepend(str(ROOT))  # imports from a loaded pkg_resources
