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
from .likelihoods.base import Likelihood
from .models.hivae import HIVAE
from .models.importance import IWAE, DReG
from .models.latent_model import LatentModel
from .models.vae import VAE
from .report.figures import draw_comparison, save_figure
from .stacked.single import fit
from .stacked.training import fit_seeds
from .tables.column import Column
from .tables.encoding import Batch, Encoding
from .tables.schema import Schema
from .tables.table import Split, Table
from .training.evaluation import Evaluation
from .training.run import Run

if TYPE_CHECKING:
    from .estimator.estimator import HeterogeneousVAE

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
        from .estimator.estimator import HeterogeneousVAE

        return HeterogeneousVAE
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
