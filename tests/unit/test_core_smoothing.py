"""Randomised smoothing against hand-worked numbers and the authors' published radii."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from purifiers.core.errors import UserError
from purifiers.core.noise import keys_on, normal_on
from purifiers.core.smoothing import (
    ABSTAIN,
    cast_votes,
    certify,
    lower_bound,
    predict,
)
from purifiers.core.votes import fewest_for_certificate, fewest_for_prediction


def radius(hits: int, draws: int, sigma: float, alpha: float) -> float:
    votes = [[hits, draws - hits]]
    return float(certify([[100, 0]], votes, sigma, alpha).radii[0])


# PREDICT


@pytest.mark.parametrize("votes, decided", [((10, 1), False), ((11, 0), True), ((12, 1), False)])
def test_prediction_by_hand(votes, decided):
    """p-values: 2 (1 + 11) / 2^11 = .0117, 2 / 2^11 = .00098, 2 (1 + 13) / 2^13 = .0034."""
    answer = predict([[0, *votes]], 0.001)
    assert answer.tolist() == [1 if decided else ABSTAIN]


def test_prediction_compares_the_top_two():
    """60 against 20 of 100 votes: the third class's 20 do not count against the first."""
    votes = np.array([[20, 60, 20], [45, 55, 0], [0, 45, 55], [0, 0, 100]])
    assert predict(votes, 0.001).tolist() == [1, ABSTAIN, ABSTAIN, 2]
    assert predict(votes[1:3], 0.4).tolist() == [1, 2]  # p-value .368


# CERTIFY


@pytest.mark.parametrize(
    "sigma, alpha, all_agree, but_one",
    [
        (0.12, 0.001, 0.457, 0.449),
        (0.25, 0.01, 0.978, 0.955),
        (0.5, 0.01, 1.96, 1.91),
    ],
)
def test_radii_of_the_published_logs(sigma, alpha, all_agree, but_one):
    """The two highest radii in the logs of `locuslab/smoothing`, of 100,000 votes.

    Its CIFAR-10 log of sigma 0.12 fits alpha 0.001, its ImageNet logs fit 0.01.
    """
    assert float(f"{radius(100_000, 100_000, sigma, alpha):.3g}") == all_agree
    assert float(f"{radius(99_999, 100_000, sigma, alpha):.3g}") == but_one


def test_highest_radius_of_the_paper():
    """100,000 votes at alpha 0.001 certify at most 3.8 sigma, since p <= alpha^(1/n)."""
    highest = radius(100_000, 100_000, 1.0, 0.001)
    assert highest == pytest.approx(stats.norm.ppf(0.001 ** (1 / 100_000)), rel=1e-9)
    assert round(highest, 1) == 3.8


def test_bound_by_hand():
    """All of n: alpha^(1/n). One of n: 1 - (1 - alpha)^(1/n). None: 0."""
    bound = lower_bound([10, 1, 0], [10, 10, 10], 0.05)
    assert bound == pytest.approx([0.05**0.1, 1 - 0.95**0.1, 0.0], rel=1e-9)


def test_bound_solves_its_equation():
    """At the bound the probability of as many hits or more is alpha."""
    (bound,) = lower_bound([70], [100], 0.001)
    tail = sum(math.comb(100, k) * bound**k * (1 - bound) ** (100 - k) for k in range(70, 101))
    assert tail == pytest.approx(0.001, rel=1e-6)


def test_certificates_follow_the_selection():
    """The class comes from the first votes, its probability from the second ones."""
    selection = [[10, 90, 0], [60, 40, 0], [90, 10, 0]]
    estimation = [[20, 980, 0], [480, 520, 0], [0, 1000, 0]]
    certificates = certify(selection, estimation, 0.5, 0.001)
    assert certificates.predictions.tolist() == [1, ABSTAIN, ABSTAIN]
    (bound,) = lower_bound([980], [1000], 0.001)
    assert certificates.radii.tolist() == [pytest.approx(0.5 * stats.norm.ppf(bound)), 0.0, 0.0]


