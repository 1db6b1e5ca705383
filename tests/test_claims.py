"""Tables that compare libraries say what was recorded, or carry a link; what they say of this one is run again."""

import json
import re
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RECORD = json.loads((ROOT / "benchmarks" / "results" / "claims.json").read_text())
LIBRARIES = (ROOT / "docs" / "libraries.md").read_text()
MIGRATING = (ROOT / "docs" / "migrating.md").read_text()
PEERS = ("gradsurgery", "torchjd", "LibMTL", "conflictfree")

# Quick, and not tested more thoroughly elsewhere as several ranks and compilation are.
RUN_AGAIN = [
    "gradient_methods",
    "loss_weightings",
    "runs_as_installed",
    "finds_the_shared_parameters",
    "heads_keep_their_gradients",
    "absent_loss",
    "sees_unscaled_gradients",
    "state_survives_an_overflow",
    "state_in_checkpoints",
    "largest_tensor",
    "one_loss_a_sample",
    "inside_the_network",
    "zero_gradient",
]


def rows_of(page: str) -> list[list[str]]:
    """The cells of all tables, headers included, rules left out."""
    lines = [line for line in page.splitlines() if line.startswith("|") and not re.match(r"\|[\s|:-]+$", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def wrong_cells(rows: list[list[str]], record: dict[str, Any]) -> list[str]:
    """Cells that neither repeat the record nor have a link."""
    wrong = []
    for title, claim, *cells in rows:
        key = claim.strip("`")
        for library, cell in zip(PEERS, cells, strict=True):
            recorded = record["checked"][library]["version"] if title == "version" else ""
            recorded = record["claims"].get(key, {}).get(library, recorded)
            if cell != recorded and "](" not in cell:
                wrong.append(f"{title}, {library}: {cell!r}, recorded {recorded!r}")
    return wrong


def wrong_figures(page: str, record: dict[str, Any]) -> list[str]:
    """Rows of the tables of conventions whose figures are not those that were recorded."""
    wrong, library = [], ""
    for row in rows_of(page):
        if row[1:4] == ["here", "factor", "left"]:
            library = row[0]
            continue
        recorded = record["conventions"][library].get(row[0].strip("`"))
        if recorded is None or (float(row[2]), float(row[3])) != (
            float(f"{recorded['factor']:.2g}"),
            recorded["left"],
        ):
            wrong.append(f"{library}, {row[0]}: {row[2:4]}, recorded {recorded}")
    return wrong


def claim_rows() -> list[list[str]]:
    return [row for row in rows_of(LIBRARIES) if row[1] != "claim"]


def test_cells_repeat_the_record_or_have_a_link() -> None:
    assert wrong_cells(claim_rows(), RECORD) == []


def test_every_recorded_claim_is_in_a_table() -> None:
    assert {row[1].strip("`") for row in claim_rows()} - {""} == set(RECORD["claims"])


def test_links_that_stand_for_a_check_lead_elsewhere() -> None:
    links = [link for row in claim_rows() for link in re.findall(r"\]\(([^)]+)\)", " ".join(row[3:]))]
    assert links
    assert all(link.startswith("https://") for link in links)


def test_conventions_repeat_the_record() -> None:
    assert wrong_figures(MIGRATING, RECORD) == []
    shown = {row[0].strip("`") for row in rows_of(MIGRATING)}
    assert {name for found in RECORD["conventions"].values() for name in found} <= shown


def test_what_is_recorded_is_of_this_version() -> None:
    assert RECORD["checked"]["gradsurgery"]["version"] == version("gradsurgery")
    assert set(RECORD["checked"]) == set(PEERS)
    for found in RECORD["checked"].values():
        day = date.fromisoformat(found["date"])
        assert f"{day.day} {day:%B %Y}" in LIBRARIES


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The scripts, importable as they are when one of them runs."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import claims

    yield claims
    for name in set(sys.modules) - before:
        if str(ROOT / "benchmarks") in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_every_claim_is_recorded(claims: Any) -> None:
    assert set(claims.CLAIMS) == set(RECORD["claims"])
    assert set(RUN_AGAIN) < set(claims.CLAIMS)


def test_what_is_said_of_this_library_is_observed(claims: Any) -> None:
    observed = claims.observe({"gradsurgery": claims.PEERS["gradsurgery"]()}, RUN_AGAIN)
    assert observed == {name: {"gradsurgery": RECORD["claims"][name]["gradsurgery"]} for name in RUN_AGAIN}


def test_directions_stay_exact_and_do_not_depend_on_the_scale(claims: Any) -> None:
    ours = claims.PEERS["gradsurgery"]()
    for name in ("losses_times_1e_8", "exact_MGDA", "exact_UPGrad", "exact_CAGrad"):
        assert all(float(part.lstrip("< ")) < 1e-11 for part in claims.CLAIMS[name](ours).split(" / "))


def test_a_wrong_cell_or_figure_is_found() -> None:
    rows = [
        ["version", "", "0.0.0", "0.18.0", "1.1.5", "0.1.8"],
        ["a", "`absent_loss`", "no", "[no](x)", "yes", "yes"],
    ]
    assert [found.partition(":")[0] for found in wrong_cells(rows, RECORD)] == [
        "version, gradsurgery",
        "a, gradsurgery",
        "a, LibMTL",
        "a, conflictfree",
    ]
    table = "| torchjd | here | factor | left | what differs |\n|---|---|---|---|---|\n| `Sum` | x | {} | 0 | |"
    assert wrong_figures(table.format("1"), RECORD) == []
    assert len(wrong_figures(table.format("2"), RECORD)) == 1
    assert len(wrong_figures(table.replace("`Sum`", "`Nothing`").format("1"), RECORD)) == 1
