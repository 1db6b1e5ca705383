"""What one surgery did, as numbers by name for any logger: losses, weights, conflicts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..surgery import Surgery
from .history.pairs import comparable
from .similarity import conflicting_share, cosines, magnitude_similarities, norms, pairs


def surgery_metrics(surgery: Surgery, prefix: str = "surgery/", *, max_losses: int = 10) -> dict[str, float]:
    r"""Turns what one surgery did into a flat dict of numbers, the form that loggers take.

    .. math:: \cos_{kl} = G_{kl} / (n_k n_l), \quad n_k = \sqrt{G_{kk}}, \quad
        \mathrm{conflicting} = \#\{k < l : G_{kl} < 0\} / \#\{k < l : n_k n_l > 0\}

    For two losses named ``depth`` and ``labels``: ``loss/depth``, ``weight/depth`` and ``norm/depth``, the length of
    its gradient, those of ``labels``, ``cosine/depth-labels``, which is 0 where a gradient is zero; and of all pairs
    ``lowest_cosine``, ``lowest_magnitude_similarity`` (0 where one of the two is zero, 1 where both are), and
    ``conflicting``, the share of conflicting ones among gradients that are not zero. Methods that use no Gramian
    have no norms and cosines, those that have no weights no weights; a block has no losses. Where a surgery works
    group by group, these are means over the groups, and the lowest ones are the lowest of all.

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
        surgery/norm/up 2.0
        surgery/norm/down 1.0
        surgery/cosine/up-down -1.0
        surgery/lowest_cosine -1.0
        surgery/lowest_magnitude_similarity 0.8
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
    losses = surgery.losses
    if each and not bool(losses.isnan().all()):  # as in a block, which sees none
        numbers |= _named("loss", names, losses)
    if each and surgery.weights is not None:
        numbers |= _named("weight", names, surgery.weights)
    if surgery.gramian is not None:
        numbers |= gramian_metrics(names, surgery.gramian, each=each)
    return {prefix + name: value for name, value in numbers.items()}


def group_metrics(surgery: Surgery, prefix: str = "surgery/", *, max_losses: int = 10) -> dict[str, float]:
    """Gives for each group of a surgery what :func:`surgery_metrics` gives for all together, beginning with its name.

    Args:
        surgery: As for :func:`surgery_metrics`.
        prefix: Stands before every name.
        max_losses: As for :func:`surgery_metrics`.

    Returns:
        Weights, norms and cosines under ``{prefix}{group}/``; nothing where the surgery has no groups.

    Example:
        >>> gramian = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, -1.0], [-1.0, 1.0]]])
        >>> surgery = Surgery(("a", "b"), torch.zeros(2), None, gramian, ("trunk.0", "trunk.2"))
        >>> {name: value for name, value in group_metrics(surgery).items() if name.endswith("a-b")}
        {'surgery/trunk.0/cosine/a-b': 0.0, 'surgery/trunk.2/cosine/a-b': -1.0}
    """
    if surgery.gramian is None or not surgery.groups:
        return {}
    each, numbers = len(surgery.names) <= max_losses, dict[str, float]()
    weights, gramians = surgery.weights, surgery.gramian.double().cpu()
    own = weights is not None and weights.ndim == 2 and len(weights) == len(surgery.groups)
    for position, group in enumerate(surgery.groups):
        found = gramian_metrics(surgery.names, gramians[position], each=each)
        if each and own and weights is not None:
            found = _named("weight", surgery.names, weights[position]) | found
        numbers |= {f"{prefix}{group}/{name}": value for name, value in found.items()}
    return numbers


def gramian_metrics(names: Sequence[str], gramian: Tensor, *, each: bool = True) -> dict[str, float]:
    """Norms and cosines of one Gramian ``(K, K)``, or their means over groups ``(B, K, K)``.

    Args:
        names: Of the K losses.
        gramian: Their inner products.
        each: Whether each one's norm and each pair's cosine are given, or only the summary.
    """
    gramian = gramian.double().cpu()
    numbers = _named("norm", names, norms(gramian)) if each else {}
    if len(names) < 2:
        return numbers
    chosen = pairs(len(names))
    first, second = map(list, zip(*chosen, strict=True))
    broken = ~comparable(gramian)
    against = cosines(gramian).nan_to_num(0.0).masked_fill(broken, torch.nan)[..., first, second]
    similar = magnitude_similarities(gramian).nan_to_num(1.0).masked_fill(broken, torch.nan)[..., first, second]
    share = conflicting_share(gramian).nan_to_num(0.0).masked_fill(broken.flatten(-2).any(-1), torch.nan)
    if each:
        numbers |= _named("cosine", [f"{names[i]}-{names[j]}" for i, j in chosen], against)
    return numbers | {
        "lowest_cosine": against.min().item(),
        "lowest_magnitude_similarity": similar.min().item(),
        "conflicting": share.mean().item(),
    }


def _named(kind: str, names: Sequence[str], values: Tensor) -> dict[str, float]:
    means = values.double().view(-1, len(names)).mean(0).tolist()
    return {f"{kind}/{name}": value for name, value in zip(names, means, strict=True)}


__all__ = ["group_metrics", "gramian_metrics", "surgery_metrics"]
