"""A fitted estimator as a file of numbers and text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import gradsurgery as gs

from .. import likelihoods
from ..likelihoods.base import Likelihood
from ..models.latent_model import LatentModel
from ..models.registry import build_model
from ..tables.column import Column
from ..tables.encoding import Encoding
from ..tables.schema import Schema
from ..training.best_epoch import Epoch
from .archive import DAMAGE, read_archive, write_archive

if TYPE_CHECKING:
    from .estimator import HeterogeneousVAE

FORMAT = "gradsurgery.integrations.vae.HeterogeneousVAE"
VERSION = 1


def weights_of(model: LatentModel) -> dict[str, Tensor]:
    """The state of a model without what its blocks' methods have learnt, which training alone needs."""
    blocks = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, gs.ImpartialityBlock))
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(blocks)}


def fitted_model(network: Mapping[str, Any], encoding: Encoding, weights: Mapping[str, Tensor]) -> LatentModel:
    """A model for use: in float64, on the CPU, in evaluation mode.

    In float64 what is said of a row does not depend on the rows encoded with it, which change the order of sums.

    Args:
        network: The arguments ``name``, ``rescale``, ``hidden_size`` and ``latent_size`` of :func:`build_model`.
        encoding: Its width and likelihoods.
        weights: What :func:`weights_of` returns.

    Raises:
        RuntimeError: the weights are of another network.
    """
    model = build_model(encoding=encoding, aggregator=None, generator=torch.Generator(), **network)
    own = weights_of(model)
    if own.keys() != weights.keys():
        raise RuntimeError(f"weights must be {', '.join(own)}, got {', '.join(weights)}")
    model.load_state_dict({**model.state_dict(), **weights})
    return model.double().cpu().eval().requires_grad_(False)


def save_estimator(estimator: HeterogeneousVAE, path: str | Path) -> None:
    """Writes a fitted estimator; see :meth:`HeterogeneousVAE.save`."""
    encoding = estimator.encoding_
    names = getattr(estimator, "feature_names_in_", None)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "parameters": {name: _plain(value) for name, value in estimator.get_params(deep=False).items()},
        "network": {name: _plain(value) for name, value in estimator._network.items()},
        "schema": _entries(estimator.schema_),
        "likelihoods": [_likelihood_entry(likelihood) for likelihood in encoding.likelihoods],
        "inputs": encoding.inputs,
        "input_statistics": encoding._inputs,
        "ranges": estimator.ranges_.tolist(),
        "history": [[epoch.loss, epoch.validation_error] for epoch in estimator.history_],
        "feature_names_in": None if names is None else list(names),
    }
    weights = weights_of(estimator.model_)
    write_archive(path, document, {name: tensor.numpy() for name, tensor in weights.items()})


def load_estimator(estimator: HeterogeneousVAE, path: str | Path) -> HeterogeneousVAE:
    """Gives a new estimator what a file holds; see :meth:`HeterogeneousVAE.load`."""
    try:
        document, arrays = read_archive(path)
        found = (document["format"], document["version"])
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except DAMAGE as error:
        raise _unreadable(path, f"another one or a damaged one ({error})") from error
    if found[0] != FORMAT:
        raise _unreadable(path, f"one of format {found[0]!r}")
    if not isinstance(found[1], int) or found[1] < 1:
        raise _unreadable(path, f"one of version {found[1]!r}")
    if found[1] != VERSION:
        raise ValueError(
            f"HeterogeneousVAE: `path` must be a file of version {VERSION} or earlier, got version {found[1]!r} in "
            f"{path}. Upgrade gradsurgery to the version that wrote it."
        )
    try:
        return _restored(estimator, document, {name: torch.from_numpy(array) for name, array in arrays.items()})
    except DAMAGE as error:
        raise _unreadable(path, f"a damaged one ({error})") from error


def _restored(
    estimator: HeterogeneousVAE, document: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> HeterogeneousVAE:
    parameters = dict(document["parameters"])
    if isinstance(parameters["schema"], list):
        parameters["schema"] = _schema(parameters["schema"])
    estimator.set_params(**parameters)
    estimator.schema_ = _schema(document["schema"])
    encoding = object.__new__(Encoding)
    encoding.schema = estimator.schema_
    encoding.inputs = document["inputs"]
    encoding.likelihoods = tuple(_likelihood(entry) for entry in document["likelihoods"])
    encoding._inputs = [(float(mean), float(weight)) for mean, weight in document["input_statistics"]]
    estimator.encoding_ = encoding
    estimator._network = dict(document["network"])
    estimator.model_ = fitted_model(estimator._network, encoding, weights)
    estimator.ranges_ = np.array(document["ranges"], dtype=np.float64)
    _check_consistency(estimator, document["feature_names_in"])
    estimator.history_ = tuple(Epoch(*figures) for figures in document["history"])
    estimator.n_features_in_ = len(estimator.schema_)
    if document["feature_names_in"] is not None:
        estimator.feature_names_in_ = np.array(document["feature_names_in"], dtype=object)
    return estimator


def _check_consistency(estimator: HeterogeneousVAE, names: list[str] | None) -> None:
    """Raises where parts of a file are not of one estimator, which would show in wrong numbers later on if at all."""
    schema, encoding = estimator.schema_, estimator.encoding_
    if encoding.inputs != estimator.model_.inputs:
        raise ValueError(f"inputs must be {estimator.model_.inputs!r}, got {encoding.inputs!r}")
    if names is not None and sorted(names) != sorted(schema.names):
        raise ValueError(f"feature_names_in must be {', '.join(schema.names)}, got {names}")
    if not len(encoding._inputs) == len(estimator.ranges_) == len(schema):
        raise ValueError(f"ranges and input_statistics must be of {len(schema)} columns")
    if not (estimator.ranges_ > 0).all():
        raise ValueError("ranges must be positive")
    numbers = [torch.tensor(encoding._inputs, dtype=torch.float64), *estimator.model_.state_dict().values()]
    if not all(tensor.isfinite().all() for tensor in numbers):
        raise ValueError("weights and input_statistics must be finite")


def _plain(value: Any) -> Any:
    """A parameter as JSON can hold it."""
    if isinstance(value, Schema):
        return _entries(value)
    if isinstance(value, Mapping):
        return {name: _plain(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(own) for own in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, gs.Aggregator):
        return repr(value)
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return None if isinstance(value, np.random.RandomState) else value


def _entries(schema: Schema) -> list[dict[str, Any]]:
    return [column.to_entry() for column in schema]


def _schema(entries: list[dict[str, Any]]) -> Schema:
    return Schema(Column.from_entry(entry) for entry in entries)


def _likelihood_entry(likelihood: Likelihood) -> dict[str, Any]:
    """The class and its numbers; of a hurdle, those of the distribution above it too."""
    numbers = {
        name: _likelihood_entry(value) if isinstance(value, Likelihood) else value
        for name, value in vars(likelihood).items()
    }
    return {"class": type(likelihood).__name__, **numbers}


def _likelihood(entry: Mapping[str, Any]) -> Likelihood:
    name = entry["class"]
    if name not in likelihoods.__all__:
        raise ValueError(f"there is no likelihood {name!r}")
    likelihood: Likelihood = object.__new__(getattr(likelihoods, name))
    for attribute, value in entry.items():
        if isinstance(value, int | float | Mapping):
            setattr(likelihood, attribute, _likelihood(value) if isinstance(value, Mapping) else value)
    return likelihood


def _unreadable(path: str | Path, found: str) -> ValueError:
    return ValueError(
        f"HeterogeneousVAE: `path` must be a file that `save` wrote, got {found}: {path}. Save the estimator again."
    )