def test_radius_grows_with_sigma_and_with_agreement():
    assert radius(990, 1000, 1.0, 0.001) == pytest.approx(4 * radius(990, 1000, 0.25, 0.001))
    radii = [radius(hits, 1000, 0.25, 0.001) for hits in (500, 600, 900, 999, 1000)]
    assert radii[0] == 0.0 and radii == sorted(set(radii))
    assert radius(990, 1000, 0.25, 0.05) > radius(990, 1000, 0.25, 0.001)


# votes of a function


def test_a_linear_classifier_is_certified_below_its_true_distance():
    """Class 1 beyond x = .5: at .8 the smoothed classifier changes at distance .3 exactly."""
    images, indices = torch.full((1, 1, 1, 1), 0.8), torch.arange(1)

    def noisy(images: torch.Tensor, draw: int) -> torch.Tensor:
        noise = normal_on(keys_on(draw, indices), images.shape[1:])
        score = (images + 0.25 * noise - 0.5).flatten(1)
        return torch.cat([-score, score], dim=1)

    votes = cast_votes(noisy, images, 1100, 2)
    assert votes.dtype == np.int64 and votes.sum() == 1100
    assert votes[0, 1] / 1100 == pytest.approx(stats.norm.cdf(0.3 / 0.25), abs=0.03)
    certificates = certify(votes, votes, 0.25, 0.001)
    assert certificates.predictions.tolist() == [1]
    assert 0.24 < certificates.radii[0] < 0.3
    assert predict(votes, 0.001).tolist() == [1]


# refusals


def test_fewest_votes():
    """2 (1/2)^11 < .001 < 2 (1/2)^10; .001^(1/10) > 1/2 > .001^(1/9)."""
    assert (fewest_for_prediction(0.001), fewest_for_certificate(0.001)) == (11, 10)
    assert (fewest_for_prediction(0.5), fewest_for_certificate(0.25)) == (2, 3)
    for alpha in (0.3, 0.05, 0.001, 1e-6):
        few, many = fewest_for_prediction(alpha), fewest_for_certificate(alpha)
        pvalues = [stats.binomtest(n, n, 0.5).pvalue for n in (few - 1, few)]
        assert pvalues[1] <= alpha < pvalues[0]
        assert lower_bound([many - 1, many], [many - 1, many], alpha)[1] > 0.5
        assert lower_bound([many - 1], [many - 1], alpha)[0] <= 0.5


@pytest.mark.parametrize(
    "act, message",
    [
        (lambda: predict([[10, 0]], 0.001), "10 votes cannot predict at alpha 0.001.*least 11"),
        (
            lambda: certify([[9, 0]], [[9, 0]], 0.25, 0.001),
            "9 votes cannot certify at alpha 0.001.*least 10",
        ),
        (lambda: predict([[10, 0]], 0.0), "alpha is 0.0"),
        (lambda: predict([[0.5, 0.5]], 0.1), "votes is float64"),
        (lambda: predict([30, 2], 0.1), r"shape \(2,\)"),
        (lambda: predict([[30, -2]], 0.1), "negative"),
        (lambda: certify([[9, 0]], [[90, 0, 0]], 0.25, 0.1), r"\(1, 2\), estimation of \(1, 3\)"),
        (lambda: certify([[9, 0]], [[90, 0]], -1.0, 0.1), "sigma is -1.0"),
        (lambda: certify([[9, 0]], [[90, 0]], float("nan"), 0.1), "sigma is nan"),
        (lambda: cast_votes(lambda x, _: x, torch.zeros(1, 1, 1, 1), 0, 2), "0 votes"),
    ],
)
def test_bad_input_is_one_line(act, message):
    with pytest.raises(UserError, match=f"smoothing: .*{message}") as refused:
        act()
    assert "\n" not in str(refused.value)
