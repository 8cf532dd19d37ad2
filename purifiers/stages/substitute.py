"""Train a substitute of a defended classifier on nothing but that defence's answers."""

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

from purifiers.core import registry
from purifiers.core.artifacts import RunFolder, read_sealed, write_sealed
from purifiers.core.component import Classifier, build
from purifiers.core.defence import Defence
from purifiers.core.errors import UserError
from purifiers.core.loop import fit, to_float
from purifiers.core.noise import derive_seed
from purifiers.core.shards import fill
from purifiers.core.spec import Subset, SubstituteSpec
from purifiers.core.target import finite
from purifiers.stages._context import WEIGHTS, Context, Data, Outcome, save_weights
from purifiers.stages._opening import (
    new_classifier,
    on_device,
    open_classifier,
    open_data,
    open_method,
)

COMPARED = 500
"""Training images on which substitute and oracle are compared; our choice."""


@dataclass
class Grown:
    """The substitute's training set so far.

    Attributes:
        images: float32 (n, C, H, W).
        labels: int64 (m,): those of the first m images; the others have none yet.
        queries: labels that the oracle gave.
        rounds: what is told of each finished round.
    """

    images: Tensor
    labels: Tensor
    queries: int = 0
    rounds: list[dict[str, Any]] = field(default_factory=list)


def run(folder: RunFolder, spec: SubstituteSpec, context: Context) -> Outcome:
    """Ask, train and augment in turns, and write the weights.

    A rerun goes on in the round that was interrupted, at its last checkpoint.
    """
    data = open_data(context, spec.data)
    torch.manual_seed(derive_seed(spec.seed, folder.stage))
    recipe = spec.training
    extraction = Extraction(
        folder,
        context,
        spec.seed,
        build(registry.load("training", recipe.component), **recipe.parameters),
        on_device(new_classifier(spec.classifier, data), context),
        _oracle(spec, context),
    )
    rounds = extraction.training.rounds
    grown = extraction.resume() or _planted(data, spec.seeds, extraction.training.seed_labels)
    while len(grown.rounds) < rounds:
        extraction.ask(grown)
        told = extraction.train(grown)
        grown.rounds.append({"images": len(grown.images), "queries": grown.queries, **told})
        if len(grown.rounds) < rounds:
            extraction.augment(grown)
        extraction.save(grown)
    save_weights(extraction.substitute, folder)
    for scratch in folder.path.glob("round_*"):
        shutil.rmtree(scratch)
    summary = {
        "images": len(grown.images),
        "queries": grown.queries,
        "rounds": grown.rounds,
        **extraction.agreement(data, len(grown.images)),
        "parameters": sum(p.numel() for p in extraction.substitute.parameters()),
    }
    return Outcome([WEIGHTS], summary)


def _oracle(spec: SubstituteSpec, context: Context) -> Defence:
    """What the attacker may ask: the whole defence, without gradients."""
    classifier = open_classifier(context, spec.oracle.classifier)
    methods = [open_method(context, method, classifier) for method in spec.oracle.methods]
    return Defence(classifier, methods, "none", derive_seed(spec.seed, "oracle"))


def _planted(data: Data, seeds: Subset, seed_labels: str) -> Grown:
    """The seed images, with their true labels or with none."""
    indices = data.indices(seeds)
    labels = torch.from_numpy(data.labels[seeds.split][indices])
    images = to_float(data.images[seeds.split][indices])
    return Grown(images, labels if seed_labels == "dataset" else labels[:0])


