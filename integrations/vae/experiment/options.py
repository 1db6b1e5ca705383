"""The options of the command line, and the cells that they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence

from ..models.registry import MODELS
from ..tables.table import Table
from ..training.methods import METHODS
from .cell import Cell, published_epochs

QUICK_EPOCHS = 3
QUICK_SEEDS = 2
SEEDS = 5


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; leaves with status 2 and a message if they are wrong."""
    options = _parser().parse_args(arguments)
    if options.seeds is None:
        options.seeds = QUICK_SEEDS if options.quick else SEEDS
    if options.epochs is None and options.quick:
        options.epochs = QUICK_EPOCHS
    return options


def plan(options: argparse.Namespace, tables: Mapping[str, Table]) -> list[Cell]:
    """The cells in the order in which they are trained: all methods of a model, all models of a table."""
    return [
        Cell(
            name,
            table,
            model,
            method,
            seeds=tuple(range(options.seeds)),
            epochs=options.epochs or published_epochs(model, len(table)),
            batch_size=options.batch_size or MODELS[model].batch_size,
            rescale=options.rescale or method == "sum",
            hidden=options.hidden,
        )
        for name, table in tables.items()
        for model in dict.fromkeys(options.model)
        for method in dict.fromkeys(options.method)
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gradsurgery.integrations.vae.experiment",
        description="Trains models with several methods on several tables, all seeds of a cell together. Compares "
        "each method with the plain sum. Finished cells are kept; the same command goes on where it was stopped.",
    )
    parser.add_argument(
        "--data", nargs="+", required=True, metavar="PATH",
        help="folders with data.csv and schema.json, or CSV files, whose schema is inferred",
    )  # fmt: skip
    parser.add_argument(
        "--model", nargs="+", choices=list(MODELS), default=["vae"], metavar="MODEL",
        help=f"out of {', '.join(MODELS)} (default: vae)",
    )  # fmt: skip
    parser.add_argument(
        "--method", nargs="+", choices=list(METHODS), default=["sum", "lossbalancer"], metavar="METHOD",
        help=f"out of {', '.join(METHODS)} (default: sum lossbalancer)",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=_integer_from(1), metavar="N", help=f"0 to N - 1, trained together (default: {SEEDS})"
    )
    parser.add_argument(
        "--epochs", type=_integer_from(1), metavar="N",
        help="passes over the training rows (default: 2000 for hivae and tables of fewer than 10,000 rows, else 400)",
    )  # fmt: skip
    parser.add_argument(
        "--batch-size", type=_integer_from(2), metavar="N",
        help="rows a step (default: 1000 for hivae, else 128)",
    )  # fmt: skip
    parser.add_argument(
        "--hidden", nargs="?", type=_share, const=0.2, metavar="SHARE",
        help="imputation: hide this share of the cells, drawn by seed, from the model in all rows, and measure the "
        "error on the hidden cells of the test rows (default: hide none; without a number: 0.2)",
    )  # fmt: skip
    parser.add_argument(
        "--no-rescale", dest="rescale", action="store_false",
        help="do not give the aggregated gradient the norm of the plain sum",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true",
        help=f"see that it runs: {QUICK_EPOCHS} epochs and {QUICK_SEEDS} seeds unless given, 2000 rows of each table",
    )  # fmt: skip
    parser.add_argument(
        "--out", default="runs/vae/experiment", metavar="FOLDER",
        help="for the results and the checkpoints (default: runs/vae/experiment)",
    )  # fmt: skip
    return parser


def _integer_from(least: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
        return value

    return integer


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, got {text}")
    return value
