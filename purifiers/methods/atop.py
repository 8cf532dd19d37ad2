"""AToP (Lin et al. 2024): an inpainting purifier behind random transforms, adversarially tuned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from purifiers.attacks.fgsm import Fgsm
from purifiers.core.choices import Augmentation, Schedule
from purifiers.core.component import Method, default_indices
from purifiers.core.errors import UserError
from purifiers.core.noise import derive_seed, keys_on, normal_on
from purifiers.core.numbers import Length
from purifiers.core.phase import Phase
from purifiers.core.prepare import Prepared
from purifiers.core.ranges import Count, Interior, NonNegative, Positive, Whole
from purifiers.core.recipe import Recipe
from purifiers.core.snapshots import load_weights, numbers_by_step, weights_of
from purifiers.core.step_count import StepCount
from purifiers.core.training_images import Pixels
from purifiers.core.traits import Fit, Images, MethodTraits, Network, Rule, SecondTraining
from purifiers.methods._block_masks import FIXED, block_masks
from purifiers.methods._deepfill import Discriminator, Generator, generative_loss

BETAS = (0.5, 0.999)
"""Adam's betas for both networks (`glin2022/atop`, ``configs/train.yaml``)."""


class Atop(Method):
    """x -> G(t(x)): corrupt an image by a random transform t, then fill it with a generator G.

    The poster's transforms: RT1 masks blocks (``noise`` 0, ``masks`` 1). RT2 adds noise, clips to
    [0, 1] and masks (``masks`` 1). RT3 takes the noise of RT2 and four disjoint masks that cover
    the image (``masks`` 4), and joins the pixels that G fills. With one mask all of G's output is
    the purified image, known pixels too, as in the notebooks of `glin2022/atop`.

    Fitted in two trainings. The first has the generative loss alone ("without AToP"): L1 distances
    of both stages to the image without noise, and a hinge GAN. The second continues it on FGSM
    examples of the bare classifier, with ``classification_weight`` times the cross entropy of the
    purified image added (the poster's Eq. b; Eq. a with ``fine_tune_attack`` none). The classifier
    stays frozen. Both networks learn from the same batch; upstream updates the discriminator first.

    Where the poster gives no value, the default is that of the notebooks, unless stated otherwise.
    They start from a network trained on Places2; here the weights are random, see
    :data:`purifiers.methods._deepfill.GAIN`. They detach G's output before the discriminator
    scores it, so that their GAN loss trains no generator: ``gan_weight`` 0 gives the same G.
    They give the classifier pixels in [-1, 1] while training, where it takes [0, 1]; here [0, 1].
    G and the reconstruction losses use [-1, 1].

    Args:
        width: of the generator, see :class:`purifiers.methods._deepfill.Generator`.
        discriminator_width, discriminator_depth: channels of its first layer, and number of layers.
            Depth 6 upstream, for 256x256; our 3 also ends with 4x4 scores, for 32x32.
        side: images are resized to this side and back again (bilinear, antialiased); null: not.
            Upstream's classifier, attacks and eps all live at 256x256.
        noise: standard deviation of the noise on the [0, 1] scale.
        masks: passes of the generator per image, with disjoint masks that cover the image. The
            first training has one mask, so that all numbers of masks share it.
        mask_block: side of a block in pixels; 32 at 256x256 upstream, our 4 at 32x32.
        mask_share: masked part of an image; with several masks 1 / ``masks``.
        mask: ``image``: each image has masks of its own. ``shared``: all have the same, as a batch
            has upstream. Noise is always the image's own.
        fixed_mask: purify with the same mask or masks for all images and draws, as in the authors'
            replies. The trainings use ``mask``.
        fine_tune: whether the second training follows; its parameters begin with ``fine_tune``.
        snapshots: copies of the generator that the second training keeps, at equal distances of
            its steps: the first before it begins, none at its end.
        snapshot: the copy that purifies, from 1; 0: the generator at the end.
        fine_tune_attack: ``fgsm``, or ``none`` for clean images.
        eps: of FGSM.
        target: the image to reconstruct in the second training: ``adversarial`` (Eq. b) or
            ``clean``, as in a logged run of the notebooks.
        classification_weight: lambda; .1 in some notebooks.
        classification_after: epochs of the second training before lambda applies. Upstream
            10,000 images with RT2, .2 epochs of CIFAR-10, and 0 with RT1.
        l1_weight, mse_weight, gan_weight: of the generative loss. The mean squared errors of both
            stages are our own addition for short trainings; 0 upstream.
        epochs, fine_tune_epochs: at most 300 rounds of 10,000 and of 5,000 images upstream.
        batch_size, fine_tune_batch_size: images per step.
        learning_rate, fine_tune_learning_rate: Adam's, of both networks.
        schedule: of both rates, see :class:`purifiers.core.recipe.Recipe`.
        augmentation: of the training images; ``flip`` upstream.

    Raises:
        UserError: an unknown choice, several masks that do not cover the image, a width that is no
            multiple of 4, or images whose size does not fit the other parameters.
    """

    traits = MethodTraits(
        version=1,
        budget=(
            "width",
            "discriminator_width",
            "discriminator_depth",
            "l1_weight",
            "mse_weight",
            "gan_weight",
            "epochs",
            "batch_size",
            "learning_rate",
            "fine_tune_epochs",
            "fine_tune_batch_size",
            "fine_tune_learning_rate",
            "classification_after",
            "schedule",
        ),
        random=True,
        # the gradient of FGSM and of the classification loss
        fit=Fit(
            passes="fine_tune * fine_tune_epochs * 3 * (1 + masks)",
            uses_classifier={"fine_tune": (True,)},
            inference_only=("fixed_mask", "snapshot"),
            second=SecondTraining(
                when="fine_tune",
                only=(
                    "fine_tune_attack",
                    "eps",
                    "target",
                    "classification_weight",
                    "classification_after",
                    "fine_tune_epochs",
                    "fine_tune_batch_size",
                    "fine_tune_learning_rate",
                    "masks",
                    "snapshots",
                ),
            ),
        ),
        network=Network(
            sized_by=("width", "side"),
            passes="masks",
            # the discriminator's passes cost about a sixth of the generator's
            fit_passes="3.5 * (epochs + fine_tune * fine_tune_epochs * masks)",
        ),
        images=Images(
            side_multiple="mask_block",
            smallest_side="2 ** (discriminator_depth * (gan_weight > 0))",
            resized_to="side",
            rules=(
                Rule(
                    holds="image_height >= 8 and image_width >= 8",
                    text=(
                        "contextual attention needs a map of 2x2, which {image_height}x"
                        "{image_width} images do not leave: set side to at least 8"
                    ),
                ),
                Rule(
                    holds="mask_share * image_height * image_width >= mask_block ** 2",
                    text=(
                        "a share of {mask_share} of {image_height}x{image_width} images is less "
                        "than a block of mask_block {mask_block}: lower it or raise mask_share"
                    ),
                ),
                Rule(
                    holds="masks * mask_block ** 2 <= image_height * image_width",
                    text=(
                        "{image_height}x{image_width} images have less than {masks} blocks of "
                        "mask_block {mask_block}: lower masks or mask_block"
                    ),
                ),
            ),
        ),
        rules=(
            Rule(
                holds="masks == 1 or (masks * mask_share - 1) ** 2 < 1e-18",
                text=(
                    "{masks} masks of {mask_share} of the image do not cover it once: set "
                    "mask_share to 1 / masks, or masks to 1"
                ),
            ),
            Rule(
                holds="width % 4 == 0",
                text=(
                    "width is {width}, but the last layers have a quarter of it: choose a "
                    "multiple of 4"
                ),
            ),
            Rule(
                holds="l1_weight + mse_weight > 0",
                text="l1_weight and mse_weight are 0, so that nothing is reconstructed: set one",
            ),
            Rule(
                holds="snapshot <= snapshots",
                text=(
                    "snapshot is {snapshot}, but the second training keeps {snapshots}: lower it, "
                    "or raise snapshots and fit again"
                ),
            ),
        ),
    )

    copies: Tensor

    def __init__(
        self,
        *,
        width: Count = 48,
        discriminator_width: Count = 64,
        discriminator_depth: Count = 3,
        side: Count | None = None,
        noise: NonNegative = 0.25,
        masks: Count = 1,
        mask_block: Count = 4,
        mask_share: Interior = 0.25,
        mask: Literal["image", "shared"] = "image",
        fixed_mask: bool = False,
        fine_tune: bool = True,
        snapshots: Whole = 0,
        snapshot: Whole = 0,
        fine_tune_attack: Literal["fgsm", "none"] = "fgsm",
        eps: Length = "8/255",
        target: Literal["adversarial", "clean"] = "adversarial",
        classification_weight: NonNegative = 0.05,
        classification_after: NonNegative = 0.2,
        l1_weight: NonNegative = 1.0,
        mse_weight: NonNegative = 0.0,
        gan_weight: NonNegative = 1.0,
        epochs: Positive = 60,
        batch_size: Count = 16,
        learning_rate: Positive = 1e-4,
        fine_tune_epochs: Positive = 30,
        fine_tune_batch_size: Count = 8,
        fine_tune_learning_rate: Positive = 1e-4,
        schedule: Schedule = "step",
        augmentation: Augmentation = "none",
    ) -> None:
        super().__init__()
        self.width, self.side = width, side
        self.discriminator_width = discriminator_width
        self.discriminator_depth = discriminator_depth
        self.noise, self.masks = noise, masks
        self.mask_block, self.mask_share, self.mask = mask_block, mask_share, mask
        self.fixed_mask, self.snapshots, self.snapshot = fixed_mask, snapshots, snapshot
        self.fine_tune, self.fine_tune_attack = fine_tune, fine_tune_attack
        self.eps, self.target = eps, target
        self.classification_weight = classification_weight
        self.classification_after = classification_after
        self.l1_weight, self.mse_weight, self.gan_weight = l1_weight, mse_weight, gan_weight
        self.recipe, self.fine_tune_recipe = (
            Recipe(
                epochs=length,
                batch_size=size,
                learning_rate=rate,
                optimizer="adam",
                betas=BETAS,
                schedule=schedule,
                augmentation=augmentation,
            )
            for length, size, rate in (
                (epochs, batch_size, learning_rate),
                (fine_tune_epochs, fine_tune_batch_size, fine_tune_learning_rate),
            )
        )
        self.discriminator: Discriminator | None = None
        # in lists, so that the classifier and its copy are no submodules of this one
        self._classifier: list[nn.Module] = []
        self._prepared: list[Prepared] = []
        self._fine_tuned = StepCount(self, "fine_tune_steps")
        self.register_load_state_dict_post_hook(lambda module, _: module._use_snapshot())

    def bind(self, classifier: nn.Module | None, shape: Sequence[int]) -> None:
        """Build the networks for images (C, H, W).

        Raises:
            UserError: sides that are too small or no multiple of ``mask_block``, a mask without a
                block, or a discriminator that is too deep.
        """
        self._classifier = [] if classifier is None else [classifier]
        self._prepared = []
        self.generator = Generator(shape[0], self.width)
        if self.gan_weight:
            self.discriminator = Discriminator(
                shape[0], self.discriminator_width, self.discriminator_depth
            )
        if self.fine_tune and self.snapshots:
            copies = weights_of(self.generator).repeat(self.snapshots, 1)
            self.register_buffer("copies", copies)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def own_pass(self, images: Tensor) -> Tensor:
        resized = self._resized(images)
        return self.generator(2.0 * resized - 1.0, torch.zeros_like(resized[:, :1]))[1]

    def purify(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """Purified images; noise and masks depend on (seed, index). The gradient is exact."""
        resized = self._resized(images)
        mask = FIXED if self.fixed_mask else self.mask
        (_, fine), masks = self._filled(resized, default_indices(images, indices), seed, mask=mask)
        return self._purified(fine, masks, images)

    def transformed(self, images: Tensor, seed: int, indices: Tensor) -> Tensor:
        """Noisy images whose missing pixels are grey, as G gets them; under the first mask."""
        mask = FIXED if self.fixed_mask else self.mask
        noisy, masks = self._corrupted(self._resized(images), indices, seed, self.masks, mask)
        first = ((1.0 - masks) * noisy + 1.0)[: len(images)] / 2.0
        return self._in_shape(first, images)

    def fit_loss(self, images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        """Generative loss of a batch, with one mask of ``mask_share`` per image; of both networks.

        Each network has gradients of its own loss only.
        """
        images = self._resized(images)
        stages, masks = self._filled(images, indices, seed, count=1)
        return self._generative_loss(images, stages, masks)

    def next_phase(self, pixels: Pixels, labels: npt.NDArray) -> Phase | None:
        """The fine-tuning with the classification loss, from the weights of the first training."""
        if not self.fine_tune:
            return None
        recipe = self.fine_tune_recipe
        steps = math.ceil(len(pixels) / recipe.batch_size)
        first = round(self.classification_after * steps)
        copied_at = numbers_by_step(self.snapshots, recipe.total_steps(len(pixels)))
        self._fine_tuned.begin(anew=True)

        def loss(images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
            done = self._fine_tuned.value
            if done in copied_at:
                self.copies[copied_at[done]] = weights_of(self.generator)
            images = images.contiguous(memory_format=torch.channels_last)
            value = self.tuning_loss(images, labels, indices, seed, done >= first)
            self._fine_tuned.advance()
            return value

        return Phase("fine_tune", self, loss, pixels, labels, recipe)

    def end_fit(self) -> None:
        self._use_snapshot()

    def _use_snapshot(self) -> None:
        if self.snapshot:
            load_weights(self.generator, self.copies[self.snapshot - 1])

    def tuning_loss(
        self,
        images: Tensor,
        labels: Tensor,
        indices: Tensor,
        seed: int,
        with_classification: bool = True,
    ) -> Tensor:
        """Loss of the second training: generative, plus lambda times the cross entropy.

        The generative loss is over all passes of the generator, also the parts that are not joined.

        Raises:
            UserError: no classifier is bound.
        """
        classifier, examples = self._attacked(), images
        if self.fine_tune_attack == "fgsm":
            examples = Fgsm(eps=self.eps)(
                classifier, images, labels, derive_seed(seed, "atop"), indices
            )
        target = self._resized(examples if self.target == "adversarial" else images)
        stages, masks = self._filled(self._resized(examples), indices, seed)
        loss = self._generative_loss(target, stages, masks)
        if self.classification_weight and with_classification:
            purified = self._purified(stages[1], masks, images)
            entropy = functional.cross_entropy(classifier(purified), labels)
            loss = loss + self.classification_weight * entropy
        return loss

    def _filled(
        self,
        images: Tensor,
        indices: Tensor,
        seed: int,
        count: int | None = None,
        mask: str | None = None,
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Noisy images behind each mask, filled by the generator in one batch.

        Args:
            count: masks per image; None: ``masks``.
            mask: see :meth:`_corrupted`.

        Returns:
            Both stages in [-1, 1] (masks * n, C, H, W), all images under their first mask first,
            and the masks (masks * n, 1, H, W).
        """
        pixels, masks = self._corrupted(images, indices, seed, count or self.masks, mask)
        return self.generator(pixels, masks), masks

    def _corrupted(
        self,
        images: Tensor,
        indices: Tensor,
        seed: int,
        count: int,
        mask: str | None,
    ) -> tuple[Tensor, Tensor]:
        """Noisy images in [-1, 1] (masks * n, C, H, W), and their masks (masks * n, 1, H, W).

        Args:
            count: masks per image.
            mask: see :func:`purifiers.methods._block_masks.block_masks`; None: that of the
                trainings.
        """
        rows = indices.to(images.device)
        if self.noise:
            keys = keys_on(seed, rows, "atop")
            noise = normal_on(keys, images.shape[1:])
            images = (images + self.noise * noise).clamp(0.0, 1.0)
        drawn = block_masks(
            seed,
            rows,
            images.shape[2:],
            self.mask_block,
            self.mask_share,
            count,
            mask or self.mask,
        )
        masks = drawn.transpose(0, 1).flatten(0, 1)
        return (2.0 * images - 1.0).repeat(count, 1, 1, 1), masks

    def _purified(self, fine: Tensor, masks: Tensor, images: Tensor) -> Tensor:
        """Purified ``images`` in [0, 1]: the pixels filled under each mask; for one mask, all."""
        if self.masks > 1:
            fine = (fine * masks).unflatten(0, (self.masks, -1)).sum(dim=0)
        return self._in_shape((fine + 1.0) / 2.0, images)

    def _in_shape(self, resized: Tensor, images: Tensor) -> Tensor:
        """``resized`` in [0, 1] in the shape of ``images``."""
        if self.side is None:
            return resized
        return _resize(resized, images.shape[2:]).clamp(0.0, 1.0)  # against rounding

    def _generative_loss(
        self, images: Tensor, stages: tuple[Tensor, Tensor], masks: Tensor
    ) -> Tensor:
        """Loss of the stages' pixels for ``images`` (n, C, H, W) in [0, 1], under each mask."""
        real = (2.0 * images - 1.0).repeat(len(masks) // len(images), 1, 1, 1)
        weights = (self.l1_weight, self.mse_weight, self.gan_weight)
        return generative_loss(real, stages, masks, self.discriminator, *weights)

    def _resized(self, images: Tensor) -> Tensor:
        return images if self.side is None else _resize(images, (self.side, self.side))

    def _attacked(self) -> Prepared:
        """The frozen classifier.

        Raises:
            UserError: no classifier is bound.
        """
        if not self._classifier:
            raise UserError("atop: bind a classifier before fine-tuning, or set fine_tune to false")
        if not self._prepared:
            self._prepared = [Prepared(self._classifier[0])]
        return self._prepared[0]


def _resize(images: Tensor, size: Sequence[int]) -> Tensor:
    return functional.interpolate(images, tuple(size), mode="bilinear", antialias=True)
