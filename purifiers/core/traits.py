"""Traits: declared properties of a component, written as typed literals in its class body.

The registry reads them from the source, so that planning never imports a component; the class uses
the same object. CONTRIBUTING.md lists all fields in a table made from the comments below.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter
from typing import Any, ClassVar, Self

from purifiers.core.errors import UserError
from purifiers.core.formula import evaluate, names_in

IMAGE_SIDES = ("image_height", "image_width")
"""Names for the images' sides in the rules of :class:`Images`."""

Condition = Mapping[str, tuple[Any, ...]]
"""Parameter to allowed values: met if every parameter in it has one of its values."""


def met(condition: Condition, parameters: Mapping[str, Any]) -> bool:
    """Whether ``parameters`` meet ``condition``; an empty condition is always met.

    A spec leaves out a parameter of ``joined_later`` at its default: it meets no condition.
    """
    return all(parameters.get(name) in values for name, values in condition.items())


def _braced(text: str) -> tuple[str, ...]:
    return tuple(name for _, name, _, _ in Formatter().parse(text) if name)


def _holds(trait: bool | Condition, parameters: Mapping[str, Any]) -> bool:
    return trait if isinstance(trait, bool) else met(trait, parameters)


@dataclass(frozen=True, kw_only=True)
class _Declared:
    # configures pydantic, which checks the fields that the registry reads from the source
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, for a component that inherits from another one."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class Note(_Declared):
    """A sentence that applies to some values of a component's parameters."""

    when: Condition  # the parameter values that it applies to
    text: str  # may contain {parameter}

    def applies(self, parameters: Mapping[str, Any]) -> str | None:
        """The text with its parameters filled in; None if the condition is not met."""
        return self.text.format(**parameters) if met(self.when, parameters) else None

    def parameter_names(self) -> tuple[str, ...]:
        """The parameters in the condition and in the text."""
        return (*self.when, *_braced(self.text))


@dataclass(frozen=True, kw_only=True)
class Rule(_Declared):
    """What several parameters must meet together, or one beyond its range."""

    holds: str = "0"  # comparison, such as snapshot <= snapshots, joined by and, or; "0": never
    when: Condition = field(default_factory=dict)  # the parameter values that it applies to
    text: str  # what is wrong and how to correct it; may contain {parameter}

    def is_met(self, values: Mapping[str, Any]) -> bool:
        """Whether the parameters are fine."""
        return not met(self.when, values) or bool(evaluate(self.holds, values))

    def parameter_names(self) -> tuple[str, ...]:
        """The parameters in the condition, the comparison and the text."""
        return (*self.when, *names_in(self.holds), *_braced(self.text))


def check_rules(rules: Sequence[Rule], values: Mapping[str, Any], where: str) -> None:
    """Check the rules whose parameters are all among ``values``.

    Args:
        values: parameter to value.
        where: begins the error message.

    Raises:
        UserError: a rule is not met.
    """
    for rule in rules:
        if values.keys() >= set(rule.parameter_names()) and not rule.is_met(values):
            raise UserError(f"{where}: {rule.text.format(**values)}")


@dataclass(frozen=True, kw_only=True)
class Layout(_Declared):
    """One arrangement of the files that a component reads below the data folder."""

    files: tuple[
        str, ...
    ] = ()  # glob patterns; {parameter} and {split} (train, test) are filled in
    endings: tuple[str, ...] = ()  # endings of the files, in lower case; (): all files
    columns: str = ""  # pattern of folders of parquet, arrow or npz files, see core/data_layouts.py
    verified: bool = False  # loading refuses files that are not the official ones
    when: Condition = field(default_factory=dict)  # the parameter values under which it is read
    origin: str = ""  # how the user gets files that nothing downloads

    def parameter_names(self) -> tuple[str, ...]:
        """The parameters in the condition and in the patterns."""
        fields = (name for text in self.files for name in _braced(text))
        return (*self.when, *(name for name in fields if name != "split"))


@dataclass(frozen=True, kw_only=True)
class Traits(_Declared):
    """Fields of every component."""

    version: int  # raised whenever the same declaration gives another output; from 1
    budget: tuple[str, ...] = ()  # parameters that a reduced scale may change
    joined_later: tuple[str, ...] = ()  # new parameters that leave identities alone by default
    files: tuple[str, ...] = ()  # parameters that name files, whose content is part of identities
    reads: tuple[Layout, ...] = ()  # files below the data folder; the first layout found is read
    official: tuple[str, ...] = ()  # SHA-256 of files whose content is left out of identities
    rules: tuple[Rule, ...] = ()  # of parameters; checked when planned and when built

    def formulas(self) -> dict[str, str]:
        """Fields that hold arithmetic over parameters: name of the field to formula."""
        return {f"rules[{number}].holds": rule.holds for number, rule in enumerate(self.rules)}

    def parameter_names(self) -> dict[str, tuple[str, ...]]:
        """Fields that list parameters: name of the field to parameters."""
        named = {"budget": self.budget, "joined_later": self.joined_later, "files": self.files}
        named["reads"] = tuple(name for layout in self.reads for name in layout.parameter_names())
        named["rules"] = tuple(name for rule in self.rules for name in rule.parameter_names())
        return named


