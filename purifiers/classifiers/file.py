"""A user's own network: a Python file that makes it and, if it is trained already, its weights."""

from __future__ import annotations

import inspect
import pickle
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from purifiers.core.component import Classifier
from purifiers.core.errors import UserError, did_you_mean
from purifiers.core.modes import evaluation
from purifiers.core.taps import tapped_features
from purifiers.core.traits import ClassifierTraits


class File(Classifier):
    """The network that a function in a Python file returns.

    Relative paths are relative to the folder in which the suite is started: the repository. The
    content of all files named here is part of a run's identity. Code that the Python file imports
    from elsewhere is not, unless ``sources`` lists it.

    Args:
        shape: (C, H, W) of the images.
        classes: number of classes.
        path: the Python file. It runs with the rights of the suite, so it must be trusted.
        factory: name of the function in it that returns the network, an ``nn.Module`` from images
            float32 (n, C, H, W) in [0, 1] to logits (n, classes). It receives ``shape`` and
            ``classes`` if it has parameters of these names.
        options: further arguments of the factory.
        weights: the network's ``state_dict`` as ``.safetensors``, or as ``.pt`` written by
            ``torch.save``; read without unpickling objects. Null: the factory's initial weights,
            which must be trained.
        taps: names of submodules, such as ``layer3.0``, in the order in which they run; their
            outputs (n, channels, height, width) are the inner representations.
        sources: further files that the Python file imports or reads.

    Raises:
        UserError: the file, the factory, the network, the weights or the taps do not fit.
    """

    traits = ClassifierTraits(version=1, files=("path", "weights", "sources"), pretrained="weights")

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        *,
        path: str,
        factory: str = "make",
        options: Mapping[str, Any] | None = None,
        weights: str | None = None,
        taps: Sequence[str] = (),
        sources: Sequence[str] = (),
    ) -> None:
        super().__init__(shape, classes)
        self.network = _network(path, factory, {"shape": self.shape, "classes": classes}, options)
        if weights is not None:
            _load(self.network, weights, path)
        self.TAPS = tuple(taps)  # type: ignore[misc]  # of this network, not of the class
        parts = dict(self.network.named_modules())
        for tap in taps:
            if tap not in parts:
                hint = did_you_mean(tap, parts)
                raise UserError(f"{path}: taps: the network has no submodule {tap!r}{hint}")
        self._check_logits(f"{path}: {factory}")

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def features(self, images: Tensor, taps: Sequence[str]) -> list[Tensor]:
        return tapped_features(self.network, images, taps)

    def _check_logits(self, where: str) -> None:
        """Raise an error unless the network maps an image to one logit per class."""
        parameter = next(self.network.parameters(), torch.empty(0))
        image = torch.zeros(1, *self.shape, device=parameter.device)
        try:
            with evaluation(self.network):
                logits = self.network(image)
        except Exception as error:
            raise UserError(
                f"{where}: the network fails on an image of shape {self.shape} "
                f"({_reason(error)}): correct the network or its options"
            ) from None
        if not isinstance(logits, Tensor) or logits.shape != (1, self.classes):
            returned = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(
                f"{where}: for an image the network returns {returned}, expected logits of shape "
                f"{(1, self.classes)}: correct the network or its options"
            )


def _network(
    path: str, factory: str, context: Mapping[str, Any], options: Mapping[str, Any] | None
) -> nn.Module:
    module = _executed(path)
    make = getattr(module, factory, None)
    if not callable(make):
        hint = did_you_mean(factory, [name for name in vars(module) if not name.startswith("_")])
        raise UserError(f"{path}: there is no function {factory!r}{hint}: correct factory")
    try:
        accepted = inspect.signature(make).parameters
        context = {name: value for name, value in context.items() if name in accepted}
        network = make(**{**context, **(options or {})})
    except Exception as error:
        raise UserError(
            f"{path}: {factory} fails ({_reason(error)}): correct it or its options"
        ) from None
    if not isinstance(network, nn.Module):
        raise UserError(
            f"{path}: {factory} returns a {type(network).__name__}: return an nn.Module"
        )
    return network


def _executed(path: str) -> ModuleType:
    """The module of a Python file, compiled from its source.

    The import system would take byte code of an earlier content for that of a file that has the
    same size and second of change.
    """
    module = ModuleType(f"user_file_{Path(path).stem}")
    module.__file__ = path
    try:
        code = compile(Path(path).read_bytes(), path, "exec")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}): correct path; a relative one is relative "
            f"to {Path.cwd()}"
        ) from None
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{path}: is not valid Python ({_reason(error)}): correct it") from None
    sys.modules[module.__name__] = module  # where dataclasses look their module up
    try:
        exec(code, vars(module))
    except Exception as error:
        raise UserError(f"{path}: cannot be imported ({_reason(error)}): correct it") from None
    return module


def _load(network: nn.Module, weights: str, path: str) -> None:
    """Load a ``state_dict``; the file must hold exactly the network's tensors."""
    try:
        if weights.endswith(".safetensors"):
            state = load_file(weights)
        else:
            state = torch.load(weights, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        raise UserError(
            f"{weights}: cannot be read as weights ({_reason(error)}): save the network's "
            "state_dict() as .safetensors or with torch.save as .pt"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        content = ", ".join(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise UserError(
            f"{weights}: holds {content[:80]}, expected tensors by name: save the network's "
            "state_dict() alone"
        )
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"{weights}: does not fit the network of {path} ({_reason(error)}): correct weights "
            "or the factory's options"
        ) from None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
