"""What once went wrong in the engines: each test fails without its fix."""

import pytest
import torch
from support import assert_near
from torch import Tensor, nn
from torch.nn import functional

import gradsurgery as gs
from gradsurgery.aggregators import GramianAggregator
from gradsurgery.engines import pieces


class Large(GramianAggregator):
    """Weights beyond the range of float16."""

    def weights(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        return gramian.new_full(gramian.shape[:-1], 1e6 / 3)


def gradients_of(model: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_beyond_the_range_of_what_one_loss_alone_reaches(dtype: torch.dtype) -> None:
    found = []
    for engine in ("loop", "ghost"):
        torch.manual_seed(0)
        layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)]).to(dtype)
        optimizer = gs.MultiObjectiveOptimizer(
            torch.optim.SGD(layers.parameters(), lr=0.1), Large(), engine=engine, shared=layers
        )
        first = layers[0](torch.randn(4, 8).to(dtype))
        second = layers[1](first)
        optimizer.backward([output.float().square().mean() * 1e-5 for output in (first, second)])
        found.append(gradients_of(layers[1]))
    for wanted, own in zip(*found, strict=True):
        assert own.dtype == dtype
        assert bool(wanted.isfinite().all())
        assert_near(own, wanted, torch.finfo(dtype).eps / 2)


@pytest.mark.parametrize("engine", ["loop", "ghost", "batched"])
def test_memory_from_inference_mode_serves_outside_of_it(engine: str) -> None:
    torch.manual_seed(0)
    trunk, heads = nn.Linear(8, 8), nn.ModuleList(nn.Linear(8, 1) for _ in range(3))
    optimizer = gs.MultiObjectiveOptimizer(
        torch.optim.SGD([*trunk.parameters(), *heads.parameters()], lr=0.1), gs.UPGrad(), engine=engine
    )
    inputs = torch.randn(4, 8)

    def losses() -> list[Tensor]:
        outputs = torch.tanh(trunk(inputs))
        return [head(outputs).square().mean() for head in heads]

    evaluated = losses()
    with torch.inference_mode():
        first = optimizer.backward(evaluated)
    optimizer.zero_grad()
    assert torch.equal(optimizer.backward(losses()).gramian, first.gramian)


@pytest.mark.parametrize("form", ["compressed", "a loss a sample"])
def test_one_number_for_all_dimensions_of_a_convolution(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "saving", lambda size, _: 1.0 if size.rows <= size.width else -1.0)
    found = []
    for engine in ("loop", "auto" if form == "a loss a sample" else "ghost"):
        torch.manual_seed(0)
        model = nn.ParameterList([nn.Parameter(torch.randn(4, 8, 3, 3, dtype=torch.float64))])
        outputs = functional.conv2d(
            torch.randn(2, 8, 5, 5, dtype=torch.float64), model[0], stride=[2], padding=[1], dilation=[1]
        )
        optimizer = gs.MultiObjectiveOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1), gs.UPGrad(), engine=engine
        )
        each = outputs.square().flatten(1).mean(1)
        surgery = optimizer.backward(each if form == "a loss a sample" else [each.sum(), outputs.sin().mean()])
        found.append((surgery, *gradients_of(model)))
    assert found[1][0].engine.startswith("ghost")
    assert_near(found[1][0].gramian, found[0][0].gramian, 1e-10)
    assert_near(found[1][1], found[0][1], 1e-10)


@pytest.mark.parametrize("samples", [*range(2, 21, 2)])
@pytest.mark.parametrize("partner", ["next", "opposite", "mirrored"])
def test_samples_that_mix_in_pairs_are_refused(samples: int, partner: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(5, 5)
    outputs = torch.tanh(layer(torch.randn(samples, 5)))
    others = {
        "next": outputs.view(-1, 2, 5).flip(1).reshape(-1, 5),
        "opposite": outputs.roll(samples // 2, 0),
        "mirrored": outputs.flip(0),
    }
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(layer.parameters(), lr=0.1), gs.MGDA())
    with pytest.raises(RuntimeError, match="samples that do not mix"):
        optimizer.backward((outputs * others[partner]).sum(1))
