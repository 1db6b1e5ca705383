"""Trains the same model on one table with several methods and compares them column by column."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gradsurgery.whole_file import write_whole

from ..json_values import as_json
from ..report.figures import draw_comparison, save_figure
from ..stacked.medians import MedianEvaluation
from ..stacked.single import fit
from ..stacked.training import fit_seeds
from ..tables.schema import Schema
from ..tables.table import Table
from ..training.evaluation import Evaluation
from ..training.methods import build_method
from ..training.run import Run
from .tables import read_table


def compare(options: argparse.Namespace) -> None:
    """Trains with each method, prints errors and log-likelihoods, writes numbers and a figure."""
    out = Path(options.out or f"runs/vae/{short_name(options.table)}")
    schema = Schema.load(options.schema) if options.schema else None
    table = Table.from_frame(read_table(options.table, options.drop), schema)
    out.mkdir(parents=True, exist_ok=True)  # now rather than after the training
    print(f"{options.table}: {len(table)} rows, {len(table.schema)} columns")
    runs, seconds = train_all(table, options)
    evaluations = {name: evaluate(own, options) for name, own in runs.items()}
    print(format_comparison(table.schema, evaluations))
    text = json.dumps(
        as_json(summarise(runs, evaluations, seconds, options)), indent=1, ensure_ascii=False, allow_nan=False
    )
    _write(runs, text, options, out)


def _write(runs: Mapping[str, Sequence[Run]], text: str, options: argparse.Namespace, out: Path) -> None:
    """Writes the numbers and, where matplotlib is there, the figure."""
    write_whole(out / "results.json", lambda file: file.write_text(text + "\n", encoding="utf-8"))
    print(f"numbers: {out / 'results.json'}")
    which = f" (seed {options.seed})" if options.seeds else ""
    title = f"{short_name(options.table)}: one {options.model.upper()}, {' against '.join(runs)}{which}"
    try:
        figure = draw_comparison({name: own[0] for name, own in runs.items()}, title)
    except ImportError as error:
        print(f"no figure: {error}", file=sys.stderr)
        return
    save_figure(figure, out / "figure.png")
    print(f"figure:  {out / 'figure.png'}")


def train_all(table: Table, options: argparse.Namespace) -> tuple[dict[str, list[Run]], dict[str, float]]:
    """The runs of each method, one a seed, and how many seconds each method took."""
    runs: dict[str, list[Run]] = {}
    seconds: dict[str, float] = {}
    width = max(len(name) for name in options.methods)
    for name in dict.fromkeys(options.methods):
        start = time.perf_counter()
        runs[name] = train(table, name, options, f"{name:>{width}}")
        seconds[name] = time.perf_counter() - start
    return runs, seconds


def train(table: Table, name: str, options: argparse.Namespace, title: str) -> list[Run]:
    """The runs of one method: with ``--seeds`` all seeds together, else one."""
    shared: dict[str, Any] = {name: getattr(options, name) for name in ("model", "epochs", "batch_size")}
    shared |= {"progress": not options.quiet, "title": title}
    if options.seeds is None:
        return [fit(table, build_method(name, options.seed), seed=options.seed, **shared)]
    seeds = range(options.seed, options.seed + options.seeds)
    return fit_seeds(table, partial(build_method, name), seeds=seeds, **shared)


def evaluate(runs: Sequence[Run], options: argparse.Namespace) -> Evaluation:
    """The test rows of one run, or with ``--seeds`` medians over the runs."""
    evaluations = [run.evaluate() for run in runs]
    return evaluations[0] if options.seeds is None else MedianEvaluation.of(evaluations)


def short_name(table: str) -> str:
    """What the outputs of a table are called; with its folder, since many files are called data.csv.

    Example:
        >>> short_name("randhie"), short_name("tables/wine/data.csv")
        ('randhie', 'wine-data')
    """
    path = Path(table)
    return "-".join(part for part in (path.parent.name, path.stem) if part)


def format_comparison(schema: Schema, evaluations: Mapping[str, Evaluation]) -> str:
    """Errors and log-likelihoods of the test rows as text, one line a column."""
    width = max(8, *(len(name) for name in (*schema.names, "column")))
    cell = max(8, *(len(name) for name in evaluations))
    group = len(evaluations) * (cell + 2)
    titles = "".join(f"  {name:>{cell}}" for name in evaluations)
    lines = [
        f"{'':{width}}  {'':11}{'test error':>{group}}{'log-likelihood':>{group + 2}}",
        f"{'column':{width}}  {'kind':11}{titles}  {titles}",
    ]
    for column in schema:
        errors = "".join(f"  {e.errors[column.name]:>{cell}.4f}" for e in evaluations.values())
        likelihoods = "".join(f"  {e.log_likelihoods[column.name]:>{cell}.3f}" for e in evaluations.values())
        lines.append(f"{column.name:{width}}  {column.kind:11}{errors}  {likelihoods}")
    errors = "".join(f"  {e.error:>{cell}.4f}" for e in evaluations.values())
    likelihoods = "".join(f"  {e.log_likelihood:>{cell}.3f}" for e in evaluations.values())
    rule = "-" * len(lines[1])
    return "\n".join([*lines, rule, f"{'mean':{width}}  {'':11}{errors}  {likelihoods}"])


def summarise(
    runs: Mapping[str, Sequence[Run]],
    evaluations: Mapping[str, Evaluation],
    seconds: Mapping[str, float],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Everything worth keeping about the runs."""
    table = next(iter(runs.values()))[0].table
    return {
        "table": options.table,
        "rows": len(table),
        "schema": json.loads(table.schema.to_json()),
        "settings": {
            "model": options.model,
            "epochs": options.epochs,
            "batch_size": options.batch_size,
            "seed": options.seed,
            **({} if options.seeds is None else {"seeds": options.seeds}),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        },
        "methods": {name: _summarise_method(own, evaluations[name], seconds[name]) for name, own in runs.items()},
    }


def _summarise_method(runs: Sequence[Run], evaluation: Evaluation, seconds: float) -> dict[str, Any]:
    """Of several seeds, their medians and each one's numbers, in the order of the seeds."""
    taken = {"seconds": round(seconds, 2)}
    if not isinstance(evaluation, MedianEvaluation):
        return {**_figures(evaluation), "best_epoch": runs[0].best_epoch, **taken, **_history(runs[0])}
    seeds = [
        {**_figures(own), "best_epoch": run.best_epoch, **_history(run)}
        for run, own in zip(runs, evaluation.seeds, strict=True)
    ]
    return {**_figures(evaluation), **taken, "seeds": seeds}


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "error": evaluation.error,
        "log_likelihood": evaluation.log_likelihood,
        "errors": dict(evaluation.errors),
        "log_likelihoods": dict(evaluation.log_likelihoods),
    }


def _history(run: Run) -> dict[str, Any]:
    return {
        "losses": [epoch.loss for epoch in run.history],
        "validation_errors": [epoch.validation_error for epoch in run.history],
    }
