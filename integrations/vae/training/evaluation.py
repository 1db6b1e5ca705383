"""How well a model reconstructs a table: one error and one log-likelihood a column."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.latent_model import LatentModel
from ..tables.encoding import Batch
from ..tables.table import Table

ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Evaluation:
    """Reconstruction of some rows, column by column.

    Args:
        errors: Error of each column, by name; NaN where no cell is observed.
        log_likelihoods: Mean log-likelihood of a cell of each column in original units, by name.
    """

    errors: dict[str, float]
    log_likelihoods: dict[str, float]

    @property
    def error(self) -> float:
        """Mean of the columns' errors, over the columns with an observed cell."""
        return mean_of(self.errors)

    @property
    def log_likelihood(self) -> float:
        """Mean of the columns' log-likelihoods, over the columns with an observed cell."""
        return mean_of(self.log_likelihoods)


def mean_of(by_name: dict[str, float]) -> float:
    """The mean of the values that are not NaN."""
    return float(torch.tensor(list(by_name.values()), dtype=torch.float64).nanmean())


@torch.no_grad()
def natural_parameters(model: LatentModel, features: Tensor) -> tuple[Tensor, ...]:
    """Every column's natural parameters at the mean of the posterior, in float64.

    The model is evaluated without dropout and with BatchNorm's running statistics, and left in the mode
    it was in; wherever it is, the parameters are on the CPU.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        chunks = [model.decode(model.posterior_mode(chunk.to(device))) for chunk in features.split(ROWS_AT_ONCE)]
    finally:
        model.train(was_training)
    return tuple(torch.cat(column).cpu().double() for column in zip(*chunks, strict=True))


def reconstruct(model: LatentModel, features: Tensor) -> Tensor:
    """The most likely cells given the mean of the posterior, in original units, ``(N, D)``.

    Codes for categories; :meth:`Table.to_frame` turns them into labels.
    """
    return _modes(model, natural_parameters(model, features))


def _modes(model: LatentModel, parameters: tuple[Tensor, ...]) -> Tensor:
    modes = [likelihood.mode(eta) for likelihood, eta in zip(model.likelihoods, parameters, strict=True)]
    return torch.stack(modes, dim=1)


def column_errors(table: Table, rows: Tensor, reconstruction: Tensor) -> Tensor:
    r"""The error of each column.

    .. math:: \frac{\sqrt{\operatorname{mean}_n (x_{nd} - \hat x_{nd})^2}}{\max x_{\cdot d} - \min x_{\cdot d}}
        \quad \text{for numbers}, \qquad \operatorname{mean}_n [x_{nd} \ne \hat x_{nd}]
        \quad \text{for categories}

    over the observed cells, in original units; the range is that of the whole table (1 for a column
    that is constant).

    Args:
        table: The whole table.
        rows: The rows that were reconstructed, ``(M,)``.
        reconstruction: ``(M, D)``, in original units.

    Shape:
        - output: ``(D,)``, float64; NaN for a column with no observed cell in these rows.
    """
    observed = table.observed[rows]
    wrong = torch.where(observed, reconstruction - table.values[rows], 0.0)
    discrete = torch.tensor([column.discrete for column in table.schema])
    squares = torch.where(discrete, (wrong != 0).double(), (wrong / table.ranges()).square())
    means = squares.sum(0) / observed.sum(0)
    return torch.where(discrete, means, means.sqrt())


def column_log_likelihoods(model: LatentModel, table: Table, rows: Tensor, parameters: tuple[Tensor, ...]) -> Tensor:
    """Mean log-likelihood of the observed cells of each column, in original units, ``(D,)``, float64."""
    means = []
    for d, (likelihood, eta) in enumerate(zip(model.likelihoods, parameters, strict=True)):
        observed = table.observed[rows, d]
        values = table.values[rows, d][observed]
        log_prob = likelihood.log_prob(likelihood.transform(values), eta[observed])
        means.append((log_prob + likelihood.log_jacobian(values)).mean())
    return torch.stack(means)


def evaluate_rows(model: LatentModel, table: Table, rows: Tensor, batch: Batch) -> Evaluation:
    """Errors and log-likelihoods of some rows at the mean of the posterior.

    Args:
        model: The model.
        table: The whole table.
        rows: Numbers of the rows, ``(M,)``.
        batch: Those rows, encoded.
    """
    parameters = natural_parameters(model, batch.features)
    errors = column_errors(table, rows, _modes(model, parameters))
    log_likelihoods = column_log_likelihoods(model, table, rows, parameters)
    names = table.schema.names
    return Evaluation(
        dict(zip(names, errors.tolist(), strict=True)),
        dict(zip(names, log_likelihoods.tolist(), strict=True)),
    )
