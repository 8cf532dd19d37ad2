"""AID-Purifier (anonymous submission): descend the logit of an adversarial-image discriminator."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from purifiers.attacks.cw_l2 import CwL2
from purifiers.attacks.deepfool_linf import DeepfoolLinf
from purifiers.attacks.pgd import Pgd
from purifiers.core.choices import Augmentation, Precision
from purifiers.core.component import Attack, Classifier, Method
from purifiers.core.errors import UserError, did_you_mean
from purifiers.core.noise import derive_seed, uniform
from purifiers.core.numbers import Length
from purifiers.core.precision import at_least_float32
from purifiers.core.ranges import Count, NonNegative, Positive, Share, Whole
from purifiers.core.recipe import Recipe
from purifiers.core.taps import own_taps, tap_shapes, tapped_features
from purifiers.core.traits import Fit, MethodTraits, Taps
from purifiers.methods._discriminator import PaperDiscriminator, UpstreamDiscriminator, pooled


class Aid(Method):
    """Train a discriminator of adversarial images, then lower its logit by sign steps.

    The discriminator reads two inner representations of the frozen classifier (Algorithm 1).
    Purification takes sign steps that lower its logit for "adversarial" (Algorithm 2).

    Args:
        variant: ``paper`` (Table 5) or ``upstream`` (`yelobean/AIDPurifier`).
        taps: representations used: ``TAPS`` of a classifier of the suite, or names of submodules of
            any network (:func:`purifiers.core.taps.tapped_features`). ``conv1`` and ``stage3`` are
            the paper's 1st convolution and 15th block. The variant ``upstream`` has a branch per
            tap of the classifier; with names of submodules, for these only.
        width: units of the discriminator's layers; 1024 in Table 5.
        extra_layers: 1 for the deeper discriminator of Appendix A.2 (all data sets but SVHN).
        eps, step_size, iterations: of the purification, Table 6; L-infinity.
        gamma: distance of the vertex from the image, in units of the adversarial perturbation; 2
            for SVHN, else 1.5 (A.3).
        train_eps, train_step, train_steps: PGD attack for the training examples, with a random
            start; not in the paper, values from upstream.
        epochs, batch_size, learning_rate, momentum, weight_decay: 1 epoch of SGD .01, .9, 2e-4
            (A.3); batch 128 upstream.
        augmentation, precision: see :class:`purifiers.core.recipe.Recipe`.
        target: ``bce`` (equation 1), or ``contrastive``: true pairs of representations against
            pairs of different images (Table 14b; details are our choice).
        mixing: ``avmixup``, or from Table 14c ``none`` (clean or adversarial), ``av`` (clean or
            vertex), ``mixup`` (mixtures with gamma 1).
        train_attacks: ``pgd``, ``cw_l2``, ``deepfool_linf`` (Table 18). If there are several, one
            is drawn per batch (our choice). C&W and DeepFool use upstream's evaluation settings.
        train_cw_const, train_cw_learning_rate: c and Adam's learning rate of that C&W attack.
        train_cw_steps, train_deepfool_steps: of those attacks; 20, as upstream evaluates them.

    The vertex is clipped to [0, 1] upstream but not in Algorithm 1; the variant decides. The
    classifier's weights are not saved.

    Raises:
        UserError: an unknown variant, target, mixing, training attack or tap.
    """

    traits = MethodTraits(
        version=2,
        budget=(
            "epochs",
            "width",
            "train_steps",
            "train_step",
            "train_cw_steps",
            "train_deepfool_steps",
            "learning_rate",
            "precision",
        ),
        joined_later=(
            "train_cw_const",
            "train_cw_learning_rate",
            "train_cw_steps",
            "train_deepfool_steps",
            "precision",
        ),
        passes="3 * iterations",
        provides=("detector_logit",),
        taps=Taps(parameter="taps"),
        fit=Fit(
            # DeepFool has 10 candidates
            passes="epochs * (1 + mean(train_attacks, pgd=3 * train_steps,"
            " cw_l2=3 * train_cw_steps, deepfool_linf=20 * train_deepfool_steps))",
            inference_only=("eps", "step_size", "iterations"),
        ),
    )

    def __init__(
        self,
        *,
        variant: Literal["paper", "upstream"] = "paper",
        taps: Sequence[str] = ("conv1", "stage3"),
        width: Count = 1024,
        extra_layers: Whole = 1,
        eps: Length = "8/255",
        step_size: Length = "2/255",
        iterations: Whole = 10,
        gamma: Positive = 1.5,
        train_eps: Length = 0.031,
        train_step: Length = 0.004,
        train_steps: Count = 10,
        epochs: Positive = 1,
        batch_size: Count = 128,
        learning_rate: Positive = 0.01,
        momentum: Share = 0.9,
        weight_decay: NonNegative = 2e-4,
        augmentation: Augmentation = "none",
        target: Literal["bce", "contrastive"] = "bce",
        mixing: Literal["avmixup", "mixup", "av", "none"] = "avmixup",
        train_attacks: Sequence[str] = ("pgd",),
        train_cw_const: Positive = 0.01,
        train_cw_learning_rate: Positive = 0.01,
        train_cw_steps: Count = 20,
        train_deepfool_steps: Count = 20,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        self.variant, self.taps, self.width = variant, tuple(taps), width
        self.extra_layers = extra_layers
        self.eps, self.step_size, self.iterations = eps, step_size, iterations
        self.gamma = gamma if mixing in ("avmixup", "av") else 1.0
        self.target, self.mixing = target, mixing
        self.train_eps, self.train_step = train_eps, train_step
        self.train_steps = train_steps
        self.train_cw_const, self.train_cw_learning_rate = train_cw_const, train_cw_learning_rate
        self.train_cw_steps, self.train_deepfool_steps = train_cw_steps, train_deepfool_steps
        self.attacks = [self._training_attack(name) for name in train_attacks]
        self.recipe = Recipe(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            momentum=momentum,
            weight_decay=weight_decay,
            augmentation=augmentation,
            precision=precision,
        )
        self._classifier: list[nn.Module] = []  # in a list, so that it is no submodule

    @property
    def classifier(self) -> nn.Module:
        """The frozen classifier whose representations the discriminator reads.

        Raises:
            UserError: no classifier is bound.
        """
        if not self._classifier:
            raise UserError("aid: no classifier is bound; bind a classifier first")
        return self._classifier[0]

    def bind(self, classifier: nn.Module | None, shape: Sequence[int]) -> None:
        if classifier is None:
            raise UserError("aid: no classifier, but its discriminator reads one; give it one")
        self._classifier = [classifier]
        branches = self.taps
        if self.variant == "upstream" and own_taps(classifier, self.taps):
            assert isinstance(classifier, Classifier)
            branches = classifier.TAPS
        shapes = tap_shapes(classifier, shape, branches)
        channels = {tap: shapes[tap][0] for tap in branches}
        self.discriminator: nn.Module
        if self.variant == "paper":
            counts = [channels[tap] for tap in self.taps]
            self.discriminator = PaperDiscriminator(counts, self.width, self.extra_layers)
        else:
            self.discriminator = UpstreamDiscriminator(
                channels, self.taps, self.width, self.extra_layers
            )

    def _training_attack(self, name: str) -> Attack:
        makers: dict[str, Callable[[], Attack]] = {
            "pgd": lambda: Pgd(
                eps=self.train_eps, steps=self.train_steps, step_size=self.train_step
            ),
            "cw_l2": lambda: CwL2(
                steps=self.train_cw_steps,
                search_steps=1,
                initial_const=self.train_cw_const,
                learning_rate=self.train_cw_learning_rate,
                max_l2=3.0,
            ),
            "deepfool_linf": lambda: DeepfoolLinf(
                eps=self.train_eps, steps=self.train_deepfool_steps
            ),
        }
        if name not in makers:
            raise UserError(f"aid: train_attacks has {name!r}{did_you_mean(name, makers)}")
        return makers[name]()

    def fit_loss(self, images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        """Binary cross entropy of one batch, target 1 for adversarial (Algorithm 1, equation 1)."""
        if self.target == "contrastive":
            return self._contrastive_loss(images, seed)
        attack = self.attacks[derive_seed(seed, "attack") % len(self.attacks)]
        adversarial = attack(self.classifier, images, labels, seed, indices)
        mixed, share = self.mix(images, adversarial, indices, seed)
        return functional.binary_cross_entropy_with_logits(self.detector_logit(mixed), 1.0 - share)

    def mix(
        self, images: Tensor, adversarial: Tensor, indices: Tensor, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Mix clean images and vertices (lines 6 to 9 of Algorithm 1).

        Returns:
            images u x + (1 - u) x_AV (n, C, H, W), and u (n,).
        """
        vertex = images + self.gamma * (adversarial - images)
        if self.variant == "upstream":
            vertex = vertex.clamp(0.0, 1.0)
        share = uniform(seed, indices, (), tag="aid").to(images.device)
        if self.mixing in ("none", "av"):
            share = share.round()
        weight = share[:, None, None, None]
        return weight * images + (1.0 - weight) * vertex, share

    def _contrastive_loss(self, images: Tensor, seed: int) -> Tensor:
        low, *high = self._features(images)
        # a cyclic shift, because a permutation may pair an image with itself
        shift = 1 + derive_seed(seed, "contrastive") % max(len(images) - 1, 1)
        others = [feature.roll(shift, dims=0) for feature in high]
        logits = torch.cat([self.discriminator([low, *high]), self.discriminator([low, *others])])
        truth = torch.cat([torch.zeros(len(images)), torch.ones(len(images))]).to(logits.device)
        return functional.binary_cross_entropy_with_logits(logits, truth)

    def _features(self, images: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return pooled(tapped_features(self.classifier, images, self.taps))

    def detector_logit(self, images: Tensor) -> Tensor:
        """Discriminator's logit (n,), high for adversarial images."""
        features = pooled(tapped_features(self.classifier, images, self.taps))
        return at_least_float32(self.discriminator(features))

    def purify(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """Purified images (Algorithm 2).

        Descends the logit instead of the probability: the signs are equal, and the gradient cannot
        vanish. Differentiable, but the derivative of a sign is zero.
        """
        purified = images
        for _ in range(self.iterations):
            purified = self._descend(purified, images)
        return purified

    def step(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """First iteration of :meth:`purify`."""
        return self._descend(images, images)

    def unrolled(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """The images of :meth:`purify`, with a gradient through the direction of each step.

        That gradient takes a second backward pass through the classifier. Each sign is
        differentiated as tanh(g / s), where s is the mean |g| of the image (our choice). A sign's
        own derivative is zero and would leave only the identity on the unclipped pixels.
        """
        purified = images
        for _ in range(self.iterations):
            purified = self._descend(purified, images, second_order=True)
        return purified

    def _descend(self, purified: Tensor, images: Tensor, second_order: bool = False) -> Tensor:
        with torch.enable_grad():
            leaf = purified if second_order else purified.detach()
            if not leaf.requires_grad:
                leaf = leaf.detach().requires_grad_(True)
                second_order = False
            # fused attention has no second derivative
            kernel = sdpa_kernel(SDPBackend.MATH) if second_order else contextlib.nullcontext()
            with kernel:
                logit = self.detector_logit(leaf).sum()
            (gradient,) = torch.autograd.grad(logit, leaf, create_graph=second_order)
        direction = gradient.sign()
        if second_order:
            scale = gradient.detach().abs().mean(dim=(1, 2, 3), keepdim=True)
            smooth = (gradient / scale.clamp_min(torch.finfo(scale.dtype).tiny)).tanh()
            direction = direction.detach() + (smooth - smooth.detach())
        purified = purified - self.step_size * direction
        low, high = images - self.eps, images + self.eps
        return torch.minimum(torch.maximum(purified, low), high).clamp(0.0, 1.0)
