"""Mixtures of correctly and wrongly classified embeddings of one class (IDFR, Eq. 6)."""

from __future__ import annotations

import torch
from torch import Tensor


class Mixing:
    """Partners for mixtures alpha h + (1 - alpha) h' of embeddings of one class.

    A partner is drawn among the embeddings of the same class on the other side: wrongly classified
    for a correctly classified one, and the reverse. Where the class has none there, it is drawn
    among the class's own side (our choice; Eq. 6 does not say).

    Args:
        embeddings: float32 (m, width).
        labels: true labels, int64 (m,).
        correct: whether each embedding is classified correctly, bool (m,).
    """

    def __init__(self, embeddings: Tensor, labels: Tensor, correct: Tensor) -> None:
        self.embeddings = embeddings
        side = 2 * labels + correct.long()
        self._order = side.argsort(stable=True)
        counts = torch.bincount(side, minlength=2 * int(labels.max()) + 2)
        starts = counts.cumsum(0) - counts
        other = side ^ 1
        partner_side = torch.where(counts[other] > 0, other, side)
        self._start, self._count = starts[partner_side], counts[partner_side]

    def partners(self, rows: Tensor, draws: Tensor) -> Tensor:
        """Rows of the partners, int64 (n,).

        Args:
            rows: rows of ``embeddings``, int64 (n,).
            draws: uniform in [0, 1), float (n,); the k-th of c candidates for [k / c, (k + 1) / c).
        """
        offset = (draws * self._count[rows]).long().clamp_max(self._count[rows] - 1)
        return self._order[self._start[rows] + offset]

    def mixed(self, rows: Tensor, draws: Tensor, alphas: Tensor) -> Tensor:
        """Mixtures float32 (n, width): alpha h + (1 - alpha) h', h in ``rows``, h' its partner.

        Args:
            rows, draws: as for :meth:`partners`.
            alphas: weights of ``rows`` in [0, 1], float (n,).
        """
        partners = self.embeddings[self.partners(rows, draws)]
        weights = alphas[:, None]
        return weights * self.embeddings[rows] + (1.0 - weights) * partners
