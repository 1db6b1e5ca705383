"""What a monitor has recorded, as plain tensors, tables and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..similarity import norms
from .pairs import Pairs, compared, share_of
from .rows import frame_of, loss_rows, pair_rows

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class History:
    r"""T recorded steps of K losses in B groups, on the CPU.

    .. math:: \cos_{ij} = G_{ij} / (n_i n_j), \quad n_i = \sqrt{G_{ii}}

    Of a surgery over everything that is shared there is one group, ``"all"``. A loss that was absent in a step is NaN
    there, and what is made of pairs is NaN where a gradient was zero or not finite, too; means leave that out.

    Args:
        names: The K losses, in order of first appearance.
        groups: The B groups, in order of first appearance: layers, tensors or blocks.
        steps: The number of each step ``(T,)``, int64, rising.
        losses: ``(T, K)``, float64; NaN for blocks, which see none.
        gramians: Inner products of the gradients ``(T, B, K, K)``, float64, non-finite ones as they came.
        weights: ``(T, K)``, or with one row a group ``(T, Bw, K)``, in the groups of the surgery itself; None where
            no step had any.
        finite: Whether each step's inner products were all finite ``(T,)``.

    Cost:
        8 (B K² + K) bytes a step. Means and cosines are computed when asked for.

    Example:
        >>> gramians = torch.tensor([[[[4.0, -1.0], [-1.0, 1.0]]], [[[4.0, 2.0], [2.0, 4.0]]]])
        >>> history = History(("a", "b"), ("all",), torch.tensor([0, 10]), torch.ones(2, 2), gramians)
        >>> history.cosines[:, 0, 0, 1]
        tensor([-0.5000,  0.5000])
        >>> history.conflict_frequencies()[0, 0, 1]
        tensor(0.5000)
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    steps: Tensor
    losses: Tensor
    gramians: Tensor
    weights: Tensor | None = None
    finite: Tensor | None = None

    def __len__(self) -> int:
        """How many steps there are."""
        return len(self.steps)

    @property
    def overflows(self) -> int:
        """In how many of the steps an inner product was not finite, as in the overflows of mixed precision."""
        return 0 if self.finite is None else int((~self.finite).sum())

    @property
    def cosines(self) -> Tensor:
        """Between the gradients, ``(T, B, K, K)``."""
        return self.compared().cosines

    @property
    def norms(self) -> Tensor:
        """The lengths of the gradients, ``(T, B, K)``."""
        return norms(self.gramians)

    @property
    def magnitude_ratios(self) -> Tensor:
        """How many times as long as gradient j gradient i was, ``(T, B, K, K)``."""
        return self.compared().ratios

    @property
    def magnitude_similarities(self) -> Tensor:
        """``2 n_i n_j / (n_i² + n_j²)``, ``(T, B, K, K)``: 1 for equal lengths."""
        return self.compared().similarities

    @property
    def conflicting_shares(self) -> Tensor:
        """The share of conflicting pairs ``(T, B)`` among those that could be compared."""
        return share_of(self.compared().conflicts)

    @property
    def joint_gramians(self) -> Tensor:
        """Inner products over all groups together, ``(T, K, K)``, the sums over the groups that a loss was in."""
        nowhere = self.gramians.isnan().all(1)
        return self.gramians.nansum(1).masked_fill(nowhere, torch.nan)

    def compared(self) -> Pairs:
        """All that there is to say about pairs, each ``(T, B, K, K)``."""
        return compared(self.gramians)

    def mean_cosines(self) -> Tensor:
        """Over the steps, ``(B, K, K)``."""
        return self.cosines.nanmean(0)

    def mean_magnitude_ratios(self) -> Tensor:
        """Over the steps, ``(B, K, K)``; the geometric mean, so that i to j is one over j to i."""
        return self.magnitude_ratios.log().nanmean(0).exp()

    def mean_magnitude_similarities(self) -> Tensor:
        """Over the steps, ``(B, K, K)``."""
        return self.magnitude_similarities.nanmean(0)

    def conflict_frequencies(self) -> Tensor:
        """In what share of the steps in which they could be compared a pair conflicted, ``(B, K, K)``."""
        return self.compared().conflicts.nanmean(0)

    def rows(self) -> list[dict[str, Any]]:
        """A row for each step, group and pair of losses.

        Each has ``step``, ``group``, ``first``, ``second``, ``cosine``, ``magnitude_ratio`` (of the first to the
        second), ``magnitude_similarity`` and ``conflicting`` (0 or 1); NaN where that cannot be said.
        """
        return pair_rows(self)

    def to_pandas(self) -> pandas.DataFrame:
        """:meth:`rows` as a table.

        Raises:
            ImportError: pandas is not installed.
        """
        return frame_of(pair_rows(self), "to_pandas")

    def losses_to_pandas(self) -> pandas.DataFrame:
        """A row for each step, group and loss: ``step``, ``group``, ``loss``, ``value``, ``norm``, ``weight``.

        Raises:
            ImportError: pandas is not installed.
        """
        return frame_of(loss_rows(self), "losses_to_pandas")

    def draw_pairs(self) -> Figure:
        """A heat map over losses: mean cosines over all groups together, and how often each pair conflicts.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from ..pictures import draw_pairs

        joint = compared(self.joint_gramians)
        return draw_pairs(joint.cosines.nanmean(0), self.names, shares=joint.conflicts.nanmean(0))

    def draw_layers(self) -> Figure:
        """A heat map with a row for each group and a column for each pair: mean cosines.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from ..pictures import draw_layers

        return draw_layers(self.mean_cosines(), self.groups, self.names)

    def draw_time(self) -> Figure:
        """A heat map with a row for each pair, time to the right: cosines over all groups together.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from ..pictures import draw_time

        return draw_time(self.steps, compared(self.joint_gramians).cosines, self.names)

    def draw_weights(self) -> Figure:
        """Weights over time, of several groups their mean.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: The method has no weights.
        """
        from ..pictures import draw_weights

        if self.weights is None:
            raise ValueError(
                "History: `weights` must be there to be drawn, got None. A plain sum and methods over the gradients "
                "themselves have none; draw_time() draws what there is."
            )
        weights = self.weights if self.weights.ndim == 2 else self.weights.nanmean(1)
        return draw_weights(self.steps, weights, self.names)

    def report(self, path: str | Path) -> Path:
        """Writes one self-contained HTML page with the pictures and the table of pairs.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: Nothing is recorded yet.
        """
        from .report import report

        return report(self, Path(path))

    def __repr__(self) -> str:
        return f"History({len(self)} steps of {', '.join(self.names) or 'no losses'}; {', '.join(self.groups)})"


__all__ = ["History"]
