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
    """Classify each batch by a copy of the classifier that adapts to the batches.

    The images stay as they are. Batch normalisation uses the statistics of the batch, and its
    scales and shifts take ``steps`` steps of Adam down the mean entropy of the predictions. All
    other weights stay, and dropout stays off.

    The default is upstream's online form: a batch starts from the weights and the optimiser's state
    that the batch before has left, and is classified by the forward pass of its last step, before
    that step changes the weights. The episodic form is ours: each batch starts from the
    classifier's own weights and is classified after the steps. Upstream's switch of this name also
    classifies before the step, so that its single step would have no effect.

    An image's logits depend on the other images of its batch, and online on all batches before. The
    images of a data set are scored in its order, ``batch_size`` at a time, whatever the scale; each
    set starts from the classifier's own weights, as upstream does. A run that was killed starts its
    set again. No attack queries the adapted network; attack the classifier and score TENT on the
    result.

    Args:
        episodic: whether each batch starts from the classifier's own weights; False.
        steps: 1.
        learning_rate: Adam's; .001.
        batch_size: images per batch; 200. The last batch of a set may be smaller.
    """

    traits = MethodTraits(
        version=2, passes="3 * steps + episodic", restores=True, batch_dependent=True
    )

    def __init__(
        self,
        *,
        episodic: bool = False,
        steps: Count = 1,
        learning_rate: Positive = 0.001,
        batch_size: Several = 200,
    ) -> None:
        super().__init__()
        self.episodic, self.steps = episodic, steps
        self.learning_rate, self.batch_size = learning_rate, batch_size

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
        """A network that adapts a copy of the classifier, from the classifier's own weights on.

        Raises:
            UserError: the classifier has no batch normalisation with scales and shifts.
        """
        return Adapting(classifier, self.episodic, self.steps, self.learning_rate, self.batch_size)


class Adapting(nn.Module):
    """Images (n, C, H, W) to logits (n, classes), by batches of ``batch_size`` in their order.

    Unless it is episodic, a call continues where the call before has ended.

    Args:
        classifier: not modified.
        episodic, steps, learning_rate, batch_size: as of :class:`Tent`.

    Raises:
        UserError: the classifier has no batch normalisation with scales and shifts; the images
            require gradients.
    """

    def __init__(
        self,
        classifier: nn.Module,
        episodic: bool,
        steps: int,
        learning_rate: float,
        batch_size: int,
    ) -> None:
        super().__init__()
        self.network = frozen(copy.deepcopy(classifier))
        self.episodic, self.steps = episodic, steps
        self.learning_rate, self.batch_size = learning_rate, batch_size
        self.adapted = _affine(self.network)
        self.weights: dict[str, Tensor] = {}
        self.optimizer: torch.optim.Optimizer | None = None
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
        if self.optimizer is None or self.episodic:
            own = dict(self.network.named_parameters())
            self.weights = {name: own[name].clone().requires_grad_(True) for name in self.adapted}
            self.optimizer = torch.optim.Adam(
                self.weights.values(), lr=self.learning_rate, betas=BETAS
            )
        for _ in range(self.steps):
            self.optimizer.zero_grad()
            with torch.enable_grad():
                logits = self._predict(images)
                entropy(logits).mean().backward()
            self.optimizer.step()
        if not self.episodic:
            return logits.detach()
        with torch.no_grad():
            return self._predict(images)

    def _predict(self, images: Tensor) -> Tensor:
        # a copy, because a network may work in place
        logits = functional_call(self.network, self.weights, (images.clone(),))
        return as_logits(logits, self.network)


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
