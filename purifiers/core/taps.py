"""Inner representations of any network, by the names of its submodules."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from purifiers.core.component import Classifier
from purifiers.core.errors import UserError, did_you_mean
from purifiers.core.logits import as_logits, queried
from purifiers.core.memory_layout import as_taken_by
from purifiers.core.modes import evaluation

Shape = tuple[int, int, int]

LISTED = 12
"""Most submodules that an error message lists. Our choice: a line stays readable."""


class _AllTapped(BaseException):
    """End of a forward pass; no ``Exception``, so that no network's own handler stops it."""


def tapped_features(classifier: nn.Module, images: Tensor, taps: Sequence[str]) -> list[Tensor]:
    """Inner representations of the images, differentiable any number of times.

    A classifier of the suite returns its own ``features`` if all ``taps`` are among its ``TAPS``.
    Otherwise a tap is the dotted name of a submodule, as ``named_modules()`` has it, and its
    representation is the output of the submodule's first call. Layers behind the last tap are not
    computed. A network compiled as a whole is run uncompiled, because it ignores new hooks.

    Args:
        classifier: any network of float32 images (n, C, H, W).
        images: float32 (n, C, H, W) in [0, 1].
        taps: names in any order.

    Returns:
        One tensor (n, channels, height, width) per name. Vectors (n, units) become (n, units, 1, 1)
        and tokens (n, tokens, dim) of a transformer (n, dim, tokens, 1), so that the mean over the
        last two dimensions averages the tokens. An output with four dimensions is returned
        unchanged, also if its channels are last, as Swin's are. Of a tuple the first tensor counts.

    Raises:
        UserError: no such submodule (with a suggestion), one that the forward pass does not call,
            or an output that has not one row per image.
    """
    if own_taps(classifier, taps):
        assert isinstance(classifier, Classifier)
        return classifier.features(as_taken_by(classifier, images), taps)
    return _hooked(_uncompiled(classifier), images, taps, to_the_end=False)[0]


def features_and_logits(
    classifier: nn.Module, images: Tensor, taps: Sequence[str]
) -> tuple[list[Tensor], Tensor]:
    """Inner representations as from :func:`tapped_features`, and the logits (n, classes).

    One forward pass; a second one for representations that are no outputs of submodules.

    Raises:
        UserError: as :func:`tapped_features`.
    """
    network = _uncompiled(classifier)
    parts = dict(network.named_modules(remove_duplicate=False))
    if own_taps(classifier, taps) and not set(taps) <= set(parts):
        return tapped_features(classifier, images, taps), queried(classifier, images)
    features, output = _hooked(network, images, taps, to_the_end=True)
    return features, as_logits(output, network)


def _hooked(
    network: nn.Module, images: Tensor, taps: Sequence[str], to_the_end: bool
) -> tuple[list[Tensor], Any]:
    """Outputs of the submodules named ``taps``, and the network's own one if run to the end."""
    owner = type(network).__name__
    parts = dict(network.named_modules(remove_duplicate=False))
    for tap in taps:
        if not tap or tap not in parts:
            raise UserError(f"{owner} has no tap {tap!r}{_suggestion(network, tap)}")
    outputs: dict[str, Tensor] = {}

    def store(tap: str, output: Any) -> None:
        if tap in outputs:
            return
        outputs[tap] = _as_map(output, len(images), f"tap {tap!r} of {owner}")
        if len(outputs) == len(set(taps)) and not to_the_end:
            raise _AllTapped
        # a layer behind it may work in place
        outputs[tap] = outputs[tap].clone()

    result = None
    with _hooks({tap: parts[tap] for tap in taps}, store), contextlib.suppress(_AllTapped):
        result = network(images.clone())  # it may work in place
    for tap in taps:
        if tap not in outputs:
            raise UserError(
                f"tap {tap!r} of {owner} is not called by its forward pass: choose another "
                f"submodule, such as {_listed(network)}"
            )
    return [outputs[tap] for tap in taps], result


def own_taps(classifier: nn.Module, taps: Sequence[str]) -> bool:
    """Whether ``classifier`` is one of the suite's and all ``taps`` are among its ``TAPS``."""
    return isinstance(classifier, Classifier) and set(taps) <= set(classifier.TAPS)


def layer_taps(classifier: nn.Module) -> tuple[str, ...]:
    """Names of the representations of a classifier of the suite between its ends.

    They are all but the first and the pooled ``embedding``; all if that leaves none. A ResNet's
    are its four stages. The first is often a convolution without bias, whose outputs are 0 on a
    black background and have no direction there.

    Raises:
        UserError: the network declares none.
    """
    names = classifier.TAPS if isinstance(classifier, Classifier) else ()
    layers = tuple(name for name in names if name != "embedding")
    layers = layers[1:] or layers
    if not layers:
        raise UserError(
            f"{type(classifier).__name__} declares no layers: set taps to names of its submodules"
        )
    return layers


