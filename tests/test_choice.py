"""The choice among engines: what ran and why, that it is the cheaper one, and that numbers do not depend on it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ghosts import Built, assert_like_loop, assert_same_surgery, over, run, wrap
from support import assert_near
from torch import Tensor, nn

import gradsurgery as gs
from gradsurgery.engines import Batched, Func, Ghost, Loop, Sharded, choose_engine
from gradsurgery.engines.choice import Auto, predicted_saving
from gradsurgery.engines.graph import reach
from gradsurgery.engines.matching import matched_uses

GHOST = "ghost: gradients formed of 2 of 4 parameters"
LITTLE = "loop: one backward pass a loss, as there is little to save"
CHEAPER = "loop: one backward pass a loss, which is predicted to be cheaper than 'ghost'"


def wide(width: int = 512, rows: int = 16, losses: int = 8) -> Built:
    """Two layers."""
    module = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
    return over(module, torch.randn(rows, width), losses, 2.0)


def convolutional() -> Built:
    module = nn.Sequential(nn.Conv2d(8, 64, 3), nn.Tanh(), nn.Conv2d(64, 64, 3))
    return over(module, torch.randn(4, 8, 12, 12), 8, 2.0)


def of_long_sequences() -> Built:
    return over(nn.Sequential(nn.Linear(128, 512), nn.Tanh(), nn.Linear(512, 128)), torch.randn(8, 80, 128), 8, 2.0)


def looked_up() -> Built:
    return over(nn.Embedding(1000, 128), torch.randint(0, 1000, (4, 16)), 8, 2.0)


def nothing_in_common() -> Built:
    m, x = nn.ModuleList(nn.Linear(512, 512) for _ in range(3)), torch.randn(16, 512)
    return m, lambda: [own(x).sin().sum() for own in m]


CHOICES: dict[str, tuple[Callable[[], Built], str]] = {
    "wide layers, few rows": (wide, GHOST),
    "wide layers, few rows, two losses": (lambda: wide(1024, 4, 2), GHOST),
    "narrow layers": (lambda: wide(64, 8), LITTLE),
    "wide layers, one row less than columns": (lambda: wide(256, 255), CHEAPER),
    "wide layers, more rows than columns": (lambda: wide(256, 300), CHEAPER),
    "convolutions over many positions": (convolutional, CHEAPER),
    "many positions": (of_long_sequences, CHEAPER),
    "an embedding": (looked_up, CHEAPER),
    "one loss": (lambda: wide(losses=1), "loop: one backward pass a loss, as there is only one"),
    "nothing in common": (nothing_in_common, LITTLE),
}


@pytest.mark.parametrize("name", CHOICES)
def test_what_ran_and_why(name: str) -> None:
    build, ran = CHOICES[name]
    _, surgery = assert_like_loop(build, "auto", torch.float32)
    assert surgery.engine == ran


def test_it_is_the_default() -> None:
    torch.manual_seed(0)
    module, losses = wide()
    optimizer = gs.MultiObjectiveOptimizer(torch.optim.SGD(module.parameters(), lr=0.1), gs.MGDA())
    assert optimizer.backward(losses()).engine == GHOST


def test_methods_that_need_the_gradients_get_them() -> None:
    def drawing() -> gs.Aggregator:
        return gs.GradDrop(generator=torch.Generator().manual_seed(0))

    found = run(wide, "auto", torch.float32, aggregator=drawing())
    assert found[1].engine == "loop: one backward pass a loss, as the gradients themselves are needed"
    assert_same_surgery(found, run(wide, "loop", torch.float32, aggregator=drawing()), 1e-6)

    rows = []
    for engine in ("auto", "loop"):
        torch.manual_seed(0)
        module, losses = wide()
        rows.append(wrap(module, engine).jacobian(losses()))
    for one, other in zip(*rows, strict=True):
        assert_near(one, other, 1e-6)


def test_elsewhere_than_on_the_cpu_it_is_the_loop() -> None:
    class Stops(Loop):
        def solve(self, problem: Any, why: str = "") -> Any:
            raise KeyError(why)

    engine = Auto()
    engine._loop = Stops()
    with torch.device("meta"):
        module, losses = wide()
        with pytest.raises(KeyError, match="as the costs of others are known for the CPU only"):
            wrap(module, engine).backward(losses())


def test_what_ghost_hands_over_says_so_too() -> None:
    def build() -> Built:
        m = nn.ModuleList(
            [nn.EmbeddingBag(10, 512, mode="sum", sparse=True), nn.Linear(512, 512), nn.Linear(512, 512)]
        )
        tokens, directions = torch.arange(24).view(3, 8) % 10, torch.randn(8, 3, 512)

        def losses() -> list[Tensor]:
            z = m[2](m[1](m[0](tokens)).tanh())
            return [(z * direction).sum() for direction in directions]

        return m, losses

    _, surgery = assert_like_loop(build, "auto", torch.float32)
    assert surgery.engine == (
        "loop: one backward pass a loss, as there are sparse gradients that 'ghost' does not know"
    )


def saving(width: int, rows: int, losses: int) -> float:
    module, x = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width)), torch.zeros(rows, width)
    root = module(x).sum()
    return predicted_saving(matched_uses(reach([root] * losses), list(module.parameters()), losses), losses)


def test_what_is_predicted_grows_with_width_and_losses_and_falls_with_rows() -> None:
    by_width = [saving(width, 16, 8) for width in (64, 128, 256, 512, 1024)]
    by_losses = [saving(1024, 16, losses) for losses in (2, 4, 8, 16)]
    by_rows = [saving(512, rows, 8) for rows in (128, 256, 384, 512)]
    assert by_width == sorted(by_width)
    assert by_losses == sorted(by_losses)
    assert by_rows == sorted(by_rows, reverse=True)
    assert by_width[0] < 0 < by_width[-1]
    assert by_rows[-1] < 0 < by_losses[0]


def test_engines_by_name() -> None:
    kinds = {"auto": Auto, "batched": Batched, "func": Func, "ghost": Ghost, "loop": Loop, "sharded": Sharded}
    for name, kind in kinds.items():
        assert type(choose_engine(name)) is kind
    engine = Ghost()
    assert choose_engine(engine) is engine
    with pytest.raises(ValueError, match=r"`engine` must be one of \['auto', .*'sharded'\] or an Engine, got 'best'"):
        choose_engine("best")


def test_saving_memory_alone_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradsurgery.engines.ghost._ALWAYS_KEPT", 0)
    _, surgery = assert_like_loop(lambda: wide(256, 128), "auto", torch.float32)
    assert surgery.engine == "loop: one backward pass a loss, as 'ghost' would save memory only, in several passes"
