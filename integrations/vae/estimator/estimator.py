"""The models of this package as a scikit-learn estimator: tables in, latent means, filled-in and new tables out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

import gradsurgery as gs

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils.validation import check_is_fitted

    from .input import as_frame, as_given, check_number, unnamed, whole
except ImportError as error:
    raise ImportError(
        f"HeterogeneousVAE: scikit-learn must be installed in version 1.6 or later, got: {error}. "
        'Run: pip install "gradsurgery[vae]"'
    ) from error

from ..models.registry import ModelName
from ..stacked.single import fit
from ..tables.encoding import Batch
from ..tables.table import FEWEST_ROWS, Table
from ..training.evaluation import Evaluation, evaluate_rows, reconstruct
from ..training.imputation import fill_missing, posterior_rows, prior_rows
from .choices import SchemaChoice, aggregator_for, schema_for
from .saving import fitted_model, load_estimator, save_estimator, weights_of
from .seeding import RandomState, generator_of, seed_of

NAME = "HeterogeneousVAE"


class HeterogeneousVAE(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    r"""Learns a mixed-type table, then embeds, fills in, scores and makes up rows of it.

    A DataFrame's columns are known by name and may come in any order. Those of an array are called x0, x1, ...;
    missing cells are NaN (or None, or pandas.NA) in either.

    Guarantees:
        observed_cells: :meth:`impute` returns them as they were.
        rows_alone: what is said of a row depends on no other row (float64 after training, up to its rounding).
        saved: after :meth:`load` every number is the same bit by bit.
        random_state: two fits with the same integer give the same numbers on one machine with one number of threads.
            The global random state is neither read nor changed.

    Args:
        schema: What the columns hold: a :class:`Schema`, the path of a schema file, or a mapping from column names to
            kinds (``{"age": "count"}``) or to the arguments of :meth:`Schema.replace`, everything else inferred.
            ``None``: all inferred, :meth:`Schema.infer`.
        model: ``"vae"``, ``"iwae"``, ``"dreg"`` or ``"hivae"``.
        method: How the columns' gradients are combined: a name of a method, see ``gradsurgery-vae fit --help``
            (``"sum"`` is ordinary training), or an aggregator, of which a reset copy is used.
        rescale: Whether the combined gradient gets the norm of the plain sum.
        epochs: Passes over the training rows (70% of ``X``), >= 1; the one with the smallest error on another 10%
            is kept.
        batch_size: Rows a step, >= 2. ``None``: what suits the model.
        learning_rate: Of Adam, > 0.
        hidden_size: Width of the hidden layers, >= 1. ``None``: the model's.
        latent_size: Length of the latent vector, >= 1. ``None``: the model's.
        random_state: Of everything random. An integer: every call repeats itself. A ``numpy.random.RandomState``: it
            is drawn from, so calls differ and the sequence of them repeats itself. ``None``: calls differ, and so
            do runs of the program.
        progress: Whether training shows a progress bar (needs tqdm).

    Attributes:
        schema_: The columns, complete with labels and dtypes.
        model_: The network of the best epoch, in float64, in evaluation mode.
        encoding_: Scaling and likelihoods.
        ranges_: Largest minus smallest value of each column of ``schema_`` in the fitted table, ``(D,)``; what errors
            are measured against.
        history_: One record an epoch.
        run_: The :class:`Run`, with table and split; not there after :meth:`load`.
        n_features_in_: Number of columns.
        feature_names_in_: Their names in the order of ``X``, ``(D,)``, if it had any.

    Example:
        >>> frame = pd.DataFrame({"size": [1.5, None, 3.0, 4.5] * 10, "colour": ["red", "blue"] * 20})
        >>> vae = HeterogeneousVAE(epochs=2).fit(frame)
        >>> vae.transform(frame).shape
        (40, 1)
        >>> int(vae.impute(frame).isna().sum().sum()), list(vae.sample(3).columns)
        (0, ['size', 'colour'])
    """

    def __init__(
        self,
        schema: SchemaChoice = None,
        model: ModelName = "vae",
        method: str | gs.Aggregator = "lossbalancer",
        *,
        rescale: bool = True,
        epochs: int = 100,
        batch_size: int | None = None,
        learning_rate: float = 1e-3,
        hidden_size: int | None = None,
        latent_size: int | None = None,
        random_state: RandomState = 0,
        progress: bool = False,
    ) -> None:
        self.schema = schema
        self.model = model
        self.method = method
        self.rescale = rescale
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.hidden_size = hidden_size
        self.latent_size = latent_size
        self.random_state = random_state
        self.progress = progress

    def fit(self, X: Any, y: object = None) -> HeterogeneousVAE:
        """Learns a table of at least ten rows.

        Args:
            X: DataFrame or array, ``(N, D)``; missing cells and all.
            y: Ignored.

        Raises:
            TypeError: a column holds neither numbers nor labels, or an argument is of the wrong kind.
            ValueError: a column is all missing, has infinite cells or contradicts its kind, there are fewer than ten
                rows, or an argument is out of range.
            RuntimeError: the loss stopped being finite.
        """
        frame = as_frame(self, X, reset=True)
        if len(frame) < FEWEST_ROWS:
            raise ValueError(
                f"{NAME}: `X` must have at least {FEWEST_ROWS} rows, got {len(frame)} sample(s): n_samples = "
                f"{len(frame)}. Fewer cannot be split into training, validation and test rows."
            )
        for name in ("hidden_size", "latent_size"):
            if getattr(self, name) is not None:
                check_number(NAME, name, getattr(self, name))
        seed = seed_of(self.random_state, NAME)
        table = Table.from_frame(frame, schema_for(frame, self.schema, NAME))
        sizes: dict[str, Any] = {
            name: whole(getattr(self, name)) for name in ("rescale", "hidden_size", "latent_size")
        }
        self.run_ = fit(
            table,
            aggregator_for(self.method, seed, NAME),
            model=self.model,
            **sizes,
            epochs=whole(self.epochs),
            batch_size=whole(self.batch_size),
            learning_rate=self.learning_rate,
            seed=seed,
            progress=self.progress,
            title=NAME,
        )
        self._network = {"name": self.model, **sizes}
        self.schema_, self.encoding_, self.history_ = table.schema, self.run_.encoding, self.run_.history
        self.ranges_ = table.ranges().numpy()
        self.model_ = fitted_model(self._network, self.encoding_, weights_of(self.run_.model))
        return self

    def transform(self, X: Any) -> NDArray[np.float64]:
        """The latent vectors of rows at the mode of the posterior, ``(N, L)``.

        With ``"hivae"``, z and then s, one-hot.

        Raises:
            NotFittedError: there was no ``fit``.
            TypeError, ValueError: the columns are not those of the fitted table, or hold what it could not.
        """
        _, batch, _ = self._encode(X)
        with torch.no_grad():
            latent: NDArray[np.float64] = self.model_.posterior_mode(batch.features).numpy()
        return latent

    def impute(
        self, X: Any, *, draws: int | None = None, random_state: RandomState = None
    ) -> pd.DataFrame | list[pd.DataFrame]:
        """The rows with their missing cells filled in, all others as they were.

        One pass: to encode the filled-in rows again, up to convergence, changed the error on hidden cells of two
        tables by less than 1%, to either side.

        Args:
            X: As for :meth:`transform`. The zeros of a column whose ``zeros`` are ``"missing"`` are.
            draws: ``None``: what stands for each cell's distribution (:meth:`Likelihood.mode`) at the mode of the
                posterior, one DataFrame. A number m >= 1: m
                DataFrames, each from one draw z ~ q(z | x) and x ~ p(x | z): multiple imputation, whose spread shows
                what is not known.
            random_state: Of the draws. ``None``: the estimator's.

        Raises:
            As for :meth:`transform`, and ValueError if ``draws`` is less than 1.
        """
        if draws is not None:
            check_number(NAME, "draws", draws)
        table, batch, frame = self._encode(X)
        if draws is None:
            return as_given(X, fill_missing(frame, table, reconstruct(self.model_, batch.features)))
        generator = self._generator(random_state)
        drawn = (posterior_rows(self.model_, batch.features, generator) for _ in range(draws))
        return [as_given(X, fill_missing(frame, table, cells)) for cells in drawn]

    def sample(self, n: int = 1, *, random_state: RandomState = None) -> pd.DataFrame:
        """New rows, with the dtypes and labels of the fitted table: z from the prior, x ~ p(x | z).

        Args:
            n: How many, >= 1.
            random_state: ``None``: the estimator's; an integer there makes every call return the same rows.
        """
        check_is_fitted(self, "model_")
        check_number(NAME, "n", n)
        rows = prior_rows(self.model_, n, self._generator(random_state))
        frame = Table(self.schema_, rows).to_frame()
        return frame[list(getattr(self, "feature_names_in_", unnamed(self.n_features_in_)))]

    def score(self, X: Any, y: object = None) -> float:
        """Minus the mean of the columns' errors; 0 is perfect. Training keeps the epoch that is best by it.

        Each error is that of the most likely cells at the mode of the posterior: the root mean squared error over
        the column's range in the fitted table, for categories the share that is wrong.
        """
        return -self._evaluate(X).error

    def score_columns(self, X: Any) -> pd.DataFrame:
        """Kind, likelihood, error (see :meth:`score`) and mean log-likelihood of a cell, one row a column."""
        evaluation = self._evaluate(X)
        return pd.DataFrame(
            {
                "kind": [column.kind for column in self.schema_],
                "likelihood": [column.likelihood_name for column in self.schema_],
                "error": list(evaluation.errors.values()),
                "log_likelihood": list(evaluation.log_likelihoods.values()),
            },
            index=pd.Index(self.schema_.names, name="column"),
        )

    def save(self, path: str | Path) -> None:
        """Writes the fitted estimator to a file that holds numbers and text, no code, nor any row of the table.

        The table and split of ``run_`` are left out. A ``method`` that is an aggregator comes back as its repr, a
        ``RandomState`` as None: give them anew before fitting again.

        Raises:
            NotFittedError: there was no ``fit``.
        """
        check_is_fitted(self, "model_")
        save_estimator(self, path)

    @classmethod
    def load(cls, path: str | Path) -> HeterogeneousVAE:
        """Reads what :meth:`save` wrote; nothing but the file is needed, and nothing in it is executed.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is another file, damaged, or from a newer version.
        """
        return load_estimator(cls(), path)

    @property
    def _n_features_out(self) -> int:
        return self.model_.latent_size

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        return tags

    def _generator(self, random_state: RandomState) -> torch.Generator:
        return generator_of(self.random_state if random_state is None else random_state, NAME)

    def _encode(self, X: Any) -> tuple[Table, Batch, pd.DataFrame]:
        check_is_fitted(self, "model_")
        frame = as_frame(self, X, reset=False)
        table = Table.from_new_rows(frame, self.schema_, torch.from_numpy(self.ranges_))
        batch = self.encoding_.encode(table)
        return table, replace(batch, features=batch.features.double()), frame

    def _evaluate(self, X: Any) -> Evaluation:
        table, batch, _ = self._encode(X)
        return evaluate_rows(self.model_, table, torch.arange(len(table)), batch)


def expected_failed_checks(estimator: object) -> Mapping[str, str]:
    """The checks of scikit-learn that fail on purpose, each with the reason.

    For ``check_estimator(estimator, expected_failed_checks=expected_failed_checks(estimator))`` and for
    ``parametrize_with_checks([estimator], expected_failed_checks=expected_failed_checks)``.
    """
    return {
        "check_dataframe_column_names_consistency": "It wants reordered columns refused. They are found by name, and "
        "what is computed is the same in any order; columns that are missing, renamed or new are refused."
    }
