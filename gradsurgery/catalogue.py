"""Methods by name, for configuration files and command lines."""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any, Literal, get_args

from . import aggregators, scalarizers
from .aggregators import Aggregator
from .scalarizers import Scalarizer

Kind = Literal["gramian", "jacobian", "scalarizer"]

_INNER = {"method", "methods"}  # options that are methods themselves
_ALSO_CALLED = {
    "gls": "geometricmean",
    "mgdaub": "mgda",
    "nash": "nashmtl",
    "nsgd": "normalizedsgd",
    "rlw": "random",
    "uw": "uncertaintyweighting",
}


def available() -> dict[Kind, tuple[str, ...]]:
    """Lists the names of all methods by kind: what they need, from the most to the least they can do without.

    ``"gramian"``: inner products of the per-loss gradients. ``"jacobian"``: the gradients themselves.
    ``"scalarizer"``: the losses alone.

    Example:
        >>> [name for name in available()["gramian"] if name.startswith("m")]
        ['mean', 'mgda', 'modo']
    """
    return {kind: tuple(sorted(_methods(kind))) for kind in get_args(Kind)}


def get(name: str, kind: Kind | None = None, **options: Any) -> Aggregator | Scalarizer:
    """Builds a method by name.

    Args:
        name: A name out of :func:`available`, or a common abbreviation such as ``"rlw"``; case, spaces, hyphens and
            underscores do not matter.
        kind: For names that mean several methods, such as ``"sum"``. ``None``: an aggregator where there is one.
        options: As the method's class takes them. Where a method is made of others, these may be given by name, or
            as dicts of their name and options.

    Raises:
        ValueError: No method has that name, or ``kind`` is unknown.
        TypeError: ``name`` is not text, or the method takes no such options.

    Example:
        >>> get("MGDA", normalization="l2").normalization
        'l2'
        >>> chain = get("chain", methods=[{"name": "gradnorm", "alpha": 0.0}, "pcgrad"])
        >>> [type(method).__name__ for method in chain.methods]
        ['GradNorm', 'PCGrad']
    """
    if not isinstance(name, str):
        raise TypeError(f"get: `name` must be text, got {name!r}.")
    if kind is not None and kind not in get_args(Kind):
        raise ValueError(f"get: `kind` must be one of {list(get_args(Kind))} or None, got {kind!r}.")
    kinds = get_args(Kind) if kind is None else (kind,)
    methods = {key: method for one in reversed(kinds) for key, method in _methods(one).items()}
    wanted = _ALSO_CALLED.get(_normal(name), _normal(name))
    if wanted not in methods:
        nearest = difflib.get_close_matches(wanted, methods, n=3, cutoff=0.4)
        hint = f"Did you mean {' or '.join(map(repr, nearest))}?" if nearest else "See available()."
        which = "" if kind is None else f" of kind {kind!r}"
        raise ValueError(f"get: `name` must be that of a method{which}, got {name!r}. {hint}")
    return _build(methods[wanted], options)


def _methods(kind: str) -> dict[str, type[Aggregator] | type[Scalarizer]]:
    if kind == "scalarizer":
        return {_normal(method.__name__): method for method in scalarizers.CONTRACTS}
    return {_normal(m.__name__): m for m, contract in aggregators.CONTRACTS.items() if contract.kind == kind}


def _normal(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _build(method: type[Aggregator] | type[Scalarizer], options: dict[str, Any]) -> Aggregator | Scalarizer:
    parameters = inspect.signature(method).parameters
    unknown = sorted(set(options) - set(parameters))
    if unknown:
        raise TypeError(f"get: `options` of {method.__name__} must be among {sorted(parameters)}, got {unknown}.")
    values = {key: _inner(value) if key in _INNER else value for key, value in options.items()}
    several = [key for key in values if parameters[key].kind is inspect.Parameter.VAR_POSITIONAL]
    given = [values.pop(key) for key in several]
    arguments = [one for value in given for one in (value if isinstance(value, list | tuple) else [value])]
    return method(*arguments, **values)


def _inner(value: Any) -> Any:
    if isinstance(value, str):
        return get(value)
    if isinstance(value, Mapping):
        if "name" not in value:
            raise TypeError(f"get: `options` of a method inside another must have its 'name', got {dict(value)}.")
        return get(**value)
    if isinstance(value, list | tuple):
        return [_inner(item) for item in value]
    return value
