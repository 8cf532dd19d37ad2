"""The modes of torch and of networks in which an attack may run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd

from purifiers.core.errors import UserError


def refuse_training_mode(model: object, where: str) -> None:
    """Raise an error if a layer of ``model`` updates statistics or drops units at random.

    In training mode every query of an attack would move the running statistics of normalisation
    layers, and dropout would be an undeclared random defence. A function is not checked: a training
    that attacks the network in its own mode passes one.

    Args:
        model: what is attacked; checked if it is a module.
        where: begins the error message.

    Raises:
        UserError: such a layer is in training mode.
    """
    if not isinstance(model, nn.Module):
        return
    for name, part in model.named_modules():
        changes = isinstance(part, _NormBase) and part.track_running_stats
        drops = isinstance(part, _DropoutNd) and part.p > 0.0
        if part.training and (changes or drops):
            layer = f"its {type(part).__name__} {name!r}" if name else "it"
            raise UserError(
                f"{where}: {type(model).__name__} is in training mode and {layer} would change "
                "with each query; call .eval()"
            )


@contextlib.contextmanager
def attackable() -> Iterator[None]:
    """Compute in float32 by default and outside inference mode, whatever the caller has set."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False):
            yield
    finally:
        torch.set_default_dtype(default)


@contextlib.contextmanager
def evaluation(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the mode of each part is restored afterwards."""
    with _modes_kept(network), torch.no_grad():
        network.eval()
        yield


@contextlib.contextmanager
def frozen_meanwhile(network: nn.Module) -> Iterator[None]:
    """Evaluation mode with frozen parameters; both are restored afterwards."""
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    with _modes_kept(network):
        network.eval().requires_grad_(False)
        try:
            yield
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)


@contextlib.contextmanager
def types_explained(model: object, where: str) -> Iterator[None]:
    """Explain the error of a network whose parameters have another type than the images.

    Args:
        model: what receives float32 images; its parameters are looked at if it is a module.
        where: begins the error message.

    Raises:
        UserError: torch refuses to combine both types.
    """
    try:
        yield
    except RuntimeError as error:
        parameters = model.parameters() if isinstance(model, nn.Module) else ()
        types = {p.dtype for p in parameters if p.is_floating_point()} - {torch.float32}
        if not types or "type" not in str(error):
            raise
        other = str(types.pop()).removeprefix("torch.")
        raise UserError(
            f"{where}: images are float32, but {type(model).__name__} has {other} parameters: call "
            f".float() on it, or use lambda images: model(images.to(torch.{other}))"
        ) from error


@contextlib.contextmanager
def attack_mode(network: nn.Module, mode: str) -> Iterator[None]:
    """Set the mode for an attack on a network in training, and restore the network afterwards.

    Args:
        mode: ``eval``: batch normalisation uses its running statistics. ``train``: it uses those of
            the batch and does not update the running ones.

    Raises:
        UserError: any other mode.
    """
    if mode not in ("train", "eval"):
        raise UserError(f"attack_mode is {mode!r}: choose train or eval")
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    counts = [
        None if n.num_batches_tracked is None else n.num_batches_tracked.clone() for n in norms
    ]
    with _modes_kept(network):
        network.train(mode == "train")
        for norm in norms:
            norm.momentum = 0.0
        try:
            yield
        finally:
            for norm, momentum, count in zip(norms, momenta, counts, strict=True):
                norm.momentum = momentum
                if count is not None and norm.num_batches_tracked is not None:
                    norm.num_batches_tracked.copy_(count)


@contextlib.contextmanager
def _modes_kept(network: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in network.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
