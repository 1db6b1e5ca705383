"""One column of a mixed-type table: its name, what kind of values it holds, how they are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import pandas as pd

Kind: TypeAlias = Literal["real", "positive", "count", "binary", "categorical", "ordinal"]
Zeros: TypeAlias = Literal["shift", "missing", "raise"]
Label: TypeAlias = bool | int | float | str
LikelihoodName: TypeAlias = Literal[
    "normal",
    "lognormal",
    "gamma",
    "exponential",
    "beta",
    "hurdle_lognormal",
    "hurdle_gamma",
    "poisson",
    "negative_binomial",
    "hurdle_poisson",
    "bernoulli",
    "categorical",
    "ordinal",
]

KINDS: tuple[Kind, ...] = get_args(Kind)
ZEROS: tuple[Zeros, ...] = get_args(Zeros)
DISCRETE: tuple[Kind, ...] = ("binary", "categorical", "ordinal")

# The likelihoods that fit each kind; the first is that of a column without an explicit one.
FITTING: Mapping[Kind, tuple[LikelihoodName, ...]] = {
    "real": ("normal", "beta"),
    "positive": ("lognormal", "gamma", "exponential", "beta", "hurdle_lognormal", "hurdle_gamma"),
    "count": ("poisson", "negative_binomial", "hurdle_poisson"),
    "binary": ("bernoulli",),
    "categorical": ("categorical",),
    "ordinal": ("categorical", "ordinal"),
}
# Those that take the logarithm of every cell, for which zeros have to be shifted.
SHIFTED: tuple[LikelihoodName, ...] = ("lognormal", "gamma")

ENTRY_KEYS = ("name", "type", "classes", "labels", "dtype", "zeros", "likelihood")


@dataclass(frozen=True)
class Column:
    """Describes one column.

    The likelihood follows from the kind, the first of its row, unless another of the row is named:

    ===============  ======================================================================
    kind             ``likelihood``
    ===============  ======================================================================
    ``real``         ``normal``; ``beta`` for shares
    ``positive``     ``lognormal``; ``gamma``, ``exponential``, ``beta`` for shares,
                     ``hurdle_lognormal`` or ``hurdle_gamma`` for a spike at zero
    ``count``        ``poisson``; ``negative_binomial`` for more spread, ``hurdle_poisson``
                     for a spike at zero
    ``binary``       ``bernoulli``
    ``categorical``  ``categorical``
    ``ordinal``      ``categorical``, which leaves the order to decoding; ``ordinal``, which
                     models it by cumulative logits
    ===============  ======================================================================

    Args:
        name: The column's name in the table.
        kind: One of ``real``, ``positive``, ``count``, ``binary``, ``categorical``, ``ordinal``.
        labels: The categories in the order of their codes 0, 1, ...; discrete kinds only. ``None``:
            the sorted values of the table this column is first used with.
        classes: How many categories, >= 1; discrete kinds only. ``None``: as many as labels.
        dtype: The column's pandas dtype, by name, for decoding. ``None``: the table's.
        zeros: What zeros of a ``positive`` column mean, since no logarithm of zero exists.
            ``"shift"`` (also for ``None``): they are true values, and half of the smallest positive
            training value is added to every cell before the logarithm, subtracted again on decoding
            and floored at zero. ``"missing"``: they stand for "not recorded" and are masked out.
            ``"raise"``: they are mistakes. A hurdle models zeros as they are and takes no policy;
            ``exponential`` and ``beta`` have nothing to shift.
        likelihood: One that fits the kind. ``None``: the first of its row. :meth:`Schema.infer` names
            another one in clear cases only, by its rules.

    Raises:
        TypeError: ``name`` is not a string.
        ValueError: an argument is outside its range, or does not apply to this kind.

    Example:
        >>> Column("age", "count").discrete
        False
        >>> Column("vote", "binary", labels=("no", "yes")).classes
        2
        >>> Column("claims", "count", likelihood="negative_binomial").to_entry()
        {'name': 'claims', 'type': 'count', 'likelihood': 'negative_binomial'}
    """

    name: str
    kind: Kind
    labels: tuple[Label, ...] | None = None
    classes: int | None = None
    dtype: str | None = None
    zeros: Zeros | None = None
    likelihood: LikelihoodName | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(
                f"Column: `name` must be a string, got {self.name!r}. "
                "Rename the table's columns, for example frame.columns = frame.columns.astype(str)."
            )
        if self.kind not in KINDS:
            raise ValueError(
                f"Column: `kind` must be one of {', '.join(KINDS)}, got {self.kind!r} for column "
                f"{self.name!r}. Pick the one that describes its values."
            )
        self._check_types()
        self._check_zeros()
        self._check_likelihood()
        self._check_labels()
        if self.labels is not None:
            object.__setattr__(self, "classes", len(self.labels))

    def _check_types(self) -> None:
        """What a schema file may get wrong."""
        labels: object = self.labels
        if labels is not None:
            if not isinstance(labels, list | tuple) or not all(
                isinstance(x, bool | int | float | str) for x in labels
            ):
                raise TypeError(
                    f"Column: `labels` must be a list of strings, numbers or booleans, got {labels!r} for column "
                    f"{self.name!r}. Name every category once."
                )
            object.__setattr__(self, "labels", tuple(labels))
        classes: object = self.classes
        if classes is not None and (isinstance(classes, bool) or not isinstance(classes, int)):
            raise TypeError(
                f"Column: `classes` must be an integer, got {classes!r} for column {self.name!r}. Leave it out to "
                "count them."
            )
        if self.dtype is not None:
            try:
                pd.api.types.pandas_dtype(self.dtype)
            except TypeError as error:
                raise ValueError(
                    f"Column: `dtype` must be the name of a pandas dtype, got {self.dtype!r} for column "
                    f"{self.name!r}. Leave it out to keep the table's."
                ) from error

    def _check_zeros(self) -> None:
        if self.zeros is not None and self.zeros not in ZEROS:
            raise ValueError(
                f"Column: `zeros` must be one of {', '.join(ZEROS)}, got {self.zeros!r} for column "
                f"{self.name!r}. Pick what a zero means there."
            )
        if self.zeros is not None and self.kind != "positive":
            raise ValueError(
                f"Column: `zeros` must be None unless the kind is positive, got {self.zeros!r} for "
                f"{self.kind} column {self.name!r}. Leave it out."
            )

    def _check_likelihood(self) -> None:
        if self.likelihood is None:
            return
        fitting = FITTING[self.kind]
        if self.likelihood not in fitting:
            others = [kind for kind, names in FITTING.items() if self.likelihood in names]
            advice = f"It fits kind {' or '.join(others)}." if others else "Pick one, or leave it out."
            raise ValueError(
                f"Column: `likelihood` must be one of {', '.join(fitting)} for {self.kind} column {self.name!r}, "
                f"got {self.likelihood!r}. {advice}"
            )
        hurdle = self.likelihood.startswith("hurdle")
        if (self.zeros and hurdle) or (self.zeros == "shift" and self.likelihood not in SHIFTED):
            raise ValueError(
                f"Column: `zeros` must be None{'' if hurdle else ', missing or raise'} with likelihood "
                f"{self.likelihood!r}, got {self.zeros!r} for column {self.name!r}. Leave it out, or pick another "
                "likelihood."
            )

    def _check_labels(self) -> None:
        if not self.discrete:
            if self.labels is not None or self.classes is not None:
                raise ValueError(
                    f"Column: `labels` and `classes` must be None unless the kind is discrete, got "
                    f"{self.labels or self.classes} for {self.kind} column {self.name!r}. Leave them out."
                )
            return
        if self.labels is not None:
            self._check_given_labels(self.labels)
        if self.classes is not None and self.classes < 1:
            raise ValueError(
                f"Column: `classes` must be at least 1, got {self.classes} for column {self.name!r}. "
                "Leave it out to count them."
            )
        if self.kind == "binary" and self.classes not in (None, 2):
            raise ValueError(
                f"Column: `classes` must be 2 for a binary column, got {self.classes} for column "
                f"{self.name!r}. Use kind 'categorical'."
            )

    def _check_given_labels(self, labels: tuple[Label, ...]) -> None:
        if not labels or len(set(labels)) != len(labels):
            raise ValueError(
                f"Column: `labels` must be distinct and at least one, got {labels} for column "
                f"{self.name!r}. Name every category once."
            )
        if self.classes is not None and self.classes != len(labels):
            raise ValueError(
                f"Column: `classes` must equal the number of labels, got {self.classes} and "
                f"{len(labels)} labels for column {self.name!r}. Leave `classes` out."
            )
        if self.kind == "binary" and len(labels) != 2:
            raise ValueError(
                f"Column: `labels` must be two for a binary column, got {len(labels)} for column "
                f"{self.name!r}. Use kind 'categorical'."
            )

    @property
    def discrete(self) -> bool:
        """Whether the column holds categories rather than numbers."""
        return self.kind in DISCRETE

    @property
    def likelihood_name(self) -> LikelihoodName:
        """The explicit likelihood, else that of the kind."""
        return self.likelihood or FITTING[self.kind][0]

    def replace(
        self,
        *,
        kind: Kind | None = None,
        labels: Iterable[Label] | None = None,
        zeros: Zeros | None = None,
        likelihood: LikelihoodName | None = None,
    ) -> Column:
        """The same column with another kind, labels, policy for zeros or likelihood; see :meth:`Schema.replace`."""
        target = Column(self.name, self.kind if kind is None else kind)
        keeps_labels = target.kind == self.kind or (self.discrete and target.discrete)
        if labels is None:
            new_labels, new_classes = (self.labels, self.classes) if keeps_labels else (None, None)
        else:
            new_labels, new_classes = tuple(labels), None
        keeps_zeros = zeros is None and target.kind == self.kind
        keeps_likelihood = likelihood is None and target.kind == self.kind
        return replace(
            target,
            labels=new_labels,
            classes=new_classes,
            dtype=self.dtype,
            zeros=self.zeros if keeps_zeros else zeros,
            likelihood=self.likelihood if keeps_likelihood else likelihood,
        )

    def to_entry(self) -> dict[str, Any]:
        """This column as one entry of a schema file, without what is unset."""
        labels = None if self.labels is None else list(self.labels)
        values = (self.name, self.kind, self.classes, labels, self.dtype, self.zeros, self.likelihood)
        return {key: value for key, value in zip(ENTRY_KEYS, values, strict=True) if value is not None}

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> Column:
        """The column of one entry of a schema file.

        Args:
            entry: ``name`` and ``type``, and where they apply ``classes``, ``labels``, ``dtype``, ``zeros``,
                ``likelihood``.

        Raises:
            ValueError: a key is missing or unknown, or a value is not allowed.

        Example:
            >>> Column.from_entry({"name": "year", "type": "categorical", "classes": 5}).classes
            5
        """
        unknown = [key for key in entry if key not in ENTRY_KEYS]
        if unknown or "name" not in entry or "type" not in entry:
            raise ValueError(
                f"Column: `entry` must have the keys name and type, and no others than "
                f"{', '.join(ENTRY_KEYS)}, got {sorted(entry)}. Correct this entry of the schema."
            )
        return cls(
            name=entry["name"],
            kind=entry["type"],
            labels=entry.get("labels"),
            classes=entry.get("classes"),
            dtype=entry.get("dtype"),
            zeros=entry.get("zeros"),
            likelihood=entry.get("likelihood"),
        )
