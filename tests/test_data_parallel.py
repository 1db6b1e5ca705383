"""Several ranks with parts of a batch do what one process does with all of it."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.distributed as dist
from parallel import METHODS, Crews, Network, assert_close, batch, losses_of, part
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gradsurgery as gs


def train(
    rank: int | None,
    name: str,
    cuts: tuple[int, ...] = (0, 6, 12),
    wrap: bool = False,
    options: Mapping[str, Any] | None = None,
    through_scalarize: bool = False,
    steps: int = 3,
) -> list[Tensor]:
    """Parameters after some steps."""
    x, y = batch()
    items = part(rank, cuts)
    model: nn.Module = Network()
    torch.manual_seed(7 + (rank or 0))  # a method of its own on each rank
    optimizer = gs.MultiObjectiveOptimizer(
        torch.optim.SGD(model.parameters(), lr=1e-3), METHODS[name](), **(options or {})
    )
    if wrap:
        model = DistributedDataParallel(model)
    count = len(x[items])
    for _ in range(steps):
        optimizer.zero_grad()
        losses = losses_of(model, x[items], y[items])
        extra = 0.01 * model(x[items])[0].square().mean()
        counts = None if cuts == (0, 6, 12) else count
        if through_scalarize:
            optimizer.scalarize(losses, extra_loss=extra, counts=counts).backward()
        else:
            optimizer.backward(losses, extra_loss=extra, counts=counts)
        optimizer.step()
        optimizer.update({name: loss.detach() for name, loss in losses_of(model, x[items], y[items]).items()})
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_equal_one_process(name: str, crew: Crews) -> None:
    expected = train(None, name)
    start = list(Network().parameters())
    assert any(not torch.equal(own, before) for own, before in zip(expected, start, strict=True))
    for found in crew(2)(train, name):
        assert_close(found, expected)


@pytest.mark.parametrize("through_scalarize", [False, True], ids=["backward", "scalarize"])
@pytest.mark.parametrize("name", ["UPGrad", "GradDrop", "MoCo", "UncertaintyWeighting, a scalarizer"])
def test_unequal_parts_on_four_ranks(name: str, through_scalarize: bool, crew: Crews) -> None:
    expected = train(None, name)
    for found in crew(4)(train, name, (0, 1, 4, 10, 12), False, None, through_scalarize):
        assert_close(found, expected)


@pytest.mark.parametrize("options", [{"scope": "tensor"}, {"engine": "batched"}], ids=str)
@pytest.mark.parametrize("name", ["UPGrad", "GradDrop"])
def test_inside_distributed_data_parallel(name: str, options: dict[str, Any], crew: Crews) -> None:
    expected = train(None, name, options=options)
    for found in crew(2)(train, name, (0, 6, 12), True, options):
        assert_close(found, expected)


def wrapped_with_unused(rank: int, find_unused: bool, static: bool) -> list[Tensor]:
    """A model with a part that nothing uses, in both kinds of step by turns."""
    model = Network()
    model.register_parameter("unused", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    parallel = DistributedDataParallel(model, find_unused_parameters=find_unused, static_graph=static)
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=1e-3), gs.UPGrad())
    x, y = batch()
    items = part(rank, (0, 6, 12))
    for step in range(4):
        optimizer.zero_grad()
        losses = losses_of(parallel, x[items], y[items])
        if step % 2 and find_unused:
            sum(losses.values()).backward()  # type: ignore[arg-type, union-attr]
        else:
            optimizer.backward(losses)
        optimizer.step()
    assert model.unused.grad is None
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize(("find_unused", "static"), [(True, False), (False, False), (False, True)])
def test_what_nothing_uses_inside_distributed_data_parallel(find_unused: bool, static: bool, crew: Crews) -> None:
    first, second = crew(2)(wrapped_with_unused, find_unused, static)
    assert_close(first, second, 0.0)
    assert_close(first[1:], train_plainly(find_unused), 1e-12)


def first_steps_with_surgery(rank: int, name: str) -> list[Tensor]:
    """A model with a static graph: one surgery, then plain sums, which DDP must still average."""
    model = Network()
    parallel = DistributedDataParallel(model, static_graph=True)
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=1e-3), gs.get(name))
    x, y = batch()
    items = part(rank, (0, 6, 12))
    for step in range(4):
        optimizer.zero_grad()
        losses = losses_of(parallel, x[items], y[items])
        if step:
            sum(losses.values()).backward()  # type: ignore[arg-type, union-attr]
        else:
            optimizer.backward(losses)
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("name", ["sum", "graddrop", "famo"])
def test_a_static_graph_after_surgery_is_averaged(name: str, crew: Crews) -> None:
    first, second = crew(2)(first_steps_with_surgery, name)
    assert_close(first, second, 0.0)
    if name == "sum":
        model = Network()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        x, y = batch()
        for _ in range(4):
            optimizer.zero_grad()
            sum(losses_of(model, x, y).values()).backward()  # type: ignore[arg-type, union-attr]
            optimizer.step()
        assert_close(first, [parameter.detach() for parameter in model.parameters()], 1e-12)


def train_plainly(by_turns: bool) -> list[Tensor]:
    model = Network()
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=1e-3), gs.UPGrad())
    x, y = batch()
    for step in range(4):
        optimizer.zero_grad()
        losses = losses_of(model, x, y)
        if step % 2 and by_turns:
            sum(losses.values()).backward()  # type: ignore[arg-type, union-attr]
        else:
            optimizer.backward(losses)
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def with_a_loss_missing(rank: int | None, name: str, given: bool) -> tuple[list[Tensor], Any]:
    """The first loss is only known of the first items, the last of none; found and stated by ``counts``."""
    x, y = batch()
    model = Network()
    torch.manual_seed(7)
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=1e-3), METHODS[name]())
    for _ in range(2):
        optimizer.zero_grad()
        items = part(rank, (0, 4, 12))
        losses = losses_of(model, x[items], y[items])
        losses["loss 2"] = None
        if rank == 1:
            losses["loss 0"] = None
        elif rank is None:
            losses["loss 0"] = losses_of(model, x[:4], y[:4])["loss 0"]
        size = len(x[items])
        counts = {"loss 0": 0 if rank == 1 else 4, "loss 1": size, "loss 2": 0}
        surgery = optimizer.backward(losses, counts=counts if given or rank is None else [0 if rank else 4, size, 0])
        optimizer.step()
    grads = [parameter.grad is None for parameter in model.parameters()]
    return [parameter.detach() for parameter in model.parameters()], (surgery.names, surgery.losses, grads)


@pytest.mark.parametrize("given", [True, False], ids=["dict", "list"])
@pytest.mark.parametrize("name", ["UPGrad", "TrimmedMean", "GradNorm", "MoCo", "STCH, a scalarizer"])
def test_a_loss_missing_on_one_rank(name: str, given: bool, crew: Crews) -> None:
    expected, (names, values, grads) = with_a_loss_missing(None, name, True)
    assert names == ("loss 0", "loss 1")
    assert any(grads)  # the head of the loss that nobody has
    for found, (own_names, own_values, own_grads) in crew(2)(with_a_loss_missing, name, given):
        assert_close(found, expected)
        assert own_names == names
        assert own_grads == grads
        torch.testing.assert_close(own_values, values)


def all_missing_here(rank: int) -> list[Tensor]:
    """Rank 1 has nothing at all to offer, and a loss whose count is zero counts for nothing, NaN as it is."""
    x, y = batch()
    model = Network()
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=1e-3), gs.UPGrad())
    losses = losses_of(model, x, y)
    if rank == 1:
        losses = {"loss 0": losses_of(model, x[:0], y[:0])["loss 0"], "loss 1": None, "loss 2": None}
    optimizer.backward(losses, counts=12.0 if rank == 0 else 0.0)
    return [parameter.grad for parameter in model.parameters()]


def test_a_rank_without_items(crew: Crews) -> None:
    model = Network()
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=1e-3), gs.UPGrad())
    optimizer.backward(losses_of(model, *batch()))
    expected = [parameter.grad for parameter in model.parameters()]
    for found in crew(2)(all_missing_here):
        assert_close(found, expected)


def with_nothing_here(rank: int | None, name: str) -> list[Tensor]:
    """Rank 1 has no items: no losses for ``scalarize``, and then an extra loss that is not a number."""
    x, y = batch()
    model = Network()
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=1e-3), METHODS[name]())
    losses = losses_of(model, x, y) if rank != 1 else dict.fromkeys(("loss 0", "loss 1", "loss 2"))
    count = None if rank is None else 12 * (1 - rank)
    optimizer.scalarize(losses, counts=count).backward()
    extra = model.trunk[0].weight.sum() * (torch.nan if rank == 1 else 1.0)
    losses = losses_of(model, x, y)
    if rank == 1:
        losses = {key: loss * torch.nan for key, loss in losses.items() if loss is not None}
    optimizer.backward(losses, extra_loss=extra, counts=count)
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("name", ["UPGrad", "STCH, a scalarizer"])
def test_what_is_no_number_counts_for_nothing_without_items(name: str, crew: Crews) -> None:
    expected = with_nothing_here(None, name)
    for found in crew(2)(with_nothing_here, name):
        assert_close(found, expected)


class Oddities(nn.Module):
    """Parameters of all shapes, layouts and dtypes: fewer numbers than ranks in some dtypes, and none at all."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.scalar = nn.Parameter(torch.tensor(1.5))
        self.empty = nn.Parameter(torch.ones(0, 3))
        self.small = nn.Parameter(torch.randn(3).bfloat16())
        self.wide = nn.Parameter(torch.randn(1, dtype=torch.float64))
        self.table = nn.Embedding(5, 2, sparse=True)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        z = self.image(x).mean((2, 3)) * self.scalar + self.empty.sum() + self.wide.float()
        return z[:, :3] * self.small.float() + self.table(tokens).sum((1, 2)).unsqueeze(1)


