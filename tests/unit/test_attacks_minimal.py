"""DeepFool and C&W against exact distances on linear models, and against plain versions."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from purifiers.attacks._deepfool import MARGIN
from purifiers.attacks._losses import margin
from purifiers.attacks._tanh import SHRINK
from purifiers.attacks.cw_l2 import CwL2
from purifiers.attacks.cw_linf import CwLinf
from purifiers.attacks.deepfool_l2 import DeepfoolL2
from purifiers.attacks.deepfool_linf import DeepfoolLinf
from purifiers.core.errors import UserError
from purifiers.core.target import Target

N, SHAPE = 8, (1, 4, 4)


@pytest.fixture
def images() -> Tensor:
    """Images well inside [0, 1], so that the range never binds."""
    return 0.4 + 0.2 * torch.rand(N, *SHAPE, generator=torch.Generator().manual_seed(0))


def linear(classes: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Weights (classes, 16) and biases that balance the classes at mid grey."""
    noise = torch.Generator().manual_seed(classes)
    weights = scale * torch.randn(classes, 16, generator=noise)
    return weights, 0.05 * scale * torch.randn(classes, generator=noise) - 0.5 * weights.sum(dim=1)


def distances(images: Tensor, weights: Tensor, bias: Tensor, norm: int) -> tuple[Tensor, Tensor]:
    """Predictions (n,), and the exact distance (n, classes) to each other class's boundary."""
    logits = images.flatten(1) @ weights.T + bias
    labels = logits.argmax(dim=1)
    gap = logits.gather(1, labels.unsqueeze(1)) - logits
    slope = (weights[labels].unsqueeze(1) - weights.unsqueeze(0)).norm(p=norm, dim=2)
    return labels, torch.where(gap == 0, float("inf"), gap / slope)


def model(weights: Tensor, bias: Tensor):
    return lambda x: x.flatten(1) @ weights.T + bias


NORMS = {"linf": (DeepfoolLinf, {"eps": None}, 1), "l2": (DeepfoolL2, {}, 2)}


@pytest.fixture(params=NORMS)
def deepfool(request):
    """DeepFool of a norm without limit, by its parameters, and the dual norm."""
    attack, unlimited, dual = NORMS[request.param]
    return (lambda **parameters: attack(**unlimited, **parameters)), dual


def lengths(shift: Tensor, dual: int) -> Tensor:
    return shift.flatten(1).norm(p=float("inf") if dual == 1 else 2, dim=1)


@pytest.mark.parametrize("overshoot", [0.02, 0.5])
def test_deepfool_binary_distance(deepfool, images, overshoot):
    attack, dual = deepfool
    weights, bias = linear(2)
    labels, exact = distances(images, weights, bias, norm=dual)
    adversarial = attack(overshoot=overshoot)(model(weights, bias), images, labels)
    assert (model(weights, bias)(adversarial).argmax(dim=1) != labels).all()
    moved = lengths(adversarial - images, dual)
    expected = (1 + overshoot) * (exact.amin(dim=1) + MARGIN)
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-6)


def test_deepfool_l2_is_the_projection(images):
    weights, bias = linear(2)
    labels, exact = distances(images, weights, bias, norm=2)
    adversarial = DeepfoolL2(overshoot=0.0)(model(weights, bias), images, labels)
    normal = F.normalize(weights[1 - labels] - weights[labels], dim=1)
    nearest = images + ((exact.amin(dim=1) + MARGIN).unsqueeze(1) * normal).view_as(images)
    torch.testing.assert_close(adversarial, nearest, rtol=1e-4, atol=1e-6)


def test_deepfool_steps_away_from_a_label_that_one_draw_has_lost(images):
    """A random model may keep the label when asked, and not at the draw that gives the gradient."""
    weights, bias = linear(3)
    sure, labels = model(weights, bias), (images.flatten(1) @ weights.T + bias).argmax(dim=1)
    asked: list[int] = []

    class Fickle:
        stochastic = True

        def __call__(self, x: Tensor, **_) -> Tensor:
            asked.append(len(x))
            # most are broken at once, so that the others are asked a second time
            shift = torch.zeros(len(x), 3)
            if len(asked) == 1:
                shift[:5].scatter_(1, labels[:5, None], -1e3)
            elif len(asked) == 2:
                shift.scatter_(1, labels[5:, None], -10.0)
            return sure(x) + shift

    def margins(x: Tensor) -> Tensor:
        logits = sure(x)
        own = logits.gather(1, labels[:, None]).squeeze(1)
        return own - logits.scatter(1, labels[:, None], float("-inf")).amax(dim=1)

    attack = DeepfoolL2(steps=1, candidates=2)
    moved = attack(Fickle(), images, labels)
    assert asked == [N, N - 5]
    assert (margins(moved)[5:] < margins(images)[5:]).all()


