"""What one surgery did, as numbers by name for any logger: losses, weights, conflicts."""

import torch
from torch import Tensor

from gradsurgery import Surgery


def surgery_metrics(surgery: Surgery, prefix: str = "surgery/", *, max_losses: int = 10) -> dict[str, float]:
    r"""Turns what one surgery did into a flat dict of numbers, the form that loggers take.

    .. math:: \cos_{kl} = G_{kl} / \sqrt{G_{kk} G_{ll}}, \quad
        \mathrm{conflicting} = \#\{k < l : G_{kl} < 0\} / \binom{K}{2}

    For two losses named ``depth`` and ``labels``: ``loss/depth`` and ``weight/depth``, those of ``labels``,
    ``cosine/depth-labels``, which is 0 where a gradient is zero, ``lowest_cosine``, and ``conflicting``, the share of
    conflicting pairs. Methods that use no Gramian have no cosines, those that have no weights no weights. Where a
    surgery works group by group, these are means over the groups.

    Args:
        surgery: What :meth:`gradsurgery.MultiObjectiveOptimizer.backward` returned, or ``optimizer.last_surgery``.
        prefix: Stands before every name.
        max_losses: Up to so many losses, >= 0, each one's numbers and each pair's cosine are given.

    Raises:
        TypeError: ``surgery`` is something else.
        ValueError: ``max_losses`` is negative.

    Cost:
        On a GPU, waits for the surgery.

    Example:
        >>> import gradsurgery as gs
        >>> x = torch.ones(1, requires_grad=True)
        >>> optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD([x], lr=0.1), gs.Sum())
        >>> for name, value in surgery_metrics(optimizer.backward({"up": 2 * x, "down": -x})).items():
        ...     print(name, value)
        surgery/loss/up 2.0
        surgery/loss/down -1.0
        surgery/weight/up 1.0
        surgery/weight/down 1.0
        surgery/cosine/up-down -1.0
        surgery/lowest_cosine -1.0
        surgery/conflicting 1.0
    """
    if not isinstance(surgery, Surgery):
        raise TypeError(
            f"surgery_metrics: `surgery` must be what backward() returned, got {type(surgery).__name__}. "
            f"optimizer.last_surgery is None until then."
        )
    if max_losses < 0:
        raise ValueError(
            f"surgery_metrics: `max_losses` must be at least 0, got {max_losses}. With 0, only the summary is given."
        )
    names, numbers = surgery.names, dict[str, float]()
    each = len(names) <= max_losses
    if each:
        numbers |= _named("loss", names, surgery.losses)
    if each and surgery.weights is not None:
        numbers |= _named("weight", names, surgery.weights)
    if surgery.gramian is not None and len(names) > 1:
        products, cosines = _pairs(surgery.gramian)
        if each:
            pairs = [f"{name}-{other}" for k, name in enumerate(names) for other in names[k + 1 :]]
            numbers |= _named("cosine", pairs, cosines)
        numbers |= {"lowest_cosine": cosines.min().item(), "conflicting": (products < 0).double().mean().item()}
    return {prefix + name: value for name, value in numbers.items()}


def _named(kind: str, names: list[str] | tuple[str, ...], values: Tensor) -> dict[str, float]:
    means = values.double().view(-1, len(names)).mean(0).tolist()
    return {f"{kind}/{name}": value for name, value in zip(names, means, strict=True)}


def _pairs(gramian: Tensor) -> tuple[Tensor, Tensor]:
    """Inner products and cosines of all pairs of losses, ``(..., K (K - 1) / 2)``."""
    first, second = torch.triu_indices(gramian.shape[-1], gramian.shape[-1], offset=1, device=gramian.device)
    norms = gramian.diagonal(dim1=-2, dim2=-1).sqrt()
    lengths, products = norms[..., first] * norms[..., second], gramian[..., first, second]
    return products, torch.where(lengths == 0, torch.zeros_like(products), products / lengths)
