"""Choices that several components share, declared as annotations: ``schedule: Schedule``.

A choice of one component is written out, as ``Literal["image", "shared"]``. Both are read and
checked as the numbers of :mod:`purifiers.core.ranges`.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

Schedule = Literal["step", "one_cycle", "cyclic", "cosine", "plateau"]
"""Of a learning rate, see :class:`purifiers.core.recipe.Recipe`."""

Optimizer = Literal["sgd", "nesterov", "adam"]
"""See :class:`purifiers.core.recipe.Recipe`."""

Decayed = Literal["all", "kernels"]
"""The parameters with weight decay, see :class:`purifiers.core.recipe.Recipe`."""

Augmentation = Literal["none", "flip", "crop_flip"]
"""Of training images, see :class:`purifiers.core.recipe.Recipe`."""

Precision = Literal["float32", "tf32", "bfloat16"]
"""Of convolutions and matrix products, see :func:`purifiers.core.precision.computing`."""

Stop = Literal["never", "success"]
"""Whether an attack leaves images alone once they are broken."""

AttackLabels = Literal["true", "predicted"]
"""The labels that an attack moves away from."""

Mode = Literal["eval", "train"]
"""Of a network while it is attacked, see :func:`purifiers.core.modes.attack_mode`."""

Statistics = Literal["adversarial", "clean"]
"""The images behind the running statistics of batch normalisation."""

Stem = Literal["small", "imagenet"]
"""The first layers of a classifier, for small images or as published."""

Task = Literal["label_consistency", "reconstruction", "rotation"]
"""SOAP's auxiliary task, see :mod:`purifiers.core.self_supervision`."""

CompletionKind = Literal["usvt", "nuclear_norm"]
"""How ME-Net completes a matrix, see :mod:`purifiers.core.matrix_completion`."""

# fmt: off
Corruption = Literal[
    "brightness", "contrast", "defocus_blur", "elastic_transform", "fog", "frost", "gaussian_blur",
    "gaussian_noise", "glass_blur", "impulse_noise", "jpeg_compression", "motion_blur", "pixelate",
    "saturate", "shot_noise", "snow", "spatter", "speckle_noise", "zoom_blur",
]
# fmt: on
"""Of CIFAR-10-C."""

CHOICES: dict[str, tuple[Any, ...]] = {
    name: get_args(choice)
    for name, choice in (
        ("Schedule", Schedule),
        ("Optimizer", Optimizer),
        ("Decayed", Decayed),
        ("Augmentation", Augmentation),
        ("Precision", Precision),
        ("Stop", Stop),
        ("AttackLabels", AttackLabels),
        ("Mode", Mode),
        ("Statistics", Statistics),
        ("Stem", Stem),
        ("Task", Task),
        ("CompletionKind", CompletionKind),
        ("Corruption", Corruption),
    )
}
"""Annotation to its values."""
