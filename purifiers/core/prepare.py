"""Prepare a classifier for many input gradients: the same logits, less work."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from purifiers.core import active, prepared_cache
from purifiers.core.component import frozen
from purifiers.core.convolution import GreyConvolution
from purifiers.core.errors import UserError, check_choice
from purifiers.core.logits import as_logits
from purifiers.core.memory_layout import runs_channels_last, to_contiguous
from purifiers.core.modes import evaluation

CHUNK = 32
"""Images per gradient computation on a CPU. Our choice: activations of 32 small images stay in its
cache, which took 8 to 25 % off the time of two networks against batches of 128 and 64."""

ROUNDING = 1e-3
"""Largest difference between prepared and original logits, as a fraction of the largest logit. Our
choice: folding moved the logits of a WRN-34-10 by 5e-7 of it."""

_CONFIRMED = 2
"""Images on which a reused network is compared with the classifier: our choice."""

_Convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_Normalisation = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_Weighted = (nn.Linear, *_Convolution, nn.ConvTranspose2d)


class Prepared:
    """A frozen copy of a classifier with BatchNorm folded into the convolutions before it.

    Folding is exact up to rounding. A ReLU after a layer works in place. On a CPU, convolutions of
    grey images use :class:`GreyConvolution`. Networks that :mod:`torch.fx` cannot trace (control
    flow that depends on the images) are only frozen.

    Tracing misses some behaviour without an error, such as the network's own forward hooks. So the
    first batch, and random images of its shape, are compared with the original network in float32.
    Where the logits differ, or preparing fails, the original is used instead.

    Folding and memory layout round differently, which decides labels of images on the boundary. So
    attacks on a processor confirm each success with ``exact``, at the price of a forward pass of
    these images.

    The prepared network is kept for as long as the classifier exists and does not change, and is
    used again then. Its logits of two images are compared with the classifier's once more.

    Args:
        classifier: images to logits; not modified.
        precision: ``"float32"``, or ``"bfloat16"`` after the first layer. The first layer computes
            in float32, so that small perturbations are not rounded away.

    Attributes:
        module: the prepared network, or the original one.
        fallback: why the original is used instead; empty if it is not.
        chunk: images per gradient computation; None on a GPU: all at once.

    Raises:
        UserError: an unknown precision, or bfloat16 for a network that cannot be traced.
    """

    def __init__(self, classifier: nn.Module, precision: str = "float32") -> None:
        check_choice("precision", precision, ("float32", "bfloat16"))
        self._float32: Prepared | None = None  # of lower precision, what is compared
        self._classifier, self._precision = classifier, precision
        self._layout: torch.memory_format | None = None
        self._reused: dict[str, Any] | None = prepared_cache.fetch(classifier, precision)
        if self._reused is None:
            self._prepare(classifier, precision)
            return
        vars(self).update(self._reused)
        self._float32 = Prepared(classifier) if precision == "bfloat16" else None

    def _prepare(self, classifier: nn.Module, precision: str) -> None:
        self.fallback = ""
        self._float32 = self._layout = self._reused = None
        self._rounds_alike = False
        self._original = classifier
        graph = None
        try:
            self._original = _frozen_copy(classifier)
            graph = _optimised(_frozen_copy(classifier))
        except Exception as error:  # unusual layers can fail with any exception
            self.fallback = " ".join(f"preparing failed: {error}".split())
        self.module = self._original if graph is None else graph
        self._compared = graph is None
        parameter = next(self.module.parameters(), None)
        on_cpu = parameter is None or parameter.device.type == "cpu"
        self.chunk = CHUNK if on_cpu else None
        if precision == "bfloat16":
            if graph is None:
                raise UserError(
                    f"{type(classifier).__name__} cannot be run in bfloat16: its forward depends "
                    "on the images' values; set precision to float32"
                )
            self._float32 = Prepared(classifier)
            _compute_in_bfloat16(graph)
        if on_cpu and graph is not None:
            _convolve_grey(graph)

    @property
    def capturable(self) -> bool:
        """Whether each call runs the same kernels: a traced network has no other control flow."""
        return self._compared and isinstance(self.module, fx.GraphModule)

    @property
    def exact(self) -> Callable[[Tensor], Tensor] | None:
        """The caller's own classifier in float32, which decides about success.

        None where the first call found that preparing has changed neither layers nor memory layout,
        and so no rounding. None also in float32 on a device, where the host would wait at every
        step; there the comparison on the first batch has to do.
        """
        parameter = next(self._classifier.parameters(), None)
        waits = parameter is not None and not active.reads_are_free(parameter.device)
        if self._rounds_alike or (waits and self._precision == "float32"):
            return None
        return self._unprepared

    def __call__(self, images: Tensor) -> Tensor:
        """Logits, float32 (n, classes)."""
        if self._reused is not None and len(images):
            self._confirm(images)
        first = self._layout is None and len(images) > 0
        if first:
            self._layout = self._choose_layout(images)
        # a copy, because a network may work in place
        images = images.clone(memory_format=self._layout or torch.channels_last)
        if not self._compared and len(images):
            self._compare(images.detach())
        if first:
            self._rounds_alike = _layers(self.module) == _layers(self._classifier)
            self._keep()
        return as_logits(self.module(images), self._original).float()

    def _unprepared(self, images: Tensor) -> Tensor:
        with evaluation(self._classifier):
            logits = self._classifier(images.contiguous().clone())
        return as_logits(logits, self._classifier).float()

    def _choose_layout(self, images: Tensor) -> torch.memory_format:
        """Channels-last; contiguous tensors if the network cannot be run otherwise."""
        if runs_channels_last(self._original, images):
            return torch.channels_last
        for module in (self._original, self.module):
            if module is not self._classifier:  # which is the caller's
                to_contiguous(module)
        return torch.contiguous_format

    def _keep(self) -> None:
        """Keep what another :class:`Prepared` of the same network needs."""
        if self.fallback:
            return
        names = (
            "module",
            "fallback",
            "chunk",
            "_original",
            "_layout",
            "_compared",
            "_rounds_alike",
        )
        parts = {name: getattr(self, name) for name in names}
        prepared_cache.keep(self._classifier, self._precision, parts)
        if self._float32 is not None:
            self._float32._keep()

    def _confirm(self, images: Tensor) -> None:
        """Prepare anew if the classifier has changed in a way that the cache cannot see."""
        self._reused = None
        images = images[:_CONFIRMED].detach()
        with torch.no_grad():
            standard = self._float32 or self
            own = images.clone(memory_format=self._layout or torch.channels_last)
            changed = standard._difference(self._unprepared(images), own)
        if changed:
            self._prepare(self._classifier, self._precision)

    def _compare(self, images: Tensor) -> None:
        """Use the original network if the prepared one gives other logits."""
        self._compared = True
        if self._float32 is not None:  # traced alike
            self._float32._layout = self._float32._choose_layout(images)
            self._float32._compare(images)
            if self._float32.fallback:
                self._fall_back(self._float32.fallback)
            return
        draw = torch.Generator().manual_seed(0)
        random = torch.rand(images.shape, generator=draw).to(images)
        with evaluation(self.module):
            for batch in (images, random):
                expected = as_logits(self._original(batch.clone()), self._original)
                difference = self._difference(expected.float(), batch.clone())
                if difference:
                    self._fall_back(difference)

    def _difference(self, expected: Tensor, images: Tensor) -> str:
        """How the module's logits differ from the expected ones; empty if they do not."""
        try:
            logits = as_logits(self.module(images), self._original).float()
        except Exception as error:  # a traced network can fail with any exception
            return f"the prepared network failed: {error}"
        finite = expected[torch.isfinite(expected)].abs()
        allowed = ROUNDING * float(finite.max()) if len(finite) else 0.0
        if torch.allclose(logits, expected, rtol=0.0, atol=allowed, equal_nan=True):
            return ""
        largest = float((logits - expected).abs().max())
        return f"logits of the prepared network differ by {largest:.2g}"

    def _fall_back(self, reason: str) -> None:
        self.module, self._float32 = self._original, None
        self.fallback = " ".join(reason.split())


