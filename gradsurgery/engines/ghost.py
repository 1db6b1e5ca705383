"""The engine that forms inner products and weighted sums of per-loss gradients without most of these gradients."""

from functools import partial

from torch import Tensor
from torch.autograd.graph import GradientEdge

from ..losses import values_of
from .base import Engine, Problem, Request, pose
from .graph import sparse_tables
from .loop import Loop
from .matching import matched_uses
from .measured import Dropped, Kept
from .passes import Passes
from .per_loss import PerLossGradients, SharedGradients
from .pieces import Alone, Arrival, Explicit, Held, Piece, piece_of, saving_of
from .uses import Use, norms
from .workspace import Workspace

_ALWAYS_KEPT = 1 << 26
"""So many numbers are kept however small the model is."""


class Ghost(Engine):
    r"""Gramian and direction without the Jacobian, for the layers that hold most parameters.

    Of a linear layer, a convolution or an embedding with input a, autograd is only asked for the gradients
    :math:`\delta_k` with respect to its output. Inner products follow from the :math:`\delta_k` and a, the direction
    from :math:`(\sum_k w_k \delta_k)^\top a`. Layers are found on the autograd graph, so a model may be written in
    any way; parameters that are used in any other way get their per-loss gradients as usual. Hooks on tensors and
    modules fire once a loss; those on nodes (``grad_fn.register_hook``) and on views of a weight do not act on
    gradients that are not formed. Where what is kept would exceed a quarter of the Jacobian, it is obtained in
    several passes and dropped, and one more backward pass, for the weighted sum of the losses, gives the direction.

    Guarantees:
        the numbers of ``Loop`` up to rounding, also where per-sample gradients cancel: sums are then float64.

    Raises:
        RuntimeError: The method needs the gradients themselves, a loss depends on a reentrant checkpoint, or
            gradients are dropped and a hook or custom Function is not linear in the gradient.

    Cost:
        K backward passes that leave the weights out; for a layer with R rows (samples times positions) and width D
        ``K R^2 D`` operations if R < D, else ``K R D^2``; one product a layer for the direction. K times the layers'
        outputs are kept. Where gradients are dropped, K passes for each pack of parameters, down to the lowest of
        them, and one more: about the time of ``Loop``, in less memory.

    References:
        Goodfellow, Efficient per-example gradient computations (arXiv:1510.01799): norms, for one loss a sample.
    """

    has_rows = False

    def differentiate(self, request: Request) -> PerLossGradients:
        if request.rows:
            raise RuntimeError(
                "Ghost: `engine` must deliver the gradients themselves here, which 'ghost' does not form. Use "
                "engine='auto' or engine='loop'."
            )
        problem = pose(request)
        if len(problem.scalars) == 1:
            return Loop().solve(problem, ", as there is only one")
        return self.solve(problem, matched_uses(problem.graph, problem.shared, len(problem.scalars)))

    def solve(self, problem: Problem, uses: dict[Tensor, list[Use]]) -> PerLossGradients:
        """Differentiates losses whose graph has been read, by the uses that were found on it."""
        if sparse_tables(problem.graph) & (set(problem.shared) - uses.keys()):
            return Loop().solve(problem, ", as there are sparse gradients that 'ghost' does not know")
        passes = Passes(problem)
        form = partial(_pieces, passes, uses, problem.request.workspace)
        several = problem.shared_by_several()
        packs = packed(several, uses, passes.count)
        shared: SharedGradients
        if len(packs) > 1:
            hooked = [leaf for leaf in several if leaf._backward_hooks]  # the last pass would hand them the sum
            kept = [*form(hooked, last=False, key="kept"), *_alone(passes)]
            packs = packed([leaf for leaf in several if not leaf._backward_hooks], uses, passes.count)
            shared = Dropped(passes, packs, uses, partial(form, last=False), kept)
            how = f"{len(packs)} packs of parameters and a last pass, to save memory"
        else:
            pieces = form(several, last=True)
            shared = Kept([*pieces, *_alone(passes)])
            formed = sum(isinstance(piece, Explicit) for piece in pieces)
            how = f"gradients formed of {formed} of {len(several)} parameters"
        values, plain = values_of(problem.scalars), passes.plain.items()
        return PerLossGradients(problem.names, problem.all_names, values, shared, plain, f"ghost: {how}")


def _alone(passes: Passes) -> list[Piece]:
    return [Alone(leaf, own, loss, passes.count) for leaf, (loss, own) in passes.alone.items()]


def _pieces(
    passes: Passes,
    uses: dict[Tensor, list[Use]],
    workspace: Workspace,
    leaves: list[Tensor],
    *,
    last: bool,
    key: str = "rows",
) -> list[Piece]:
    """Obtains the gradients of parameters, in the form that is cheapest for each."""
    edges = list(dict.fromkeys(use.edge for leaf in leaves if leaf in uses for use in uses[leaf]))
    others = [leaf for leaf in leaves if leaf not in uses]
    rows = passes.rows([*edges, *others], last=last, key=key)
    arrived = {edge: (delta, norms(delta)) for edge, delta in zip(edges, rows, strict=False) if delta is not None}
    held = dict(zip(others, rows[len(edges) :], strict=True))
    pieces: list[Piece] = []
    for leaf in leaves:
        arrivals = [Arrival(use, *arrived[use.edge]) for use in uses.get(leaf, []) if use.edge in arrived]
        own = held.get(leaf)
        if arrivals:
            pieces.append(piece_of(leaf, arrivals, workspace))
        elif own is not None:
            pieces.append(Held(leaf, own))
    return pieces


def packed(leaves: list[Tensor], uses: dict[Tensor, list[Use]], count: int) -> list[list[Tensor]]:
    """Divides parameters among passes such that what each pass brings stays within a quarter of the Jacobian."""
    limit = max(_ALWAYS_KEPT / count, sum(leaf.numel() for leaf in leaves) / 4)
    packs: list[list[Tensor]] = []
    total, brought = 0, set[GradientEdge]()
    for leaf in leaves:
        own = uses.get(leaf, [])
        sizes = {use.edge: use.delta_numel for use in own}
        formed = 0 if saving_of(own, count) > 0 else leaf.numel()
        size = formed + sum(sizes[edge] for edge in sizes if edge not in brought)
        if not packs or total + size > limit:
            packs.append([])
            total, size, brought = 0, formed + sum(sizes.values()), set()
        packs[-1].append(leaf)
        brought.update(sizes)
        total += size
    return packs
