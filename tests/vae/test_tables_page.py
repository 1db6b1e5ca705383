"""The code of docs/tables.md runs as it stands, from top to bottom, and its commands are those that exist."""

import re
from pathlib import Path

import pytest

from gradsurgery.integrations.vae.cli.arguments import build_parser
from gradsurgery.integrations.vae.experiment.options import parse
from gradsurgery.integrations.vae.tables.column import FITTING

PAGE = (Path(__file__).parents[2] / "docs" / "tables.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def test_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "docs/tables.md", "exec"), names)
    assert names["filled"].notna().all().all()  # type: ignore[attr-defined]
    assert (tmp_path / "schema.json").exists()
    assert "likelihood" in capsys.readouterr().out


def test_commands_are_understood() -> None:
    lines = [line.partition("  #")[0].split() for block in blocks("sh") for line in block.splitlines()]
    assert len(lines) == 7
    for program, *arguments in lines:
        if program == "gradsurgery-vae":
            build_parser().parse_args(arguments)
        else:
            assert arguments[:2] == ["-m", "gradsurgery.integrations.vae.experiment"]
            parse(arguments[2:])


def test_every_likelihood_is_in_the_table() -> None:
    for kind, names in FITTING.items():
        (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{kind}` |")]
        assert set(re.findall(r"`(\w+)`", row)) == {kind, *names}
