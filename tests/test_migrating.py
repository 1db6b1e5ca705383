"""docs/migrating.md: all its code runs; both sides of a change, where they can run, train to the same parameters."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

PAGE = Path(__file__).parents[1] / "docs" / "migrating.md"

# How far the parameters may be apart after three steps, relative to how far they went; by heading.
SAME = {
    "mtl_backward": 1e-4,
    "backward": 1e-4,
    "autogram, one loss a sample": 1e-3,
    "Scalarizers": 1e-5,
    "weight_method.backward": 1e-5,
    "FAMO": 1e-5,
    "autograd.grad in a loop": 1e-5,
    "From conflictfree": 1e-5,
    "M-ConFIG": 1e-4,
}
DIFFERENT = {"Uncertainty weighting", "GradNorm"}
NEVER = {"From LibMTL"}  # needs a GPU, an encoder and data


def blocks() -> list[tuple[str, str, str]]:
    """Heading, language and text of all code on the page."""
    found, heading, language, lines = [], "", "", list[str]()
    for line in PAGE.read_text().splitlines():
        if line.startswith("```") and not language:
            language, lines = line[3:], []
        elif line == "```":
            found.append((heading, language, "\n".join(lines)))
            language = ""
        elif language:
            lines.append(line)
        elif line.startswith("#"):
            heading = line.lstrip("# ")
    return found


def side(diff: str, sign: str) -> str:
    """The code after a change, for ``+``, or before it."""
    return "\n".join(line[2:] for line in diff.split("\n") if line[:1] in (sign, " "))


DIFFS = {heading: text for heading, language, text in blocks() if language == "diff"}


def run(code: str) -> dict[str, Any]:
    """After the page's setup, in a namespace of its own."""
    namespace: dict[str, Any] = {}
    for _, language, text in blocks():
        if language == "python":
            exec(compile(text, "migrating.md", "exec"), namespace)
    exec(compile(code, "migrating.md", "exec"), namespace)
    return namespace


def parameters(namespace: dict[str, Any]) -> Tensor:
    held = [*namespace["trunk"].parameters(), *namespace["heads"].parameters()]
    if "net" in namespace:
        held += list(namespace["net"].parameters())
    return torch.cat([parameter.detach().flatten() for parameter in held])


def apart(found: Tensor, expected: Tensor, start: Tensor) -> float:
    """Relative to the way that was gone."""
    return float((found - expected).norm() / (expected - start).norm())


def test_the_page_runs_in_order() -> None:
    code = [side(text, "+") if language == "diff" else text for _, language, text in blocks() if language != "sh"]
    exec(compile("\n".join(code), "migrating.md", "exec"), {})


@pytest.mark.parametrize("heading", DIFFS)
def test_both_sides_train_to_the_same(heading: str) -> None:
    if heading in NEVER:
        pytest.skip("the side before the change needs a GPU and data")
    before, after = side(DIFFS[heading], "-"), side(DIFFS[heading], "+")
    for package in re.findall(r"^from (\w+)[\w.]* import", before, re.MULTILINE):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    found, expected = parameters(run(after)), parameters(run(before))
    start = parameters(run(after.replace("optimizer.step()", "pass")))
    distance = apart(found, expected, start)
    assert torch.isfinite(found).all()
    if heading in DIFFERENT:
        assert 1e-3 < distance < 1.5  # the page says that the numbers differ
    else:
        assert distance < SAME[heading]


def test_the_first_step_of_uncertainty_weighting_is_the_same() -> None:
    before, after = (
        side(DIFFS["Uncertainty weighting"], sign).replace("in batches", "in batches[:1]") for sign in "-+"
    )
    start = parameters(run(after.replace("optimizer.step()", "pass")))
    assert apart(parameters(run(after)), parameters(run(before)), start) < 1e-5


def test_every_change_has_a_verdict() -> None:
    assert set(DIFFS) == set(SAME) | DIFFERENT | NEVER


def test_apart_is_able_to_fail() -> None:
    start, one = torch.zeros(3), torch.ones(3)
    assert apart(one, one, start) == 0.0
    assert apart(1.1 * one, one, start) == pytest.approx(0.1, rel=1e-5)
    assert side("- old\n+ new\n  both", "-") == "old\nboth"
