"""Per-loss gradients of a model that is trained in any way: looked at, and nothing changed."""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from .aggregators import Sum
from .engines import Engine, Request
from .losses import Losses
from .run import Run
from .scope import Scope, grouped
from .settings import settings_of
from .sharing import Sharing
from .surgery import Surgery


class Look:
    r"""Reads the gradients of several losses off their graph, for a model without a wrapped optimizer.

    .. math:: G = J J^\top, \quad J_k = \partial L_k / \partial \theta_{\text{shared}}

    What is shared is found as :class:`MultiObjectiveOptimizer` finds it, over all parameters of the model that
    require a gradient; what was found to be shared stays so.

    Guarantees:
        nothing is changed: neither ``.grad``, parameters, buffers nor the random state; the graph can be used again.

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
        self._run = Run(settings_of(Sum(), engine, "all", None, caller), Sharing(shared))
        self._parameters()

    def gramian(self, losses: Losses, *, scope: Scope = "all", retain_graph: bool = True) -> Surgery:
        """The losses' values and the inner products of their gradients, as a surgery without weights.

        Args:
            losses: As for :meth:`MultiObjectiveOptimizer.backward`.
            scope: One Gramian ``(K, K)`` over all that is shared, or one for each module or tensor, ``(B, K, K)``.
            retain_graph: Whether the graph is needed again.

        Raises:
            TypeError: As :meth:`MultiObjectiveOptimizer.backward`.
            ValueError: As :meth:`MultiObjectiveOptimizer.backward`.
            RuntimeError: As :meth:`MultiObjectiveOptimizer.backward`.
        """
        return self._run.look(self._request(losses, retain_graph), scope)

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
        request = self._request(losses, retain_graph)
        found, rows = self._run.jacobian(request)
        surgery = Surgery(found.names, found.values, None, None, engine=found.engine)
        return surgery, {request.names[id(parameter)]: own for parameter, own in rows.items()}

    def groups(self, names: Sequence[str], scope: Scope) -> tuple[list[int], tuple[str, ...]]:
        """For each parameter by name the number of its group, and what each group is; no labels for ``"all"``."""
        by_name = dict(self.model.named_parameters())
        wrapped, known = self._parameters()
        return grouped([by_name[name] for name in names], scope, self._run.sharing, wrapped, known)

    def _request(self, losses: Losses, retain_graph: bool) -> Request:
        wrapped, names = self._parameters()
        return self._run.request(losses, wrapped, names, retain_graph=retain_graph)

    def _parameters(self) -> tuple[list[Tensor], dict[int, str]]:
        """Those that are trained now, and their names."""
        named = [(name, each) for name, each in self.model.named_parameters() if each.requires_grad]
        if not named:
            raise ValueError(
                f"{self._caller}: `model` must have parameters that require a gradient, got "
                f"{type(self.model).__name__} with none. Unfreeze what is to be trained."
            )
        parameters: list[Tensor] = [each for _, each in named]
        return parameters, {id(each): name for name, each in named}


__all__ = ["Look"]