@dataclass(frozen=True, kw_only=True)
class AttackTraits(Traits):
    """Fields of an attack."""

    passes: str  # cost per image in forward passes; with a backward pass it is 3
    norm: str = "linf"  # of the perturbation: linf, l2, or a name for what has none
    needs: tuple[str, ...] = ()  # parts of a method that it attacks: detector_logit, score
    model_free: bool = False  # queries no model, such as a corruption; no adversary
    images_of: str = ""  # the data set whose test images it replaces; other cells are not run
    stops_at_first_success: bool = False  # refused on random defences, unless `lucky_draws` is set
    float32_only: bool = False  # never run in lower precision
    batch_dependent: bool = False  # an image's result depends on the rest of its batch
    refused: tuple[Note, ...] = ()  # parameter values that do not work, and why
    remarks: tuple[Note, ...] = ()  # what a table must add for some parameter values

    def formulas(self) -> dict[str, str]:
        return {**super().formulas(), "passes": self.passes}

    def parameter_names(self) -> dict[str, tuple[str, ...]]:
        named = super().parameter_names()
        for place, notes in (("refused", self.refused), ("remarks", self.remarks)):
            named[place] = tuple(name for note in notes for name in note.parameter_names())
        return named


@dataclass(frozen=True, kw_only=True)
class SecondTraining(_Declared):
    """A second training of a method; all fits with equal first trainings share that one."""

    when: str  # boolean parameter that asks for it
    only: tuple[str, ...]  # parameters without effect on the first training