def odd(rank: int | None, name: str, tokens: int) -> list[Tensor]:
    model = Oddities()
    torch.manual_seed(7)
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), METHODS[name]())
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, 3, 5, 5, generator=generator)
    words = torch.randint(0, 5, (12, tokens), generator=generator)
    items = part(rank, (0, 3, 6, 9, 12))
    first, second, third = model(x[items], words[items]).unbind(1)
    optimizer.backward([first.square().mean(), 5 * (second - 1).square().mean(), (third + second).square().mean()])
    for parameter in model.parameters():
        assert parameter.grad.dtype == parameter.dtype
        assert parameter.grad.is_sparse or parameter.grad.stride() == parameter.stride()
    return [parameter.grad.to_dense() for parameter in model.parameters()]


@pytest.mark.parametrize("tokens", [2, 0])
@pytest.mark.parametrize("name", ["UPGrad", "GradDrop", "TrimmedMean", "Chain with GradDrop"])
def test_parameters_of_all_kinds_on_four_ranks(name: str, tokens: int, crew: Crews) -> None:
    expected = odd(None, name, tokens)
    for found in crew(4)(odd, name, tokens):
        assert_close([own.double() for own in found], [own.double() for own in expected], 2e-2)


def in_bfloat16(rank: int | None) -> list[Tensor]:
    x, y = batch()
    model = Network().bfloat16()
    items = part(rank, (0, 6, 12))
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=1e-3), METHODS["MoCo"]())
    optimizer.backward(losses_of(model, x[items].bfloat16(), y[items].bfloat16()))
    return [parameter.grad for parameter in model.parameters()]


