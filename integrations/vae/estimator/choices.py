"""From the estimator's arguments to a schema and a method: what may be given by name, by path or as an object."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

import gradsurgery as gs

from ..tables.column import Kind
from ..tables.schema import Schema
from ..training.methods import build_method

OPTIONS = ("kind", "labels", "zeros", "likelihood")
SchemaChoice: TypeAlias = Schema | Mapping[str, Kind | Mapping[str, Any]] | str | Path | None


def schema_for(frame: pd.DataFrame, choice: SchemaChoice, owner: str) -> Schema:
    """The schema of a table.

    Args:
        frame: The table.
        choice: A schema; the path of a schema file; by column name, kinds or the arguments of
            :meth:`Schema.replace`, all else inferred; or ``None``: all inferred.
        owner: Whose argument ``schema`` it is, for errors.

    Raises:
        TypeError: ``choice`` is something else.
        ValueError: a column cannot be inferred, or the choice contradicts itself or the table.

    Example:
        >>> frame = pd.DataFrame({"age": [23, 41, 35], "visits": [0, 4, 1]})
        >>> schema = schema_for(frame, {"age": "real", "visits": {"likelihood": "hurdle_poisson"}}, "Example")
        >>> [(column.kind, column.likelihood_name) for column in schema]
        [('real', 'normal'), ('count', 'hurdle_poisson')]
    """
    if isinstance(choice, Schema):
        return choice
    if isinstance(choice, str | Path):
        return Schema.load(choice)
    if choice is not None and not isinstance(choice, Mapping):
        raise TypeError(
            f"{owner}: `schema` must be a Schema, the path of a schema file, a mapping by column name or None, got "
            f"{choice!r}. Try None and correct what was inferred."
        )
    given = dict(choice or {})
    corrections = {name: options for name, options in given.items() if isinstance(options, Mapping)}
    kinds: dict[str, Any] = {name: options for name, options in given.items() if name not in corrections}
    kinds |= {name: options["kind"] for name, options in corrections.items() if "kind" in options}
    _check_names(frame, given, owner)
    for name, options in corrections.items():
        _check_options(name, options, owner)
    schema = Schema.infer(frame, kinds)
    for name, options in corrections.items():
        schema = schema.replace(name, **options)
    return schema


def aggregator_for(choice: str | gs.Aggregator, seed: int, owner: str) -> gs.Aggregator:
    """A new method: the one of that name in :data:`METHODS`, or a reset copy of an aggregator.

    Raises:
        TypeError: ``choice`` is neither a name nor an aggregator.
        ValueError: no method has that name.
    """
    if isinstance(choice, gs.Aggregator):
        method = copy.deepcopy(choice)
        method.reset()
        return method
    if not isinstance(choice, str):
        raise TypeError(
            f'{owner}: `method` must be the name of a method or an aggregator, got {choice!r}. Try "lossbalancer".'
        )
    return build_method(choice, seed)


def _check_names(frame: pd.DataFrame, given: Mapping[str, Any], owner: str) -> None:
    unknown = [name for name in given if name not in frame.columns]
    if unknown:
        raise ValueError(
            f"{owner}: `schema` must name columns of the table, got {unknown}. The columns are "
            f"{', '.join(str(name) for name in frame.columns)}."
        )


def _check_options(name: str, options: Mapping[str, Any], owner: str) -> None:
    unknown = [option for option in options if option not in OPTIONS]
    if unknown:
        raise ValueError(
            f"{owner}: `schema` must have no options but {', '.join(OPTIONS)}, got {unknown} for column {name!r}. "
            "Check the spelling."
        )