def test_deepfool_picks_the_closest_class(deepfool, images):
    attack, dual = deepfool
    weights, bias = linear(6)
    labels, exact = distances(images, weights, bias, norm=dual)
    adversarial = attack()(model(weights, bias), images, labels)
    reached = model(weights, bias)(adversarial).argmax(dim=1)
    assert torch.equal(reached, exact.argmin(dim=1))
    moved = lengths(adversarial - images, dual)
    torch.testing.assert_close(moved, 1.02 * (exact.amin(dim=1) + MARGIN), rtol=1e-4, atol=1e-6)
    runner_up = model(weights, bias)(images).argsort(dim=1)[:, -2]
    assert not torch.equal(reached, runner_up), "the largest logit is not always the closest class"


def test_deepfool_candidates_limit_the_classes(deepfool, images):
    attack, dual = deepfool
    weights, bias = linear(6)
    labels, exact = distances(images, weights, bias, norm=dual)
    runner_up = model(weights, bias)(images).argsort(dim=1)[:, -2]
    adversarial = attack(candidates=2, steps=1)(model(weights, bias), images, labels)
    moved = lengths(adversarial - images, dual)
    expected = 1.02 * (exact.gather(1, runner_up.unsqueeze(1)).squeeze(1) + MARGIN)
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-6)


def test_deepfool_clips_to_eps_and_leaves_misclassified(victim):
    free = DeepfoolLinf(eps=None)(victim.model, victim.images, victim.labels)
    clipped = DeepfoolLinf(eps=0.05)(victim.model, victim.images, victim.labels)
    wrong = ~victim.correct(victim.images)
    assert torch.equal(free[wrong], victim.images[wrong])
    assert victim.accuracy(free) < 0.05
    assert victim.accuracy(free) < victim.accuracy(clipped) < victim.accuracy(victim.images)
    shift = (free - victim.images).clamp(-0.05, 0.05)
    torch.testing.assert_close(clipped, victim.images + shift, atol=1e-6, rtol=0)


def test_deepfool_projects_onto_the_l2_ball(victim):
    free = DeepfoolL2()(victim.model, victim.images, victim.labels)
    limited = DeepfoolL2(radius=0.3)(victim.model, victim.images, victim.labels)
    assert victim.accuracy(free) < 0.05
    assert victim.accuracy(free) < victim.accuracy(limited) < victim.accuracy(victim.images)
    shift = free - victim.images
    scale = (0.3 / lengths(shift, 2).clamp_min(0.3)).view(-1, 1, 1, 1)
    torch.testing.assert_close(limited, victim.images + scale * shift, atol=1e-6, rtol=0)


def test_deepfool_uses_the_labels(deepfool, victim):
    """With labels that are all wrong nothing is left to do."""
    wrong = (victim.model(victim.images).argmax(dim=1) + 1) % 10
    assert torch.equal(deepfool[0]()(victim.model, victim.images, wrong), victim.images)


def test_deepfool_drops_finished_images(deepfool, victim):
    forwards = []

    def counted(x):
        forwards.append(len(x))
        return victim.model(x)

    deepfool[0](steps=20)(counted, victim.images, victim.labels)
    assert forwards[0] == len(victim.images)
    assert sum(forwards) < 10 * len(victim.images)
    assert sorted(forwards, reverse=True) == forwards


def plain_deepfool(
    network: nn.Module, image: Tensor, label: int, dual: int, clip_sum: bool
) -> Tensor:
    """Eight steps on one image (1, C, H, W), an overshoot of .02, all classes."""
    current, total = image, torch.zeros_like(image)
    for _ in range(8):
        leaf = current.clone().requires_grad_(True)
        (logits,) = network(leaf)
        if int(logits.argmax()) != label:
            break
        found = []
        for rival in (k for k in range(len(logits)) if k != label):
            gap = logits[label] - logits[rival]
            (slope,) = torch.autograd.grad(gap, leaf, retain_graph=True)
            found.append((float(gap.detach() / slope.norm(p=dual)), slope))
        length, slope = min(found, key=lambda pair: pair[0])
        step = (length + MARGIN) * (slope.sign() if dual == 1 else slope / slope.norm())
        total = total - step
        moved = current - 1.02 * step if clip_sum else image + 1.02 * total
        current = moved.clamp(0.0, 1.0)
    return current


