"""Lower bound on the mutual information of two sets of features: MINE (Belghazi et al. 2018).

A network T is trained to separate pairs of features of one sample from pairs of two samples. The
Donsker-Varadhan bound E[T] - log E[exp T] never exceeds the mutual information; its first
expectation is over the joint distribution, its second over the product of the marginals. It is
evaluated on held-out samples, because T could make it arbitrarily large on its training samples.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from purifiers.core.errors import UserError
from purifiers.core.noise import derive_seed, generator

PAIRS = 1 << 16
"""Pairs per forward pass at evaluation; affects only the memory."""


class Statistics(nn.Module):
    """Statistics network T: two concatenated vectors, ``layers`` hidden ReLU layers, one output.

    The first layer is stored as two parts, so that the product with each vector is computed once
    for all pairs.
    """

    def __init__(self, first: int, second: int, layers: int, width: int) -> None:
        super().__init__()
        self.left = nn.Linear(first, width)
        self.right = nn.Linear(second, width, bias=False)
        bound = 1.0 / math.sqrt(first + second)  # of torch, for the undivided layer
        for parameter in (*self.left.parameters(), *self.right.parameters()):
            nn.init.uniform_(parameter, -bound, bound)
        hidden = (part for _ in range(layers - 1) for part in (nn.Linear(width, width), nn.ReLU()))
        self.rest = nn.Sequential(nn.ReLU(), *hidden, nn.Linear(width, 1))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """T (n,) of the rows of ``first`` and ``second``, pair by pair; both (n, features)."""
        return self.rest(self.left(first) + self.right(second)).squeeze(-1)

    def all_pairs(self, first: Tensor, second: Tensor) -> Tensor:
        """T (n, m) of each of the n rows of ``first`` with each of the m rows of ``second``."""
        left, right = self.left(first), self.right(second)
        rows = left.split(max(1, PAIRS // len(right)))
        return torch.cat([self.rest(part[:, None] + right).squeeze(-1) for part in rows])


def mutual_information(
    first: Tensor,
    second: Tensor,
    *,
    layers: int,
    width: int,
    learning_rate: float,
    averaging: float,
    steps: int,
    batch_size: int,
    held_out: float,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Lower bound on the mutual information in nats, as one term per held-out sample.

    The mean of the terms is the bound. Features are first standardized to mean 0 and variance 1 of
    the training samples, which does not change the mutual information; our choice.

    Args:
        first, second: features of the same samples, float32 (n, a) and (n, b).
        layers, width: hidden layers of the network and units per layer.
        learning_rate: learning rate of Adam.
        averaging: weight of a batch in the moving average of E[exp T]. The average replaces the
            batch's own value in the gradient's denominator (section 3.2: that gradient is biased).
        steps: optimizer steps.
        batch_size: pairs of one sample per step, and as many pairs of two samples: each sample of
            the batch with the second features of its neighbour.
        held_out: share of the samples, in (0, 1), on which the bound is evaluated.
        seed: random seed of the split, the weights and the batches.

    Returns:
        Rows of the held-out samples, int64 (m,), sorted; and T(a_i, b_i) minus the logarithm of the
        mean of exp T(a_i, b_j) over all i != j, float64 (m,).

    Raises:
        UserError: fewer than two training or held-out samples.
        RuntimeError: the result is not finite.
    """
    held_out_count = round(held_out * len(first))
    if min(held_out_count, len(first) - held_out_count) < 2:
        raise UserError(
            f"mutual information: {len(first)} samples give {held_out_count} held-out and "
            f"{len(first) - held_out_count} training samples; each part needs two or more"
        )
    order = torch.randperm(len(first), generator=generator(seed, "held out"))
    test, train = order[:held_out_count].sort().values, order[held_out_count:].sort().values
    first, second = _standardized(first, train), _standardized(second, train)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        network = Statistics(first.shape[1], second.shape[1], layers, width)
    network = network.to(first.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    draw = generator(seed, "batches")
    batch_size = min(batch_size, len(train))
    log_average: Tensor | None = None
    for _ in range(steps):
        rows = train[torch.randperm(len(train), generator=draw)[:batch_size]].to(first.device)
        joint = network(first[rows], second[rows])
        log_mean = _log_mean_exp(network(first[rows], second[rows].roll(1, 0)))
        log_average = _averaged(log_average, log_mean.detach(), averaging)
        # its gradient is that of E[exp T] divided by the moving average
        loss = torch.exp(log_mean - log_average) - joint.mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        pairs = network.all_pairs(first[test], second[test]).double().cpu()
    same_sample = torch.eye(held_out_count, dtype=torch.bool)
    terms = pairs.diagonal() - _log_mean_exp(pairs[~same_sample])
    if not torch.isfinite(terms).all():
        raise RuntimeError("the estimate of the mutual information is not finite")
    return test, terms


def _standardized(features: Tensor, train: Tensor) -> Tensor:
    """Features with mean 0 and variance 1 over the training samples; constant ones become 0."""
    trained = features[train.to(features.device)]
    deviation = trained.std(dim=0)
    return (features - trained.mean(dim=0)) / torch.where(deviation > 0, deviation, 1.0)


def _log_mean_exp(values: Tensor) -> Tensor:
    return torch.logsumexp(values.flatten(), dim=0) - math.log(values.numel())


def _averaged(before: Tensor | None, now: Tensor, weight: float) -> Tensor:
    """Logarithm of the moving average of exp, updated by ``now`` with ``weight``."""
    if before is None or weight == 1.0:
        return now
    return torch.logaddexp(before + math.log1p(-weight), now + math.log(weight))
