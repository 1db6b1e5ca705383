"""What to do about the losses, in words, with the reason and the line to write."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...aggregators import Aggregator, GramianAggregator
from ...catalogue import get
from ...scalarizers import Scalarizer
from .. import similarity, wording
from .findings import DEEP, Findings, Trouble

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
_SUM = "sum(losses.values()).backward()  # the training as it is"
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
        return Recommendation("sum", " ".join(_reasons(findings)), _SUM, also=_also(findings))
    method, options, code = remedy
    if findings.judged:
        return Recommendation(method, " ".join(_reasons(findings)), code, options, _also(findings))
    reason = (
        f"{_batches(findings)} cannot tell noise from conflict, so nothing should be changed for now. As it looks: "
        f"{' '.join(_reasons(findings))} If more batches agree, {code.partition(', ')[2][:-1]} is the method. "
        f"If one batch is all your data, pass it three times: it has no noise."
    )
    return Recommendation("sum", reason, _SUM, also=_also(findings))


def headline(findings: Findings) -> str:
    """The verdict in one line."""
    overlooked = listed(chosen(findings.names, findings.overlooked | findings.harmed))
    pair = "losses pull against each other"
    deepest = _deepest(findings)
    if deepest is not None and findings.trouble in ("direction", "both"):
        pair = f"{_both(findings, deepest)} pull against each other"
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


def chosen(names: Sequence[str], mask: Tensor) -> list[str]:
    """The names where the mask is True."""
    return [name for name, there in zip(names, mask.tolist(), strict=True) if there]


def listed(names: Sequence[str], most: int = 3) -> str:
    """Names in quotes, the first few of them.

    Example:
        >>> listed(["a", "b"]), listed(["a", "b", "c", "d", "e"])
        ("'a' and 'b'", "'a', 'b', 'c' and 2 others")
    """
    shown = [f"'{wording.shortened(name, 24)}'" for name in names]
    if len(shown) > most:
        left = len(shown) - most
        shown = [*shown[:most], "1 other" if left == 1 else f"{left} others"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else "none"


def weights_of(method: Aggregator | Scalarizer, findings: Findings) -> Tensor | None:
    """A method's weights ``(K,)`` on the mean gradients, zero for losses without a signal; None if it has none."""
    if not isinstance(method, GramianAggregator) or method.needs_jacobian or not bool(findings.with_signal.any()):
        return None
    kept = findings.with_signal.nonzero().flatten()
    weights = torch.zeros(len(findings.names), dtype=torch.float64)
    weights[kept] = method.solve(findings.gramian[kept][:, kept])
    return weights


def _reasons(findings: Findings) -> list[str]:
    if findings.trouble == "nothing shared":
        return [
            "No parameter is reached by two losses of a batch, so surgery would change nothing.",
            "If each batch has one loss only, say what they share: shared=, or gs.tag_shared.",
        ]
    if findings.trouble == "noise":
        return _of_noise(findings)
    return [*_of_lengths(findings), *_of_directions(findings), *_of_the_rest(findings)]


def _of_noise(findings: Findings) -> list[str]:
    seen = chosen(findings.names, findings.with_signal)
    beginning = f"Only the gradient of {listed(seen)} stands out" if seen else "No gradient stands out"
    return [
        f"{beginning} from the noise in {_batches(findings, start=False)}.",
        "Gradients made of noise conflict in about half of the batches, and surgery would act on that for nothing.",
        "Larger batches, or more of them here (max_batches=), would show whether there is anything beneath.",
    ]


def _of_lengths(findings: Findings) -> list[str]:
    if len(findings.names) == 1:
        return ["There is one loss: nothing can conflict with it."]
    there = chosen(findings.names, findings.with_gradient)
    if len(there) < 2:
        who = f"Only {listed(there)} has" if there else "No loss has"
        return [f"{who} a gradient on the shared parameters."]
    lengths, sum_brings = findings.lengths, findings.progress(torch.ones(len(findings.names), dtype=torch.float64))
    longest, reasons = int(lengths.nan_to_num(-1.0).argmax()), []
    if findings.overlooked.any():
        k = int(torch.where(findings.overlooked, lengths, torch.inf).argmin())
        short, long = listed([findings.names[k]]), listed([findings.names[longest]])
        ratio = wording.times(float(lengths[longest] / lengths[k]))
        brings = _brings(float(sum_brings[k]), bool(findings.harmed[k]))
        reasons.append(f"The gradient of {short} is {ratio} times shorter than that of {long}: {brings}.")
    worse = chosen(findings.names, findings.harmed & ~findings.overlooked)
    if worse:
        balanced = "" if findings.crowded.any() else "; with gradients of one length it would not"
        reasons.append(f"To first order, the plain sum makes {listed(worse)} worse{balanced}.")
    return reasons


