"""Robust self-training (Carmon et al. 2019): TRADES on labelled and pseudo-labelled images."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from purifiers.core import fitting
from purifiers.core.artifacts import read_sealed, write_sealed
from purifiers.core.choices import Optimizer, Schedule
from purifiers.core.component import Classifier
from purifiers.core.errors import UserError
from purifiers.core.finite import checked_at_end
from purifiers.core.loop import Order
from purifiers.core.modes import evaluation
from purifiers.core.noise import derive_seed, generator
from purifiers.core.ranges import Count, Fraction, Interior, NonNegative, Positive
from purifiers.core.recipe import Recipe
from purifiers.core.training_images import Pixels, to_float
from purifiers.core.traits import Note, Rule
from purifiers.training.trades import Trades, divergence

TEACHER = "teacher"
"""Name of the teacher's training in the run's record and of its folder."""


class Rst(Trades):
    """CE(f(x), y) + beta KL(f(x) || f(x')), where a natural teacher gave some of the labels y.

    The authors' unlabelled images are 500,000 of TinyImages, chosen for their likeness to CIFAR-10.
    Here a random part of the training images takes their place, whose labels are hidden. The
    teacher is trained naturally on the other images, from the same initial weights and by the same
    optimizer, and labels the hidden ones. Robust self-training on all images follows.

    Defaults are those of `yaircarmon/semisup-adv` (``robust_self_training.py``) for CIFAR-10 and
    WRN-28-10: 200 epochs, batch 256, SGD .1 with Nesterov's momentum .9 and weight decay 5e-4, the
    rate along half a cosine (there it falls once per epoch, here in every step). An epoch has as
    many images as the training set. Its images are cropped and flipped (``augmentation:
    crop_flip``).

    Args:
        unlabelled: share of the training images whose labels are hidden, above 0; our choice.
        unlabelled_per_batch: share of each batch that is drawn from them, with replacement.
        teacher_epochs: passes of the teacher over the labelled images.
        common: see :class:`purifiers.training.trades.Trades`.

    Raises:
        UserError: no unlabelled images, a batch without labelled or unlabelled images, or held-out
            images for validation, which would not have labels of their own.
    """

    traits = Trades.traits.replace(
        version=1,
        budget=(
            "epochs",
            "steps",
            "step_size",
            "teacher_epochs",
            "learning_rate",
            "optimizer",
            "schedule",
            "precision",
        ),
        joined_later=(),
        passes="3 * epochs * (steps + 2) + 3 * teacher_epochs * (1 - unlabelled) + unlabelled",
        remarks=(
            Note(
                when={},
                text="held-out images with hidden labels ({unlabelled} of the training images) "
                "stand in for the 500,000 pseudo-labelled images",
            ),
        ),
        rules=(
            Rule(
                holds=(
                    "unlabelled_per_batch * batch_size >= 1 and"
                    " unlabelled_per_batch * batch_size < batch_size"
                ),
                text=(
                    "unlabelled_per_batch is {unlabelled_per_batch} of a batch of {batch_size}: "
                    "choose a share that leaves images of both kinds"
                ),
            ),
            Rule(
                holds="validation == 0",
                text="validation needs true labels: set validation to 0",
            ),
        ),
    )

    def __init__(
        self,
        *,
        unlabelled: Interior = 0.5,
        unlabelled_per_batch: Fraction = 0.5,
        teacher_epochs: Positive = 200,
        epochs: Positive = 200,
        batch_size: Count = 256,
        optimizer: Optimizer = "nesterov",
        weight_decay: NonNegative = 5e-4,
        schedule: Schedule = "cosine",
        **common: Any,
    ) -> None:
        super().__init__(
            epochs=epochs,
            batch_size=batch_size,
            optimizer=optimizer,
            weight_decay=weight_decay,
            schedule=schedule,
            **common,
        )
        self.unlabelled, self.drawn = unlabelled, int(unlabelled_per_batch * batch_size)
        self.teacher_recipe = replace(self.recipe, epochs=teacher_epochs)

    def loss(
        self, classifier: Classifier, images: Tensor, labels: Tensor, indices: Tensor, seed: int
    ) -> Tensor:
        with checked_at_end(images.device):
            neighbours = self.neighbours(classifier, images, labels, indices, seed)
        # in this order, as upstream: each pass updates the running statistics
        adversarial_logits = classifier(neighbours)
        clean_logits = classifier(images)
        natural = functional.cross_entropy(clean_logits, labels)
        return natural + self.beta * divergence(clean_logits, adversarial_logits).mean()

    def hidden(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Rows with labels and rows whose labels are hidden, both sorted, int64.

        Raises:
            UserError: too few images for both.
        """
        size = round(self.unlabelled * count)
        if not 0 < size < count:
            raise UserError(
                f"rst: unlabelled hides the labels of {size} of {count} images: choose a share "
                "that leaves images of both kinds, or more images"
            )
        rows = torch.randperm(count, generator=generator(seed, "hidden labels"))
        return rows[size:].sort().values, rows[:size].sort().values

    def order(self, count: int, seed: int) -> Order:
        """Batches of labelled images without and unlabelled ones with replacement."""
        labelled, unlabelled = self.hidden(count, seed)

        def mixed(rows: Tensor, epoch: int) -> Tensor:
            draw = generator(seed, "order", epoch)
            batches = math.ceil(len(rows) / self.recipe.batch_size)
            taken = self.recipe.batch_size - self.drawn
            passes = math.ceil(batches * taken / len(labelled))
            shuffled = [torch.randperm(len(labelled), generator=draw) for _ in range(passes)]
            own = labelled[torch.cat(shuffled)[: batches * taken]].view(batches, taken)
            others = torch.randint(len(unlabelled), (batches, self.drawn), generator=draw)
            return torch.cat([own, unlabelled[others]], dim=1).flatten()

        return mixed

    def targets(
        self,
        classifier: Classifier,
        pixels: Pixels,
        labels: npt.NDArray,
        seed: int,
        at: fitting.Workplace,
    ) -> tuple[npt.NDArray, dict[str, dict[str, Any]]]:
        """The labels, with the teacher's in place of the hidden ones.

        The teacher's summary has its ``accuracy`` on the hidden labels, in [0, 1].
        """
        labelled, unlabelled = (rows.numpy() for rows in self.hidden(len(pixels), seed))
        folder = at.folder / fitting.PHASES / TEACHER
        stored = folder / "labels"
        if not stored.exists():
            folder.mkdir(parents=True, exist_ok=True)
            beside = replace(at, folder=folder, label=f"{at.label}, {TEACHER}")
            teacher = copy.deepcopy(classifier)
            summary = self._teach(teacher, pixels, labels, labelled, seed, beside)
            pseudo = _predicted(teacher, pixels, unlabelled, at)
            summary["accuracy"] = round(float((pseudo == labels[unlabelled]).mean()), 6)
            content = {"labels": pseudo.tolist(), "summary": summary}
            write_sealed(stored, json.dumps(content).encode())
        content = json.loads(read_sealed(stored))
        mixed = np.array(labels)
        mixed[unlabelled] = content["labels"]
        return mixed, {TEACHER: content["summary"]}

    def _teach(
        self,
        teacher: Classifier,
        pixels: Pixels,
        labels: npt.NDArray,
        labelled: npt.NDArray,
        seed: int,
        at: fitting.Workplace,
    ) -> dict[str, Any]:
        """Train ``teacher`` naturally on the labelled images; the summary of the training."""

        def loss(images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
            return functional.cross_entropy(teacher(images), labels)

        recipe: Recipe = self.teacher_recipe
        rows = _Rows(pixels, labelled)
        own_seed = derive_seed(seed, TEACHER)
        return fitting.train(teacher, loss, rows, labels[labelled], recipe, own_seed, at)


@dataclass(frozen=True)
class _Rows:
    """Some rows of the training images."""

    pixels: Pixels
    rows: npt.NDArray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: npt.NDArray) -> npt.NDArray:
        return self.pixels[self.rows[rows]]


def _predicted(
    teacher: Classifier, pixels: Pixels, rows: npt.NDArray, at: fitting.Workplace
) -> npt.NDArray:
    """The teacher's classes of some images, int64 (n,)."""
    classes = []
    with evaluation(teacher):
        for start in range(0, len(rows), at.batch_size):
            images = to_float(pixels[rows[start : start + at.batch_size]], at.device)
            images = images.contiguous(memory_format=torch.channels_last)
            classes.append(teacher(images).argmax(1).cpu().numpy())
    return np.concatenate(classes)
