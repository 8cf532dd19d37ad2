"""IDFR (anonymous): an input denoiser, and a restorer of the classifier's embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from purifiers.attacks.bim import Bim
from purifiers.core.choices import Schedule
from purifiers.core.component import Method
from purifiers.core.errors import UserError
from purifiers.core.heads import head_name, split, with_restorer
from purifiers.core.modes import evaluation
from purifiers.core.noise import derive_seed, generator, normal
from purifiers.core.numbers import Length
from purifiers.core.phase import Phase
from purifiers.core.prepare import Prepared
from purifiers.core.ranges import Count, NonNegative, Positive, Whole
from purifiers.core.recipe import Recipe
from purifiers.core.snapshots import load_weights, numbers_by_step, weights_of
from purifiers.core.step_count import StepCount
from purifiers.core.training_images import Pixels, to_float
from purifiers.core.traits import Fit, MethodTraits, Network, Rule, SecondTraining
from purifiers.methods._idfr_mixing import Mixing
from purifiers.methods._idfr_networks import (
    EMBEDDING,
    FeatureRestorer,
    InputDenoiser,
)

RESTORER = "restorer"
POOL_BATCH = 256
"""Images per batch whose embeddings are computed; affects time and memory only."""


class Idfr(Method):
    """x -> head(FR(encoder(ID(x)))): denoise the image, then restore the classifier's embedding.

    ID is fitted on BIM examples of the bare classifier and on noisy clean images, both made once
    (Algorithm 1, Eq. 3). FR is fitted afterwards, on mixtures of embeddings of one class behind ID
    (Algorithm 2, Eq. 6); encoder and head stay frozen.

    The paper does not say how its adversarial images are made; BIM is one of its attacks.

    Args:
        restore: whether FR is used; False is the paper's ablation "ID".
        residual: ``none`` (Table 6), ``signed`` or ``positive``; see
            :class:`purifiers.methods._idfr_networks.InputDenoiser`.
        loss: ``cross_entropy`` (Eq. 3), or ``features``: the mean absolute difference to the clean
            image's embedding, as `ID-FR/IDFR` trains.
        width: channels of ID's first layer; 32 in Table 6.
        restorer_width: units of FR's second layer; 256 in Table 7.
        eps, steps, step_size: of BIM; our choice.
        sigma: standard deviation of the noise on clean images, which are then clipped to [0, 1];
            our choice.
        noise_rounds: noisy copies of each clean image; our choice. 0 in `ID-FR/IDFR`.
        epochs, learning_rate: of ID with Adam; 100 and .01 in section 4.1, .001 in `ID-FR/IDFR`.
        batch_size: clean images per step of ID, each with all its copies; 128 in `ID-FR/IDFR`.
        restore_epochs, restore_batch_size, restore_learning_rate: of FR with Adam; 80 and .01 in
            section 4.1, batch 96 and rate .001 in `ID-FR/IDFR`.
        schedule: of both rates, see :class:`purifiers.core.recipe.Recipe`; constant in the paper.
        snapshots: copies of ID that its training keeps, at equal distances of its steps: the first
            before it begins, none at its end. Only without FR, which is fitted behind one ID.
        snapshot: the copy that purifies, from 1; 0: ID at the end.

    Raises:
        UserError: an unknown residual or loss, snapshots with FR, or more than are kept.
    """

    traits = MethodTraits(
        version=1,
        budget=(
            "width",
            "restorer_width",
            "steps",
            "step_size",
            "epochs",
            "batch_size",
            "learning_rate",
            "restore_epochs",
            "restore_learning_rate",
            "schedule",
        ),
        restores={"restore": (True,)},
        # the examples of each training, the loss of each copy, two embeddings for FR
        fit=Fit(
            passes="3 * steps * (1 + restore) + 3 * epochs * (1 + noise_rounds) + 2 * restore",
            stored_examples=True,
            inference_only=("snapshot",),
            second=SecondTraining(
                when="restore",
                only=(
                    "restorer_width",
                    "restore_epochs",
                    "restore_batch_size",
                    "restore_learning_rate",
                ),
            ),
        ),
        network=Network(
            sized_by=("width", "residual"),
            passes="1",
            fit_passes="3 * epochs * (1 + noise_rounds) + 2 * restore",
        ),
        rules=(
            Rule(
                holds="restorer_width >= 8",
                text=(
                    "restorer_width is {restorer_width}, but FR's narrowest layer has 1/8 of it: "
                    "choose at least 8"
                ),
            ),
            Rule(
                when={"restore": (True,)},
                holds="snapshots == 0",
                text=(
                    "snapshots is {snapshots}, but FR is fitted behind the last ID: set restore to "
                    "false, or snapshots to 0"
                ),
            ),
            Rule(
                holds="snapshot <= snapshots",
                text=(
                    "snapshot is {snapshot}, but the training keeps {snapshots}: lower it, or "
                    "raise snapshots and fit again"
                ),
            ),
        ),
    )

    copies: Tensor

    def __init__(
        self,
        *,
        restore: bool = True,
        residual: Literal["none", "signed", "positive"] = "none",
        loss: Literal["cross_entropy", "features"] = "cross_entropy",
        width: Count = 32,
        restorer_width: Count = 256,
        eps: Length = "8/255",
        steps: Count = 10,
        step_size: Length = "2/255",
        sigma: NonNegative = 0.05,
        noise_rounds: Whole = 2,
        epochs: Positive = 100,
        batch_size: Count = 128,
        learning_rate: Positive = 0.01,
        restore_epochs: Positive = 80,
        restore_batch_size: Count = 96,
        restore_learning_rate: Positive = 0.01,
        schedule: Schedule = "step",
        snapshots: Whole = 0,
        snapshot: Whole = 0,
    ) -> None:
        super().__init__()
        self.restore, self.residual, self.loss = restore, residual, loss
        self.snapshots, self.snapshot = snapshots, snapshot
        self.width, self.restorer_width = width, restorer_width
        self.eps, self.steps, self.step_size = eps, steps, step_size
        self.sigma, self.noise_rounds = sigma, noise_rounds
        self.recipe, self.restorer_recipe = (
            Recipe(
                epochs=length,
                batch_size=size,
                learning_rate=rate,
                optimizer="adam",
                schedule=schedule,
            )
            for length, size, rate in (
                (epochs, batch_size, learning_rate),
                (restore_epochs, restore_batch_size, restore_learning_rate),
            )
        )
        # in lists, so that the classifier and its copies are no submodules of this one
        self._classifier: list[nn.Module] = []
        self._parts: list[tuple[Prepared, nn.Linear]] = []
        self._shape: tuple[int, ...] = ()
        self._copied_at: dict[int, int] = {}
        self._fitted = StepCount(self, "fit_steps") if snapshots else None
        self.register_load_state_dict_post_hook(lambda module, _: module._use_snapshot())

    def bind(self, classifier: nn.Module | None, shape: Sequence[int]) -> None:
        """Build ID for the images' channels and FR for the width of the classifier's embedding.

        Without a classifier FR is built for embeddings of 512, as Table 7 lists it.

        Raises:
            UserError: the classifier does not end with a linear layer.
        """
        self._classifier, self._parts = [], []
        self._shape = tuple(shape)
        embedding = EMBEDDING
        if classifier is not None:
            self._classifier = [classifier]
            embedding = _embedding(classifier, shape)
        self.denoiser = InputDenoiser(shape[0], self.width, self.residual)
        if self.snapshots:
            self.register_buffer("copies", weights_of(self.denoiser).repeat(self.snapshots, 1))
        self.denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.restore:  # trained in the second phase only
            self.restorer = FeatureRestorer(embedding, self.restorer_width).requires_grad_(False)

    def own_pass(self, images: Tensor) -> Tensor:
        return self.denoiser(images)

    def purify(
        self, images: Tensor, seed: int = 0, indices: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """Denoised images; FR acts inside the classifier, see :meth:`equipped`."""
        return self.denoiser(images)

    def equipped(self, classifier: nn.Module) -> nn.Module:
        """The classifier with FR between its encoder and its head; itself without FR.

        Raises:
            UserError: the classifier's embedding has another width than FR.
        """
        if not self.restore:
            return classifier
        width = _embedding(classifier, self._shape)
        if width != self.restorer[0].in_features:
            raise UserError(
                f"idfr: its restorer reads embeddings of {self.restorer[0].in_features}, but "
                f"those of {type(classifier).__name__} have {width}: bind and fit it on this "
                "classifier"
            )
        return with_restorer(classifier, self._shape, self.restorer)

    def fit_on(self, classifiers: Sequence[nn.Module], images: int) -> None:
        super().fit_on(classifiers, images)
        if self._fitted is not None:
            self._fitted.begin(anew=True)
            self._copied_at = numbers_by_step(self.snapshots, self.recipe.total_steps(images))

    def end_fit(self) -> None:
        self._use_snapshot()

    def _use_snapshot(self) -> None:
        if self.snapshot:
            load_weights(self.denoiser, self.copies[self.snapshot - 1])

    def _keep_snapshot(self, fitted: StepCount) -> None:
        """Copy ID's weights before a step, if a copy is due."""
        if fitted.value in self._copied_at:
            self.copies[self._copied_at[fitted.value]] = weights_of(self.denoiser)
        fitted.advance()

    def fit_loss(self, images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
        """Mean loss of ID over the adversarial and the noisy copies of a batch (Eq. 3)."""
        if self._fitted is not None:
            self._keep_snapshot(self._fitted)
        encoder, head = self._encoder_and_head()
        copies = [self._adversarial(images, labels, indices)]
        for number in range(self.noise_rounds):
            noise = normal(derive_seed("idfr", number), indices, images.shape[1:], "noise")
            copies.append((images + self.sigma * noise.to(images)).clamp(0.0, 1.0))
        count = len(copies)
        embeddings = encoder(self.denoiser(torch.cat(copies)))
        if self.loss == "features":
            with torch.no_grad():
                clean = encoder(images)
            return functional.l1_loss(embeddings, clean.repeat(count, 1))
        return functional.cross_entropy(head(embeddings), labels.repeat(count))

    def example(self, number: int, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        encoder, head = self._encoder_and_head()
        bim = Bim(eps=self.eps, steps=self.steps, step_size=self.step_size)
        seed = derive_seed("idfr", "examples")
        return bim(lambda inputs: head(encoder(inputs)), images, labels, seed, indices)

    def next_phase(self, pixels: Pixels, labels: npt.NDArray) -> Phase | None:
        """The training of FR, on embeddings of all clean and adversarial images behind ID."""
        if not self.restore:
            return None
        _, head = self._encoder_and_head()
        clean, adversarial = self._pool(pixels, labels)
        embeddings = torch.cat([clean, adversarial])
        truth = torch.from_numpy(np.asarray(labels)).repeat(2)
        device = head.weight.device
        with torch.no_grad():
            correct = head(embeddings.to(device)).argmax(1).cpu() == truth
        mixing = Mixing(embeddings, truth, correct)
        self.restorer.requires_grad_(True)

        def loss(batch: Tensor, labels: Tensor, rows: Tensor, seed: int) -> Tensor:
            draws, alphas = torch.rand(2, len(rows), generator=generator(seed, "mixing"))
            mixtures = mixing.mixed(rows, draws, alphas).to(batch.device)
            return functional.cross_entropy(head(self.restorer(mixtures)), labels)

        recipe = self.restorer_recipe
        return Phase(RESTORER, self.restorer, loss, embeddings.numpy(), truth.numpy(), recipe)

    def _pool(self, pixels: Pixels, labels: npt.NDArray) -> tuple[Tensor, Tensor]:
        """Embeddings behind ID of the clean and of the adversarial images, both (n, width)."""
        encoder, head = self._encoder_and_head()
        device = str(head.weight.device)
        clean, adversarial = [], []
        for rows in torch.arange(len(pixels)).split(POOL_BATCH):
            images = to_float(pixels[rows.numpy()], device)
            truth = torch.from_numpy(np.asarray(labels)[rows.numpy()]).to(device)
            examples = self._adversarial(images, truth, rows)
            with evaluation(self):
                clean.append(encoder(self.denoiser(images)).cpu())
                adversarial.append(encoder(self.denoiser(examples)).cpu())
        return torch.cat(clean), torch.cat(adversarial)

    def _adversarial(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """The stored examples of a batch; made now if none are stored."""
        if not self.stored_examples:
            return self.example(0, images, labels, indices)
        stored = self.stored_examples[0][indices.numpy()]
        return torch.from_numpy(stored).to(images.device)

    def _encoder_and_head(self) -> tuple[Prepared, nn.Linear]:
        """The frozen classifier in two parts.

        Raises:
            UserError: no classifier is bound.
        """
        if not self._classifier:
            raise UserError("idfr: bind a classifier before fitting")
        if not self._parts:
            encoder, head = split(self._classifier[0], self._shape)
            self._parts = [(Prepared(encoder), head)]
        return self._parts[0]


def _embedding(classifier: nn.Module, shape: Sequence[int]) -> int:
    """Width of what the classifier's last linear layer reads."""
    head = classifier.get_submodule(head_name(classifier, shape))
    assert isinstance(head, nn.Linear)
    return head.in_features