def test_remembered_gradients_of_bfloat16(crew: Crews) -> None:
    expected = in_bfloat16(None)
    for found in crew(2)(in_bfloat16):
        assert all(own.dtype == torch.bfloat16 for own in found)
        assert_close(found, expected, 0.1)


def tables(rank: int | None, sparse: bool) -> tuple[list[Tensor], bool]:
    """Embeddings of which ranks touch different rows; one is shared, one belongs to a loss."""
    torch.manual_seed(0)
    model = nn.ModuleDict({key: nn.Embedding(9, 2, sparse=sparse) for key in ("shared", "own")}).double()
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), gs.UPGrad())
    tokens = torch.tensor([[1, 5, 5], [2, 1, 7]])[part(rank, (0, 1, 2))]
    z = model["shared"](tokens).square()
    own = model["own"](tokens).sum()
    optimizer.backward([z[..., 0].mean(), (z.sum(-1) - 1).square().mean() + own / tokens.numel()])
    optimizer.step()
    return [p.detach() for p in model.parameters()], all(bool(p.grad.is_sparse) for p in model.parameters())


def test_sparse_gradients(crew: Crews) -> None:
    expected, _ = tables(None, False)
    for found, is_sparse in crew(2)(tables, True):
        assert is_sparse
        assert_close(found, expected)


