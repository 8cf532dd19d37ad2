"""Networks and checkpoints of RobustBench's zoo, read without unpickling objects."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from purifiers.core.data import data_root
from purifiers.core.errors import UserError, did_you_mean
from purifiers.core.robustbench_compat import import_robustbench

CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
# Variables of torch.load. With the first it reads tensors only, whatever its caller asks for; with
# the second it unpickles objects unless its caller refuses, and it fails with both.
_FORCE, _FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@dataclass(frozen=True)
class Entry:
    """An entry of the zoo.

    Attributes:
        name, dataset, threat_model: as the zoo writes them.
        timm_name: name of the network in timm if the zoo takes it from there, else "".
        settings: what the zoo declares: ``model``, ``gdrive_id``, ``preprocessing``.
    """

    name: str
    dataset: str
    threat_model: str
    timm_name: str
    settings: dict[str, Any]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images; for ImageNet those of the zoo's preprocessing."""
        if self.dataset != "imagenet":
            return 3, 32, 32
        side = 288 if self.settings.get("preprocessing") == "Crop288" else 224
        return 3, side, side

    @property
    def folder(self) -> Path:
        """Where the zoo keeps the entry's checkpoints, in ``robustbench`` below the data folder."""
        return data_root() / "robustbench" / self.dataset / self.threat_model

    @property
    def files(self) -> dict[Path, str]:
        """Checkpoints, one per network of an ensemble, to what the zoo downloads them by."""
        path, source = self.folder / f"{self.name}.pt", self.settings["gdrive_id"]
        if self.timm_name:
            import timm

            return {path: timm.get_pretrained_cfg(self.timm_name).url}
        if isinstance(source, list):
            return {Path(f"{path}_m{number}.pt"): id for number, id in enumerate(source)}
        return {path: source}

    def network(self) -> nn.Module:
        """The network with random weights: images (n, C, H, W) in [0, 1] to logits."""
        if self.timm_name:
            import timm

            network: nn.Module = timm.create_model(
                self.timm_name, num_classes=CLASSES[self.dataset], pretrained=False
            )
            return network
        made: nn.Module = self.settings["model"]()
        return made

    def trained(self) -> nn.Module:
        """The network with the weights of :attr:`files`, which must be there.

        Raises:
            UserError: a file holds more than tensors, or tensors of another network.
        """
        where = self.folder / self.name
        try:
            with _tensors_only():
                return self._loaded()
        except (pickle.UnpicklingError, EOFError) as error:
            raise UserError(
                f"{where}.pt: cannot be read without unpickling objects ({_reason(error)}): "
                "replace it by a file that holds its state_dict alone"
            ) from None
        except (RuntimeError, KeyError) as error:
            raise UserError(
                f"{where}.pt: does not fit the network of {self.name} ({_reason(error)}): "
                "remove it to download it again"
            ) from None

    def _loaded(self) -> nn.Module:
        if self.timm_name:
            import timm

            (path,) = self.files
            network: nn.Module = timm.create_model(
                self.timm_name,
                num_classes=CLASSES[self.dataset],
                pretrained=True,
                pretrained_cfg_overlay={"file": str(path)},
            )
            return network
        from robustbench.utils import load_model

        loaded: nn.Module = load_model(
            self.name, data_root() / "robustbench", self.dataset, self.threat_model
        )
        return loaded


def find(name: str, dataset: str, threat_model: str) -> Entry:
    """An entry of the zoo.

    Raises:
        UserError: there is no such entry, or its weights are no file of the zoo.
    """
    import_robustbench()
    import timm
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

    entries = model_dicts[BenchmarkDataset(dataset)].get(ThreatModel(threat_model), {})
    if name not in entries:
        raise UserError(
            f"robustbench: the zoo has no entry {name!r} of {dataset}, {threat_model}"
            f"{did_you_mean(name, entries)}: choose another entry, zoo_dataset or threat_model"
        )
    timm_name = f"{name.lower().replace('-', '_')}_{dataset}_{threat_model.lower()}"
    settings = entries[name]
    if not timm.is_model(timm_name):
        timm_name = ""
        if not settings["gdrive_id"]:
            raise UserError(
                f"robustbench: {name} has torchvision's weights, which are no file of the zoo: "
                "use the classifier file with a factory and its weights"
            )
    return Entry(name, dataset, threat_model, timm_name, settings)


def download(path: Path, source: str) -> None:
    """Download a checkpoint of the zoo.

    Args:
        path: where to.
        source: a URL, or the id of a file in Google Drive.

    Raises:
        UserError: the download fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    reason = "no file arrived"
    try:
        if "://" in source:
            torch.hub.download_url_to_file(source, str(path))
        else:
            from robustbench.utils import download_gdrive_new

            download_gdrive_new(source, path)
    except Exception as error:
        reason = _reason(error)
    if not path.is_file():
        raise UserError(
            f"{path} is missing and the zoo's download fails ({reason}): put the file there"
        )


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Let ``torch.load`` refuse files with anything but tensors, in robustbench and timm too."""
    before = {name: os.environ.pop(name, None) for name in (_FORCE, _FORCE_NOT)}
    os.environ[_FORCE] = "1"
    try:
        yield
    finally:
        del os.environ[_FORCE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
