"""What each command does."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch

from gradsurgery.whole_file import write_whole

from ..report import compare, comparison_page, model_page
from ..report.text import shortened
from ..tables.schema import Schema
from ..tables.table import Table
from ..training.evaluation import Evaluation
from .tables import SHIPPED, read_table, refuse_overwriting, write_filled, write_table

if TYPE_CHECKING:
    from ..estimator.estimator import HeterogeneousVAE

ZIP = b"PK"  # how a saved model begins


def fit(options: argparse.Namespace) -> None:
    """Trains a model, prints schema and test errors, writes the model."""
    frame = read_table(options.table, options.drop)
    schema = Schema.load(options.schema) if options.schema else Schema.infer(frame)
    out = Path(options.write_schema or options.out or f"{Path(options.table).stem}.gsvae")
    refuse_overwriting(out, [options.table, options.schema])
    print(format_schema(frame, schema))
    if options.write_schema:
        schema.save(out)
        print(f"\nschema: {out}")
        return
    estimator = _estimator()(
        schema,
        options.model,
        options.method,
        epochs=options.epochs,
        batch_size=options.batch_size,
        random_state=options.seed,
        progress=not options.quiet,
    ).fit(frame)
    run = estimator.run_
    print(f"\n{format_errors(run.evaluate())}\n\nkept epoch {run.best_epoch + 1} of {options.epochs}")
    estimator.save(out)
    print(f"model: {out}")


def impute(options: argparse.Namespace) -> None:
    """Fills the empty cells of a table."""
    if options.draws is not None and options.draws < 1:
        raise ValueError(
            f"gradsurgery-vae: `--draws` must be at least 1, got {options.draws}. Leave it out for modes."
        )
    out = Path(options.out)
    outs = [out] if options.draws is None else [_numbered(out, m + 1) for m in range(options.draws)]
    for path in outs:
        refuse_overwriting(path, [options.table, options.model])
    estimator, frame = _estimator().load(options.model), read_table(options.table)
    known = [name for name in frame.columns if name in estimator.schema_.names]
    if len(known) < frame.shape[1]:
        print(f"not the model's, left as they are: {', '.join(name for name in frame.columns if name not in known)}")
    filled = estimator.impute(frame[known], draws=options.draws, random_state=options.seed)
    for path, one in zip(outs, filled if isinstance(filled, list) else [filled], strict=True):
        print(f"{write_filled(options.table, frame, one, path)} cells filled in: {path}")


def sample(options: argparse.Namespace) -> None:
    """Writes rows drawn from a model."""
    if options.rows < 1:
        raise ValueError(f"gradsurgery-vae: `--rows` must be at least 1, got {options.rows}. Ask for some.")
    out = Path(options.out)
    refuse_overwriting(out, [options.model])
    write_table(_estimator().load(options.model).sample(options.rows, random_state=options.seed), out)
    print(f"{options.rows} rows: {out}")


def report(options: argparse.Namespace) -> None:
    """Writes the page about a table or a model."""
    out = Path(options.out)
    refuse_overwriting(out, [options.input, options.table, options.schema])
    text = _page_of_model(options) if is_model(options.input) else _page_of_table(options)
    write_whole(out, lambda file: file.write_text(text, encoding="utf-8"))
    print(f"page: {out}")


def _page_of_table(options: argparse.Namespace) -> str:
    if options.table:
        raise ValueError(
            f"gradsurgery-vae: `--table` must go with a model, got the table {options.input}. Leave one of them out."
        )
    schema = Schema.load(options.schema) if options.schema else None
    comparison = compare(
        Table.from_frame(read_table(options.input, options.drop), schema),
        Path(options.input).name,
        method=options.method,
        model=options.model,
        epochs=options.epochs,
        batch_size=options.batch_size,
        seed=options.seed,
        progress=not options.quiet,
    )
    return comparison_page(comparison)


def _page_of_model(options: argparse.Namespace) -> str:
    estimator = _estimator().load(options.input)
    names = ("model", "method", "epochs", "random_state")
    settings = {name: f"{getattr(estimator, name)}" for name in names}
    table = None
    if options.table:
        ranges = torch.from_numpy(estimator.ranges_)
        table = Table.from_new_rows(read_table(options.table, options.drop), estimator.schema_, ranges)
    title = Path(options.input).name
    return model_page(title, estimator.model_, estimator.encoding_, estimator.history_, settings, table)


def is_model(path: str) -> bool:
    """Whether a file begins as a saved model does.

    Raises:
        OSError: it cannot be read.
    """
    if path in SHIPPED:
        return False
    with Path(path).open("rb") as file:
        return file.read(len(ZIP)) == ZIP


def format_schema(frame: pd.DataFrame, schema: Schema) -> str:
    """The schema as text, one line a column."""
    width = max(6, *(len(_name(name)) for name in schema.names))
    lines = [f"{'column':{width}}  {'kind':11}  {'likelihood':17}  missing  labels"]
    for column in schema:
        missing = frame[column.name].isna().mean() if column.name in frame else 0.0
        labels = ", ".join(_name(label) for label in (column.labels or ())[:6])
        more = ", ..." if len(column.labels or ()) > 6 else ""
        kind = f"{column.kind:11}  {column.likelihood_name:17}"
        line = f"{_name(column.name):{width}}  {kind}  {missing:7.1%}  {labels}{more}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def format_errors(evaluation: Evaluation) -> str:
    """The test errors as text, one line a column."""
    width = max(6, *(len(_name(name)) for name in evaluation.errors))
    lines = [f"{'column':{width}}  test error"]
    lines += [f"{_name(name):{width}}  {error:10.4f}" for name, error in evaluation.errors.items()]
    return "\n".join([*lines, "-" * (width + 12), f"{'mean':{width}}  {evaluation.error:10.4f}"])


def _estimator() -> type[HeterogeneousVAE]:
    """Needs scikit-learn, which a report of a table does not."""
    from ..estimator.estimator import HeterogeneousVAE

    return HeterogeneousVAE


def _name(name: object) -> str:
    """A name or label on a line of the terminal."""
    return shortened(name, 40)


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")