class Untagged(nn.Module):
    """A module that is declared as shared and used by a closure."""


def by_closure(rank: int | None) -> list[Tensor]:
    x, y = batch()
    model = Network()
    options = {"engine": "func", "shared": model.trunk}
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=1e-3), gs.UPGrad(), **options)
    items = part(rank, (0, 3, 12))
    optimizer.backward(lambda: losses_of(model, x[items], y[items]), counts=len(x[items]))
    return [parameter.grad for parameter in model.parameters()]


def test_the_func_engine(crew: Crews) -> None:
    expected = by_closure(None)
    for found in crew(2)(by_closure):
        assert_close(found, expected)


def rows_and_weights(rank: int | None) -> list[Tensor]:
    x, y = batch()
    model = Network()
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=1e-3), gs.aggregators.SDMGrad())
    items = part(rank, (0, 6, 12))
    first, second = (losses_of(model, scale * x[items], y[items]) for scale in (1.0, 2.0))
    rows = optimizer.jacobian(losses_of(model, x[items], y[items]))
    optimizer.observe(first, second)
    return [*rows, *optimizer.aggregator.state_dict().values()]


def test_jacobian_and_observe(crew: Crews) -> None:
    expected = rows_and_weights(None)
    for found in crew(2)(rows_and_weights):
        assert_close(found, expected)


# --- State ---------------------------------------------------------------------------------------------------------


def overflowing(rank: int, where: str) -> tuple[Any, Any, list[bool]]:
    """A gradient overflows on rank 1 alone."""
    x, y = batch()
    model = Network()
    optimizer = gs.MultiObjectiveOptimizer(
        torch.optim.SGD(model.parameters(), lr=1e-3), gs.Chain(gs.GradNorm(), gs.PCGrad())
    )
    optimizer.backward(losses_of(model, x, y))
    before = {key: value.clone() for key, value in optimizer.aggregator.state_dict().items()}
    optimizer.zero_grad()
    losses = losses_of(model, x, y)
    if rank == 1:
        if where == "shared":
            losses["loss 1"] = losses["loss 1"] + model.trunk[0].weight.sum() * torch.inf
        else:
            losses["loss 1"] = losses["loss 1"] + model.heads[1].bias.sum() * torch.inf
    optimizer.backward(losses)
    finite = [bool(parameter.grad.isfinite().all()) for parameter in model.parameters()]
    return before, dict(optimizer.aggregator.state_dict()), finite


@pytest.mark.parametrize("where", ["shared", "specific"])
def test_an_overflow_on_one_rank_leaves_all_states_as_they_were(where: str, crew: Crews) -> None:
    for before, after, finite in crew(2)(overflowing, where):
        assert not all(finite)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


def from_checkpoint_of_one(rank: int) -> list[Tensor]:
    """Only rank 0 has loaded the method's state."""
    x, y = batch()
    model = Network()
    torch.manual_seed(3)
    optimizer = gs.MultiObjectiveOptimizer(
        torch.optim.SGD(model.parameters(), lr=1e-3), gs.Chain(gs.GradNorm(lr=0.1), gs.PCGrad())
    )
    items = part(rank, (0, 6, 12))
    optimizer.backward(losses_of(model, x[items], y[items]))
    saved = optimizer.state_dict()
    optimizer.aggregator.reset()
    if rank == 0:
        optimizer.load_state_dict(saved)
    else:
        optimizer.load_state_dict({key: value for key, value in saved.items() if key != "gradsurgery"})
    optimizer.zero_grad()
    optimizer.backward(losses_of(model, x[items], y[items]))
    return [parameter.grad for parameter in model.parameters()]


