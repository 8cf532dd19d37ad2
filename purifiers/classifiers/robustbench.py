"""A trained network of RobustBench's model zoo (Croce et al. 2021), by the name of its entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from purifiers.classifiers import _zoo
from purifiers.classifiers._leaderboard import reported
from purifiers.core.artifacts import sha256
from purifiers.core.component import Classifier
from purifiers.core.errors import UserError
from purifiers.core.traits import ClassifierTraits, Listed


class Robustbench(Classifier):
    """The network of a zoo entry, with the zoo's own input normalisation.

    Its weights come from ``robustbench/<zoo_dataset>/<threat_model>/<entry>.pt`` below the data
    folder, the zoo's own layout; members of an ensemble end in ``.pt_m0.pt``, ``.pt_m1.pt`` and so
    on. A missing file is downloaded from the zoo. Files are read as tensors only, never unpickled.
    The zoo publishes no checksums: the run's record holds the files' SHA-256.

    Args:
        shape: (C, H, W) of the images: (3, 32, 32), or what the zoo crops ImageNet's images to.
        classes: number of classes of ``zoo_dataset``.
        entry: name in the zoo, such as ``Wong2020Fast``.
        zoo_dataset: ``cifar10``, ``cifar100`` or ``imagenet``.
        threat_model: ``Linf``, ``L2`` or ``corruptions``; the part of the zoo.
        digests: expected SHA-256 of the files, in their order, which makes the content part of a
            run's identity; empty: any.

    Shapes: images float32 (n, C, H, W) in [0, 1] to logits (n, classes).

    Raises:
        UserError: no such entry, or images or classes of another data set.
    """

    traits = ClassifierTraits(
        version=1,
        pretrained=True,
        trained_on="zoo_dataset",
        listed=Listed(
            file="_leaderboard.csv",
            columns=(
                ("zoo_dataset", "dataset"),
                ("threat_model", "threat_model"),
                ("entry", "entry"),
            ),
        ),
    )

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        *,
        entry: str,
        zoo_dataset: Literal["cifar10", "cifar100", "imagenet"] = "cifar10",
        threat_model: Literal["Linf", "L2", "corruptions"] = "Linf",
        digests: Sequence[str] = (),
    ) -> None:
        super().__init__(shape, classes)
        self.entry = _zoo.find(entry, zoo_dataset, threat_model)
        self.digests = tuple(digests)
        if (self.shape, classes) != (self.entry.shape, _zoo.CLASSES[zoo_dataset]):
            raise UserError(
                f"robustbench: {entry} takes images {self.entry.shape} of "
                f"{_zoo.CLASSES[zoo_dataset]} classes, got {self.shape} of {classes}: choose a "
                f"data set like {zoo_dataset}"
            )
        self.network = self.entry.network()

    @property
    def reported_elsewhere(self) -> str:
        """RobustBench's accuracies of this entry, as one sentence."""
        return str(reported(self.entry.name, self.entry.dataset, self.entry.threat_model))

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def load_pretrained(self) -> dict[str, Any]:
        """Load the entry's weights, downloading missing files, and switch to evaluation mode.

        Returns:
            ``weights_sha256``: file to SHA-256; ``reported_elsewhere``: RobustBench's numbers.

        Raises:
            UserError: a download fails, or a file is not what it should be.
        """
        for path, source in self.entry.files.items():
            if not path.is_file():
                _zoo.download(path, source)
        digests = {path.name: sha256(path) for path in self.entry.files}
        if self.digests and self.digests != tuple(digests.values()):
            raise UserError(
                f"{self.entry.folder}: {', '.join(digests)} have SHA-256 "
                f"{', '.join(digests.values())}, not those of digests: correct digests or remove "
                "the files to download them again"
            )
        self.network.load_state_dict(self.entry.trained().state_dict())
        self.eval()
        line = reported(self.entry.name, self.entry.dataset, self.entry.threat_model)
        return {"weights_sha256": digests, "reported_elsewhere": line.to_json()}
