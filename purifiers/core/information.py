"""Mutual information of two sets of features: MINE (Belghazi et al. 2018).

A network T learns to tell pairs that belong together from pairs that do not, and the
Donsker-Varadhan bound E[T] - log E[exp T], joint distribution minus product of the marginals, is
never above the mutual information. It is taken on samples that T has not seen, for on its own
training samples T could make it arbitrarily large.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from purifiers.core.errors import UserError
from purifiers.core.noise import derive_seed, generator

PAIRS = 1 << 16
"""Pairs per pass of the network at the evaluation; changes nothing but the memory."""


class Statistics(nn.Module):
    """T: both vectors side by side, ``layers`` hidden layers with ReLU, one number.

    The first layer is kept in two parts, so that its product with each vector is computed once for
    all pairs.
    """

    def __init__(self, first: int, second: int, layers: int, width: int) -> None:
        super().__init__()
        self.left = nn.Linear(first, width)
        self.right = nn.Linear(second, width, bias=False)
        reach = 1.0 / math.sqrt(first + second)  # torch's own bound for one undivided layer
        for parameter in (*self.left.parameters(), *self.right.parameters()):
            nn.init.uniform_(parameter, -reach, reach)
        deeper = (part for _ in range(layers - 1) for part in (nn.Linear(width, width), nn.ReLU()))
        self.rest = nn.Sequential(nn.ReLU(), *deeper, nn.Linear(width, 1))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """T of each pair (n,) of rows (n, features)."""
        return self.rest(self.left(first) + self.right(second)).squeeze(-1)

    def all_pairs(self, first: Tensor, second: Tensor) -> Tensor:
        """T of every row of ``first`` with every row of ``second``, (n, m)."""
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
    """Terms of the lower bound in nats, a sample each; their mean is the bound.

    Features are first shifted and scaled to mean 0 and variance 1 (of the training samples), which
    leaves the mutual information as it is; our choice.

    Args:
        first, second: features of the same samples, float32 (n, a) and (n, b).
        layers, width: of the network.
        learning_rate: Adam's.
        averaging: weight of a batch in the moving average of E[exp T], which replaces the batch's
            own in the gradient's denominator (section 3.2: that gradient is biased).
        batch_size: pairs that belong together per step, and as many that do not: the batch's
            samples, each with its neighbour's second half.
        held_out: share of the samples that the bound is taken on.

    Returns:
        Rows of the held-out samples, int64 (m,), sorted; and T(a_i, b_i) minus the logarithm of the
        mean of exp T(a_i, b_j) over all i != j, float64 (m,).

    Raises:
        UserError: fewer than two samples on one side of the split.
        RuntimeError: the result is not finite.
    """
    tested = round(held_out * len(first))
    if min(tested, len(first) - tested) < 2:
        raise UserError(
            f"mutual information: {len(first)} samples leave {tested} to test on and "
            f"{len(first) - tested} to train on; both need two or more"
        )
    order = torch.randperm(len(first), generator=generator(seed, "held out"))
    test, train = order[:tested].sort().values, order[tested:].sort().values
    first, second = _scaled(first, train), _scaled(second, train)
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
        together = network(first[rows], second[rows])
        apart = _log_mean_exp(network(first[rows], second[rows].roll(1, 0)))
        log_average = _averaged(log_average, apart.detach(), averaging)
        # the second term's gradient is that of E[exp T], over its moving average
        loss = torch.exp(apart - log_average) - together.mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        pairs = network.all_pairs(first[test], second[test]).double().cpu()
    own = torch.eye(tested, dtype=torch.bool)
    terms = pairs.diagonal() - _log_mean_exp(pairs[~own])
    if not torch.isfinite(terms).all():
        raise RuntimeError("the estimate of the mutual information is not finite")
    return test, terms


def _scaled(features: Tensor, train: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the training samples; what never changes stays 0."""
    seen = features[train.to(features.device)]
    spread = seen.std(dim=0)
    return (features - seen.mean(dim=0)) / torch.where(spread > 0, spread, 1.0)


def _log_mean_exp(values: Tensor) -> Tensor:
    return torch.logsumexp(values.flatten(), dim=0) - math.log(values.numel())


def _averaged(before: Tensor | None, now: Tensor, weight: float) -> Tensor:
    """Logarithm of the moving average of the exponentials."""
    if before is None or weight == 1.0:
        return now
    return torch.logaddexp(before + math.log1p(-weight), now + math.log(weight))
