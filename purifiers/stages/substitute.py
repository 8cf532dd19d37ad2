"""Train a substitute of a defended classifier on labels predicted by the defence."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from purifiers.core.artifacts import RunFolder, read_sealed, write_sealed
from purifiers.core.component import Classifier
from purifiers.core.defence import Defence
from purifiers.core.errors import UserError
from purifiers.core.finite import finite
from purifiers.core.loop import fit
from purifiers.core.noise import derive_seed
from purifiers.core.shards import fill
from purifiers.core.spec import Subset, SubstituteSpec
from purifiers.core.training_images import to_float
from purifiers.stages._context import WEIGHTS, Context, Data, Outcome, save_weights
from purifiers.stages._opening import (
    new_classifier,
    new_component,
    on_device,
    open_classifier,
    open_data,
    open_method,
)

COMPARED_IMAGES = 500
"""Training images on which the substitute is compared with the oracle; our choice."""


@dataclass
class TrainingSet:
    """The substitute's training set and the history of its growth.

    Attributes:
        images: float32 (n, C, H, W).
        labels: labels of the first m images, int64 (m,); the others have no label yet.
        queries: number of queries to the oracle.
        rounds: summary of each finished round.
    """

    images: Tensor
    labels: Tensor
    queries: int = 0
    rounds: list[dict[str, Any]] = field(default_factory=list)


def run(folder: RunFolder, spec: SubstituteSpec, context: Context) -> Outcome:
    """Query the oracle, train and augment in turn, and write the substitute's weights.

    A rerun continues in the interrupted round, at its last checkpoint.
    """
    data = open_data(context, spec.data)
    torch.manual_seed(derive_seed(spec.seed, folder.stage))
    extraction = Extraction(
        folder,
        context,
        spec.seed,
        new_component("training", spec.training),
        on_device(new_classifier(spec.classifier, data), context),
        _oracle(spec, context),
    )
    rounds = extraction.training.rounds
    training_set = extraction.resume() or _seed_set(
        data, spec.seeds, extraction.training.seed_labels
    )
    while len(training_set.rounds) < rounds:
        extraction.query_oracle(training_set)
        trained = extraction.train(training_set)
        training_set.rounds.append(
            {"images": len(training_set.images), "queries": training_set.queries, **trained}
        )
        if len(training_set.rounds) < rounds:
            extraction.augment(training_set)
        extraction.save(training_set)
    save_weights(extraction.substitute, folder)
    for scratch in folder.path.glob("round_*"):
        shutil.rmtree(scratch)
    summary = {
        "images": len(training_set.images),
        "queries": training_set.queries,
        "rounds": training_set.rounds,
        **extraction.agreement(data, len(training_set.images)),
        "parameters": sum(p.numel() for p in extraction.substitute.parameters()),
    }
    return Outcome([WEIGHTS], summary)


def _oracle(spec: SubstituteSpec, context: Context) -> Defence:
    """The whole defence, which the attacker may query without gradients."""
    classifier = open_classifier(context, spec.oracle.classifier)
    methods = [open_method(context, method, classifier) for method in spec.oracle.methods]
    return Defence(classifier, methods, "none", derive_seed(spec.seed, "oracle"))


def _seed_set(data: Data, seeds: Subset, seed_labels: str) -> TrainingSet:
    """The seed images, with true labels if ``seed_labels`` is ``dataset``, else without labels."""
    indices = data.indices(seeds)
    labels = torch.from_numpy(data.labels[seeds.split][indices])
    images = to_float(data.images[seeds.split][indices])
    return TrainingSet(images, labels if seed_labels == "dataset" else labels[:0])


@dataclass(frozen=True)
class Extraction:
    """The steps of a model extraction.

    Attributes:
        folder: the folder of the run.
        context: resources of the job.
        seed: random seed.
        training: a training component whose traits declare ``uses_oracle``.
        substitute: the classifier in training.
        oracle: the defence whose predicted labels it learns.
    """

    folder: RunFolder
    context: Context
    seed: int
    training: Any
    substitute: Classifier
    oracle: Defence

    def query_oracle(self, training_set: TrainingSet) -> None:
        """Label the unlabelled images by queries to the oracle."""
        labelled = len(training_set.labels)
        count = len(training_set.images) - labelled

        def work(start: int, stop: int) -> npt.NDArray:
            return self._oracle_labels(
                training_set.images[labelled + start : labelled + stop], labelled + start
            ).numpy()

        if count:
            path = self._scratch(training_set) / "labels.npy"
            label = f"{self._label(training_set)}, queries"
            fill(path, count, (), np.int64, work, self.context.batch_size, label)
            training_set.labels = torch.cat([training_set.labels, torch.from_numpy(np.load(path))])
            training_set.queries += count

    def train(self, training_set: TrainingSet) -> dict[str, Any]:
        """Train for one round with a new optimizer; return the summary of the training loop."""

        def loss(images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
            images = images.contiguous(memory_format=torch.channels_last)
            return self.training.loss(self.substitute, images, labels, indices, seed)

        scratch = self._scratch(training_set)
        return fit(
            self.substitute.train(),
            loss,
            training_set.images.numpy(),
            training_set.labels.numpy(),
            replace(self.training.recipe, checkpoint_seconds=self.context.checkpoint_seconds),
            derive_seed(self.seed, self.folder.stage, len(training_set.rounds)),
            scratch / "checkpoint",
            f"{self.folder.id}/{scratch.name}",
            self._label(training_set),
            self.context.device,
        )

    def augment(self, training_set: TrainingSet) -> None:
        """Add one new image per image of the training set, without labels."""
        self.substitute.eval()
        finished, device = len(training_set.rounds), self.context.device
        new = [
            self.training.augment(
                self.substitute, images, training_set.labels[rows].to(device), finished
            )
            for rows, images in self._batches(training_set.images)
        ]
        training_set.images = torch.cat(
            [training_set.images, *(part.cpu().contiguous() for part in new)]
        )

    def agreement(self, data: Data, first: int) -> dict[str, int]:
        """Number of unseen training images on which substitute and oracle predict the same class.

        These predictions do not count as queries of the attacker.

        Args:
            first: index of the first image, for the noise of a random defence.

        Returns:
            ``n_agreed`` and ``n_compared``.
        """
        self.substitute.eval()
        count = min(COMPARED_IMAGES, len(data.labels["train"]))
        compared = data.indices(Subset(split="train", n=count, seed=0, last=True))
        agreed = 0
        for rows, images in self._batches(to_float(data.images["train"][compared])):
            with torch.no_grad():
                predicted = self.substitute(images).argmax(dim=1).cpu()
            agreed += int((predicted == self._oracle_labels(images, first + rows.start)).sum())
        return {"n_agreed": agreed, "n_compared": len(compared)}

    def save(self, training_set: TrainingSet) -> None:
        """Write a checkpoint from which the next round can start."""
        buffer = io.BytesIO()
        state = self.substitute.state_dict()
        torch.save(
            {"identity": self.folder.id, "module": state, "grown": vars(training_set)}, buffer
        )
        write_sealed(self.folder.path / "checkpoint", buffer.getvalue())

    def resume(self) -> TrainingSet | None:
        """Load the checkpoint of the last finished round; None if no round is finished.

        Raises:
            UserError: the file is damaged or belongs to another run.
        """
        path = self.folder.path / "checkpoint"
        if not path.exists():
            return None
        buffer = io.BytesIO(read_sealed(path))
        content = torch.load(buffer, weights_only=True, map_location="cpu")
        if content["identity"] != self.folder.id:
            raise UserError(
                f"{path}: belongs to run {content['identity']!r}, not {self.folder.id!r}; "
                "remove it to train from the start"
            )
        self.substitute.load_state_dict(content["module"])
        return TrainingSet(**content["grown"])

    def _oracle_labels(self, images: Tensor, first: int) -> Tensor:
        """Labels predicted by the oracle, int64 (n,) on the CPU."""
        indices = torch.arange(first, first + len(images))
        with torch.no_grad():
            logits = self.oracle(self._moved(images), indices)
        return finite(logits).argmax(dim=1).cpu()

    def _batches(self, images: Tensor) -> Iterator[tuple[slice, Tensor]]:
        size = self.context.batch_size
        for start in range(0, len(images), size):
            rows = slice(start, start + size)
            yield rows, self._moved(images[rows])

    def _moved(self, images: Tensor) -> Tensor:
        return images.to(self.context.device).contiguous(memory_format=torch.channels_last)

    def _scratch(self, training_set: TrainingSet) -> Path:
        """Folder for the unfinished work of the current round."""
        return self.folder.path / f"round_{len(training_set.rounds) + 1}"

    def _label(self, training_set: TrainingSet) -> str:
        place = f"round {len(training_set.rounds) + 1} of {self.training.rounds}"
        return f"{self.folder.stage} {self.folder.id}, {place}"
