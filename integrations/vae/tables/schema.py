"""What the columns of a table hold: inferred from the table, corrected by hand, kept as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from gradsurgery.whole_file import write_whole

from .column import Column, Kind, Label, LikelihoodName, Zeros
from .frame import check_frame, refuse_duplicates
from .inference import infer_column
from .likelihood_rules import with_inferred_likelihood


@dataclass(frozen=True)
class Schema:
    """The columns of a table, in order.

    Args:
        columns: One :class:`Column` each, with distinct names; at least one.

    Raises:
        ValueError: there is no column, or two share a name.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"height": [1.6, 0.5, 1.7], "smoker": [False, True, False]})
        >>> schema = Schema.infer(frame)
        >>> [column.kind for column in schema]
        ['positive', 'binary']
        >>> schema.replace("height", kind="real")["height"].kind
        'real'
    """

    columns: tuple[Column, ...]

    def __init__(self, columns: Iterable[Column]) -> None:
        object.__setattr__(self, "columns", tuple(columns))
        if not self.columns:
            raise ValueError("Schema: `columns` must be at least one, got none. Describe the table's columns.")
        refuse_duplicates("Schema", "columns", self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns, in order."""
        return tuple(column.name for column in self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    def __iter__(self) -> Iterator[Column]:
        return iter(self.columns)

    def __getitem__(self, name: str) -> Column:
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(f"Schema: `name` must be one of {', '.join(self.names)}, got {name!r}. Check its spelling.")

    @classmethod
    def infer(cls, frame: pd.DataFrame, kinds: Mapping[str, Kind] | None = None) -> Schema:
        """Reads the kind of every column off its dtype and its values.

        The first rule that holds decides; missing cells count nowhere.

        1. Booleans are ``binary``.
        2. A pandas categorical is ``ordinal`` if ordered, else ``binary`` with two categories and
           ``categorical`` with more. Its categories are kept in their order, unused ones too.
        3. Strings are ``binary`` with two different values, else ``categorical``. A longer column whose
           labels are all different is refused: it identifies rows and describes none.
        4. Numbers with two different values are ``binary``.
        5. Numbers with 3 to 12 different values, each met five times on average, are ``categorical``:
           numbers do not tell whether codes are ordered, and this kind assumes nothing.
        6. Whole numbers from 0 to at most 1000 are ``count``.
        7. Non-negative whole numbers that go beyond (amounts, populations: far more spread than a Poisson
           count) and other numbers above zero are ``positive`` if the largest is at least three times the
           smallest; with less spread (years, heights) a normal distribution does as well.
        8. All others are ``real``.

        The likelihood is that of the kind (see :class:`Column`), but in four clear cases:

        1. An ordered pandas categorical with at least two categories is ``ordinal``.
        2. Counts whose variance is at least ten times their mean are ``negative_binomial``.
        3. Numbers of rules 7 and 8 strictly between 0 and 1 that cover at least 0.8 of that interval are
           ``beta``.
        4. Non-negative numbers of rules 7 and 8 of which at least half are exactly 0, the largest being at
           least three times the smallest of the others, are ``positive`` with ``hurdle_lognormal``.

        A kind given in ``kinds`` keeps its usual likelihood. What this gets wrong, :meth:`replace` or
        ``kinds`` corrects.

        Args:
            frame: The table, at least two rows.
            kinds: Kinds by column name that are known already; they are not inferred.

        Raises:
            ValueError: the table is too short, two columns share a name, a column is all missing, has
                infinite cells, or contradicts its kind in ``kinds``.
            TypeError: a column holds neither numbers nor labels (dates, lists, mixtures).

        Cost:
            One pass over the table.

        Example:
            >>> import pandas as pd
            >>> visits = pd.DataFrame({"visits": [0, 3, 1, 0, 12, 2]})
            >>> Schema.infer(visits)["visits"].kind
            'count'
            >>> Schema.infer(visits, kinds={"visits": "real"})["visits"].kind
            'real'
        """
        check_frame(frame, "Schema")
        if len(frame) < 2:
            raise ValueError(
                f"Schema: `frame` must have at least two rows, got {len(frame)}. "
                "Kinds cannot be inferred from fewer; write the schema by hand."
            )
        given = dict(kinds or {})
        unknown = [name for name in given if name not in frame.columns]
        if unknown:
            raise ValueError(
                f"Schema: `kinds` must name columns of the table, got {unknown}. "
                f"The columns are {', '.join(frame.columns)}."
            )
        columns = (infer_column(frame[name], given.get(name)) for name in frame.columns)
        return cls(
            column if column.name in given else with_inferred_likelihood(column, frame[column.name])
            for column in columns
        )

    def replace(
        self,
        name: str,
        *,
        kind: Kind | None = None,
        labels: Iterable[Label] | None = None,
        zeros: Zeros | None = None,
        likelihood: LikelihoodName | None = None,
    ) -> Schema:
        """The same schema with one column corrected.

        What no longer applies to a new kind (labels of a number, a policy for zeros, a likelihood) is dropped.

        Args:
            name: The column.
            kind: Its kind. ``None``: as it is.
            labels: Its categories in order. ``None``: as they are.
            zeros: What its zeros mean, for a positive column. ``None``: as it is.
            likelihood: One that fits its kind; see :class:`Column`. ``None``: as it is.

        Raises:
            KeyError: no column has that name.
            ValueError: the column would contradict itself.

        Example:
            >>> Schema([Column("grade", "count")]).replace("grade", kind="ordinal")["grade"].kind
            'ordinal'
            >>> Schema([Column("income", "positive")]).replace("income", likelihood="gamma")["income"].likelihood
            'gamma'
        """
        corrected = self[name].replace(kind=kind, labels=labels, zeros=zeros, likelihood=likelihood)
        return Schema(corrected if column.name == name else column for column in self)

    def to_json(self) -> str:
        """The schema as JSON: a list with one entry a column, ``name`` and ``type`` first.

        Example:
            >>> Schema([Column("age", "count")]).to_json()
            '[{"name": "age", "type": "count"}]'
        """
        return json.dumps([column.to_entry() for column in self], ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Schema:
        """Reads what :meth:`to_json` writes.

        Entries need ``name`` and ``type`` only; ``classes`` without ``labels`` leaves the labels to the
        table, so codes may start anywhere and have gaps.

        Raises:
            ValueError: the text is not a list of entries, or an entry is wrong.

        Example:
            >>> Schema.from_json('[{"name": "year", "type": "categorical", "classes": 5}]')["year"].kind
            'categorical'
        """
        try:
            entries = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"Schema: `text` must be JSON, got {text[:40]!r} ({error}). Correct it there."
            ) from error
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(
                f"Schema: `text` must be a JSON list with one object a column, got {text[:40]!r}. "
                'Write [{"name": ..., "type": ...}, ...].'
            )
        return cls(Column.from_entry(entry) for entry in entries)

    def save(self, path: str | Path) -> None:
        """Writes the schema to a file, one column a line; the file is there whole or not at all."""
        lines = ",\n".join(json.dumps(column.to_entry(), ensure_ascii=False) for column in self)
        write_whole(path, lambda file: file.write_text(f"[\n{lines}\n]\n", encoding="utf-8"))

    @classmethod
    def load(cls, path: str | Path) -> Schema:
        """Reads a schema from a file; see :meth:`from_json`."""
        return cls.from_json(Path(path).read_text(encoding="utf-8"))
