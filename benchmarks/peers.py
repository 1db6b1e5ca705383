"""Other libraries behind one interface: a training step and a direction, each done the way its documentation does.

A library that is not installed is left out. LibMTL 1.1.5 cannot be imported, nor take a step, on a recent torch and
torchvision; its weighting classes are loaded without the rest, and their gradients zeroed instead of dropped.
"""

import importlib
import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import gradsurgery as gs

Forward = Callable[[Tensor], tuple[Tensor, list[Tensor]]]


class Net(nn.Module):
    """A trunk and one head a loss; returns what the heads start from, and one loss each."""

    def __init__(self, heads: int = 2, width: int = 8, inputs: int = 4) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width))
        self.heads = nn.ModuleList([nn.Linear(width, 1) for _ in range(heads)])

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        z = self.trunk(x)
        return z, [(head(z) - (-1.0) ** k).square().mean() for k, head in enumerate(self.heads)]


class Rows(nn.Module):
    """Losses whose gradients are the rows of a matrix."""

    def __init__(self, jacobian: Tensor) -> None:
        super().__init__()
        self.trunk = nn.ParameterList([nn.Parameter(torch.zeros(jacobian.shape[1], dtype=jacobian.dtype))])
        self.jacobian = jacobian

    def forward(self, _: Any = None) -> tuple[None, list[Tensor]]:
        return None, [row @ self.trunk[0] for row in self.jacobian]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """For libraries whose own buffers have the default dtype, whatever the gradients have."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Peer:
    """One library. ``methods``: how each is built, under our names, with defaults unless a value is needed."""

    package = ""
    methods: Mapping[str, Callable[[int], Any]] = MappingProxyType({})
    scalarizers: tuple[str, ...] = ()
    own: tuple[str, ...] = ()  # gradient methods under the library's names

    def direction(self, method: str, jacobian: Tensor) -> Tensor:
        """Of the rows of a matrix. KeyError: the library has no such method."""
        raise NotImplementedError

    def step(self, net: Any, forward: Forward, x: Any, method: Any = "PCGrad", scaler: Any = None) -> Any:
        """One forward pass and ``.grad`` filled; of the losses scaled by a GradScaler, if one is given."""
        raise NotImplementedError

    @classmethod
    def version(cls) -> str | None:
        """None where it is not installed."""
        try:
            return importlib.metadata.version(cls.package)
        except importlib.metadata.PackageNotFoundError:
            return None


class Ours(Peer):
    package = "gradsurgery"
    scalarizers = gs.available()["scalarizer"]
    own = (
        *(name for kind in ("gramian", "jacobian") for name in gs.available()[kind] if name != "chain"),
        "rotograd",
    )
    methods: ClassVar = {
        build.__name__: (lambda _, build=build: build())
        for build in (
            *(gs.PCGrad, gs.MGDA, gs.UPGrad, gs.DualProj, gs.CAGrad, gs.IMTLG, gs.ConFIG, gs.NashMTL),
            *(gs.AlignedMTL, gs.FairGrad, gs.GradVac),
        )
    }

    def direction(self, method: str, jacobian: Tensor) -> Tensor:
        built = self.methods[method](len(jacobian))
        return built(jacobian) if jacobian.dtype == torch.float32 else _by_gramian(built, jacobian)

    def step(self, net: Any, forward: Forward, x: Any, method: Any = "PCGrad", scaler: Any = None) -> Any:
        built = self.methods[method](2) if isinstance(method, str) else method
        optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(net.parameters(), lr=0.0), built)
        return optimizer.backward(forward(x)[1], grad_scaler=scaler)


def _by_gramian(method: Any, jacobian: Tensor) -> Tensor:
    """In float64 throughout, as all peers are asked to."""
    return method.solve(gs.kernels.gramian([jacobian])[0]) @ jacobian


class TorchJD(Peer):
    package = "torchjd"

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}  # of mtl_backward
        aggregation = importlib.import_module("torchjd.aggregation")
        names = [name.removesuffix("Weighting") for name in aggregation.__all__]
        bases = ("Aggregator", "GramianWeightedAggregator", "WeightedAggregator", "")
        self.own = tuple(dict.fromkeys(name for name in names if name not in bases))
        scalarization = importlib.import_module("torchjd.scalarization")
        self.scalarizers = tuple(name for name in scalarization.__all__ if name != "Scalarizer")
        plain = ("PCGrad", "MGDA", "UPGrad", "DualProj", "IMTLG", "ConFIG", "AlignedMTL")
        self.methods = {name: (lambda _, name=name: getattr(aggregation, name)()) for name in plain}
        self.methods |= {
            "CAGrad": lambda _: aggregation.CAGrad(c=0.4),
            "NashMTL": lambda count: aggregation.NashMTL(n_tasks=count),
            "FairGrad": lambda _: aggregation.FairGrad(alpha=2.0),
            "GradVac": lambda _: aggregation.GradVac(beta=0.01),
        }

    def direction(self, method: str, jacobian: Tensor) -> Tensor:
        return self.methods[method](len(jacobian))(jacobian)

    def step(self, net: Any, forward: Forward, x: Any, method: Any = "PCGrad", scaler: Any = None) -> Any:
        autojac = importlib.import_module("torchjd.autojac")
        features, losses = forward(x)
        losses = [scaler.scale(loss) for loss in losses] if scaler else losses
        autojac.mtl_backward(losses, features=features, **self.options)
        built = self.methods[method](2) if isinstance(method, str) else method
        autojac.jac_to_grad(net.trunk.parameters(), built)


class LibMTL(Peer):
    package = "LibMTL"
    scalarizers = ("EW", "UW", "DWA", "GLS", "RLW")
    own = ("GradNorm", "MGDA", "GradDrop", "PCGrad", "GradVac", "IMTL", "CAGrad")
    options: ClassVar = {
        "MGDA": {"mgda_gn": "none"},
        "GradVac": {"beta": 0.01},
        "CAGrad": {"calpha": 0.4, "rescale": 0},
    }
    methods: ClassVar = {name: (lambda _, name=name: name) for name in ("PCGrad", "MGDA", "CAGrad", "GradVac")}

    def __init__(self) -> None:
        if "LibMTL" not in sys.modules:  # its own __init__ loads models that a recent torchvision breaks
            package = types.ModuleType("LibMTL")
            found = importlib.metadata.distribution("LibMTL").locate_file("LibMTL")
            package.__path__ = [str(found)]
            sys.modules["LibMTL"] = package
        self.weighting = importlib.import_module("LibMTL.weighting")

    def host(self, net: Any, method: str, losses: int, *, repaired: bool = True) -> Any:
        """The weighting class with what LibMTL's architectures add to it."""

        class Host(getattr(self.weighting, method)):  # type: ignore[misc]
            def get_share_params(self) -> Any:
                return net.trunk.parameters()

            def zero_grad_share_params(self) -> None:
                for parameter in net.trunk.parameters():
                    parameter.grad = torch.zeros_like(parameter) if repaired else None

        made = Host()
        made.task_num, made.device, made.rep_grad = losses, torch.device("cpu"), False
        made.init_param()
        return made

    def direction(self, method: str, jacobian: Tensor) -> Tensor:
        name = self.methods[method](len(jacobian))
        net = Rows(jacobian)
        with default_dtype(jacobian.dtype):
            self.host(net, name, len(jacobian)).backward(net()[1], **self.options.get(method, {}))
        return net.trunk[0].grad

    def step(self, net: Any, forward: Forward, x: Any, method: Any = "PCGrad", scaler: Any = None) -> Any:
        losses = forward(x)[1]
        losses = [scaler.scale(loss) for loss in losses] if scaler else losses
        host = self.host(net, method, len(losses)) if isinstance(method, str) else method
        return host.backward(losses, **self.options.get(method if isinstance(method, str) else "GradVac", {}))