def _layers(module: nn.Module) -> dict[str, tuple[Any, ...]]:
    """What decides about the rounding of a network's layers, by name of the weight or statistic."""
    return {
        f"{path}.{name}": (isinstance(part, GreyConvolution), tensor.stride(), tensor.dtype)
        for path, part in module.named_modules()
        for name, tensor in (*part._parameters.items(), *part._buffers.items())
        if tensor is not None
    }


def _frozen_copy(classifier: nn.Module) -> nn.Module:
    module = frozen(copy.deepcopy(classifier))
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _optimised(module: nn.Module) -> fx.GraphModule | None:
    """The traced network with BatchNorm folded and ReLU in place; None if it cannot be traced."""
    graph = _traced(module)
    if graph is None:
        return None
    _fold(graph)
    _relu_in_place(graph)
    return graph.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _traced(module: nn.Module) -> fx.GraphModule | None:
    try:
        return fx.symbolic_trace(module)
    except Exception:  # untraceable code can fail with any exception
        return None


def _fold(graph: fx.GraphModule) -> None:
    """Fold BatchNorm layers into the convolutions before them.

    A BatchNorm is folded if it keeps running statistics and is the only reader of a convolution
    that is called once.
    """
    calls = Counter(node.target for node in graph.graph.nodes if node.op == "call_module")
    for node in list(graph.graph.nodes):
        before = _sole_input(node)
        if before is None or calls[before.target] > 1:
            continue
        if not (_is_layer(graph, node, _Normalisation) and _is_layer(graph, before, _Convolution)):
            continue
        convolution = graph.get_submodule(str(before.target))
        normalisation = graph.get_submodule(str(node.target))
        if getattr(normalisation, "running_mean", None) is None:
            continue
        _replace(graph, str(before.target), fuse_conv_bn_eval(convolution, normalisation))  # type: ignore[arg-type, type-var]
        node.replace_all_uses_with(before)
        graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()
    graph.recompile()


