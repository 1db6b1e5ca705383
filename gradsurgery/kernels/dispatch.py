"""Chooses for each call between the fused kernels and the plain ones that define them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import cpu, reference
from .obstacles import misfit, misfit_of_order, obstacle

_BLOCK_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def gramian(blocks: Sequence[Tensor], groups: Sequence[int] | None = None, fused: bool | None = None) -> Tensor:
    r"""Computes the inner products of all pairs of rows.

    .. math:: G_b = \sum_{i : \mathrm{groups}_i = b} J_i J_i^\top

    Guarantees:
        deterministic: the same blocks give the same bits, fused or not.
        scale_equivariant: powers of two that multiply rows multiply the result, bit for bit, as long as nothing
            leaves the range of the blocks' dtype. Fused, but for sums that underflow float32, of entries far below
            others of their rows: less than 1e-10 of the product of the rows' lengths.
        symmetric: bit for bit, where fused.

    Products and sums are float64. Fused, products are float32 (never TF32) and so are the sums over some thousand
    columns, no more than 128 additions in a row (256 for 16-bit blocks); all else is float64. Rows of very small or
    large entries are first multiplied by powers of two, where they are.

    Args:
        blocks: The Jacobian's blocks, each ``(K, ...)``, any floating dtype, any strides.
        groups: For each block the surgery it belongs to, in ``range(B)``. ``None``: one surgery.
        fused: Whether Triton kernels do it. ``None``: where they can, that is on one GPU, for up to 64 losses and
            blocks of 32 bits or less that need no gradients themselves.

    Shape:
        - output: ``(B, K, K)``, float64, on the first block's device.

    Raises:
        ValueError: ``fused=True`` where there are no such kernels.
        RuntimeError: A CUDA graph is being captured in the first fused call for this K and dtype.

    Cost:
        One pass over the Jacobian, ``K^2 P`` multiplications. Fused two launches for each dtype, however many
        blocks, and up to 8 MB of memory beside one K x K matrix for each block.

    Example:
        >>> gramian([torch.tensor([[1.0, 2.0], [0.0, 3.0]])])
        tensor([[[5., 6.],
                 [6., 9.]]], dtype=torch.float64)
    """
    if not _is_fused("gramian", fused, blocks, groups):
        return cpu.gramian(blocks, groups)
    from . import triton

    return triton.gramian(blocks, [0] * len(blocks) if groups is None else groups)


def combine(
    blocks: Sequence[Tensor],
    weights: Tensor,
    groups: Sequence[int] | None = None,
    fused: bool | None = None,
    out: Sequence[Tensor] | None = None,
    add: bool = False,
) -> list[Tensor]:
    r"""Computes the direction, the weighted sum of the rows: :math:`d_i = w_{\mathrm{groups}_i} J_i`.

    Guarantees:
        deterministic: the same blocks and weights give the same bits, fused or not.
        rounded_once: products and sums are float64, and d is rounded to the block's dtype; where the rows nearly
            cancel, float32 sums lost up to three digits. With ``add`` the rounded d is added.

    Args:
        blocks: The Jacobian's blocks, each ``(K, ...)``.
        weights: Weights of the rows for each surgery.
        groups: As in :func:`gramian`.
        fused: As in :func:`gramian`.
        out: For each block where its direction goes, such as a parameter's ``.grad``. ``None``: new tensors.
        add: Whether the direction is added to what ``out`` holds instead of replacing it.

    Shape:
        - weights: ``(B, K)``.
        - out: each ``(...)``, any strides and dtype.
        - output: one tensor ``(...)`` a block, ``out`` where it is given, else in the block's dtype with memory of
          its own.

    Raises:
        ValueError: ``fused=True`` where there are no such kernels; ``out`` does not fit the blocks; ``add`` without
            ``out``.
        RuntimeError: A CUDA graph is being captured in the first fused call for this K and dtype.

    Cost:
        One pass over the Jacobian. Fused one launch for each dtype, and written straight to ``out`` where that is
        contiguous and of the block's dtype.

    Example:
        >>> combine([torch.tensor([[1.0, 2.0], [0.0, 3.0]])], torch.tensor([[1.0, 2.0]]))
        [tensor([1., 8.])]
    """
    _check_out(blocks, out, add)
    if not _is_fused("combine", fused, blocks, groups, weights, out):
        return _write(cpu.combine(blocks, weights, groups), out, add)
    from . import triton_combine

    indices = [0] * len(blocks) if groups is None else groups
    straight = [out is not None and _is_straight(block, out[i]) for i, block in enumerate(blocks)]
    results = [
        out[i] if out is not None and straight[i] else block.new_empty(block.shape[1:])
        for i, block in enumerate(blocks)
    ]
    triton_combine.combine(blocks, weights, indices, results, [add and through for through in straight])
    if out is None:
        return results
    rest = [i for i, through in enumerate(straight) if not through]
    _write([results[i] for i in rest], [out[i] for i in rest], add)
    return list(out)


def project(gramian: Tensor, order: Tensor, fused: bool | None = None) -> Tensor:
    r"""Removes from every row its conflicts with the others, one after another, as PCGrad does.

    Row ``i`` starts as :math:`\hat g_i = g_i` and meets the other original rows in the order ``order[:, ..., i]``:

    .. math:: \hat g_i \leftarrow \hat g_i - \min(0, \langle \hat g_i, g_j \rangle) / \lVert g_j \rVert^2 \; g_j

    Guarantees:
        zero_rows_constrain_nothing: a zero row removes nothing.

    Args:
        gramian: Inner products of the original rows, float32 or float64.
        order: Which other row each row meets at each step; all of them once.
        fused: Whether a Triton kernel does it, in float64. ``None``: on a GPU, for up to 64 losses.

    Shape:
        - gramian: ``(..., K, K)``.
        - order: ``(K - 1, ..., K)``, int64.
        - output: ``(..., K, K)``; row ``i`` holds the coefficients of :math:`\hat g_i` in the original rows.

    Raises:
        ValueError: ``fused=True`` where there is no such kernel.
        RuntimeError: A CUDA graph is being captured in the first fused call for this K.

    Cost:
        K - 1 steps, each over all K rows at once. Fused one launch, a program for each problem.

    Example:
        >>> project(torch.tensor([[4.0, -2.0], [-2.0, 4.0]]), torch.tensor([[1, 0]]))
        tensor([[1.0000, 0.5000],
                [0.5000, 1.0000]])
    """
    if fused is False or (fused is None and not gramian.is_cuda):
        return reference.project(gramian, order)
    if not _settled("project", fused, misfit_of_order(gramian, order) or _unprojectable(gramian)):
        return reference.project(gramian, order)
    from . import triton_project

    return triton_project.project(gramian, order)


def vaccinate(gramian: Tensor, targets: Tensor, order: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Computes GradVac's weights and next targets on the device; :class:`gradsurgery.GradVac` defines them.

    Args:
        gramian: Inner products of the rows, where :func:`can_project` says so.
        targets: The cosines aimed at.
        order: As in :func:`project`.
        beta: How fast the targets follow.

    Shape:
        - gramian, targets: ``(..., K, K)``.
        - output: ``(..., K)`` and ``(..., K, K)``, float64.

    Raises:
        ValueError: There is no such kernel here, or the shapes do not fit.

    Cost:
        One launch, a program for each problem.
    """
    if (reason := misfit_of_order(gramian, order, targets) or _unprojectable(gramian)) is not None:
        raise ValueError(
            f"vaccinate: `gramian` must be where a Triton kernel can be used, got one where {reason}. Compute on "
            f"the host."
        )
    from . import triton_project

    return triton_project.vaccinate(gramian, targets, order, beta)


