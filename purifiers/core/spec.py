"""Specs of runs: one frozen dataclass per stage, written by the plan, read by stages and reports.

A run's identity is the hash of its stage and the JSON of its spec. Fields without a default are
always in the JSON. Fields with a default are in it only if they differ from the default, so that a
new field with a default changes no identity.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import TypeAdapter, ValidationError

from purifiers.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class _Json:
    # configures pydantic, which checks specs that are read from files
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    def to_json(self) -> dict[str, Any]:
        """The JSON of this part of a spec."""
        content = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.default is dataclasses.MISSING or value != field.default:
                content[field.name] = _plain(value)
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: str = "spec") -> Self:
        """Create a spec from the JSON of :meth:`to_json`.

        Args:
            where: begins the error message.

        Raises:
            UserError: a field is unknown, missing or of another type.
        """
        try:
            adapter: TypeAdapter[Self] = _adapter(cls)  # type: ignore[arg-type]
            spec = adapter.validate_json(json.dumps(content), strict=True)
        except ValidationError as error:
            # a misspelt field before the field that is missing because of it
            unknown = "unexpected_keyword_argument"
            first = min(error.errors(), key=lambda e: (e["type"] != unknown, len(e["loc"])))
            field = ".".join(str(part) for part in first["loc"])
            place = f"{where}: {field}" if field else where
            reason = "unknown field" if first["type"] == unknown else first["msg"]
            raise UserError(f"{place}: {reason}; remove it and start again") from None
        return spec


@functools.cache
def _adapter(cls: type) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def _plain(value: Any) -> Any:
    if isinstance(value, _Json):
        return value.to_json()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value  # parameters and settings are JSON-able already


@dataclass(frozen=True, kw_only=True)
class ComponentSpec(_Json):
    """A component with all its parameters."""

    component: str  # name of its file
    version: int
    parameters: dict[str, Any]  # JSON-able; `joined_later` ones are left out at their defaults
    files: dict[str, str] | None = None  # SHA-256 of the files that its parameters name, by path
    content: str | None = None  # of what it reads in the data folder; None: official, or nothing


@dataclass(frozen=True, kw_only=True)
class MethodSpec(ComponentSpec):
    """A purifier ready for use."""

    run: str | None  # the run that fitted it; None: not fitted


@dataclass(frozen=True, kw_only=True)
class Subset(_Json):
    """Images of a split: the first or the last ``n`` of a seeded shuffle."""

    split: str  # train or test
    n: int
    seed: int  # of the shuffle
    last: bool = False  # the last n instead of the first


@dataclass(frozen=True, kw_only=True)
class ImagesSpec(_Json):
    """Images to attack, purify or score."""

    data: str  # the data set's run
    subset: Subset
    run: str | None  # the run that made them; None: clean images
    stage: str = ""  # of that run: attack or purify


@dataclass(frozen=True, kw_only=True)
class Eot(_Json):
    """Expectation over a random defence's draws (Athalye et al. 2018, section 4.2)."""

    samples: int  # draws behind each gradient
    combine: str  # mean, sign or displacement


@dataclass(frozen=True, kw_only=True)
class Oracle(_Json):
    """The defence whose predicted labels train a substitute."""

    classifier: str  # run
    methods: tuple[MethodSpec, ...]  # first to last


@dataclass(frozen=True, kw_only=True)
class Smoothing(_Json):
    """Randomised smoothing (Cohen et al. 2019, section 3.2)."""

    sigma: float  # standard deviation of the noise, on the [0, 1] scale
    selection: int  # votes per image that choose its class
    estimation: int  # other votes per image, which bound its probability
    alpha: float  # probability of a wrong certificate


@dataclass(frozen=True, kw_only=True)
class Timing(_Json):
    """Extent of the timing of a purification."""

    images: int  # timed one by one
    batches: tuple[int, ...]  # larger batch sizes, each timed once
    limit_seconds: int | float  # for the whole timing


Upstream = tuple[str, str]
"""Stage and id of a run."""


