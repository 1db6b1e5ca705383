"""One surgery for everything that is shared, or one for each module or tensor."""

from typing import Literal

from torch import Tensor

from .sharing import Sharing, describe

Scope = Literal["all", "module", "tensor"]


def grouped(
    parameters: list[Tensor], scope: Scope, sharing: Sharing, wrapped: list[Tensor], names: dict[int, str]
) -> tuple[list[int], tuple[str, ...]]:
    """Sorts parameters into the surgeries they take part in.

    Args:
        parameters: The shared ones.
        scope: What one surgery comprises.
        sharing: Knows the shared modules.
        wrapped: The parameters of the wrapped optimizer.
        names: Names of parameters by id, where the optimizer has them.

    Returns:
        For each parameter the number of its surgery, and what each surgery is; no labels for ``"all"``.

    Raises:
        ValueError: The scope is ``"module"`` and it is not known which module a parameter belongs to.
    """
    if scope == "all":
        return [0] * len(parameters), ()
    positions = {id(parameter): position for position, parameter in enumerate(wrapped)}
    known = {**{key: tuple(name.rpartition(".")[::2]) for key, name in names.items()}, **_owners(sharing, wrapped)}
    labels: dict[str, int] = {}
    groups = []
    for parameter in parameters:
        key = id(parameter)
        owner = known.get(key)
        if scope == "tensor":
            unnamed = (
                f"tensor {positions[key]}" if key in positions else f"tensor outside the optimizer, {len(labels)}"
            )
            label = unnamed if owner is None else ".".join(filter(None, owner))
        elif owner is None:
            raise ValueError(
                f"MultiObjectiveOptimizer: `scope` must be 'all' or 'tensor' unless the shared modules are known, "
                f"got 'module' and {describe(parameter)} of no known module. Use tag_shared(module), "
                f"shared=module, or hand named parameters to the optimizer."
            )
        else:
            label = owner[0]
        groups.append(labels.setdefault(label, len(labels)))
    return groups, tuple(labels)


def _owners(sharing: Sharing, wrapped: list[Tensor]) -> dict[int, tuple[str, str]]:
    """For each parameter of a declared module, the name of its module and its own."""
    roots = sharing.declared_modules(wrapped)
    result: dict[int, tuple[str, str]] = {}
    for position, root in enumerate(roots):
        prefix = type(root).__name__ + (f"[{position}]" if len(roots) > 1 else "")
        for path, module in root.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                result.setdefault(id(parameter), (f"{prefix}.{path}" if path else prefix, name))
    return result
