"""Per-loss gradients of a model that is trained in any way: looked at, and nothing changed."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .aggregators import Sum
from .engines import Engine, Request
from .losses import Losses
from .run import Run
from .scope import Scope, grouped
from .settings import settings_of
from .sharing import Sharing
from .surgery import Surgery

_WRAPPER = "MultiObjectiveOptimizer"


class Look:
    r"""Reads the gradients of several losses off their graph, for a model without a wrapped optimizer.

    .. math:: G = J J^\top, \quad J_k = \partial L_k / \partial \theta_{\text{shared}}

    What is shared is found as :class:`MultiObjectiveOptimizer` finds it, over all parameters of the model that
    require a gradient; what was found to be shared stays so.

    Guarantees:
        nothing is changed: neither ``.grad``, parameters, buffers nor the random state; the graph can be used again.
            Hooks on tensors and modules fire as in a backward pass, and ``retain_grad()`` keeps what it sees.

    Args:
        model: Whose parameters are looked at.
        shared: As for :class:`MultiObjectiveOptimizer`.
        engine: As for :class:`MultiObjectiveOptimizer`.
        caller: Who is looking, for errors.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``model`` has no parameters to train, or ``engine`` or ``shared`` is unknown or empty.

    Cost:
        A look: K backward passes, or less with the engine ``"ghost"``; rows hold K x P numbers.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> first, second = model(torch.eye(2))
        >>> Look(model).gramian({"first": 3 * first.sum(), "second": second.sum() - first.sum()}).gramian
        tensor([[ 9., -3.],
                [-3.,  2.]], dtype=torch.float64)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        shared: nn.Module | Tensor | Iterable[nn.Module | Tensor] | None = None,
        engine: str | Engine = "auto",
        caller: str = "Look",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"{caller}: `model` must be a torch.nn.Module, got {type(model).__name__}.")
        self.model = model
        self._caller = caller
        with self._speaking():
            self._run = Run(settings_of(Sum(), engine, "all", None, caller), Sharing(shared))
        self._parameters()

    def gramian(
        self,
        losses: Losses,
        *,
        scope: Scope = "all",
        retain_graph: bool = True,
        grad_scaler: "torch.amp.GradScaler | None" = None,
    ) -> Surgery:
        """The losses' values and the inner products of their gradients, as a surgery without weights.

        Args:
            losses: As for :meth:`MultiObjectiveOptimizer.backward`.
            scope: One Gramian ``(K, K)`` over all that is shared, or one for each module or tensor, ``(B, K, K)``.
            retain_graph: Whether the graph is needed again.
            grad_scaler: As for :meth:`MultiObjectiveOptimizer.backward`; inner products are of unscaled gradients.

        Raises:
            TypeError: As :meth:`MultiObjectiveOptimizer.backward`.
            ValueError: As :meth:`MultiObjectiveOptimizer.backward`.
            RuntimeError: As :meth:`MultiObjectiveOptimizer.backward`.
        """
        with self._speaking():
            return self._run.look(self._request(losses, retain_graph, grad_scaler), scope)

    def rows(self, losses: Losses, *, retain_graph: bool = False) -> tuple[Surgery, dict[str, Tensor]]:
        """The losses' values, and the gradients themselves of the shared parameters, ``(K, *shape)`` by name.

        Args:
            losses: As for :meth:`MultiObjectiveOptimizer.backward`.
            retain_graph: Whether the graph is needed again.

        Raises:
            TypeError: As :meth:`MultiObjectiveOptimizer.backward`.
            ValueError: As :meth:`MultiObjectiveOptimizer.backward`.
            RuntimeError: As :meth:`MultiObjectiveOptimizer.backward`.
        """
        with self._speaking():
            request = self._request(losses, retain_graph)
            found, rows = self._run.jacobian(request)
        surgery = Surgery(found.names, found.values, None, None, engine=found.engine)
        return surgery, {request.names[id(parameter)]: own for parameter, own in rows.items()}

    def groups(self, names: Sequence[str], scope: Scope) -> tuple[list[int], tuple[str, ...]]:
        """For each parameter by name the number of its group, and what each group is; no labels for ``"all"``."""
        by_name = dict(self.model.named_parameters())
        wrapped, known = self._parameters()
        with self._speaking():
            return grouped([by_name[name] for name in names], scope, self._run.sharing, wrapped, known)

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """What goes wrong within it is told in the caller's name: no optimizer may have been wrapped."""
        try:
            yield
        except (TypeError, ValueError, RuntimeError) as error:
            if len(error.args) == 1 and str(error).startswith(_WRAPPER):
                error.args = (self._caller + str(error).removeprefix(_WRAPPER),)
            raise

    def _request(
        self, losses: Losses, retain_graph: bool, grad_scaler: "torch.amp.GradScaler | None" = None
    ) -> Request:
        wrapped, names = self._parameters()
        scale = None if grad_scaler is None else grad_scaler.scale
        return self._run.request(losses, wrapped, names, retain_graph=retain_graph, scale=scale)

    def _parameters(self) -> tuple[list[Tensor], dict[int, str]]:
        """Those that are trained now, and their names."""
        named = [(name, each) for name, each in self.model.named_parameters() if each.requires_grad]
        for name, each in named:
            if nn.parameter.is_lazy(each):
                raise ValueError(
                    f"{self._caller}: `model` must have its parameters, got {name!r} of a lazy module. Run a forward "
                    f"pass first, which makes them."
                )
        if not named:
            raise ValueError(
                f"{self._caller}: `model` must have parameters that require a gradient, got "
                f"{type(self.model).__name__} with none. Unfreeze what is to be trained."
            )
        parameters: list[Tensor] = [each for _, each in named]
        return parameters, {id(each): name for name, each in named}


__all__ = ["Look"]