def test_deepfool_may_forget_what_the_range_refused(deepfool, victim):
    """Then it is the loop that clips every overshot step by itself; and nearer: digits are mostly
    black. Otherwise it is the sum of the steps that is overshot and clipped."""
    attack, dual = deepfool
    images, labels = victim.images[:16], victim.labels[:16]
    distance = {}
    for clip_sum in (False, True):
        found = attack(steps=8, clip_sum=clip_sum)(victim.model, images, labels)
        expected = [
            plain_deepfool(victim.model, image.unsqueeze(0), int(label), dual, clip_sum)
            for image, label in zip(images, labels, strict=True)
        ]
        torch.testing.assert_close(found, torch.cat(expected), atol=2e-4, rtol=0)
        distance[clip_sum] = lengths(found - images, dual).mean()
    assert distance[True] < distance[False]


def test_deepfool_goes_on_alone_where_one_image_is_left(deepfool, victim):
    """A few finished images stay for the backward passes, many are left out; both end alike."""
    attack = deepfool[0]()
    whole = attack(victim.model, victim.images, victim.labels)
    single = [
        attack(victim.model, image.unsqueeze(0), label.unsqueeze(0))
        for image, label in zip(victim.images, victim.labels, strict=True)
    ]
    # a pixel whose slope is nothing but rounding goes either way
    assert ((torch.cat(single) - whole).abs() > 1e-4).float().mean() < 0.002


@pytest.mark.parametrize("attack", [DeepfoolLinf, DeepfoolL2])
def test_deepfool_refuses_what_makes_no_sense(attack):
    with pytest.raises(UserError, match="candidates is 1"):
        attack(candidates=1)
    with pytest.raises(UserError, match="steps is 0"):
        attack(steps=0)


def test_deepfool_l2_needs_a_radius_above_zero():
    with pytest.raises(UserError, match="radius is 0"):
        DeepfoolL2(radius=0.0)


def test_deepfool_flat_model_moves_nothing(deepfool):
    def flat(x):
        zero = 0 * x.sum(dim=(1, 2, 3))
        return torch.stack([zero + 1, zero], dim=1)

    image = torch.full((1, 1, 2, 2), 0.5)
    assert torch.equal(deepfool[0](steps=3)(flat, image, torch.tensor([0])), image)


def test_deepfool_slopes_that_are_not_finite_are_an_error(deepfool):
    def steep(x):
        root = (x - x).sum(dim=(1, 2, 3)).sqrt()
        return torch.stack([root + 1, root * 0], dim=1)

    with pytest.raises(RuntimeError, match="gradients that are not finite"):
        deepfool[0]()(steep, torch.full((1, 1, 2, 2), 0.5), torch.tensor([0]))


@pytest.mark.parametrize("classes", [2, 5])
def test_cw_reaches_the_exact_distance(images, classes):
    weights, bias = linear(classes)
    _, exact = distances(images, weights, bias, norm=2)
    images = images[exact.amin(dim=1) > 0.004]  # closer than an Adam step is long
    assert len(images) >= 6
    labels, exact = distances(images, weights, bias, norm=2)
    attack = CwL2(steps=300, search_steps=6, initial_const=0.1)
    adversarial = attack(model(weights, bias), images, labels)
    moved = (adversarial - images).flatten(1).norm(dim=1)
    reached = model(weights, bias)(adversarial).argmax(dim=1)
    assert (reached != labels).all()
    assert attack.failed == ()
    # the hinge pulls to the largest rival logit, which need not be the closest class
    ratio = moved / exact.gather(1, reached.unsqueeze(1)).squeeze(1)
    assert ratio.min() > 0.999
    assert ratio.max() < 1.02


def test_cw_confidence_is_reached(images):
    weights, bias = linear(3)
    labels, _ = distances(images, weights, bias, norm=2)
    attack = CwL2(steps=200, search_steps=4, initial_const=1.0, confidence=0.5)
    logits = model(weights, bias)(attack(model(weights, bias), images, labels))
    others = logits.scatter(1, labels.unsqueeze(1), float("-inf")).amax(dim=1)
    lead = others - logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    assert lead.min() > 0.5 - 1e-4
    assert lead.median() < 0.6


