"""TENT (Wang et al. 2021): adapt batch normalisation to each batch by minimising the entropy."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from purifiers.core.component import Method, frozen
from purifiers.core.errors import UserError
from purifiers.core.logits import as_logits
from purifiers.core.ranges import Count, Positive, Several
from purifiers.core.traits import MethodTraits

BETAS = (0.9, 0.999)
"""Of Adam (`DequanWang/tent`, as all constants here)."""


class Tent(Method):
    """Classify each batch by a copy of the classifier that is adapted to this batch.

    The images stay as they are. Batch normalisation uses the statistics of the batch, and its
    scales and shifts take ``steps`` steps of Adam down the mean entropy of the predictions. All
    other weights stay, and dropout stays off.

    Only the episodic form is implemented: each batch starts from the classifier's own weights, and
    is classified after the steps. Upstream is online, so that a batch starts where the one before
    has ended, and classifies before the step; in the episodic form such a step would have no
    effect. An image's logits depend on the other images of its batch: the images of a data set are
    scored in its order, ``batch_size`` at a time, whatever the scale. No attack queries the adapted
    network; attack the classifier and score TENT on the result.

    Args:
        episodic: True.
        steps: 1.
        learning_rate: Adam's; .001.
        batch_size: images per batch; 200. The last batch of a set may be smaller.

    Raises:
        UserError: ``episodic`` is False.
    """

    traits = MethodTraits(version=1, passes="3 * steps + 1", restores=True, batch_dependent=True)

    def __init__(
        self,
        *,
        episodic: bool = True,
        steps: Count = 1,
        learning_rate: Positive = 0.001,
        batch_size: Several = 200,
    ) -> None:
        super().__init__()
        if not episodic:
            raise UserError(
                "tent: episodic is False, but runs that resume cannot carry adapted weights from "
                "batch to batch: set episodic to True"
            )
        self.steps, self.learning_rate, self.batch_size = steps, learning_rate, batch_size

    def bind(self, classifier: nn.Module | None, shape: Sequence[int]) -> None:
        """Check the classifier.

        Raises:
            UserError: it has no batch normalisation with scales and shifts.
        """
        if classifier is not None:
            _affine(classifier)

    def purify(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """The images themselves; the classifier adapts, see :meth:`equipped`."""
        return images

    def equipped(self, classifier: nn.Module) -> nn.Module:
        """A network that adapts a copy of the classifier to each batch.

        Raises:
            UserError: the classifier has no batch normalisation with scales and shifts.
        """
        return Adapting(classifier, self.steps, self.learning_rate, self.batch_size)


class Adapting(nn.Module):
    """Images (n, C, H, W) to logits (n, classes), by batches of ``batch_size`` in their order.

    Args:
        classifier: not modified.
        steps, learning_rate, batch_size: as of :class:`Tent`.

    Raises:
        UserError: the classifier has no batch normalisation with scales and shifts; the images
            require gradients.
    """

    def __init__(
        self, classifier: nn.Module, steps: int, learning_rate: float, batch_size: int
    ) -> None:
        super().__init__()
        self.network = frozen(copy.deepcopy(classifier))
        self.steps, self.learning_rate, self.batch_size = steps, learning_rate, batch_size
        self.adapted = _affine(self.network)
        for layer in self.network.modules():
            if isinstance(layer, _BatchNorm):  # without running statistics it takes the batch's
                layer.track_running_stats = False
                layer.running_mean = layer.running_var = layer.num_batches_tracked = None

    def forward(self, images: Tensor) -> Tensor:
        if torch.is_grad_enabled() and images.requires_grad:
            raise UserError(
                "tent: the network adapts to each batch and has no gradient: attack the classifier "
                "without tent"
            )
        with torch.inference_mode(False):
            batches = images.detach().clone().split(self.batch_size)
            return torch.cat([self._logits(batch) for batch in batches])

    def _logits(self, images: Tensor) -> Tensor:
        own = dict(self.network.named_parameters())
        weights = {name: own[name].clone().requires_grad_(True) for name in self.adapted}
        optimizer = torch.optim.Adam(weights.values(), lr=self.learning_rate, betas=BETAS)
        for _ in range(self.steps):
            optimizer.zero_grad()
            with torch.enable_grad():
                entropy(self._predict(weights, images)).mean().backward()
            optimizer.step()
        with torch.no_grad():
            return self._predict(weights, images)

    def _predict(self, weights: dict[str, Tensor], images: Tensor) -> Tensor:
        # a copy, because a network may work in place
        return as_logits(functional_call(self.network, weights, (images.clone(),)), self.network)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of each prediction in nats, (n,)."""
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)


def _affine(network: nn.Module) -> list[str]:
    """Names of the scales and shifts of batch normalisation.

    Raises:
        UserError: there are none.
    """
    layers = [(name, m) for name, m in network.named_modules() if isinstance(m, _BatchNorm)]
    names = [f"{name}.{part}" for name, m in layers if m.affine for part in ("weight", "bias")]
    if not names:
        raise UserError(
            f"tent: {type(network).__name__} has no batch normalisation to adapt: choose a "
            "classifier that has, such as wide_resnet or resnet18"
        )
    return names