def _brings(progress: float, harmed: bool) -> str:
    if progress != progress:
        return "the plain sum leaves it next to nothing"
    if harmed:
        return "a step along the plain sum makes it worse"
    if progress < 0:
        return "a step along the plain sum brings it nothing"
    return f"a step along the plain sum brings it {wording.share(progress)} of what a step along its own would"


def _of_directions(findings: Findings) -> list[str]:
    if not findings.crowded.any():
        return []
    deepest = _deepest(findings)
    if deepest is None:
        taken = 1 - findings.cosines.nansum(1)
        k = int(torch.where(findings.crowded, taken, -torch.inf).argmax())
        return [
            f"Many slight conflicts add up: with gradients of one length, the others would take "
            f"{wording.share(float(taken[k]))} of the progress of {listed([findings.names[k]])}."
        ]
    i, j = deepest
    cosine, share = float(findings.cosines[i, j]), float(findings.conflict_shares[i, j])
    error = float(findings.cosine_errors[i, j])
    about = f" ± {error:.2f}" if error == error else ""
    often = f", in {wording.share(share)} of the batches and on average" if share == share else ""
    return [
        f"{_both(findings, deepest)} pull against each other{often}: the cosine of their mean gradients is "
        f"{cosine:.2f}{about}."
    ]


def _of_the_rest(findings: Findings) -> list[str]:
    """What else was seen that is no trouble, or not certain."""
    reasons = []
    if findings.trouble == "none" and int(findings.with_signal.sum()) > 1:
        lengths = findings.lengths[findings.with_signal]
        ratio = wording.times(float(lengths.max() / lengths.min()))
        reasons.append(
            f"The longest mean gradient is {ratio} times the shortest, and no loss is worse off for the sum."
        )
    kinds = {kind: [pair for pair, own in findings.standing.items() if own == kind] for kind in ("noise", "unclear")}
    shallow = [pair for pair, own in findings.standing.items() if own in ("shallow", "systematic")]
    if findings.trouble == "none" and shallow:
        reasons.append(
            f"{_both(findings, shallow[0])} do conflict on average (cosine "
            f"{float(findings.cosines[shallow[0]]):.2f}), but the sum leaves each at least three quarters of its way."
        )
    if findings.trouble == "none" and kinds["unclear"] and findings.judged:
        lowest = min(kinds["unclear"], key=lambda pair: float(findings.cosines[pair]))
        reasons.append(f"{_both(findings, lowest)} may conflict: more batches would tell.")
    if findings.trouble == "none" and kinds["noise"]:
        pairs = "One pair conflicts" if len(kinds["noise"]) == 1 else f"{len(kinds['noise'])} pairs conflict"
        reasons.append(f"{pairs} in many batches, but not on average: that is noise.")
    silent = chosen(findings.names, findings.with_gradient & ~findings.with_signal)
    if silent:
        reasons.append(f"Nothing can be said of {listed(silent)}, lost in noise.")
    return reasons


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


def _deepest(findings: Findings) -> tuple[int, int] | None:
    """The pair with the lowest cosine, if that is a conflict."""
    known = {pair: float(findings.cosines[pair]) for pair in similarity.pairs(len(findings.names))}
    below = {pair: value for pair, value in known.items() if value < DEEP}
    return min(below, key=lambda pair: below[pair]) if below else None


def _both(findings: Findings, pair: tuple[int, int]) -> str:
    return listed([findings.names[pair[0]], findings.names[pair[1]]])


def _batches(findings: Findings, *, start: bool = True) -> str:
    if findings.batches == 1:
        return "One batch" if start else "one batch"
    return f"{findings.batches} batches"


__all__ = ["Recommendation", "chosen", "headline", "listed", "recommended", "weights_of"]