def _relu_in_place(graph: fx.GraphModule) -> None:
    """Replace each ReLU that is the only reader of a layer's output by one in place.

    The output has the same bits and saves one pass over memory. The gradients of these layers do
    not need their outputs.
    """
    for node in list(graph.graph.nodes):
        if not (_is_layer(graph, node, (nn.ReLU,)) or node.target in (torch.relu, functional.relu)):
            continue
        before = _sole_input(node)
        if before is not None and _is_layer(graph, before, (*_Weighted, *_Normalisation)):
            with graph.graph.inserting_after(node):
                in_place = graph.graph.call_function(torch.relu_, (before,))
            node.replace_all_uses_with(in_place)
            graph.graph.erase_node(node)
    graph.recompile()


def _convolve_grey(graph: fx.GraphModule) -> None:
    """Replace convolutions of grey images by :class:`GreyConvolution`."""
    for path, part in list(graph.named_modules()):
        if GreyConvolution.applies_to(part):
            _replace(graph, path, frozen(GreyConvolution(part)))


def _compute_in_bfloat16(graph: fx.GraphModule) -> None:
    """Compute in bfloat16 from the output of the first layer with weights on."""
    layers = [node for node in graph.graph.nodes if _is_layer(graph, node, _Weighted)]
    for node in layers[1:]:
        graph.get_submodule(str(node.target)).to(torch.bfloat16)
    if layers:
        first = layers[0]
        with graph.graph.inserting_after(first):
            cast = graph.graph.call_method("to", (first, torch.bfloat16))
        first.replace_all_uses_with(cast, delete_user_cb=lambda user: user is not cast)
    graph.recompile()


def _sole_input(node: fx.Node) -> fx.Node | None:
    """The first input of ``node``, if no other node reads it."""
    before = node.args[0] if node.args else None
    return before if isinstance(before, fx.Node) and len(before.users) == 1 else None


def _is_layer(graph: fx.GraphModule, node: fx.Node, kinds: tuple[type, ...]) -> bool:
    return node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), kinds)


def _replace(graph: fx.GraphModule, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(graph.get_submodule(parent), name, module)