def textbook_cw(logits_fn, images, labels, steps, search_steps, constant, learning_rate):
    """C&W written plainly: autograd through everything, torch's Adam, one image at a time."""
    result = images.clone()
    for i in range(len(images)):
        anchor = torch.atanh((2 * images[i : i + 1] - 1) * SHRINK)
        start, best = (torch.tanh(anchor) + 1) / 2, float("inf")
        low, high, c = 0.0, float("inf"), constant
        for _ in range(search_steps):
            w = anchor.clone().requires_grad_()
            adam = torch.optim.Adam([w], lr=learning_rate)
            solved = False
            for _ in range(steps):
                x = (torch.tanh(w) + 1) / 2
                logits = logits_fn(x)[0]
                other = max(z for k, z in enumerate(logits) if k != labels[i])
                gap = logits[labels[i]] - other
                length = (x - start).square().sum()
                if gap < 0:
                    solved = True
                    if length < best:
                        best, result[i] = length.item(), x[0].detach()
                adam.zero_grad()
                (length + c * F.relu(gap)).backward()
                adam.step()
            low, high = (low, c) if solved else (c, high)
            c = 10 * c if high == float("inf") else (low + high) / 2
    return result


def test_cw_equals_the_textbook(victim):
    """Skipping backwards where the hinge is zero changes nothing."""
    images, labels = victim.images[:3], victim.labels[:3]
    fast = CwL2(steps=30, search_steps=3, initial_const=1.0, learning_rate=0.05)
    expected = textbook_cw(victim.model, images, labels, 30, 3, 1.0, 0.05)
    torch.testing.assert_close(fast(victim.model, images, labels), expected, atol=2e-3, rtol=0)
    assert (expected != images).any()


class Counted:
    """The victim's model, counting images with and without gradient."""

    def __init__(self, model, stochastic=False):
        self.model, self.stochastic = model, stochastic
        self.passes = {True: 0, False: 0}

    def __call__(self, x):
        self.passes[torch.is_grad_enabled()] += len(x)
        return self.model(x)


@pytest.mark.parametrize("const", [0.3, 3.0, 30.0])
def test_cw_coasting_changes_nothing(victim, const):
    """What says that it is random is asked at every step; where it is not, that ends alike."""
    images, labels = victim.images[:32], victim.labels[:32]
    attack = CwL2(steps=80, search_steps=2, initial_const=const, learning_rate=0.03)
    plain, coasting = Counted(victim.model, stochastic=True), Counted(victim.model)
    expected, adversarial = attack(plain, images, labels), attack(coasting, images, labels)
    assert coasting.passes[False] < 0.6 * plain.passes[False]
    assert coasting.passes[True] == pytest.approx(plain.passes[True], rel=0.01)
    moved, known = ((x - images).flatten(1).norm(dim=1) for x in (adversarial, expected))
    torch.testing.assert_close(moved, known, rtol=0.01, atol=1e-5)
    broken = victim.model(adversarial).argmax(dim=1) != labels
    assert torch.equal(broken, victim.model(expected).argmax(dim=1) != labels)
    assert broken.float().mean() > 0.9


def test_cw_a_random_model_is_asked_at_every_step(victim):
    images, labels = victim.images[:4], victim.labels[:4]
    assert victim.correct(victim.images)[:4].all()
    noise = torch.Generator().manual_seed(0)
    model = Counted(lambda x: victim.model(x) + torch.randn(len(x), 10, generator=noise), True)
    CwL2(steps=40, search_steps=1, initial_const=10.0, learning_rate=0.05)(model, images, labels)
    assert sum(model.passes.values()) >= 40 * len(images)


@pytest.mark.parametrize("const", [1e-3, 10.0])
def test_cw_gives_up_early(victim, const):
    """Where c is too small to misclassify an image, and nowhere else."""
    runs = {}
    for abort_early in (False, True):
        counted = Counted(victim.model)
        attack = CwL2(
            steps=300,
            search_steps=1,
            initial_const=const,
            learning_rate=0.05,
            abort_early=abort_early,
        )
        adversarial = attack(counted, victim.images[:16], victim.labels[:16])
        runs[abort_early] = (attack.failed, sum(counted.passes.values()), adversarial)
    (failed, all_passes, patient), (also_failed, passes, hasty) = runs[False], runs[True]
    assert failed == also_failed
    assert torch.equal(patient, hasty)
    assert (passes < 0.7 * all_passes and len(failed) > 10) if const < 1 else passes == all_passes


