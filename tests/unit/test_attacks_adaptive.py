"""Attacks on a defence that they know: approximate input, the joint attacks, auxiliary-aware."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import purifiers
from purifiers.attacks.approximate_input import ApproximateInput
from purifiers.attacks.auxiliary_aware import AuxiliaryAware
from purifiers.attacks.joint_purification import JointPurification
from purifiers.attacks.joint_score import JointScore
from purifiers.attacks.pgd import Pgd
from purifiers.classifiers.wide_resnet import WideResnet
from purifiers.core import registry
from purifiers.core.component import Method, default_indices, frozen
from purifiers.core.defence import Defence
from purifiers.core.errors import UserError
from purifiers.core.noise import uniform
from purifiers.core.target import Target
from purifiers.core.traits import MethodTraits

EPS, STEP, STEPS = 0.1, 0.03, 5
BUDGET = {"eps": EPS, "step_size": STEP, "steps": STEPS}
LABELS = torch.tensor([0, 1, 0, 1])
INDICES = torch.tensor([7, 3, 90, 12])


@pytest.fixture
def weights() -> Tensor:
    return torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def images() -> Tensor:
    made = torch.rand(4, 2, 3, 3, generator=torch.Generator().manual_seed(2))
    made[0].clamp_(0.02, 0.05)  # the range binds here
    made[1].clamp_(0.97, 1.0)
    return made


@pytest.fixture
def linear(weights) -> Callable[[Tensor], Tensor]:
    """Two classes, logits -+ <w, x>: the loss climbs along w for label 0, against it for 1."""

    def logits(images: Tensor) -> Tensor:
        score = (images * weights).sum(dim=(1, 2, 3))
        return torch.stack([-score, score], dim=1)

    return logits


@pytest.fixture
def climb(weights) -> Tensor:
    """Sign of the loss's gradient (4, 2, 3, 3), the same everywhere."""
    return torch.where((LABELS == 0).view(-1, 1, 1, 1), weights.sign(), -weights.sign())


class Halve(Method):
    """Also refuses to be differentiated."""

    def purify(self, images, seed=0, indices=None):
        assert not torch.is_grad_enabled()
        return images / 2


class Shaken(Method):
    """Another shift at each draw."""

    traits = MethodTraits(version=1, random=True)

    def purify(self, images, seed=0, indices=None):
        where = default_indices(images, indices)
        shift = uniform(seed, where, images.shape[1:], -0.3, 0.3, tag="shaken")
        return (images + shift).clamp(0.0, 1.0)


class Informed(Method):
    """A score towards 0.4, a verdict that grows with <v, x>; purifies towards 0.4."""

    def purify(self, images, seed=0, indices=None):
        return images + 0.1 * (0.4 - images)

    def score(self, images):
        return 0.4 - images

    def detector_logit(self, images):
        return (images * verdict_weights()).sum(dim=(1, 2, 3))


def verdict_weights() -> Tensor:
    return torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(3))


def project(moved: Tensor, images: Tensor) -> Tensor:
    return moved.clamp(images - EPS, images + EPS).clamp(0.0, 1.0)


# Approximate input


@pytest.mark.parametrize("methods", [None, [], ["identity"]], ids=str)
def test_approximate_input_where_nothing_changes_is_pgd(linear, images, methods):
    target = linear
    if methods is not None:
        target = Defence(linear, [purifiers.method(name) for name in methods])
    made = ApproximateInput(**BUDGET)(target, images, LABELS)
    pgd = Pgd(**BUDGET, random_start=False)(target, images, LABELS)
    torch.testing.assert_close(made, pgd)


def test_approximate_input_climbs_from_the_purified_image(linear, images, climb):
    """By hand: x <- project(x / 2 + step * sign), around the original image."""
    expected = images
    for _ in range(STEPS):
        expected = project(expected / 2 + STEP * climb, images)
    made = ApproximateInput(**BUDGET)(Defence(linear, [Halve()]), images, LABELS)
    torch.testing.assert_close(made, expected)
    plain = Pgd(**BUDGET, random_start=False)(linear, images, LABELS)
    assert (made - plain).abs().max() > EPS / 2


@pytest.mark.parametrize("combine", ["mean", "sign"])
def test_approximate_input_over_draws(victim, combine):
    """Mean of the purified images, and mean of their gradients or signs, draw by draw."""
    images, labels = victim.images[:4], victim.labels[:4]
    settings = {"seed": 5, "eot_samples": 3, "eot_combine": combine}
    made = ApproximateInput(**BUDGET | {"steps": 2})(
        Defence(victim.model, [Shaken()], **settings), images, labels, 0, INDICES
    )
    draws, expected = Target(Defence(victim.model, [Shaken()], seed=5)), images
    for _ in range(2):
        purified = [draws.purify(expected, INDICES) for _ in range(3)]
        gradients = []
        for image in purified:
            leaf = image.clone().requires_grad_(True)
            loss = functional.cross_entropy(victim.model(leaf), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, leaf)
            gradients.append(gradient.sign() if combine == "sign" else gradient)
        direction = torch.stack(gradients).mean(dim=0).sign()
        expected = project(torch.stack(purified).mean(dim=0) + STEP * direction, images)
    assert ((made - expected).abs() > 1e-5).float().mean() < 0.01  # a sign may hang on a bit