@dataclass(frozen=True, kw_only=True)
class Fit(_Declared):
    """How a method is fitted before use."""

    passes: str = "0"  # classifier passes per training image
    uses_classifier: bool | Condition = True  # not met: one fit serves all classifiers
    several_classifiers: bool = False  # can be fitted on several classifiers at once
    inference_only: tuple[str, ...] = ()  # parameters without effect on the fit: no refit
    stored_examples: bool = False  # fitted on adversarial examples that are made once
    second: SecondTraining | None = None  # None: there is one training

    def is_using_classifier(self, parameters: Mapping[str, Any]) -> bool:
        """Whether the fit depends on a classifier under ``parameters``."""
        return _holds(self.uses_classifier, parameters)

    def without_effect(self, parameters: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of the parameters that do not affect the fit under ``parameters``."""
        if self.second is None or parameters[self.second.when]:
            return self.inference_only
        return (*self.inference_only, *self.second.only)


@dataclass(frozen=True, kw_only=True)
class Network(_Declared):
    """A network that a method brings."""

    sized_by: tuple[str, ...]  # parameters that decide its size
    passes: str  # its forward passes per purified image
    fit_passes: str = "0"  # its forward passes per training image; `images` is their number


@dataclass(frozen=True, kw_only=True)
class Images(_Declared):
    """The images that a method takes."""

    channels: tuple[int, ...] = ()  # allowed numbers of channels; empty: any
    square_above: int | None = None  # square images only, with longer sides than this
    side_multiple: str = "1"  # both sides are multiples of this arithmetic over parameters
    windows: tuple[str, ...] = ()  # parameters that no side is smaller than; null: no window
    smallest_side: str = "1"  # no side is smaller than this arithmetic over parameters
    norms: tuple[tuple[str, str], ...] = ()  # (limit of a score's norm, parameter that uses it)
    resized_to: str = ""  # parameter: both sides of the image as the method sees it; null: as it is
    rules: tuple[Rule, ...] = ()  # also of image_height and image_width, as the method sees it

    def parameter_names(self) -> tuple[str, ...]:
        """The method's parameters that decide which images it takes."""
        formulas = (self.side_multiple, self.smallest_side)
        return (
            *self.windows,
            *filter(None, [self.resized_to]),
            *(name for norm in self.norms for name in norm),
            *(name for formula in formulas for name in names_in(formula)),
            *self.named_in_rules(),
        )

    def named_in_rules(self) -> tuple[str, ...]:
        """The parameters in the rules."""
        names = (name for rule in self.rules for name in rule.parameter_names())
        return tuple(name for name in names if name not in IMAGE_SIDES)

    def check(self, shape: Sequence[int], parameters: Mapping[str, Any], where: str) -> None:
        """Check images against the parameters in :meth:`parameter_names`.

        Args:
            shape: (C, H, W) of the images.
            parameters: parameter to value.
            where: begins the error message; names the method.

        Raises:
            UserError: the number of channels or the size does not fit.
        """
        channels, height, width = shape
        if self.channels and channels not in self.channels:
            allowed = " or ".join(str(count) for count in self.channels)
            raise UserError(
                f"{where} takes images of {allowed} channels; these have {channels}: "
                "choose other images"
            )
        above = self.square_above
        if above is not None and (height != width or height <= above):
            raise UserError(
                f"{where} has no network for {height}x{width} images, only for square images above "
                f"{above}x{above}: choose other images"
            )
        if self.resized_to and (side := parameters[self.resized_to]) is not None:
            height = width = side
        multiple = int(evaluate(self.side_multiple, parameters))
        if height % multiple or width % multiple:
            raise UserError(
                f"{where}: the sides of {height}x{width} images are not multiples of {multiple} "
                f"({self.side_multiple}): change these parameters or choose other images"
            )
        smallest = evaluate(self.smallest_side, parameters)
        if min(height, width) < smallest:
            raise UserError(
                f"{where}: {height}x{width} images are smaller than {smallest:g} "
                f"({self.smallest_side}): change these parameters or choose other images"
            )
        root = math.sqrt(math.prod(shape))
        for norm, used_by in self.norms:
            limit = parameters[norm]
            if parameters[used_by] and limit >= root:
                raise UserError(
                    f"{where}: {norm} is {limit:g}, but scores of {height}x{width} images have "
                    f"norms of about {root:.1f} at most, the root of their number of values: lower "
                    "it"
                )
        sides = dict(zip(IMAGE_SIDES, (height, width), strict=True))
        check_rules(self.rules, {**parameters, **sides}, where)
        for window in self.windows:
            side = parameters[window]
            if side is not None and side > min(height, width):
                raise UserError(
                    f"{where}: {window} is {side}, larger than {height}x{width} images: lower it "
                    "or choose other images"
                )


@dataclass(frozen=True, kw_only=True)
class TrainedWith(_Declared):
    """The training that a method's classifier must come from."""

    training: str  # the component's name
    same: tuple[str, ...] = ()  # parameters in which method and training agree


@dataclass(frozen=True, kw_only=True)
class Taps(_Declared):
    """The parameter that names inner representations of the classifier."""

    parameter: str  # a name or a list of names
    words: tuple[str, ...] = ()  # its values that are no names


@dataclass(frozen=True, kw_only=True)
class Listed(_Declared):
    """Parameters whose values must stand in one row of a CSV file."""

    file: str  # beside the component's source
    columns: tuple[tuple[str, str], ...]  # (parameter, column), the one to be corrected last


@dataclass(frozen=True, kw_only=True)
class MethodTraits(Traits):
    """Fields of a method: a purifier or another defence on the input."""

    passes: str = "0"  # classifier passes per purified image
    random: bool | Condition = False  # two seeds give two outputs: always, or under a condition
    differentiable: bool = True  # `purify` has a gradient, or a surrogate of it; else bpda
    provides: tuple[str, ...] = ()  # parts others may use: detector_logit, detected, score
    restores: bool | Condition = False  # changes the classifier's embedding, see Method.equipped
    batch_dependent: bool = False  # its network's logits depend on the batch; never attacked
    states: str = "1"  # images that `states` returns: arithmetic over parameters
    fit: Fit | None = None  # None: nothing is fitted
    network: Network | None = None  # None: brings no network
    images: Images = Images()  # what it takes
    trained_with: TrainedWith | None = None  # None: any classifier
    taps: Taps | None = None  # None: reads no inner representations by name

    def is_random(self, parameters: Mapping[str, Any]) -> bool:
        """Whether the output depends on the seed under ``parameters``."""
        return _holds(self.random, parameters)

    def is_restoring(self, parameters: Mapping[str, Any]) -> bool:
        """Whether the method changes the classifier's embedding under ``parameters``."""
        return _holds(self.restores, parameters)

    def states_under(self, parameters: Mapping[str, Any]) -> int:
        """Number of images that ``Method.states`` returns under ``parameters``."""
        return int(evaluate(self.states, parameters))

    def formulas(self) -> dict[str, str]:
        formulas = {**super().formulas(), "passes": self.passes, "states": self.states}
        formulas["images.side_multiple"] = self.images.side_multiple
        formulas["images.smallest_side"] = self.images.smallest_side
        if self.fit is not None:
            formulas["fit.passes"] = self.fit.passes
        if self.network is not None:
            formulas["network.passes"] = self.network.passes
            formulas["network.fit_passes"] = self.network.fit_passes
        return formulas

    def parameter_names(self) -> dict[str, tuple[str, ...]]:
        named = super().parameter_names()
        named["images.windows"] = self.images.windows
        named["images.rules"] = self.images.named_in_rules()
        named["images.resized_to"] = (self.images.resized_to,) if self.images.resized_to else ()
        if self.fit is not None:
            named["fit.inference_only"] = self.fit.inference_only
            if self.fit.second is not None:
                named["fit.second"] = (self.fit.second.when, *self.fit.second.only)
            if not isinstance(self.fit.uses_classifier, bool):
                named["fit.uses_classifier"] = tuple(self.fit.uses_classifier)
        if self.network is not None:
            named["network.sized_by"] = self.network.sized_by
        if self.trained_with is not None:
            named["trained_with.same"] = self.trained_with.same
        if self.taps is not None:
            named["taps"] = (self.taps.parameter,)
        for place, condition in (("random", self.random), ("restores", self.restores)):
            if not isinstance(condition, bool):
                named[place] = tuple(condition)
        return named


@dataclass(frozen=True, kw_only=True)
class ClassifierTraits(Traits):
    """Fields of a classifier."""

    pretrained: bool | str = False  # brings weights: always, or if this parameter is not null
    trained_on: str = ""  # parameter naming the data set whose images and classes it takes; "": any
    listed: Listed | None = None  # None: there is no list of its networks

    def is_pretrained(self, parameters: Mapping[str, Any]) -> bool:
        """Whether the classifier brings trained weights under ``parameters``."""
        if isinstance(self.pretrained, bool):
            return self.pretrained
        return parameters[self.pretrained] is not None

    def parameter_names(self) -> dict[str, tuple[str, ...]]:
        named = super().parameter_names()
        if isinstance(self.pretrained, str):
            named["pretrained"] = (self.pretrained,)
        if self.trained_on:
            named["trained_on"] = (self.trained_on,)
        if self.listed is not None:
            named["listed"] = tuple(parameter for parameter, _ in self.listed.columns)
        return named


@dataclass(frozen=True, kw_only=True)
class TrainingTraits(Traits):
    """Fields of a training recipe."""

    passes: str  # forward passes per training image; with a backward pass it is 3
    uses_oracle: bool = False  # trained on the answers of an attacked defence
    keeps_weights: bool = False  # trains nothing; needs a classifier that brings its weights
    remarks: tuple[Note, ...] = ()  # what a table must add for some parameter values

    def formulas(self) -> dict[str, str]:
        return {**super().formulas(), "passes": self.passes}

    def parameter_names(self) -> dict[str, tuple[str, ...]]:
        named = super().parameter_names()
        named["remarks"] = tuple(name for note in self.remarks for name in note.parameter_names())
        return named


@dataclass(frozen=True, kw_only=True)
class DatasetTraits(Traits):
    """Fields of a data set."""

    shape: tuple[int, int, int]  # channels, height, width
    classes: int | None  # None: only the files can tell
    train: int | None  # number of training images; None as above
    test: int | None  # number of test images; None as above
    stand_in_note: str = ""  # how the images differ from those a paper means; under every table


TRAITS: dict[str, type[Traits]] = {
    "attack": AttackTraits,
    "classifier": ClassifierTraits,
    "dataset": DatasetTraits,
    "method": MethodTraits,
    "training": TrainingTraits,
}
"""Kind of component to the class of its traits."""

PARTS: dict[str, type[_Declared]] = {
    "Fit": Fit,
    "Images": Images,
    "Layout": Layout,
    "Listed": Listed,
    "Network": Network,
    "Note": Note,
    "Rule": Rule,
    "SecondTraining": SecondTraining,
    "Taps": Taps,
    "TrainedWith": TrainedWith,
}
"""Name to class of the objects that a field of the traits may hold."""


def field_names(kind: str, place: Sequence[str] = ()) -> list[str]:
    """Names of the fields of a kind's traits, or of the part at the path ``place``."""
    inside: type = TRAITS[kind]
    for name in place:
        annotation = next((f.type for f in dataclasses.fields(inside) if f.name == name), "")
        inside = next((part for key, part in PARTS.items() if key in str(annotation)), inside)
    return [field.name for field in dataclasses.fields(inside)]