def test_cw_misclassified_images_are_not_touched_again(victim):
    wrong = (victim.model(victim.images).argmax(dim=1) + 1) % 10
    counted = Counted(victim.model)
    attack = CwL2(steps=50, search_steps=3)
    adversarial = attack(counted, victim.images, wrong)
    torch.testing.assert_close(adversarial, victim.images, atol=1e-6, rtol=0)
    assert counted.passes == {True: len(victim.images), False: 0}


@pytest.mark.parametrize(
    "attack",
    [
        CwL2(steps=60, search_steps=2, initial_const=3.0, learning_rate=0.05),
        CwLinf(eps=0.3, steps=10),
    ],
    ids=["l2", "linf"],
)
def test_cw_successes_are_confirmed_in_full_precision(victim, attack):
    class Coarse(Counted):
        def exact(self, x):
            return victim.model(x)

    favoured = 3.0 * (torch.arange(10) % 3 == 0)
    coarse = Coarse(lambda x: victim.model(x) + favoured)
    adversarial = attack(coarse, victim.images, victim.labels)
    failed = torch.isin(torch.arange(len(victim.images)), torch.tensor(attack.failed))
    assert not victim.correct(adversarial)[~failed].any()


def test_cw_failures_are_counted_and_keep_the_original(victim):
    indices = torch.arange(100, 100 + len(victim.images))
    wrong = ~victim.correct(victim.images)
    weak = CwL2(steps=2, search_steps=1, learning_rate=1e-4)
    adversarial = weak(victim.model, victim.images, victim.labels, indices=indices)
    assert weak.failed == tuple(indices[~wrong].tolist())
    assert torch.equal(adversarial[~wrong], victim.images[~wrong])


def test_cw_foolbox_zero_blackens_failures(victim):
    settings = {"steps": 2, "search_steps": 1, "learning_rate": 1e-4}
    failed = victim.correct(victim.images)
    black = CwL2(on_failure="foolbox_zero", **settings)
    images = victim.images
    assert not black(victim.model, images, victim.labels)[failed].any()
    ball = CwL2(on_failure="foolbox_zero", max_l2=1.5, **settings)
    darker = ball(victim.model, images, victim.labels)[failed]
    length = images[failed].flatten(1).norm(dim=1)
    assert (length > 1.5).all()
    expected = images[failed] * (1 - 1.5 / length).view(-1, 1, 1, 1)
    torch.testing.assert_close(darker, expected, atol=1e-6, rtol=0)


def test_cw_projects_onto_the_l2_ball(victim):
    settings = {"steps": 30, "search_steps": 2, "initial_const": 1.0, "learning_rate": 0.05}
    args = (victim.model, victim.images, victim.labels)
    free, limited = CwL2(**settings)(*args), CwL2(max_l2=0.3, **settings)(*args)
    lengths = (free - victim.images).flatten(1).norm(dim=1)
    short = (limited - victim.images).flatten(1).norm(dim=1)
    assert lengths.max() > 0.5
    torch.testing.assert_close(short, lengths.clamp_max(0.3), atol=1e-5, rtol=0)


def test_cw_moves_pixels_at_the_edge_of_the_range():
    """Black and white pixels must not be stuck: tanh's derivative is tiny there, not zero."""
    image = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)

    def logits(x):
        score = x[:, 0, 0, 0] - x[:, 0, 0, 1] + 0.2
        return torch.stack([-score, score], dim=1)

    attack = CwL2(steps=600, search_steps=2, initial_const=10.0, learning_rate=0.05)
    adversarial = attack(logits, image, torch.tensor([0]))
    assert attack.failed == ()
    assert (adversarial - image).norm() == pytest.approx(0.8 / 2**0.5, rel=0.02)


def test_cw_refuses_unknown_failures():
    with pytest.raises(UserError, match=r"on_failure is 'orignal'.*did you mean 'original'"):
        CwL2(on_failure="orignal")


