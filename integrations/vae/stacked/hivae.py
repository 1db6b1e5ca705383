"""Several HI-VAEs at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..models.hivae import (
    HIVAE,
    divergence_of_s,
    divergence_of_z,
    location_places,
    posterior_of,
    relaxed_draw,
    temperature,
)
from ..models.objective import Objective
from ..tables.encoding import Batch
from .likelihoods import StackedLikelihoods
from .surgery import StackedBlocks
from .vae import Draw, Stack, linear


class StackedHIVAE(Stack):
    """The parameters of the columns are in the order of the groups of ``likelihoods``.

    No y is formed: with one linear map behind the other, the block at z stands in front of their products, which have
    fewer outputs.
    """

    def __init__(self, models: Sequence[HIVAE], likelihoods: StackedLikelihoods) -> None:
        self.models = list(models)
        self.likelihoods = likelihoods
        first = self.models[0]
        widths = first.heads.out_features
        self.z_blocks = StackedBlocks([own.block for own in models], widths, likelihoods.rows)
        self.s_blocks = StackedBlocks([own.s_block for own in models], widths, likelihoods.rows)
        self.surgery = [self.z_blocks, self.s_blocks]
        self.statistics: dict[str, Tensor] = {}
        device = first.locations.device
        self._order = torch.tensor(likelihoods.rows, device=device)
        places = location_places(first.likelihoods, first.column_size)
        self._rows, self._columns = self._order.argsort()[places.rows.to(device)], places.columns.to(device)
        self.weights = {name: nn.Parameter(self._stack(name)) for name, _ in first.named_parameters()}

    def phase(self, epoch: int) -> float:
        return temperature(epoch)

    def _stack(self, name: str) -> Tensor:
        stacked = torch.stack([model.get_parameter(name).detach() for model in self.models])
        return stacked[:, self._order] if name.startswith("heads.") else stacked

    @torch.no_grad()
    def copy_to_models(self) -> None:
        for blocks in self.surgery:
            blocks.hand_back()
        for name, weight in self.weights.items():
            for model, own in zip(self.models, weight, strict=True):
                rows = self._order if name.startswith("heads.") else slice(None)
                model.get_parameter(name)[rows] = own

    def objective(self, batch: Batch, draw: Draw, epoch: int) -> Objective:
        logits = linear(self.weights, "to_s", batch.features)
        s = relaxed_draw(logits, draw(Tensor.uniform_, tuple(logits.shape)), temperature(epoch))
        posterior = posterior_of(linear(self.weights, "to_z", torch.cat([batch.features, s], dim=-1)))
        z = posterior.loc + posterior.scale * draw(Tensor.normal_, tuple(posterior.loc.shape))
        losses = self.likelihoods.losses(self._decode(z, s), batch.scaled, batch.observed)
        rest = divergence_of_s(logits) + divergence_of_z(posterior, linear(self.weights, "prior", s))
        return Objective(losses, rest)

    def _decode(self, z: Tensor, s: Tensor) -> Tensor:
        """The parameters of all columns, ``(S, N, rows)``."""
        from_s = self.s_blocks.heads(s, self.weights["heads.weight"], self.weights["heads.bias"])
        y_weight, y_bias = (self.weights[f"to_y.{kind}"] for kind in ("weight", "bias"))
        spread = z.new_zeros(len(z), from_s.shape[-1], y_bias.shape[-1])
        spread[:, self._rows, self._columns] = self.weights["locations"]
        from_z = self.z_blocks.heads(z, spread @ y_weight, (spread @ y_bias.unsqueeze(-1)).squeeze(-1))
        return from_z + from_s