def can_project(gramian: Tensor) -> bool:
    """Whether the Gramian is on a GPU and there are fused projections for it."""
    return gramian.is_cuda and _unprojectable(gramian) is None


def _unprojectable(gramian: Tensor) -> str | None:
    return obstacle([gramian], gramian.shape[-1], (torch.float32, torch.float64))


def _is_fused(
    name: str,
    fused: bool | None,
    blocks: Sequence[Tensor],
    groups: Sequence[int] | None,
    weights: Tensor | None = None,
    out: Sequence[Tensor] | None = None,
) -> bool:
    if fused is False or (fused is None and not (blocks and blocks[0].is_cuda)):
        return False
    reason = "there are no blocks" if not blocks else misfit(blocks, groups, weights, out)
    return _settled(name, fused, reason or obstacle(blocks, blocks[0].shape[0], _BLOCK_DTYPES))


def _settled(name: str, fused: bool | None, reason: str | None) -> bool:
    if fused and reason is not None:
        raise ValueError(f"{name}: `fused` must be None or False where {reason}, got True. None chooses by itself.")
    return reason is None


def _check_out(blocks: Sequence[Tensor], out: Sequence[Tensor] | None, add: bool) -> None:
    if out is None:
        if add:
            raise ValueError("combine: `add` must be False without `out`, got True. Say what is added to.")
        return
    shapes, wanted = [tuple(target.shape) for target in out], [tuple(block.shape[1:]) for block in blocks]
    if shapes != wanted:
        raise ValueError(f"combine: `out` must be tensors of the shapes {wanted}, got {shapes}.")


def _is_straight(block: Tensor, target: Tensor) -> bool:
    """Whether a kernel can write the block's direction where it belongs."""
    alike = target.dtype == block.dtype and target.device == block.device and target.is_contiguous()
    return alike and type(target) in (Tensor, torch.nn.Parameter)


@torch.no_grad()
def _write(directions: list[Tensor], out: Sequence[Tensor] | None, add: bool) -> list[Tensor]:
    for direction, target in zip(directions, [] if out is None else out, strict=out is not None):
        if add:
            target.add_(direction)
        else:
            target.copy_(direction)
    return directions if out is None else list(out)
