"""DeepFool and C&W against exact distances on linear models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from purifiers.attacks.cw_l2 import SHRINK, CwL2
from purifiers.attacks.deepfool_linf import MARGIN, DeepfoolLinf
from purifiers.core.errors import UserError

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


@pytest.mark.parametrize("overshoot", [0.02, 0.5])
def test_deepfool_binary_distance(images, overshoot):
    weights, bias = linear(2)
    labels, exact = distances(images, weights, bias, norm=1)
    attack = DeepfoolLinf(eps=None, overshoot=overshoot)
    adversarial = attack(model(weights, bias), images, labels)
    assert (model(weights, bias)(adversarial).argmax(dim=1) != labels).all()
    moved = (adversarial - images).abs().flatten(1).amax(dim=1)
    torch.testing.assert_close(
        moved, (1 + overshoot) * (exact.amin(dim=1) + MARGIN), rtol=1e-4, atol=1e-6
    )


def test_deepfool_picks_the_closest_class(images):
    weights, bias = linear(6)
    labels, exact = distances(images, weights, bias, norm=1)
    adversarial = DeepfoolLinf(eps=None)(model(weights, bias), images, labels)
    reached = model(weights, bias)(adversarial).argmax(dim=1)
    assert torch.equal(reached, exact.argmin(dim=1))
    moved = (adversarial - images).abs().flatten(1).amax(dim=1)
    torch.testing.assert_close(moved, 1.02 * (exact.amin(dim=1) + MARGIN), rtol=1e-4, atol=1e-6)
    runner_up = model(weights, bias)(images).argsort(dim=1)[:, -2]
    assert not torch.equal(reached, runner_up), "the largest logit is not always the closest class"


def test_deepfool_candidates_limit_the_classes(images):
    weights, bias = linear(6)
    labels, exact = distances(images, weights, bias, norm=1)
    runner_up = model(weights, bias)(images).argsort(dim=1)[:, -2]
    attack = DeepfoolLinf(eps=None, candidates=2, steps=1)
    adversarial = attack(model(weights, bias), images, labels)
    moved = (adversarial - images).abs().flatten(1).amax(dim=1)
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


def test_deepfool_uses_the_labels(victim):
    """With labels that are all wrong nothing is left to do."""
    wrong = (victim.model(victim.images).argmax(dim=1) + 1) % 10
    assert torch.equal(DeepfoolLinf()(victim.model, victim.images, wrong), victim.images)


def test_deepfool_drops_finished_images(victim):
    forwards = []

    def counted(x):
        forwards.append(len(x))
        return victim.model(x)

    DeepfoolLinf(eps=None, steps=20)(counted, victim.images, victim.labels)
    assert forwards[0] == len(victim.images)
    assert sum(forwards) < 10 * len(victim.images)
    assert sorted(forwards, reverse=True) == forwards


def test_deepfool_needs_two_candidates():
    with pytest.raises(UserError, match="candidates is 1"):
        DeepfoolLinf(candidates=1)


def test_deepfool_flat_model_moves_nothing():
    def flat(x):
        zero = 0 * x.sum(dim=(1, 2, 3))
        return torch.stack([zero + 1, zero], dim=1)

    image = torch.full((1, 1, 2, 2), 0.5)
    assert torch.equal(DeepfoolLinf(steps=3)(flat, image, torch.tensor([0])), image)


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


def test_cw_skips_backwards(victim):
    """Once an image is over the boundary it needs a forward only."""
    passes = {True: 0, False: 0}

    def counted(x):
        passes[torch.is_grad_enabled()] += len(x)
        return victim.model(x)

    attack = CwL2(steps=40, search_steps=1, initial_const=10.0, learning_rate=0.05)
    attack(counted, victim.images, victim.labels)
    assert passes[True] + passes[False] >= 40 * len(victim.images)
    assert passes[True] < 0.7 * 40 * len(victim.images)


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
