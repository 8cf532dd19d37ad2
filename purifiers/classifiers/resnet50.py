"""ResNet-50 (He et al. 2016): 16 bottleneck blocks, by default with a stem for small images."""

from __future__ import annotations

from torchvision.models.resnet import Bottleneck

from purifiers.classifiers._resnet import Resnet


class Resnet50(Resnet):
    """23,520,842 parameters for colour images and 10 classes; embeddings of 2048.

    A block's stride is that of its 3x3 convolution, as in torchvision.

    Parameters: see :class:`purifiers.classifiers._resnet.Resnet`.
    """

    traits = Resnet.traits.replace(version=1)
    BLOCK = Bottleneck
    COUNTS = (3, 4, 6, 3)