@dataclass(frozen=True, kw_only=True)
class Spec(_Json):
    """Everything that one run depends on, besides the code."""

    stage: ClassVar[str]

    def upstream(self) -> Iterator[Upstream]:
        """Yield (stage, id) of each run that this one is made from; some may occur twice."""
        yield from ()

    def components(self) -> Iterator[tuple[str, ComponentSpec]]:
        """Yield kind and spec of each component in this spec; some may occur twice."""
        yield from _components(self)


def _components(part: _Json) -> Iterator[tuple[str, ComponentSpec]]:
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, ComponentSpec):  # of a kind that names its field, or a method
                yield ("method" if isinstance(item, MethodSpec) else field.name), item
            elif isinstance(item, _Json):
                yield from _components(item)


def _images(images: ImagesSpec) -> Iterator[Upstream]:
    yield "dataset", images.data
    if images.run is not None:
        yield images.stage, images.run


def _fits(*methods: MethodSpec | None) -> Iterator[Upstream]:
    for method in methods:
        if method is not None and method.run is not None:
            yield "purifier", method.run


@dataclass(frozen=True, kw_only=True)
class DatasetSpec(Spec):
    """Prepare a data set."""

    stage: ClassVar[str] = "dataset"
    dataset: ComponentSpec


@dataclass(frozen=True, kw_only=True)
class ClassifierSpec(Spec):
    """Train a classifier."""

    stage: ClassVar[str] = "classifier"
    data: str  # run
    train: int  # number of training images
    classifier: ComponentSpec
    training: ComponentSpec
    seed: int

    def upstream(self) -> Iterator[Upstream]:
        yield "dataset", self.data


@dataclass(frozen=True, kw_only=True)
class PurifierSpec(Spec):
    """Fit a method."""

    stage: ClassVar[str] = "purifier"
    data: str  # run
    train: int  # number of training images
    classifier: str | None  # run; None: the fit uses no classifier
    method: ComponentSpec  # without the parameters of its inference
    seed: int
    ensemble: tuple[str, ...] = ()  # runs of further classifiers to fit on
    first: str | None = None  # run of the method's first training; None: there is one training

    @property
    def classifiers(self) -> tuple[str, ...]:
        """Runs of all classifiers that the method is fitted on."""
        return (*(() if self.classifier is None else (self.classifier,)), *self.ensemble)

    def upstream(self) -> Iterator[Upstream]:
        yield "dataset", self.data
        yield from (("classifier", run) for run in self.classifiers)
        if self.first is not None:
            yield "purifier", self.first


@dataclass(frozen=True, kw_only=True)
class SubstituteSpec(Spec):
    """Train a substitute on the predicted labels of a defence."""

    stage: ClassVar[str] = "substitute"
    data: str  # run
    seeds: Subset  # the initial training images
    classifier: ComponentSpec
    training: ComponentSpec
    oracle: Oracle
    seed: int

    def upstream(self) -> Iterator[Upstream]:
        yield "dataset", self.data
        yield "classifier", self.oracle.classifier
        yield from _fits(*self.oracle.methods)


@dataclass(frozen=True, kw_only=True)
class AttackSpec(Spec):
    """Generate an adversarial set."""

    stage: ClassVar[str] = "attack"
    images: ImagesSpec
    classifier: str | None  # run of the attacked classifier; None: the attack queries no model
    methods: tuple[MethodSpec, ...]  # attacked purifiers, first to last
    gradient: str  # exact, bpda, one_step, second_order or none
    attack: ComponentSpec
    seed: int
    classifier_stage: str = "classifier"  # or substitute
    eot: Eot | None = None
    auxiliary: MethodSpec | None = None  # the method whose detector is attacked too
    precision: str = "float32"

    def upstream(self) -> Iterator[Upstream]:
        yield from _images(self.images)
        if self.classifier is not None:
            yield self.classifier_stage, self.classifier
        yield from _fits(*self.methods, self.auxiliary)


