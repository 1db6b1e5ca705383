"""Which wrapped optimizer a parameter belongs to: the one wrapped last. An older one must not act on it any more."""

import weakref

from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

from .delegation import parameters_in
from .sharing import describe

_owners = WeakTensorKeyDictionary()
_claims = 0


class Claim:
    """An optimizer's claim on its parameters. Wrapping the same optimizer twice is one claim."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = weakref.ref(optimizer)
        self._seen = -1
        self.renew()

    def renew(self) -> None:
        """Claims all parameters that the optimizer holds now."""
        global _claims
        optimizer = self._optimizer()
        for parameter in parameters_in(optimizer.param_groups) if optimizer is not None else ():
            _owners[parameter] = self._optimizer
        _claims += 1
        self._seen = _claims

    def check(self, names: dict[int, str]) -> None:
        """Raises if an optimizer wrapped later, and still alive, holds one of the parameters.

        Costs nothing as long as nothing else was wrapped in the meantime.
        """
        optimizer = self._optimizer()
        if self._seen == _claims or optimizer is None:
            return
        for parameter in parameters_in(optimizer.param_groups):
            owner = _owners[parameter]() if parameter in _owners else None
            if owner is not None and owner is not optimizer:
                raise ValueError(
                    f"MultiObjectiveOptimizer: `optimizer` must be the only one over its parameters, got "
                    f"{describe(parameter, names)}, which an optimizer wrapped later holds too. Use that one, or "
                    f"give each its own parameters."
                )
        self._seen = _claims
