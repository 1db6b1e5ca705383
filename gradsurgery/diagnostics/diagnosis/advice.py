"""What to do about the losses, in words, with the reason and the line to write."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...aggregators import Aggregator, GramianAggregator
from ...catalogue import get
from ...scalarizers import Scalarizer
from .findings import Findings, Trouble
from .reasons import ONE_BATCH, both, chosen, deepest, listed, reasons, unsure

LITTLE = 0.02
"""A smaller share of what its own gradient would bring is no gain."""
MANY = 8
"""From so many losses on, K backward passes are worth avoiding."""


@dataclass(frozen=True)
class Recommendation:
    """A method, and why.

    Args:
        method: Its name, for :func:`gradsurgery.get`.
        reason: Why, in sentences.
        code: The line to write.
        options: What :func:`gradsurgery.get` takes beside the name.
        also: Other ways, and what this does not tell, a sentence or two each.
    """

    method: str
    reason: str
    code: str
    options: Mapping[str, Any] = field(default_factory=dict)
    also: tuple[str, ...] = ()

    def build(self) -> Aggregator | Scalarizer:
        """Makes the method.

        Example:
            >>> Recommendation("chain", "", "", {"methods": ["lossbalancer", "pcgrad"]}).build().methods[1]
            PCGrad()
        """
        return get(self.method, **self.options)


_CODE = "optimizer = gs.MultiObjectiveOptimizer(optimizer, {})"
_SUM = "sum({}).backward()  # the training as it is"
_REMEDIES: dict[Trouble, tuple[str, dict[str, Any], str]] = {
    "magnitude": ("lossbalancer", {}, _CODE.format("gs.LossBalancer()")),
    "direction": ("upgrad", {}, _CODE.format("gs.UPGrad()")),
    "both": (
        "chain",
        {"methods": ["lossbalancer", "pcgrad"]},
        _CODE.format("gs.Chain(gs.LossBalancer(), gs.PCGrad())"),
    ),
}


def recommended(findings: Findings) -> Recommendation:
    """The method for the trouble found; the plain sum where there is none, or where it is not certain."""
    remedy = _REMEDIES.get(findings.trouble)
    if remedy is None:
        certain = findings.judged or findings.trouble == "nothing shared" or len(findings.names) == 1
        caution = [] if certain else [unsure(findings), ONE_BATCH]
        return Recommendation(
            "sum", " ".join([*caution, *reasons(findings)]), _sum_of(findings.names), also=_also(findings)
        )
    method, options, code = remedy
    if findings.judged:
        return Recommendation(method, " ".join(reasons(findings)), code, options, _also(findings))
    reason = (
        f"{unsure(findings)} As it looks: {' '.join(reasons(findings))} If more batches agree, "
        f"{code.partition(', ')[2][:-1]} is the method. {ONE_BATCH}"
    )
    return Recommendation("sum", reason, _sum_of(findings.names), also=_also(findings))


def _sum_of(names: Sequence[str]) -> str:
    """The plain sum, as it is written for a dict or, where losses have numbers for names, for a list."""
    return _SUM.format("losses" if list(names) == [f"{k}" for k in range(len(names))] else "losses.values()")


def headline(findings: Findings) -> str:
    """The verdict in one line."""
    if len(findings.names) == 1:
        return "One loss: nothing can conflict with it."
    overlooked = listed(chosen(findings.names, findings.overlooked | findings.harmed))
    pair = f"the other losses pull against {listed(chosen(findings.names, findings.crowded))}"
    worst = deepest(findings)
    if worst is not None and findings.trouble in ("direction", "both"):
        pair = f"{both(findings, worst)} pull against each other"
    lines: dict[Trouble, str] = {
        "none": "No trouble: the plain sum will do.",
        "magnitude": f"Magnitude: the plain sum overlooks {overlooked}.",
        "direction": f"Direction: {pair}.",
        "both": f"Magnitude and direction: the plain sum overlooks {overlooked}, and {pair}.",
        "noise": "Noise: the gradients do not stand out from it, so no conflict can be seen.",
        "nothing shared": "Nothing is shared: the losses cannot conflict.",
    }
    line = lines[findings.trouble]
    return line if findings.judged or findings.trouble == "nothing shared" else f"Not certain. {line}"


def weights_of(method: Aggregator | Scalarizer, findings: Findings) -> Tensor | None:
    """A method's weights ``(K,)`` on the mean gradients, zero for losses without a signal; None if it has none."""
    if not isinstance(method, GramianAggregator) or method.needs_jacobian or not bool(findings.with_signal.any()):
        return None
    kept = findings.with_signal.nonzero().flatten()
    weights = torch.zeros(len(findings.names), dtype=torch.float64)
    weights[kept] = method.solve(findings.gramian[kept][:, kept])
    return weights


def _also(findings: Findings) -> tuple[str, ...]:
    also = []
    if findings.trouble == "magnitude":
        also.append("gs.IMTLG() balances each step by itself; gs.scalarizers.FAMO() does it in one backward pass.")
    if findings.trouble in ("magnitude", "both"):
        also.append("Is a loss only in another unit, or nearly solved? Then scale its target, or leave it as it is.")
    if findings.trouble in ("direction", "both") and len(findings.names) >= MANY:
        also.append(
            f"With {len(findings.names)} losses, gs.ImpartialityBlock at the end of the shared part costs about one "
            f"ordinary backward pass."
        )
    if findings.judged and _gains_nothing(findings):
        also.append("Right now it helps the worst-off loss no more than the sum does; it will where lengths differ.")
    if findings.trouble in _REMEDIES:
        also.append("Tuned fixed weights often do as well: gs.compare(...) tells, before you adopt anything.")
    also.append("All this is about the model as it is now: run it again after some training.")
    return tuple(also)


def _gains_nothing(findings: Findings) -> bool:
    """Whether the direction of the method recommended leaves the worst-off loss where the plain sum leaves it.

    So it is with two conflicting gradients of one length: any fair direction lies halfway between them.
    """
    if findings.trouble not in _REMEDIES:
        return False
    method, options, _ = _REMEDIES[findings.trouble]
    weights = weights_of(get(method, **options), findings)
    if weights is None:
        return False
    advised, plain = findings.progress(weights), findings.progress(torch.ones_like(weights))
    worst = [float(shares[findings.with_signal].min()) for shares in (advised, plain)]
    return worst[0] < worst[1] + LITTLE


__all__ = ["Recommendation", "headline", "recommended", "weights_of"]