@dataclass(frozen=True, kw_only=True)
class _OnImages(Spec):
    """Process a set of images with a classifier and, in most stages, with methods."""

    images: ImagesSpec
    classifier: str  # run

    def upstream(self) -> Iterator[Upstream]:
        yield from _images(self.images)
        yield "classifier", self.classifier
        yield from _fits(*(part for _, part in self.components() if isinstance(part, MethodSpec)))


@dataclass(frozen=True, kw_only=True)
class PurifySpec(_OnImages):
    """Purify a set of images with one method."""

    stage: ClassVar[str] = "purify"
    method: MethodSpec
    seed: int


@dataclass(frozen=True, kw_only=True)
class PredictSpec(_OnImages):
    """Classify a set of images behind several random draws of a defence."""

    stage: ClassVar[str] = "predict"
    methods: tuple[MethodSpec, ...]  # first to last
    first_draw: int
    draws: int
    seed: int
    all_steps: bool = False  # classify all states of the only method, see Method.states


@dataclass(frozen=True, kw_only=True)
class ScoreSpec(_OnImages):
    """Classify a set of images."""

    stage: ClassVar[str] = "score"
    attack: ComponentSpec | None  # the attack behind the images; None: clean
    detector: MethodSpec | None = None  # the method whose detected images count as its success
    restorers: tuple[MethodSpec, ...] = ()  # methods that restore the classifier's embedding
    predictions: tuple[str, ...] = ()  # runs with the logits of several draws, in order
    draws: int = 1  # the first draws, which give one prediction
    combine_draws: str = ""  # see core/draws.py; empty: a single draw
    all_steps: bool = False  # combine the images of all steps of each draw

    def upstream(self) -> Iterator[Upstream]:
        yield from super().upstream()
        yield from (("predict", run) for run in self.predictions)


@dataclass(frozen=True, kw_only=True)
class InformationSpec(_OnImages):
    """Estimate the mutual information of two layers."""

    stage: ClassVar[str] = "information"
    estimator: dict[str, Any]  # version, taps, and the estimator's settings
    seed: int


@dataclass(frozen=True, kw_only=True)
class NormSpec(_OnImages):
    """Measure the norm of a method's score."""

    stage: ClassVar[str] = "norm"
    method: MethodSpec
    purified: bool  # by one step of the method
    seed: int


@dataclass(frozen=True, kw_only=True)
class TraceSpec(_OnImages):
    """Trace images through a purification."""

    stage: ClassVar[str] = "trace"
    method: MethodSpec
    seed: int


@dataclass(frozen=True, kw_only=True)
class SmoothSpec(_OnImages):
    """Predict and certify by randomised smoothing."""

    stage: ClassVar[str] = "smooth"
    methods: tuple[MethodSpec, ...]  # first to last, after the noise
    smoothing: Smoothing
    seed: int


@dataclass(frozen=True, kw_only=True)
class TimeSpec(_OnImages):
    """Time a purification."""

    stage: ClassVar[str] = "time"
    methods: tuple[MethodSpec, ...]  # first to last
    timing: Timing
    seed: int


SPECS: dict[str, type[Spec]] = {
    spec.stage: spec
    for spec in (
        *(DatasetSpec, ClassifierSpec, PurifierSpec, SubstituteSpec, AttackSpec, PurifySpec),
        *(PredictSpec, ScoreSpec, InformationSpec, NormSpec, SmoothSpec, TraceSpec, TimeSpec),
    )
}
"""Stage to its spec, in the order in which the stages depend on each other."""


def read_spec(stage: str, content: Mapping[str, Any], where: str) -> Spec:
    """Create the spec of a run of any stage.

    Args:
        where: begins the error message.

    Raises:
        UserError: an unknown stage, or a spec of another form.
    """
    if stage not in SPECS:
        raise UserError(f"{where}: there is no stage {stage!r}: choose one of {', '.join(SPECS)}")
    return SPECS[stage].from_json(content, where)
