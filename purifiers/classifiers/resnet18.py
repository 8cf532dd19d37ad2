"""ResNet-18 (He et al. 2016): eight basic blocks, by default with a stem for small images."""

from __future__ import annotations

from torchvision.models.resnet import BasicBlock

from purifiers.classifiers._resnet import Resnet


class Resnet18(Resnet):
    """11,173,962 parameters for colour images and 10 classes; embeddings of 512.

    Parameters: see :class:`purifiers.classifiers._resnet.Resnet`.
    """

    traits = Resnet.traits.replace(version=1)
    BLOCK = BasicBlock
    COUNTS = (2, 2, 2, 2)