def textbook_linf(logits_fn, image, label, eps, steps, rate):
    """ART 1.4.1's CarliniLInfMethod for one image, written plainly; None where it fails."""
    low, high = (image - eps).clamp_min(0), (image + eps).clamp_max(1)

    def place(w):
        return low + (high - low) * (torch.tanh(w) + 1) / 2

    def loss(x):
        logits = logits_fn(x.unsqueeze(0))[0]
        other = torch.cat([logits[:label], logits[label + 1 :]]).max()
        return F.relu(logits[label] - other)

    w, best = torch.atanh((2 * (image - low) / (high - low) - 1) * SHRINK), loss(image)
    for _ in range(steps):
        if best == 0:
            break
        leaf = w.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(place(leaf)), leaf)
        chosen, tries = 0.0, 0
        while tries < 5 and not chosen:
            value = loss(place(w - rate * slope))
            if value < best:
                best, chosen = value, rate
            rate, tries = rate / 2, tries + 1
        rate *= 2
        if tries == 1:
            for _ in range(5):
                rate *= 2
                value = loss(place(w - rate * slope))
                if value > best:
                    break
                if value < best:
                    best, chosen = value, rate
            rate /= 2
        w = w - chosen * slope
    return place(w) if best == 0 else None


@pytest.mark.parametrize("rate", [0.002, 0.05, 20.0])
def test_cw_linf_equals_the_textbook(victim, rate):
    """In double precision: a loss that hardly falls is told from one that hardly rises."""
    images, labels = 0.1 + 0.8 * victim.images[:20].double(), victim.labels[:20]
    exact = copy.deepcopy(victim.model).double()
    attack = CwLinf(eps=0.07, steps=9, learning_rate=rate)
    adversarial = attack.perturb(Target(exact), images, labels, 0, torch.arange(20))
    for i, image in enumerate(images):
        expected = textbook_linf(exact, image, int(labels[i]), 0.07, 9, rate)
        assert (expected is None) == (i in attack.failed)
        same = image if expected is None else expected
        torch.testing.assert_close(adversarial[i], same, atol=1e-6, rtol=0)
    assert 1 <= len(attack.failed) <= 19


@pytest.mark.parametrize("classes", [2, 5])
def test_cw_linf_finds_an_example_exactly_where_there_is_one(images, classes):
    weights, bias = linear(classes)
    labels, exact = distances(images, weights, bias, norm=1)
    eps = float(exact.amin(dim=1).median())
    possible = exact.amin(dim=1) < 0.9 * eps
    impossible = exact.amin(dim=1) > eps
    assert possible.any() and impossible.any()
    attack = CwLinf(eps=eps, steps=100, learning_rate=1.0)
    adversarial = attack(model(weights, bias), images, labels)
    broken = model(weights, bias)(adversarial).argmax(dim=1) != labels
    assert broken[possible].all() and not broken[impossible].any()
    assert attack.failed == tuple((~broken).nonzero().flatten().tolist())
    assert torch.equal(adversarial[~broken], images[~broken])
    moved = (adversarial - images).abs().flatten(1).amax(dim=1)
    assert (moved[broken] > exact.amin(dim=1)[broken] - 1e-6).all() and (moved <= eps + 1e-6).all()


def test_cw_linf_stays_in_its_box_and_in_the_range(victim):
    """Also where the box is cut at 0 and 1."""
    attack = CwLinf(eps=0.4, steps=20, learning_rate=5.0)
    adversarial = attack(victim.model, victim.images, victim.labels)
    assert ((adversarial - victim.images).abs() <= 0.4 + 1e-6).all()
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    assert victim.accuracy(adversarial) < 0.5 * victim.accuracy(victim.images)
    wrong = ~victim.correct(victim.images)
    assert torch.equal(adversarial[wrong], victim.images[wrong])


def test_cw_linf_reaches_the_confidence(victim):
    def lead(confidence):
        attack = CwLinf(eps=0.4, steps=30, learning_rate=0.02, confidence=confidence)
        logits = victim.model(attack(victim.model, victim.images, victim.labels))
        failed = torch.isin(torch.arange(len(logits)), torch.tensor(attack.failed))
        assert (~failed).sum() > 10
        return -margin(logits, victim.labels)[~failed]

    assert lead(3.0).min() >= 3.0 - 1e-4
    assert lead(0.0).median() < 2.0


def test_cw_linf_refuses_an_empty_ball():
    with pytest.raises(UserError, match="eps is 0"):
        CwLinf(eps=0.0)
    with pytest.raises(UserError, match="steps is 0"):
        CwLinf(steps=0)
