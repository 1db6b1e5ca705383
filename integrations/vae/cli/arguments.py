"""What can be said on the command line."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from ..models.registry import MODELS
from ..training.methods import METHODS
from . import commands
from .compare import compare
from .tables import SHIPPED

FIT = """\
Trains a model on a table: on 70% of its rows, with 10% to pick the best epoch
and 20% to test. Prints the schema that it read off the table and the test error
of every column, and writes the model to one file.

Where a kind is wrong (a code taken for a number, an order that was not seen),
correct the schema by hand:

  gradsurgery-vae fit table.csv --write-schema schema.json
  gradsurgery-vae fit table.csv --schema schema.json"""
IMPUTE = """\
Fills the missing cells of a table (empty, or NA, NaN, None, null) with what a
trained model expects there, given the rest of the row. All others stay as they
are written, and so do columns that the model does not have."""
SAMPLE = """\
Writes new rows, drawn from a trained model, with the names, the labels and the
whole numbers of the table that it was trained on."""
COMPARE = """\
Trains the same model with several methods, on the same rows, from the same
weights, and prints the test error of every column under each. Writes the numbers
and, where matplotlib is installed, a figure. With --seeds, medians."""
REPORT = """\
Writes one HTML page, which needs no other file and no network.

Of a table: a model is trained twice, with the plain sum of the columns'
gradients and with a method of gradient surgery, and compared column by column.

Of a trained model: its schema and rows drawn from it, and with --table also how
well it rebuilds that table. The options of training do not apply."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def build_parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    parser = Parser(
        prog="gradsurgery-vae",
        description="Variational autoencoders for tables with columns of different kinds, none of them overlooked.",
        epilog="gradsurgery-vae COMMAND --help says more about each.",
    )
    kinds = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_fit(kinds)
    _add_impute(kinds)
    _add_sample(kinds)
    _add_report(kinds)
    _add_compare(kinds)
    return parser


def _command(kinds: Any, name: str, summary: str, description: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = kinds.add_parser(
        name, help=summary, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    return command


def _add_fit(kinds: Any) -> None:
    command = _command(kinds, "fit", "train a model on a table", FIT)
    command.add_argument(
        "table",
        help=f"a CSV file with a header row; missing cells empty or NA, NaN, None, null; or {' or '.join(SHIPPED)}",
    )
    _add_method(_add_training(command))
    command.add_argument("--out", metavar="FILE", help="where the model goes (default: the table's name, .gsvae)")
    command.add_argument(
        "--write-schema", metavar="FILE", help="write the schema as JSON, to be corrected by hand; do not train"
    )
    command.set_defaults(run=commands.fit)


def _add_impute(kinds: Any) -> None:
    command = _command(kinds, "impute", "fill the missing cells of a table", IMPUTE)
    command.add_argument("model", help="a file that `fit` wrote")
    command.add_argument("table", help="a CSV file with the model's columns")
    command.add_argument("--out", metavar="FILE", required=True, help="where the filled table goes")
    command.add_argument(
        "--draws", type=int, metavar="M",
        help="draw the cells at random, M times, into M files: FILE-1.csv, FILE-2.csv, ... (default: the most likely "
        "values, in one file)",
    )  # fmt: skip
    command.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    command.set_defaults(run=commands.impute)


def _add_sample(kinds: Any) -> None:
    command = _command(kinds, "sample", "make up rows", SAMPLE)
    command.add_argument("model", help="a file that `fit` wrote")
    command.add_argument("--rows", type=int, required=True, metavar="N", help="how many")
    command.add_argument("--out", metavar="FILE", required=True, help="where they go, as CSV")
    command.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    command.set_defaults(run=commands.sample)


def _add_report(kinds: Any) -> None:
    command = _command(kinds, "report", "write a page about a table or a model", REPORT)
    command.add_argument("input", help="a table as for `fit`, or a model that `fit` wrote")
    command.add_argument("--out", metavar="FILE", required=True, help="where the page goes")
    command.add_argument("--table", metavar="FILE", help="with a model: a table to compare it with")
    _add_method(_add_training(command))
    command.set_defaults(run=commands.report)


def _add_compare(kinds: Any) -> None:
    command = _command(kinds, "compare", "train with several methods and compare the columns", COMPARE)
    command.add_argument("table", help="a table as for `fit`")
    command.add_argument("--out", metavar="FOLDER", help="for results.json and figure.png (default: runs/vae/TABLE)")
    command.add_argument(
        "--seeds", type=int, metavar="N",
        help="train N seeds together, from --seed on, and report medians and each seed's numbers (default: one run)",
    )  # fmt: skip
    group = _add_training(command)
    group.add_argument(
        "--methods", nargs="+", choices=list(METHODS), default=["sum", "lossbalancer"], metavar="METHOD",
        help=f"in the order of the output, out of {', '.join(METHODS)} (default: sum lossbalancer)",
    )  # fmt: skip
    command.set_defaults(run=compare)


def _add_training(command: argparse.ArgumentParser) -> Any:
    """The options of a training but for the method; returns their group."""
    group = command.add_argument_group("training")
    group.add_argument(
        "--drop", action="append", default=[], metavar="COLUMN", help="leave a column out, such as an id; repeatable"
    )
    group.add_argument("--schema", metavar="FILE", help="a JSON file with one entry a column (default: inferred)")
    group.add_argument("--model", choices=list(MODELS), default="vae", help="the kind of model (default: vae)")
    group.add_argument("--epochs", type=int, default=100, help="passes over the training rows (default: 100)")
    group.add_argument(
        "--batch-size", type=int, metavar="N", help="rows a step (default: as the model was published)"
    )
    group.add_argument("--seed", type=int, default=0, help="of split, weights, batches and noise (default: 0)")
    group.add_argument("--quiet", action="store_true", help="no progress bar")
    return group


def _add_method(group: Any) -> None:
    group.add_argument(
        "--method", choices=list(METHODS), default="lossbalancer", metavar="METHOD",
        help=f"how the columns' gradients are combined: {', '.join(METHODS)} (default: lossbalancer)",
    )  # fmt: skip