def test_the_first_rank_s_state_counts(crew: Crews) -> None:
    x, y = batch()
    model = Network()
    torch.manual_seed(3)
    optimizer = gs.MultiObjectiveOptimizer(
        torch.optim.SGD(model.parameters(), lr=1e-3), gs.Chain(gs.GradNorm(lr=0.1), gs.PCGrad())
    )
    for _ in range(2):
        optimizer.zero_grad()
        optimizer.backward(losses_of(model, x, y))
    for found in crew(2)(from_checkpoint_of_one):
        assert_close(found, [parameter.grad for parameter in model.parameters()])


def loaded_by_one(rank: int) -> list[Tensor]:
    """The last rank loads a state of its own in the middle of a run."""
    x, y = batch()
    model = Network()
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=1e-3), gs.PCGrad())
    items = part(rank, (0, 6, 12))
    optimizer.backward(losses_of(model, x[items], y[items]))
    if rank == 1:
        other = gs.MultiObjectiveOptimizer(
            torch.optim.SGD(Network().parameters(), lr=1e-3), gs.PCGrad(generator=torch.Generator().manual_seed(99))
        )
        optimizer.load_state_dict(other.state_dict())
    optimizer.backward(losses_of(model, x[items], y[items]))
    return list(optimizer.aggregator.state_dict().values())


def test_a_state_that_one_rank_loads_gives_way_to_the_first_s(crew: Crews) -> None:
    first, second = crew(2)(loaded_by_one)
    assert_close(first, second, 0.0)


def from_gpus(rank: int | None, given: bool) -> list[Tensor]:
    """As where ranks communicate from GPUs only, and do not wait for each other; a loss is missing now and then."""
    x, y = batch()
    model = Network()
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=1e-3), gs.UPGrad())
    items = part(rank, (0, 6, 12))
    with pytest.MonkeyPatch.context() as patch:
        if rank is not None:
            ranks = optimizer._run.settings.peers.now()
            patch.setattr(ranks, "has_host_backend", False)
            patch.setattr(ranks, "_placed", lambda tensor: tensor)
        for step in range(5):
            optimizer.zero_grad()
            losses = losses_of(model, x[items], y[items])
            if step in (2, 4):
                losses["loss 1"] = losses_of(model, x[:6], y[:6])["loss 1"] if rank is None and given else None
                if given and rank == 0:
                    losses["loss 1"] = losses_of(model, x[:6], y[:6])["loss 1"]
            counts = {name: 0 if loss is None else 6 for name, loss in losses.items()}
            optimizer.backward(losses, counts=counts if given else None)
            optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("given", [True, False], ids=["on one rank", "on both"])
def test_a_loss_missing_where_ranks_do_not_wait(given: bool, crew: Crews) -> None:
    expected = from_gpus(None, given)
    for found in crew(2)(from_gpus, given):
        assert_close(found, expected)


def in_pairs(rank: int) -> list[Tensor]:
    """Two groups of two ranks train a model each, on batches of their own."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    x, y = batch()
    model = Network()
    optimizer = gs.MultiObjectiveOptimizer(
        torch.optim.SGD(model.parameters(), lr=1e-3), gs.UPGrad(), process_group=groups[rank // 2]
    )
    x = x * (1 + rank // 2)
    items = part(rank % 2, (0, 6, 12))
    optimizer.backward(losses_of(model, x[items], y[items]))
    return [parameter.grad for parameter in model.parameters()]


def test_process_group(crew: Crews) -> None:
    found = crew(4)(in_pairs)
    for pair in range(2):
        x, y = batch()
        model = Network()
        optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(model.parameters(), lr=1e-3), gs.UPGrad())
        optimizer.backward(losses_of(model, (1 + pair) * x, y))
        for own in found[2 * pair : 2 * pair + 2]:
            assert_close(own, [parameter.grad for parameter in model.parameters()])


def test_process_group_must_be_one() -> None:
    with pytest.raises(TypeError, match="`process_group` must be a torch.distributed.ProcessGroup"):
        gs.MultiObjectiveOptimizer(
            torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1),
            gs.UPGrad(),
            process_group="all",  # type: ignore[arg-type]
        )
