"""The detector of feature squeezing: distances between predictions, and its threshold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import purifiers
from purifiers.core.component import build, frozen
from purifiers.core.errors import UserError
from purifiers.methods import _squeezers as squeezers
from purifiers.methods.feature_squeezing_detector import FeatureSqueezingDetector, quantile

from . import toys


def detector(**parameters: Any) -> FeatureSqueezingDetector:
    method = build(FeatureSqueezingDetector, **parameters)
    method.bind(toys.toy(), toys.SHAPE)
    return frozen(method)


def several(count: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    return torch.rand(count, *toys.SHAPE, generator=draw), torch.zeros(count, dtype=torch.int64)


def test_distance_is_the_largest_over_the_squeezers() -> None:
    images, classifier = several(5)[0], toys.toy()
    original = classifier(images).softmax(1)
    by_hand = [
        (classifier(squeezed).softmax(1) - original).abs().sum(1)
        for squeezed in (
            squeezers.reduce_bits(images, 1),
            squeezers.median(images, 3),
            squeezers.non_local_means(images, 5, 3, 0.1),
        )
    ]
    method = detector(bits=1, median=3, nlm_search=5, nlm_strength=0.1)
    assert torch.allclose(method.distances(images), torch.stack(by_hand).amax(0))
    only_median = detector(bits=None, median=3)
    assert torch.allclose(only_median.distances(images), by_hand[1])
    assert torch.equal(method.purify(images), images)


def test_nothing_is_detected_before_the_fit() -> None:
    assert not detector(bits=1).detected(several(50)[0]).any()


def test_threshold_is_the_quantile_of_the_held_out_images() -> None:
    images, labels = several(200)
    method = detector(bits=1, validation=0.5, false_positive_rate=0.1, batch_size=16)
    purifiers.fit(method, toys.toy(), images, labels, seed=4, progress=False)
    distances = method.distances(images)
    place = distances.sort().values
    assert any(torch.isclose(method.threshold, value, atol=1e-6) for value in place)
    # of the 100 held-out images 10 are above it; of the other 100 about as many
    assert 10 <= int(method.detected(images).sum()) <= 35
    assert torch.equal(method.detected(images), distances > method.threshold)
    assert torch.equal(method.detector_logit(images) > 0, method.detected(images))


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 9), (0.05, 9), (0.1, 8), (0.3, 6), (0.99, 0)])
def test_quantile_has_upstreams_rank(rate: float, expected: int) -> None:
    distances = torch.tensor([3.0, 0, 7, 1, 9, 4, 2, 8, 5, 6])
    assert quantile(distances, rate) == expected
    assert int((distances > expected).sum()) <= rate * 10 + 1e-9


def test_the_quantile_minimises_the_pinball_loss() -> None:
    images, labels = several(40)
    method = detector(bits=1, false_positive_rate=0.2).train()
    losses = []
    best = quantile(method.distances(images), 0.2)
    for shift in (-0.02, 0.0, 0.02):
        method.threshold.data = best + shift
        losses.append(float(method.fit_loss(images, labels, torch.arange(40), 0)))
    assert losses[1] < losses[0] and losses[1] < losses[2]


def test_it_can_be_attacked() -> None:
    leaf = several(3)[0].requires_grad_(True)
    (gradient,) = torch.autograd.grad(detector(bits=3).detector_logit(leaf).sum(), leaf)
    assert gradient.flatten(1).abs().amax(1).min() > 0


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"bits": None, "median": 1}, "has no squeezer: set bits to 5$"),
        ({"validation": 0.0}, r"validation is 0.0, but takes a number in \(0, 1\)$"),
        ({"nlm_strength": 0.0}, "nlm_strength is 0: choose a number above 0"),
    ],
)
def test_refusals_are_one_line(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        build(FeatureSqueezingDetector, **parameters)
    assert "\n" not in str(refused.value)


def test_it_needs_a_classifier() -> None:
    method = FeatureSqueezingDetector()
    method.bind(None, toys.SHAPE)
    with pytest.raises(UserError, match=r"bind a classifier$"):
        method.distances(several(1)[0])