@dataclass(frozen=True)
class Extraction:
    """A model extraction at work.

    Attributes:
        training: a recipe with ``ORACLE``.
        substitute: the model in training.
        oracle: the model whose labels it learns.
    """

    folder: RunFolder
    context: Context
    seed: int
    training: Any
    substitute: Classifier
    oracle: Defence

    def ask(self, grown: Grown) -> None:
        """Have the oracle label what has no label."""
        known = len(grown.labels)
        wanted = len(grown.images) - known

        def work(start: int, stop: int) -> npt.NDArray:
            return self._answers(grown.images[known + start : known + stop], known + start).numpy()

        if wanted:
            path = self._scratch(grown) / "labels.npy"
            label = f"{self._label(grown)}, queries"
            fill(path, wanted, (), np.int64, work, self.context.batch_size, label)
            grown.labels = torch.cat([grown.labels, torch.from_numpy(np.load(path))])
            grown.queries += wanted

    def train(self, grown: Grown) -> dict[str, Any]:
        """Train for one round, with a fresh optimizer; returns what the loop tells."""

        def loss(images: Tensor, labels: Tensor, indices: Tensor, seed: int) -> Tensor:
            images = images.contiguous(memory_format=torch.channels_last)
            return self.training.loss(self.substitute, images, labels, indices, seed)

        scratch = self._scratch(grown)
        return fit(
            self.substitute.train(),
            loss,
            grown.images.numpy(),
            grown.labels.numpy(),
            replace(self.training.recipe, checkpoint_seconds=self.context.checkpoint_seconds),
            derive_seed(self.seed, self.folder.stage, len(grown.rounds)),
            scratch / "checkpoint",
            f"{self.folder.id}/{scratch.name}",
            self._label(grown),
            self.context.device,
        )

    def augment(self, grown: Grown) -> None:
        """Add one new image from each, without labels."""
        self.substitute.eval()
        trained, device = len(grown.rounds), self.context.device
        new = [
            self.training.augment(self.substitute, images, grown.labels[rows].to(device), trained)
            for rows, images in self._batches(grown.images)
        ]
        grown.images = torch.cat([grown.images, *(part.cpu().contiguous() for part in new)])

    def agreement(self, data: Data, first: int) -> dict[str, int]:
        """On how many training images, which the substitute has not seen, both say the same; the
        oracle's answers here are no queries of the attacker's.

        Args:
            first: index of the first of them, for the noise of a random defence.
        """
        self.substitute.eval()
        count = min(COMPARED, len(data.labels["train"]))
        compared = data.indices(Subset(split="train", n=count, seed=0, last=True))
        agreed = 0
        for rows, images in self._batches(to_float(data.images["train"][compared])):
            with torch.no_grad():
                own = self.substitute(images).argmax(dim=1).cpu()
            agreed += int((own == self._answers(images, first + rows.start)).sum())
        return {"n_agreed": agreed, "n_compared": len(compared)}

    def save(self, grown: Grown) -> None:
        """Keep what the next round starts from."""
        buffer = io.BytesIO()
        state = self.substitute.state_dict()
        torch.save({"identity": self.folder.id, "module": state, "grown": vars(grown)}, buffer)
        write_sealed(self.folder.path / "checkpoint", buffer.getvalue())

    def resume(self) -> Grown | None:
        """What the last finished round left; None where none was finished.

        Raises:
            UserError: the file is damaged or belongs to another run.
        """
        path = self.folder.path / "checkpoint"
        if not path.exists():
            return None
        content = io.BytesIO(read_sealed(path))
        found = torch.load(content, weights_only=True, map_location="cpu")
        if found["identity"] != self.folder.id:
            raise UserError(
                f"{path}: belongs to run {found['identity']!r}, not {self.folder.id!r}; "
                "remove it to train from the start"
            )
        self.substitute.load_state_dict(found["module"])
        return Grown(**found["grown"])

    def _answers(self, images: Tensor, first: int) -> Tensor:
        """The oracle's labels, int64 (n,) on the CPU."""
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

    def _scratch(self, grown: Grown) -> Path:
        """Where a round keeps its unfinished work."""
        return self.folder.path / f"round_{len(grown.rounds) + 1}"

    def _label(self, grown: Grown) -> str:
        place = f"round {len(grown.rounds) + 1} of {self.training.rounds}"
        return f"{self.folder.stage} {self.folder.id}, {place}"
