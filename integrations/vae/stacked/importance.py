"""Several importance-weighted autoencoders at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..models.importance import IWAE, DReG, log_ratio, log_ratio_held, normalised, with_value
from ..models.objective import Objective
from ..models.vae import Posterior
from ..tables.encoding import Batch
from .likelihoods import StackedLikelihoods
from .vae import Draw, StackedVAE, decode

# The dimension of the draws, behind that of the seeds.
DRAWS = 1


class StackedIWAE(StackedVAE):
    """The draws of a row lie side by side: decoder and heads see M N rows of each model."""

    def __init__(self, models: Sequence[IWAE], likelihoods: StackedLikelihoods) -> None:
        super().__init__(models, likelihoods)
        self.num_samples = models[0].num_samples

    def objective(self, batch: Batch, draw: Draw, epoch: int) -> Objective:
        loc, scale = self.encode(batch.features, draw)
        noise = self._noise(loc, draw)
        z = loc.unsqueeze(DRAWS) + scale.unsqueeze(DRAWS) * noise  # (S, M, N, L)
        cells = self._log_probs(self.decode(z.flatten(1, 2)), batch)
        ratios = log_ratio(z, noise, scale.unsqueeze(DRAWS))
        weights, bound = normalised(cells.sum(-1) + ratios, DRAWS)
        return with_value(_weighed(weights, cells), -(weights * ratios).sum(DRAWS).mean(-1), -bound.mean(-1))

    def _noise(self, loc: Tensor, draw: Draw) -> Tensor:
        seeds, rows, width = loc.shape
        return draw(Tensor.normal_, (seeds, self.num_samples, rows, width))

    def _log_probs(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Of the cells, ``(S, M, N, D)``, from the outputs ``(S, M N, rows)``."""
        parts = (batch.scaled, batch.observed)
        scaled, observed = (
            part.unsqueeze(DRAWS).expand(-1, self.num_samples, -1, -1).flatten(1, 2) for part in parts
        )
        cells = self.likelihoods.log_probs(outputs, scaled, observed)
        return cells.view(len(cells), self.num_samples, -1, cells.shape[-1])


class StackedDReG(StackedIWAE):
    """The likelihoods are differentiated once for both passes, which differ by the weight of each draw."""

    def __init__(self, models: Sequence[DReG], likelihoods: StackedLikelihoods) -> None:
        super().__init__(models, likelihoods)
        self.encoder_blocks = self._blocks("encoder_block")
        self.surgery.append(self.encoder_blocks)

    def objective(self, batch: Batch, draw: Draw, epoch: int) -> Objective:
        posterior = self.encode(batch.features, draw)
        loc, scale = (part.unsqueeze(DRAWS) for part in posterior)
        z = loc + scale * self._noise(posterior.loc, draw)
        held = {name: weight.detach() for name, weight in self.weights.items()}
        of_decoder = self.decode(z.detach().flatten(1, 2))
        of_encoder = decode(z.flatten(1, 2), held, self.encoder_blocks)
        cells, deltas = self._differentiated(of_decoder, batch)
        ratios = log_ratio_held(z, Posterior(loc, scale))
        weights, bound = normalised(cells.sum(-1) + ratios, DRAWS)
        decoder = self._surrogate(of_decoder, deltas, weights)
        encoder = self._surrogate(of_encoder, deltas, weights.square())
        rest = decoder + encoder - (weights.square() * ratios).sum(DRAWS).mean(-1)
        return with_value(_weighed(weights, cells), rest, -bound.mean(-1))

    def _differentiated(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The cells' log-likelihoods, and their gradients with respect to the outputs: no cell has another's."""
        leaf = outputs.detach().requires_grad_()
        with torch.enable_grad():
            cells = self._log_probs(leaf, batch)
            (deltas,) = torch.autograd.grad(cells.sum(), leaf)
        return cells.detach(), deltas

    def _surrogate(self, outputs: Tensor, deltas: Tensor, weights: Tensor) -> Tensor:
        """Has the gradient of the weighed log-likelihoods' mean over the rows, negative, ``(S,)``."""
        rows = weights.shape[-1]
        return -(outputs * (deltas * weights.flatten(1, 2).unsqueeze(-1))).sum((1, 2)) / rows


def _weighed(weights: Tensor, cells: Tensor) -> Tensor:
    """The columns' losses, ``(S, D)``, from weights ``(S, M, N)`` and log-likelihoods ``(S, M, N, D)``."""
    return -(weights.unsqueeze(-1) * cells).sum(DRAWS).mean(1)
