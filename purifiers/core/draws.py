"""Combine the predictions of several draws of a random defence."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import one_hot

COMBINE_DRAWS = ("logits", "softmax", "argmax", "any")
"""What :func:`prediction` combines; the first three as ADP's Figure 8 (Yoon et al. 2021, D.5)."""


def prediction(logits: Tensor, labels: Tensor, how: str) -> Tensor:
    """Predicted classes (n,) of several draws.

    Args:
        logits: (n, draws, classes); with all steps of each draw, each step counts as a draw.
        labels: true classes (n,), read by ``"any"`` alone.
        how: - ``"logits"``: the class with the largest mean logit;
             - ``"softmax"``: the class with the largest mean probability;
             - ``"argmax"``: the class that most draws predict, the lower class on ties
               (`jmyoon1/adp`);
             - ``"any"``: the first wrong prediction of any draw, so that an image counts as broken
               if one draw misclassifies it (Croce et al. 2022 count so with 5 draws).

    Raises:
        KeyError: an unknown ``how``.
    """
    predicted = logits.argmax(dim=2)
    if how == "any":
        wrong = (predicted != labels.unsqueeze(1)).int()
        # argmax gives the first wrong draw, or draw 0 if no draw is wrong
        return predicted.gather(1, wrong.argmax(dim=1, keepdim=True))[:, 0]
    values = {
        "logits": lambda: logits,
        "softmax": lambda: logits.softmax(dim=2),
        "argmax": lambda: one_hot(predicted, logits.shape[2]).to(logits.dtype),
    }[how]()
    return values.mean(dim=1).argmax(dim=1)
