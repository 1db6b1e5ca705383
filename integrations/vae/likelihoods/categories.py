"""Categories: two, several, several in order."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .base import Likelihood
from .numerics import log_softmax

# Keeps every category between two others possible where softplus underflows.
SMALLEST_GAP = 1e-4


class Bernoulli(Likelihood):
    r"""Two categories, coded 0 and 1.

    .. math:: \log p(x \mid \eta) = x \eta - \log(1 + e^\eta)

    Shape:
        - eta: ``(..., 1)``, the logit of code 1.

    Example:
        >>> Bernoulli().mode(torch.tensor([[-0.2], [1.5]]))
        tensor([0., 1.], dtype=torch.float64)
    """

    num_parameters = 1

    def natural(self, raw: Tensor) -> Tensor:
        return raw

    def log_prob(self, scaled: Tensor, eta: Tensor) -> Tensor:
        return scaled * eta[..., 0] - functional.softplus(eta[..., 0])

    def mode(self, eta: Tensor) -> Tensor:
        return (eta[..., 0] > 0).double()

    def sample(self, eta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.bernoulli(torch.sigmoid(eta[..., 0].double()), generator=generator)


class Categorical(Likelihood):
    r"""Categories without order, coded 0, ..., C - 1.

    .. math:: \log p(x \mid \eta) = \eta_x - \log \sum_c e^{\eta_c}

    Args:
        classes: C, >= 1.

    Shape:
        - eta: ``(..., classes)``, logits up to a constant.

    Raises:
        ValueError: ``classes`` is less than 1.

    Example:
        >>> Categorical(3).mode(torch.tensor([0.1, 0.3, 0.2]))
        tensor(1., dtype=torch.float64)
    """

    def __init__(self, classes: int) -> None:
        if classes < 1:
            raise ValueError(f"Categorical: `classes` must be at least 1, got {classes}. Count the column's labels.")
        self.num_parameters = self.num_locations = classes

    def natural(self, raw: Tensor) -> Tensor:
        return raw

    def log_prob(self, scaled: Tensor, eta: Tensor) -> Tensor:
        codes = scaled.long().unsqueeze(-1)
        return log_softmax(eta).gather(-1, codes).squeeze(-1)

    def mode(self, eta: Tensor) -> Tensor:
        return eta.argmax(dim=-1).double()

    def sample(self, eta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        probabilities = functional.softmax(eta.double(), dim=-1)
        flat = probabilities.reshape(-1, self.num_parameters)
        return torch.multinomial(flat, 1, generator=generator).reshape(eta.shape[:-1]).double()


class Ordinal(Likelihood):
    r"""Categories in order, coded 0, ..., C - 1, by cumulative logits.

    .. math::
        P(x \ge k \mid \eta) = \sigma(\theta_k), \qquad
        \theta_1 = \eta_1, \quad \theta_k = \theta_{k-1} - \eta_k \quad (k = 2, \dots, C - 1)

    with gaps :math:`\eta_2, \dots > 0`, so that the logits fall and every probability is positive.
    Raising :math:`\eta_1` alone moves all cells upwards by the same log-odds (proportional odds); the
    gaps are free to differ between rows too. The probability of one category is evaluated as
    :math:`\sigma(a) - \sigma(b) = \sigma(a)\,\sigma(-b)\,(1 - e^{b - a})`, which does not cancel.

    Args:
        classes: C, >= 2.

    Shape:
        - eta: ``(..., classes - 1)``, the log-odds of code 1 or more, then the gaps.

    Raises:
        ValueError: ``classes`` is less than 2.

    Example:
        >>> grade = Ordinal(3)
        >>> eta = torch.tensor([[1.0986, 2.1972]])  # 3 : 1 for 1 or more, 1 : 3 for 2
        >>> grade.log_prob(torch.tensor([1.0]), eta).exp()
        tensor([0.5000])
        >>> grade.mode(eta)
        tensor([1.], dtype=torch.float64)
    """

    def __init__(self, classes: int) -> None:
        if classes < 2:
            raise ValueError(
                f"Ordinal: `classes` must be at least 2, got {classes}. Use Categorical for a single category."
            )
        self.num_parameters = classes - 1

    def natural(self, raw: Tensor) -> Tensor:
        return torch.cat([raw[..., :1], functional.softplus(raw[..., 1:]) + SMALLEST_GAP], dim=-1)

    def log_prob(self, scaled: Tensor, eta: Tensor) -> Tensor:
        codes = scaled.long().unsqueeze(-1)
        return self._log_probabilities(eta).gather(-1, codes).squeeze(-1)

    def mode(self, eta: Tensor) -> Tensor:
        return self._log_probabilities(eta.double()).argmax(dim=-1).double()

    def sample(self, eta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        flat = self._log_probabilities(eta.double()).exp().reshape(-1, self.num_parameters + 1)
        return torch.multinomial(flat, 1, generator=generator).reshape(eta.shape[:-1]).double()

    def _log_probabilities(self, eta: Tensor) -> Tensor:
        """Of every category, ``(..., classes)``."""
        gaps = eta[..., 1:]
        logits = torch.cat([eta[..., :1], eta[..., :1] - gaps.cumsum(-1)], dim=-1)
        reached = functional.pad(functional.logsigmoid(logits), (1, 0))
        stopped = functional.pad(functional.logsigmoid(-logits), (0, 1))
        between = functional.pad(torch.log(-torch.expm1(-gaps)), (1, 1))
        return reached + stopped + between
