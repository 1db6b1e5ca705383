"""The likelihoods of the kinds of columns, in natural parameters or in stated unconstrained ones."""

from .categories import Bernoulli, Categorical, Ordinal
from .counts import NegativeBinomial, Poisson, ZeroTruncatedPoisson
from .hurdle import Hurdle
from .normal import LogNormal, Normal
from .positive import Exponential, Gamma
from .shares import Beta

__all__ = [
    "Bernoulli",
    "Beta",
    "Categorical",
    "Exponential",
    "Gamma",
    "Hurdle",
    "LogNormal",
    "NegativeBinomial",
    "Normal",
    "Ordinal",
    "Poisson",
    "ZeroTruncatedPoisson",
]
