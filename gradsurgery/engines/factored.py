r"""Inner products of a layer's per-loss gradients from its input and its output gradients.

For a layer with input a and output gradients :math:`\delta_k` over R rows, :math:`g_k = \delta_k^\top a`. With
:math:`a a^\top = L L^\top`, the rows :math:`L^\top \delta_k` have the inner products of the :math:`g_k`, at R numbers
in place of the layer's width: the compressed form. Where R is not the smaller one, the :math:`g_k` are formed: the
direct form.
"""

import torch
from torch import Tensor

from .. import kernels
from .products import Size
from .workspace import Workspace, reused

_OVERHEAD = 1 << 22
"""Floating point operations that take about as long as the calls that the compressed form needs in addition."""

_BLOCK = 32
"""Rows of a triangular product below which leaving out its zeros saves nothing."""


def saving(size: Size, losses: int) -> float:
    """How much the compressed form saves, in floating point operations; negative if the direct form is cheaper."""
    copies, rows, height, width = size
    if not 0 < rows <= width:
        return -1.0
    passes = (20 + 2 * losses) * losses * copies * height  # inner products in float64, per column
    direct = 2 * losses * copies * rows * height * width + passes * width
    once = copies * rows * rows * (4 * width + 2 * rows)  # the Gramian of the inputs, in float64, and its factor
    turned = 1.5 * losses * copies * rows * rows * height + passes * rows
    product = 2 * copies * rows * height * width  # for the direction; the direct form has rows to combine
    return direct - once - turned - product - _OVERHEAD


def compressed(inputs: Tensor, deltas: Tensor, workspace: Workspace, *, careful: bool) -> Tensor:
    r"""Computes :math:`L^\top \delta_k`.

    Args:
        inputs: a.
        deltas: In the dtype to compute in.
        workspace: Where the result may be put, until the next call.
        careful: Whether to factorize a itself, not its Gramian, which squares what cancels; always done in float64.

    Shape:
        - inputs: ``(E, R, width)``, R <= width.
        - deltas: ``(K, E, R, height)``.
        - output: ``(K, E, R, height)``.
    """
    exact = careful or deltas.dtype == torch.float64
    upper = (_factor_by_qr(inputs) if exact else _factor(inputs)).to(deltas.dtype)
    half = upper.shape[-1] // 2
    if half < _BLOCK:
        return upper @ deltas
    result = reused(workspace, "compressed", deltas.shape, deltas)
    for own, target in zip(deltas, result, strict=True):  # upper triangular: a quarter of the product is zero
        for factor, delta, out in zip(upper, own, target, strict=True):
            torch.mm(factor[:half], delta, out=out[:half])
            torch.mm(factor[half:, half:], delta[half:], out=out[half:])
    return result


def _factor(inputs: Tensor) -> Tensor:
    """The upper triangular factor of the inputs' Gramian, float64, by way of unit rows: no row is too small."""
    # float64 products on any device: errors here are squared before they count
    gramian = torch.stack([kernels.gramian([matrix], fused=False)[0] for matrix in inputs])
    norms = gramian.diagonal(dim1=-2, dim2=-1).sqrt()
    scale = torch.where(norms > 0, norms, 1.0)
    unit = gramian / (scale.unsqueeze(-1) * scale.unsqueeze(-2))
    unit.diagonal(dim1=-2, dim2=-1).fill_(1 + 4 * torch.finfo(torch.float64).eps * unit.shape[-1])
    lower, failed = torch.linalg.cholesky_ex(unit)
    upper: Tensor = lower.mT * norms.unsqueeze(-2)
    return _factor_by_qr(inputs) if bool(failed.any()) else upper


def _factor_by_qr(inputs: Tensor) -> Tensor:
    factor: Tensor = torch.linalg.qr(inputs.double().mT, mode="r").R
    return factor
