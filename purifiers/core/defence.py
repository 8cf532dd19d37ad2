"""A classifier behind a chain of purifiers, as one callable with a choice of gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from purifiers.core.component import Method, default_indices
from purifiers.core.errors import UserError, check_choice

GRADIENTS = ("exact", "bpda", "one_step", "second_order", "none")
COMBINES = ("mean", "sign")
_SCORES_ONLY = "the attacker sees scores only: choose a gradient other than none"


class Defence:
    """Images to logits through ``methods`` in order, then ``classifier``.

    Args:
        classifier: images to logits, frozen, in evaluation mode; may be ``prepared``.
        methods: purifiers, applied first to last.
        gradient: the gradient that an attacker receives:

            - ``"exact"``: through the purifiers;
            - ``"bpda"``: the purifiers run forward, the identity backward (Athalye et al. 2018,
              section 4.1);
            - ``"one_step"``: exact, through one step of each purifier in place of all of them
              (one-step unrolling; Yoon et al. 2021, appendix F);
            - ``"second_order"``: exact, and through the gradients that a purifier itself follows
              (:meth:`purifiers.core.component.Method.unrolled`);
            - ``"none"``: none; the attacker sees scores only.
        seed: random seed; an image's noise depends on the seed and the image's index alone.
        eot_samples: draws per output and gradient of an attacked random defence.
        eot_combine: ``"mean"`` or ``"sign"``, as in :class:`purifiers.core.target.Target`.
        auxiliary: a method whose detector is attacked together with the classifier; it need not be
            one of ``methods``.

    Attributes:
        stochastic: whether a purifier of the chain is random.
        straight_through: whether an attacker's gradient passes the purifiers unchanged.
        exact: this defence in float32 if the classifier computes in lower precision, else None.
        chunk: images per gradient computation; None: all at once.
    """

    per_image = True

    def __init__(
        self,
        classifier: Callable[[Tensor], Tensor],
        methods: Sequence[Method] = (),
        gradient: str = "exact",
        seed: int = 0,
        eot_samples: int = 1,
        eot_combine: str = "mean",
        auxiliary: Method | None = None,
    ) -> None:
        check_choice("gradient", gradient, GRADIENTS)
        check_choice("eot_combine", eot_combine, COMBINES)
        if eot_samples < 1:
            raise UserError(f"eot_samples is {eot_samples}, but at least 1 draw is needed")
        self.classifier = classifier
        self.methods = tuple(methods)
        self.gradient = gradient
        self.seed = seed
        self.eot_samples = eot_samples
        self.eot_combine = eot_combine
        self.auxiliary = auxiliary
        self.stochastic = any(method.random for method in self.methods)
        self.straight_through = gradient == "bpda" and bool(self.methods)
        self.chunk: int | None = getattr(classifier, "chunk", None)
        precise = getattr(classifier, "exact", None)
        self.exact = None if precise is None else Defence(precise, methods, gradient, seed)

    def purify(self, images: Tensor, indices: Sequence[int] | Tensor | None = None) -> Tensor:
        """Images after all purifiers, float32 (n, C, H, W) in [0, 1]."""
        rows = default_indices(images, indices)
        for method in self.methods:
            images = method.purify(images, self.seed, rows)
        return images

    def classify(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of images that are purified already.

        Raises:
            UserError: the images require gradients and ``gradient`` is ``"none"``.
        """
        self._refuse_gradient(images)
        return self.classifier(images)

    def detector_logit(self, images: Tensor) -> Tensor:
        """Logit (n,) of the first detector among ``auxiliary`` and ``methods``.

        It is high for adversarial images. The detector receives ``images`` unpurified.

        Raises:
            UserError: no method has a detector, or the attacker sees scores only.
        """
        return self._method_with("detector_logit").detector_logit(images)

    def score(self, images: Tensor) -> Tensor:
        """Gradient (n, C, H, W) of a learned log-density at ``images``, unpurified.

        The log-density is that of the first among ``auxiliary`` and ``methods`` that learned one.

        Raises:
            UserError: no method has learned one, or the attacker sees scores only.
        """
        return self._method_with("score").score(images)

    def _method_with(self, part: str) -> Method:
        if self.gradient == "none":
            raise UserError(f"this attack reads a method's {part}, but {_SCORES_ONLY}")
        for method in (self.auxiliary, *self.methods):
            if method is not None and getattr(type(method), part) is not getattr(Method, part):
                return method
        raise UserError(
            f"this attack goes against a method's {part}, but none of the attacked methods has "
            "one: give one as `auxiliary`"
        )

    def _refuse_gradient(self, images: Tensor) -> None:
        if self.gradient == "none" and torch.is_grad_enabled() and images.requires_grad:
            raise UserError(f"this attack takes gradients, but {_SCORES_ONLY}")

    def __call__(self, images: Tensor, indices: Sequence[int] | Tensor | None = None) -> Tensor:
        """Logits (n, classes).

        Raises:
            UserError: the images require gradients and ``gradient`` is ``"none"``.
        """
        self._refuse_gradient(images)
        if self.straight_through:
            with torch.no_grad():
                purified = self.purify(images.detach(), indices)
            return self.classifier(_IdentityBackward.apply(images, purified))
        if self.gradient in ("one_step", "second_order"):
            rows = default_indices(images, indices)
            for method in self.methods:
                purify = method.step if self.gradient == "one_step" else method.unrolled
                images = purify(images, self.seed, rows)
            return self.classifier(images)
        return self.classifier(self.purify(images, indices))


class _IdentityBackward(torch.autograd.Function):
    """Forward: the purified images, unchanged. Backward: the identity."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, purified: Tensor) -> Tensor:
        return purified.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