class ConflictFree(Peer):
    package = "conflictfree"
    own = ("ConFIG", "PCGrad", "IMTLG", "M-ConFIG, two forms")

    def __init__(self) -> None:
        operators = importlib.import_module("conflictfree.grad_operator")
        self.methods = {
            "PCGrad": lambda _: operators.PCGradOperator(),
            "IMTLG": lambda _: operators.IMTLGOperator(),
            "ConFIG": lambda _: operators.ConFIGOperator(),
        }

    def direction(self, method: str, jacobian: Tensor) -> Tensor:
        with default_dtype(jacobian.dtype):
            return self.methods[method](len(jacobian)).calculate_gradient(jacobian)

    def step(self, net: Any, forward: Forward, x: Any, method: Any = "PCGrad", scaler: Any = None) -> Any:
        utils = importlib.import_module("conflictfree.utils")
        built = self.methods[method](2) if isinstance(method, str) else method
        rows = []
        for k in range(len(net.heads)):
            net.zero_grad()
            loss = forward(x)[1][k]
            (scaler.scale(loss) if scaler else loss).backward()
            rows.append(utils.get_gradient_vector(net, none_grad_mode="zero"))
        utils.apply_gradient_vector(net, built.calculate_gradient(rows), none_grad_mode="zero")


PEERS: dict[str, type[Peer]] = {
    "gradsurgery": Ours,
    "torchjd": TorchJD,
    "LibMTL": LibMTL,
    "conflictfree": ConflictFree,
}


def has_file(package: str, ending: str) -> bool:
    """Whether an installed package has a file of this name, without importing it."""
    try:
        return any(str(Path(file)).endswith(ending) for file in importlib.metadata.files(package) or ())
    except importlib.metadata.PackageNotFoundError:
        return False