def test_approximate_input_reads_no_gradient_of_the_purifier(linear, images):
    """Whatever the cell's gradient is: the purifier asserts that none is taken."""
    defences = [Defence(linear, [Halve()], gradient=mode) for mode in ("exact", "bpda")]
    exact, bpda = (ApproximateInput(**BUDGET)(d, images, LABELS) for d in defences)
    assert torch.equal(exact, bpda)


# Joint attacks


@pytest.mark.parametrize("attack", [JointScore, JointPurification])
def test_joint_steps_by_hand(linear, images, climb, attack):
    """Half a step for the classifier, half towards 0.4: pixels of two minds stay."""
    expected = images
    for _ in range(STEPS):
        both = (climb + (0.4 - expected).sign()) / 2
        expected = project(expected + STEP * both, images)
    made = attack(**BUDGET)(Defence(linear, [Informed()]), images, LABELS)
    torch.testing.assert_close(made, expected)
    first = attack(**BUDGET | {"steps": 1})(Defence(linear, [Informed()]), images, LABELS)
    stayed = (first == images)[2:]  # images on which the range does not bind
    disagree = (climb != (0.4 - images).sign())[2:]
    assert torch.equal(stayed, disagree) and disagree.any() and not disagree.all()


def test_joint_with_a_score_that_agrees_is_pgd(linear, images, climb):
    class Agrees(Informed):
        def score(self, images):
            return 17.0 * climb

    made = JointScore(**BUDGET)(Defence(linear, [], auxiliary=Agrees()), images, LABELS)
    pgd = Pgd(**BUDGET, random_start=False)(linear, images, LABELS)
    torch.testing.assert_close(made, pgd)


def test_joint_without_purification_takes_half_steps(linear, images):
    defence = Defence(linear, [purifiers.method("identity")])
    made = JointPurification(**BUDGET)(defence, images, LABELS)
    half = Pgd(**BUDGET | {"step_size": STEP / 2}, random_start=False)(linear, images, LABELS)
    torch.testing.assert_close(made, half)


def test_joint_purification_adds_up_the_draws(linear, images, climb):
    """Shifts of +.1, +.1 and -.3 point down together, though most draws point up."""

    class Three(Method):
        traits = MethodTraits(version=1, random=True)
        drawn = 0

        def purify(self, images, seed=0, indices=None):
            if len(images) == 3 * len(LABELS):
                return images  # the gradient's three draws, at once
            Three.drawn += 1
            return images + (-0.3 if Three.drawn % 3 == 0 else 0.1)

    defence = Defence(linear, [Three()], gradient="bpda", eot_samples=3)
    made = JointPurification(**BUDGET | {"steps": 1})(defence, images, LABELS)
    torch.testing.assert_close(made, project(images + STEP * (climb - 1) / 2, images))
    assert Three.drawn == 3


class Bleach(Method):
    """Every second pixel turns white, and the others black."""

    def purify(self, images, seed=0, indices=None):
        white = torch.arange(images[0].numel()).view(images.shape[1:]) % 2
        return white + 0 * images

    def score(self, images):
        return 0.4 - images


@pytest.mark.parametrize("draws", [1, 2])
@pytest.mark.parametrize("attack", [Pgd, JointScore, ApproximateInput])
def test_displacements_leave_saturated_pixels_to_the_rest_of_the_attack(
    linear, images, climb, attack, draws
):
    """Pixels that all draws saturate, and that the loss pushes outwards, get no classifier step."""
    white = Bleach().purify(images)
    inward = torch.where(climb > 0, 1 - white, white) * climb
    expected = images
    for _ in range(STEPS):
        if attack is JointScore:
            step = STEP / 2 * (inward + (0.4 - expected).sign())
        else:
            step = STEP * inward
        start = white if attack is ApproximateInput else expected
        expected = project(start + step, images)
    defence = Defence(
        linear, [Bleach()], gradient="bpda", eot_samples=draws, eot_combine="displacement"
    )
    settings = BUDGET | ({"random_start": False} if attack is Pgd else {})
    torch.testing.assert_close(attack(**settings)(defence, images, LABELS), expected)


def test_joint_score_needs_a_score(linear, images):
    with pytest.raises(UserError, match="goes against a method's score"):
        JointScore(**BUDGET)(Defence(linear, [Halve()], gradient="bpda"), images, LABELS)


def test_a_score_that_is_not_finite_is_an_error(linear, images):
    class Lost(Informed):
        def score(self, images):
            return images / 0.0

    with pytest.raises(RuntimeError, match="scores that are not finite"):
        JointScore(**BUDGET)(Defence(linear, [Lost()]), images * 0, LABELS)


# Auxiliary-aware PGD


