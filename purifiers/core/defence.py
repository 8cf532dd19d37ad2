"""A classifier behind a chain of purifiers, as one callable with a choice of gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from purifiers.core.component import Method, default_indices, equipped
from purifiers.core.errors import UserError, check_choice
from purifiers.core.images import check_input
from purifiers.core.logits import check_model, queried
from purifiers.core.modes import types_explained
from purifiers.core.noise import derive_seed
from purifiers.core.precision import computing
from purifiers.core.straight_through import with_gradient_of
from purifiers.core.taps import layer_taps, tapped_features

GRADIENTS = ("exact", "bpda", "one_step", "second_order", "none")
COMBINES = ("mean", "sign", "displacement")
_SCORES_ONLY = "the attacker sees scores only: choose a gradient other than none"


class Defence(nn.Module):
    """Images to logits through ``methods`` in order, then ``classifier``, in float32.

    A method that restores the classifier's embedding also acts inside the classifier
    (:meth:`purifiers.core.component.Method.equipped`); gradients pass its restorer as they are.

    A random defence draws fresh noise at every call, reproducibly from ``seed`` and the number of
    calls. With ``indices`` an image's noise depends on the seed and its index alone.

    Args:
        classifier: images to logits, or to an object with ``logits`` as Hugging Face's models
            return; frozen, in evaluation mode; may be ``prepared``.
        methods: purifiers, applied first to last. They are not bound here, because a method may
            read another classifier than the defended one: call ``bind`` before.
        gradient: the gradient that an attacker receives:

            - ``"exact"``: through the purifiers;
            - ``"bpda"``: the purifiers run forward, the identity backward (Athalye et al. 2018,
              section 4.1);
            - ``"one_step"``: exact, through one step of each purifier in place of all of them
              (one-step unrolling; Yoon et al. 2021, appendix F);
            - ``"second_order"``: exact, and through the gradients that a purifier itself follows
              (:meth:`purifiers.core.component.Method.unrolled`);
            - ``"none"``: none; the attacker sees scores only.
        seed: random seed of the purifiers' noise.
        eot_samples: draws per output and gradient of an attacked random defence.
        eot_combine: ``"mean"``, ``"sign"`` or ``"displacement"``, what is averaged over the draws,
            see :func:`purifiers.core.target.contribution`.
        auxiliary: a method whose detector is attacked together with the classifier; it need not be
            one of ``methods``.
        network: what classifies the purified images, prepared for speed; None: ``classifier``
            equipped by the methods.

    Attributes:
        stochastic: whether a purifier of the chain is random.
        straight_through: whether an attacker's gradient passes the purifiers unchanged.
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
        network: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        check_model(classifier)
        check_choice("gradient", gradient, GRADIENTS)
        check_choice("eot_combine", eot_combine, COMBINES)
        if eot_samples < 1:
            raise UserError(f"eot_samples is {eot_samples}, but at least 1 draw is needed")
        super().__init__()
        self.classifier = classifier
        self.methods = nn.ModuleList(methods)
        self.gradient = gradient
        self.seed = seed
        self.eot_samples = eot_samples
        self.eot_combine = eot_combine
        self.auxiliary = auxiliary
        self.stochastic = any(method.random for method in self.methods)
        self.batch_dependent = any(method.traits.batch_dependent for method in methods)
        self.straight_through = gradient == "bpda" and bool(self.methods)
        network = equipped(classifier, methods) if network is None else network
        # a module is registered once, and moves with the defence
        self._equipped = None if network is classifier else network
        self.chunk: int | None = getattr(network, "chunk", None)
        self._calls = 0
        # in a list, so that the methods are not registered twice
        self._exact: list[Defence] = []

    @property
    def network(self) -> Callable[[Tensor], Tensor]:
        """What classifies the purified images: the classifier with the methods' restorers."""
        return self.classifier if self._equipped is None else self._equipped

    @property
    def exact(self) -> Defence | None:
        """This defence before its classifier was prepared; None if that rounds alike."""
        judge = getattr(self.network, "exact", None)
        if judge is None:
            return None
        if not self._exact:
            methods = list(self.methods)
            self._exact += [
                Defence(self.classifier, methods, self.gradient, self.seed, network=judge)  # type: ignore[arg-type]
            ]
        return self._exact[0]

    @property
    def capturable(self) -> bool:
        """Whether each call runs the same kernels; purifiers may not."""
        return getattr(self.network, "capturable", False) and not self.methods

    def purify(self, images: Tensor, indices: Sequence[int] | Tensor | None = None) -> Tensor:
        """Images after all purifiers, float32 (n, C, H, W) in [0, 1]."""
        return self._pass("purify", images, indices)

    def _pass(self, how: str, images: Tensor, indices: Sequence[int] | Tensor | None) -> Tensor:
        """Images after the methods' ``purify``, ``step`` or ``unrolled``."""
        seed = self.seed
        if self.stochastic and indices is None:
            self._calls += 1
            seed = derive_seed(self.seed, "call", self._calls)
        rows = default_indices(images, indices)
        for method in self.methods:
            images = getattr(method, how)(images, seed, rows)
        return images

    def classify(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of images that are purified already.

        Raises:
            UserError: the images require gradients and ``gradient`` is ``"none"``.
        """
        self._refuse_gradient(images)
        with computing(None, images.device):
            return queried(self.network, images, self.classifier)

    def detector_logit(self, images: Tensor) -> Tensor:
        """Logit (n,) of the first detector among ``auxiliary`` and ``methods``.

        It is high for adversarial images. The detector receives ``images`` unpurified.

        Raises:
            UserError: no method has a detector, or the attacker sees scores only.
        """
        return self._method_with("detector_logit").detector_logit(images)

    def activations(self, images: Tensor, taps: Sequence[str]) -> list[Tensor]:
        """Inner representations of the classifier at ``images``, unpurified.

        Args:
            taps: names; (): those of :func:`purifiers.core.taps.layer_taps`.

        Raises:
            UserError: the classifier has no such representations, or the attacker sees scores only.
        """
        if self.gradient == "none":
            raise UserError(f"this attack reads a classifier's layers, but {_SCORES_ONLY}")
        network = self.classifier
        if not isinstance(network, nn.Module):
            raise UserError(
                "this attack reads a network's inner representations, and a plain function has "
                "none: defend the network itself"
            )
        return tapped_features(network, images, tuple(taps) or layer_taps(network))

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

    def forward(self, images: Tensor, indices: Sequence[int] | Tensor | None = None) -> Tensor:
        """Logits (n, classes).

        Args:
            images: float32 (n, C, H, W) in [0, 1].
            indices: the images' indices in their data set; None: fresh noise.

        Raises:
            UserError: the images require gradients and ``gradient`` is ``"none"``; the classifier
                has parameters of another type than float32 and cannot take the images; or, without
                ``indices``, they are clearly not in [0, 1].
        """
        if indices is None:  # not the suite's own attacks, which check their images once
            check_input(images, "Defence")
        with computing(None, images.device), types_explained(self.classifier, "Defence"):
            return self._logits(images, indices)

    def _logits(self, images: Tensor, indices: Sequence[int] | Tensor | None) -> Tensor:
        self._refuse_gradient(images)
        if self.straight_through:
            with torch.no_grad():
                purified = self.purify(images.detach(), indices)
            purified = with_gradient_of(purified, images)
            return queried(self.network, purified, self.classifier)
        how = {"one_step": "step", "second_order": "unrolled"}.get(self.gradient, "purify")
        purified = self._pass(how, images, indices)
        return queried(self.network, purified, self.classifier)
