"""Methods by name."""

import inspect

import pytest

import gradsurgery as gs
from gradsurgery import aggregators, scalarizers
from gradsurgery.aggregators import Aggregator
from gradsurgery.scalarizers import Scalarizer

ALL = [(kind, name) for kind, names in gs.available().items() for name in names]


def test_every_method_is_available_once() -> None:
    listed = gs.available()
    assert list(listed) == ["gramian", "jacobian", "scalarizer"]
    assert len(listed["gramian"]) + len(listed["jacobian"]) == len(aggregators.CONTRACTS)
    assert len(listed["scalarizer"]) == len(scalarizers.CONTRACTS)
    assert not set(listed["gramian"]) & set(listed["jacobian"])
    for names in listed.values():
        assert list(names) == sorted(set(names))


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_a_name_gives_its_method(kind: str, name: str) -> None:
    contracts = scalarizers.CONTRACTS if kind == "scalarizer" else aggregators.CONTRACTS
    (cls,) = [method for method in contracts if method.__name__.lower() == name and _kind(method) == kind]
    needed = [
        p
        for p in inspect.signature(cls).parameters.values()
        if p.default is p.empty and p.kind is not p.VAR_POSITIONAL
    ]
    if needed or name == "chain":
        return  # built with options in the tests below
    assert type(gs.get(name, kind)) is cls


def _kind(method: type) -> str:
    if issubclass(method, Scalarizer):
        return "scalarizer"
    return aggregators.CONTRACTS[method].kind


@pytest.mark.parametrize("name", ["pcgrad", "PCGrad", "PC-Grad", "pc_grad", " pc grad"])
def test_spelling_does_not_matter(name: str) -> None:
    assert type(gs.get(name)) is gs.PCGrad


def test_options_go_to_the_class() -> None:
    method = gs.get("gradnorm", alpha=0.5, progress="gradient")
    assert (method.alpha, method.progress) == (0.5, "gradient")
    with pytest.raises(ValueError, match="^GradNorm: `alpha`"):
        gs.get("gradnorm", alpha=-1.0)


def test_methods_inside_methods() -> None:
    chain = gs.get("chain", methods=["gradnorm", {"name": "mgda", "normalization": "l2"}, gs.PCGrad()])
    assert [type(method).__name__ for method in chain.methods] == ["GradNorm", "MGDA", "PCGrad"]
    assert chain.methods[1].normalization == "l2"
    assert type(gs.get("cr-mogm", method="mgda").method) is gs.MGDA


def test_kind_decides_between_methods_of_one_name() -> None:
    assert isinstance(gs.get("sum"), Aggregator)
    assert isinstance(gs.get("sum", "scalarizer"), Scalarizer)
    assert isinstance(gs.get("sum", kind="gramian"), gs.Sum)
    with pytest.raises(ValueError, match=r"^get: `name` must be that of a method of kind 'jacobian', got 'sum'\."):
        gs.get("sum", "jacobian")
    with pytest.raises(ValueError, match=r"^get: `kind` must be one of .*, got 'neither'\.$"):
        gs.get("sum", "neither")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("pcgard", "pcgrad"), ("cagrd", "cagrad"), ("nashmlt", "nashmtl"), ("uprgad", "upgrad"), ("famo2", "famo")],
)
def test_a_misspelt_name_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^get: `name` must be that of a method, got '{name}'\. Did you mean .*'{nearest}'"
    ):
        gs.get(name)


def test_a_name_far_from_all() -> None:
    with pytest.raises(ValueError, match=r"got 'qqqqqqqqqqqq'\. See available\(\)\.$"):
        gs.get("qqqqqqqqqqqq")


def test_unknown_options_are_named() -> None:
    with pytest.raises(
        TypeError, match=r"^get: `options` of PCGrad must be among \['generator'\], got \['seed'\]\.$"
    ):
        gs.get("pcgrad", seed=3)


@pytest.mark.parametrize(
    ("short", "name"),
    [("RLW", "Random"), ("nsgd", "NormalizedSGD"), ("UW", "UncertaintyWeighting"), ("MGDA-UB", "MGDA")],
)
def test_common_abbreviations(short: str, name: str) -> None:
    assert type(gs.get(short)).__name__ == name


def test_odd_input() -> None:
    with pytest.raises(TypeError, match=r"^get: `name` must be text, got None\.$"):
        gs.get(None)
    with pytest.raises(ValueError, match=r"^get: `kind` must be one of .*, got \['gramian'\]\.$"):
        gs.get("sum", ["gramian"])
    with pytest.raises(
        TypeError, match=r"^get: `options` of a method inside another must have its 'name', got \{'alpha': 1\}"
    ):
        gs.get("crmogm", method={"alpha": 1})
    with pytest.raises(ValueError, match="^Chain: `methods` must be two or more aggregators, got 1"):
        gs.get("chain", methods="pcgrad")
