"""What was found, in sentences."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import similarity, wording
from .findings import LONGER, TAKEN, Findings

ONE_BATCH = "If one batch is all your data, pass it three times: it has no noise."


def unsure(findings: Findings) -> str:
    """What too few batches mean."""
    return f"{_of_batches(findings)} cannot tell noise from conflict, so nothing should be changed for now."


def reasons(findings: Findings) -> list[str]:
    if len(findings.names) == 1:
        return ["There is one loss: nothing can conflict with it. If it is a sum, return its terms one by one."]
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
        f"{beginning} from the noise in {_of_batches(findings, start=False)}.",
        "Conflicts within a batch may be that batch's noise alone, and surgery would act on that for nothing.",
        "Larger batches, or more of them here (max_batches=), would show whether there is anything beneath.",
        *_of_drowned(findings, findings.with_gradient),
    ]


def _of_drowned(findings: Findings, among: Tensor) -> list[str]:
    """Which of some losses has by far the shortest gradient in the batches, noise included, if any has."""
    lengths = torch.where(findings.with_gradient, findings.batch_lengths, torch.nan)
    shortest = torch.where(among, lengths.nan_to_num(torch.inf), torch.inf)
    longest, k = int(lengths.nan_to_num(-1.0).argmax()), int(shortest.argmin())
    if not bool(lengths[longest] > LONGER * shortest[k]):
        return []
    ratio = wording.times(float(lengths[longest] / shortest[k]))
    short, long = listed([findings.names[k]]), listed([findings.names[longest]])
    return [
        f"In a batch, though, the gradient of {short} is {ratio} times shorter than that of {long}, which may drown "
        f"it: bring their targets to one scale, or give {short} more weight, if it matters."
    ]


def _of_lengths(findings: Findings) -> list[str]:
    there = chosen(findings.names, findings.with_gradient)
    if len(there) < 2:
        who = f"Only {listed(there)} has" if there else "No loss has"
        return [f"{who} a gradient on the shared parameters."]
    lengths, sum_brings = findings.lengths, findings.progress(torch.ones(len(findings.names), dtype=torch.float64))
    longest, said = int(lengths.nan_to_num(-1.0).argmax()), []
    if findings.overlooked.any():
        k = int(torch.where(findings.overlooked, lengths, torch.inf).argmin())
        short, long = listed([findings.names[k]]), listed([findings.names[longest]])
        ratio = wording.times(float(lengths[longest] / lengths[k]))
        brings = _brings(float(sum_brings[k]), bool(findings.harmed[k]))
        said.append(f"The gradient of {short} is {ratio} times shorter than that of {long}: {brings}.")
    worse = chosen(findings.names, findings.harmed & ~findings.overlooked)
    if worse:
        balanced = "" if findings.crowded.any() else "; with gradients of one length it would not"
        said.append(f"A small step along the plain sum makes {listed(worse)} worse{balanced}.")
    return said


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
    pair = deepest(findings)
    if pair is None:
        taken = findings.taken
        k = int(torch.where(findings.crowded, taken, -torch.inf).argmax())
        return [
            f"Slight conflicts add up: with gradients of one length, the others would take "
            f"{wording.share(float(taken[k]))} of the progress of {listed([findings.names[k]])}."
        ]
    i, j = pair
    cosine, share = float(findings.cosines[i, j]), float(findings.conflict_shares[i, j])
    error = float(findings.cosine_errors[i, j])
    about = f" ± {error:.2f}" if error == error else ""
    often = f", in {wording.share(share)} of the batches and on average" if share == share else ""
    return [
        f"{both(findings, pair)} pull against each other{often}: the cosine of their mean gradients is "
        f"{cosine:.2f}{about}."
    ]


def _of_the_rest(findings: Findings) -> list[str]:
    """What else was seen that is no trouble, or not certain."""
    said = []
    if findings.trouble == "none" and int(findings.with_signal.sum()) > 1:
        lengths = findings.lengths[findings.with_signal]
        ratio = wording.times(float(lengths.max() / lengths.min()))
        certain = " beyond chance" if (findings.progress(torch.ones(len(findings.names))) < 0).any() else ""
        said.append(
            f"The longest mean gradient is {ratio} times the shortest, and no loss is worse off for the sum{certain}."
        )
    kinds = {kind: [pair for pair, own in findings.standing.items() if own == kind] for kind in ("noise", "unclear")}
    shallow = [pair for pair, own in findings.standing.items() if own in ("shallow", "systematic")]
    if findings.trouble == "none" and shallow:
        said.append(_of_no_trouble(findings, min(shallow, key=lambda pair: float(findings.cosines[pair]))))
    unclear = [pair for pair in kinds["unclear"] if bool(findings.cosines[pair] < 0)]
    if findings.trouble == "none" and unclear and findings.judged:
        lowest = min(unclear, key=lambda pair: float(findings.cosines[pair]))
        said.append(f"{both(findings, lowest)} may conflict: more batches would tell.")
    if findings.trouble == "none" and kinds["noise"]:
        pairs = "One pair conflicts" if len(kinds["noise"]) == 1 else f"{len(kinds['noise'])} pairs conflict"
        said.append(f"{pairs} in many batches, but not on average: that is noise.")
    silent = chosen(findings.names, findings.with_gradient & ~findings.with_signal)
    if silent:
        said += [
            f"Nothing can be said of {listed(silent)}, lost in noise.",
            *_of_drowned(findings, ~findings.with_signal),
        ]
    return said


def _of_no_trouble(findings: Findings, pair: tuple[int, int]) -> str:
    """Why a conflict on average is none."""
    cosine = float(findings.cosines[pair])
    left = "but the other losses make up for it."
    if cosine >= -TAKEN:
        left = "but with gradients of one length neither would take more than a quarter of the other's progress."
    elif bool((findings.taken[list(pair)] > TAKEN).any()):
        left = "and more batches would tell whether that is a trouble."
    return f"{both(findings, pair)} do conflict on average (cosine {cosine:.2f}), {left}"


def deepest(findings: Findings) -> tuple[int, int] | None:
    """The pair with the lowest cosine that is a trouble by itself; those beyond chance come first."""
    known = {
        pair: (findings.standing[pair] != "systematic", float(findings.cosines[pair]))
        for pair in similarity.pairs(len(findings.names))
        if bool(findings.crowded[list(pair)].any()) and bool(findings.cosines[pair] < -TAKEN)
    }
    return min(known, key=lambda pair: known[pair]) if known else None


def both(findings: Findings, pair: tuple[int, int]) -> str:
    return listed([findings.names[pair[0]], findings.names[pair[1]]])


def _of_batches(findings: Findings, *, start: bool = True) -> str:
    if findings.batches == 1:
        return "One batch" if start else "one batch"
    return f"{findings.batches} batches"


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


__all__ = ["ONE_BATCH", "both", "chosen", "deepest", "listed", "reasons", "unsure"]