def tap_shapes(
    classifier: nn.Module, shape: Sequence[int], taps: Sequence[str]
) -> dict[str, Shape]:
    """Shape (channels, height, width) of each tap for images of ``shape`` (C, H, W).

    The network's modes and statistics are left as they are.

    Raises:
        UserError: as :func:`tapped_features`.
    """
    with evaluation(classifier):
        features = tapped_features(classifier, black_image(classifier, shape), taps)
    return {tap: _shape(tensor) for tap, tensor in zip(taps, features, strict=True)}


def deepest_tap(classifier: nn.Module, shape: Sequence[int]) -> str:
    """Name of the deepest representation with more than one pixel or token.

    It is one of ``TAPS``, if the classifier has any; if none has two pixels, the deepest of them.
    Otherwise it is the submodule whose first call ends last, our choice.

    Raises:
        UserError: there is no such submodule.
    """
    if isinstance(classifier, Classifier) and classifier.TAPS:
        shapes = tap_shapes(classifier, shape, classifier.TAPS)
        with_pixels = [tap for tap, (_, height, width) in shapes.items() if height * width > 1]
        return (with_pixels or classifier.TAPS)[-1]
    network = _uncompiled(classifier)
    ended: dict[str, bool] = {}

    def store(name: str, output: Any) -> None:
        with contextlib.suppress(UserError):
            _, height, width = _shape(_as_map(output, 1, name))
            ended.setdefault(name, height * width > 1)

    parts = {name: part for name, part in network.named_modules() if name}
    if parts:
        with evaluation(network), _hooks(parts, store):
            network(black_image(network, shape))
    with_pixels = [name for name, has_pixels in ended.items() if has_pixels]
    if not with_pixels:
        raise UserError(
            f"{type(network).__name__} has no inner representations with more than one pixel to "
            "tap: choose a network with convolutions, such as wide_resnet"
        )
    return with_pixels[-1]


def device_of(network: nn.Module) -> torch.device:
    """Device of the network's first parameter or buffer; the CPU if it has neither."""
    for tensor in itertools.chain(network.parameters(), network.buffers()):
        return tensor.device
    return torch.device("cpu")


def _uncompiled(network: nn.Module) -> nn.Module:
    original = getattr(network, "_orig_mod", network)
    assert isinstance(original, nn.Module)
    return original


@contextlib.contextmanager
def _hooks(parts: dict[str, nn.Module], store: Callable[[str, Any], None]) -> Iterator[None]:
    """Call ``store`` with name and output of each part that runs; no hook outlives the block."""

    def hook_of(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(part: nn.Module, inputs: Any, output: Any) -> None:
            store(name, output)

        return hook

    with contextlib.ExitStack() as stack:
        for name, part in parts.items():
            stack.callback(part.register_forward_hook(hook_of(name)).remove)
        yield


def black_image(network: nn.Module, shape: Sequence[int]) -> Tensor:
    """One black image (1, C, H, W) of ``shape`` (C, H, W) on the network's device."""
    return torch.zeros(1, *shape, device=device_of(network))


def _as_map(output: Any, rows: int, where: str) -> Tensor:
    """The output as (n, channels, height, width), see :func:`tapped_features`."""
    if isinstance(output, tuple) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise UserError(
            f"{where} is a {type(output).__name__}, but a tensor is needed: choose a submodule "
            "inside or before it"
        )
    if output.dim() not in (2, 3, 4) or output.shape[0] != rows:
        raise UserError(
            f"{where} has shape {tuple(output.shape)} for {rows} images, expected one row per "
            "image and 2 to 4 dimensions: choose another submodule"
        )
    if output.dim() == 2:
        return output[:, :, None, None]
    return output.transpose(1, 2).unsqueeze(3) if output.dim() == 3 else output


def _shape(features: Tensor) -> Shape:
    _, channels, height, width = features.shape
    return channels, height, width


def _suggestion(network: nn.Module, tap: str) -> str:
    names = [name for name, _ in network.named_modules() if name]
    if not names:
        return ": it has no submodules; choose another network"
    return f"{did_you_mean(tap, names)}: choose among its submodules, such as {_listed(network)}"


def _listed(network: nn.Module) -> str:
    """Outer submodules with parameters, of the first depth that has at least three."""
    weighted = [
        name
        for name, part in network.named_modules()
        if name and any(True for _ in part.parameters())
    ]
    names: list[str] = []
    for depth in range(max((name.count(".") for name in weighted), default=0) + 1):
        names = [name for name in weighted if name.count(".") == depth] or names
        if len(names) >= 3:
            break
    return ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")
