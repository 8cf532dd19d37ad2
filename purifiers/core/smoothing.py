"""Randomised smoothing (Cohen et al. 2019): predictions and certified radii from votes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor

from purifiers.core.errors import UserError
from purifiers.core.votes import fewest_for_certificate, fewest_for_prediction

ABSTAIN = -1
"""Prediction where the votes do not decide at the confidence asked for."""

Votes = npt.NDArray[np.int64]
"""Votes by image and class, int64 (n, classes)."""


@dataclass(frozen=True)
class Certificates:
    """What randomised smoothing certifies for each image.

    Attributes:
        predictions: class, or :data:`ABSTAIN`, int64 (n,).
        radii: L2 radius over all pixels on the [0, 1] scale within which the smoothed classifier
            predicts the class; 0 where it abstains, float64 (n,).
    """

    predictions: npt.NDArray[np.int64]
    radii: npt.NDArray[np.float64]


def cast_votes(
    logits_fn: Callable[[Tensor, int], Tensor], images: Tensor, draws: int, classes: int
) -> Votes:
    """Count the classes that a random function predicts.

    Args:
        logits_fn: (images, number of the draw) to logits (n, classes): a classifier behind Gaussian
            noise, or any random defence. Each draw needs noise of its own.
        images: float32 (n, C, H, W) in [0, 1].
        draws: votes per image.
        classes: number of classes.

    Returns:
        Votes, int64 (n, classes); each row adds up to ``draws``.

    Raises:
        UserError: no draw.
    """
    if draws < 1:
        raise UserError(f"smoothing: {draws} votes: ask for at least 1")
    votes = torch.zeros((len(images), classes), dtype=torch.int64, device=images.device)
    with torch.no_grad():
        for draw in range(draws):
            winners = logits_fn(images, draw).argmax(1, keepdim=True)
            votes.scatter_add_(1, winners, torch.ones_like(winners))
    return votes.cpu().numpy()


def predict(votes: npt.ArrayLike, alpha: float) -> npt.NDArray[np.int64]:
    """PREDICT: the class with most votes, unless it may be tied with the second one.

    Two-sided binomial test of the top two classes at p = 1/2 (Cohen et al. 2019, section 3.2.1;
    Hung & Fithian 2019).

    Args:
        votes: int (n, classes).
        alpha: probability of a wrong class, in (0, 1); 0.001 in the paper.

    Returns:
        Classes, or :data:`ABSTAIN`, int64 (n,).

    Raises:
        UserError: votes of another kind, or alpha out of range, or too few votes to ever decide.
    """
    counts = _checked(votes, alpha, "votes")
    for total in _totals(counts):
        if total < (fewest := fewest_for_prediction(alpha)):
            raise UserError(_too_few(total, "predict", alpha, fewest))
    order = np.argsort(-counts, axis=1, kind="stable")[:, :2]
    top, second = np.take_along_axis(counts, order, axis=1).T
    tests = (
        stats.binomtest(int(a), int(a + b), 0.5).pvalue for a, b in zip(top, second, strict=True)
    )
    decided = np.fromiter(tests, dtype=np.float64, count=len(counts)) <= alpha
    return np.where(decided, order[:, 0], ABSTAIN).astype(np.int64)


def certify(
    selection: npt.ArrayLike, estimation: npt.ArrayLike, sigma: float, alpha: float
) -> Certificates:
    """CERTIFY: the class of most votes, and the radius within which it cannot change.

    The radius is sigma Phi^-1(p), where p is the one-sided lower confidence bound of Clopper and
    Pearson on the class's probability (Cohen et al. 2019, section 3.2.2, proposition 2). An image
    with p <= 1/2 is abstained on.

    Args:
        selection: votes that choose the class, int (n, classes); 100 per image in the paper.
        estimation: other votes, which estimate its probability, int (n, classes); 100,000 per
            image in the paper.
        sigma: standard deviation of the Gaussian noise before the function, on the [0, 1] scale.
        alpha: probability of a wrong certificate, in (0, 1); 0.001 in the paper.

    Raises:
        UserError: votes of another kind or shape, sigma or alpha out of range, or too few votes to
            ever certify a radius.
    """
    selected = _checked(selection, alpha, "selection")
    estimated = _checked(estimation, alpha, "estimation")
    if selected.shape != estimated.shape:
        raise UserError(
            f"smoothing: selection has votes of shape {selected.shape}, estimation of "
            f"{estimated.shape}: count both for the same images and classes"
        )
    if not 0.0 < sigma < np.inf:
        raise UserError(f"smoothing: sigma is {sigma}, but takes a number above 0")
    for total in _totals(estimated):
        if total < (fewest := fewest_for_certificate(alpha)):
            raise UserError(_too_few(total, "certify", alpha, fewest))
    classes = selected.argmax(1)
    hits = np.take_along_axis(estimated, classes[:, None], axis=1)[:, 0]
    lower = lower_bound(hits, estimated.sum(1), alpha)
    certain = lower > 0.5
    radii = sigma * stats.norm.ppf(np.where(certain, lower, 0.5))
    return Certificates(np.where(certain, classes, ABSTAIN).astype(np.int64), radii)


def lower_bound(hits: npt.ArrayLike, draws: npt.ArrayLike, alpha: float) -> npt.NDArray[np.float64]:
    """One-sided lower confidence bound of Clopper and Pearson on a probability, float64 (n,).

    Args:
        hits: draws in which the event happened, int (n,).
        draws: all draws, int (n,).
        alpha: probability that the bound is too high.
    """
    happened, total = np.asarray(hits, dtype=np.float64), np.asarray(draws, dtype=np.float64)
    bound = stats.beta.ppf(alpha, np.maximum(happened, 1.0), total - happened + 1.0)
    return np.where(happened > 0, bound, 0.0)


def _checked(votes: npt.ArrayLike, alpha: float, name: str) -> Votes:
    if not 0.0 < alpha < 1.0:
        raise UserError(f"smoothing: alpha is {alpha}, but takes a number between 0 and 1")
    counts = np.asarray(votes)
    if counts.ndim != 2 or counts.shape[1] < 2 or counts.dtype.kind not in "iu":
        raise UserError(
            f"smoothing: {name} is {counts.dtype} of shape {counts.shape}, but takes whole numbers "
            "(images, classes) with at least 2 classes"
        )
    if counts.size and counts.min() < 0:
        raise UserError(f"smoothing: {name} has a negative number of votes: count again")
    return counts.astype(np.int64)


def _totals(counts: Votes) -> npt.NDArray[np.int64]:
    """The different numbers of votes per image, ascending."""
    return np.unique(counts.sum(1))


def _too_few(total: int, act: str, alpha: float, fewest: int) -> str:
    return (
        f"smoothing: {total} votes cannot {act} at alpha {alpha:g}, even if all agree: cast at "
        f"least {fewest}, or raise alpha"
    )
