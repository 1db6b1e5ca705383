"""Variational autoencoders for tables whose columns are of different kinds, with none overlooked.

Each column's log-likelihood is one loss; the decoder's last shared feature is what they fight over. The tool is
``HeterogeneousVAE``, a scikit-learn estimator; ``fit`` and ``fit_seeds`` train by hand.

Example:
    >>> import gradsurgery as gs, pandas as pd
    >>> frame = pd.DataFrame({"age": [23, 41, 35, 58, 62] * 8, "smokes": [True, False] * 20})
    >>> table = Table.from_frame(frame)
    >>> run = fit(table, gs.GradNorm(alpha=0.0, progress="gradient"), epochs=2)
    >>> sorted(run.evaluate().errors)
    ['age', 'smokes']
"""

from typing import TYPE_CHECKING, Any

try:
    import pandas as _pandas  # noqa: F401
except ImportError as error:
    raise ImportError(
        "gradsurgery.integrations.vae: pandas must be installed, got no module of that name. "
        'Run: pip install "gradsurgery[vae]"'
    ) from error

from .column import Column
from .encoding import Batch, Encoding
from .evaluation import Evaluation
from .figures import draw_comparison, save_figure
from .hivae import HIVAE
from .importance import IWAE, DReG
from .latent_model import LatentModel
from .likelihood import Likelihood
from .likelihoods import (
    Bernoulli,
    Beta,
    Categorical,
    Exponential,
    Gamma,
    Hurdle,
    LogNormal,
    NegativeBinomial,
    Normal,
    Ordinal,
    Poisson,
    ZeroTruncatedPoisson,
)
from .model import VAE
from .run import Run
from .schema import Schema
from .stacked import fit_seeds
from .table import Split, Table
from .training import fit

if TYPE_CHECKING:
    from .estimator import HeterogeneousVAE

__all__ = [
    "HIVAE",
    "IWAE",
    "VAE",
    "Batch",
    "Bernoulli",
    "Beta",
    "Categorical",
    "Column",
    "DReG",
    "Encoding",
    "Evaluation",
    "Exponential",
    "Gamma",
    "HeterogeneousVAE",
    "Hurdle",
    "LatentModel",
    "Likelihood",
    "LogNormal",
    "NegativeBinomial",
    "Normal",
    "Ordinal",
    "Poisson",
    "Run",
    "Schema",
    "Split",
    "Table",
    "ZeroTruncatedPoisson",
    "draw_comparison",
    "fit",
    "fit_seeds",
    "save_figure",
]


def __getattr__(name: str) -> Any:
    """The estimator needs scikit-learn, which nothing else here does: it is imported when it is asked for."""
    if name == "HeterogeneousVAE":
        from .estimator import HeterogeneousVAE

        return HeterogeneousVAE
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