def test_trade_off_0_is_pgd_and_asks_no_detector(linear, images):
    made = AuxiliaryAware(**BUDGET, trade_off=0, random_start=False)(linear, images, LABELS)
    pgd = Pgd(**BUDGET, random_start=False)(linear, images, LABELS)
    assert torch.equal(made, pgd)


def test_trade_off_1_deceives_the_detector_alone(linear, images):
    """Down the verdict to the corner of the ball, whatever the classifier."""
    attack = AuxiliaryAware(**BUDGET | {"steps": 8}, trade_off=1.0)
    expected = project(images - EPS * verdict_weights().sign(), images)
    for classifier in (linear, lambda x: -3 * linear(x.square())):
        made = attack(Defence(classifier, auxiliary=Informed()), images, LABELS)
        torch.testing.assert_close(made, expected)


@pytest.mark.parametrize("trade_off", [0.2, 0.5, 0.9])
def test_between_them_equation_2_is_climbed(linear, images, trade_off):
    """(1 - lambda) CE(classifier, label) - lambda BCE(detector, clean), differentiated whole."""
    current, detector = images, Informed()
    for _ in range(STEPS):
        leaf = current.clone().requires_grad_(True)
        classifier_loss = functional.cross_entropy(linear(leaf), LABELS, reduction="sum")
        detector_loss = functional.binary_cross_entropy_with_logits(
            detector.detector_logit(leaf), torch.zeros(4), reduction="sum"
        )
        objective = (1 - trade_off) * classifier_loss - trade_off * detector_loss
        (gradient,) = torch.autograd.grad(objective, leaf)
        current = project(current + STEP * gradient.sign(), images)
    attack = AuxiliaryAware(**BUDGET, trade_off=trade_off, random_start=False)
    made = attack(Defence(linear, auxiliary=detector), images, LABELS)
    torch.testing.assert_close(made, current)


def test_the_detector_is_attacked_beside_any_gradient_of_the_defence(victim):
    """BPDA through a rounding purifier: the classifier's part is there, exact it would vanish."""

    class Round(Method):
        def purify(self, images, seed=0, indices=None):
            return (images * 7).round() / 7

        def detector_logit(self, images):
            return images.flatten(1).mean(dim=1)

    attack = AuxiliaryAware(**BUDGET, trade_off=0.5)
    losses = []
    for mode in ("bpda", "exact"):
        defence = Defence(victim.model, [Round()], gradient=mode)
        made = attack(defence, victim.images, victim.labels)
        losses.append(float(functional.cross_entropy(defence(made), victim.labels)))
    assert losses[0] > losses[1] + 0.5


def test_the_discriminator_of_aid_is_deceived():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = WideResnet((1, 16, 16), 10, depth=10, widen_factor=1)
        images = torch.rand(6, 1, 16, 16)
        method = purifiers.method("aid", width=16)
        frozen(classifier)
        method.bind(classifier, classifier.shape)
        frozen(method)
    labels = classifier(images).argmax(dim=1)
    defence = Defence(classifier, auxiliary=method)
    verdicts = []
    for trade_off in (0.0, 1.0):
        attack = AuxiliaryAware(**BUDGET, trade_off=trade_off, random_start=False)
        verdicts.append(method.detector_logit(attack(defence, images, labels)))
    before = method.detector_logit(images)
    assert (verdicts[1] < before).all() and (verdicts[1] < verdicts[0]).all()


def test_what_the_auxiliary_aware_attack_refuses(linear, images):
    with pytest.raises(UserError, match=r"trade_off is 1\.5, but takes a number in \[0, 1\]"):
        AuxiliaryAware(trade_off=1.5)
    with pytest.raises(UserError, match="goes against a method's detector_logit"):
        AuxiliaryAware(**BUDGET)(Defence(linear, [Halve()], gradient="bpda"), images, LABELS)
    signs = Defence(linear, [Shaken()], eot_samples=3, eot_combine="sign", auxiliary=Informed())
    with pytest.raises(UserError, match="weights gradients by length; set `combine: mean`"):
        AuxiliaryAware(**BUDGET)(signs, images, LABELS)


def test_a_verdict_that_is_not_finite_is_an_error(linear, images):
    class Lost(Informed):
        def detector_logit(self, images):
            return images.flatten(1).sum(dim=1).sqrt()

    with pytest.raises(RuntimeError, match="gradients that are not finite"):
        AuxiliaryAware(**BUDGET, random_start=False)(
            Defence(linear, auxiliary=Lost()), images * 0, LABELS
        )


# What files say of themselves


@pytest.mark.parametrize("name", registry.names("method"))
def test_what_a_method_says_it_provides_it_has(name):
    provides = registry.describe("method", name).traits.provides
    cls = registry.load("method", name)
    parts = ("detector_logit", "score", "detected")
    has = {part for part in parts if getattr(cls, part) is not getattr(Method, part)}
    assert set(provides) == has


@pytest.mark.parametrize("name", registry.names("attack"))
def test_attacks_need_what_a_method_can_provide(name):
    assert set(registry.describe("attack", name).traits.needs) <= {"detector_logit", "score"}
