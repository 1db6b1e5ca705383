"""The report is one page that needs nothing else, says what the numbers say, and survives any table."""

import html
import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from html_reader import Page

from gradsurgery import ImpartialityBlock
from gradsurgery.integrations.vae import Evaluation, Schema, Table, fit
from gradsurgery.integrations.vae.models.registry import MODELS, ModelName
from gradsurgery.integrations.vae.report import Comparison, compare, comparison_page, model_page
from gradsurgery.integrations.vae.report.comparison import guess_errors, imbalance, stage_ends, steps_an_epoch
from gradsurgery.integrations.vae.report.conflicts import ConflictRecorder
from gradsurgery.integrations.vae.report.headline import headline, verdict
from gradsurgery.integrations.vae.report.schema_table import LABELS_WRITTEN, overriding
from gradsurgery.integrations.vae.tables.column import Column


@pytest.fixture(name="comparison", scope="module")
def _comparison(table: Table) -> Comparison:
    return compare(table, "people.csv", epochs=3, batch_size=32, seed=2)


def _awkward(columns: int, rows: int = 60) -> pd.DataFrame:
    """Long and hostile names, all kinds, a column that is all equal, one class, one that is nearly empty."""
    rng = np.random.default_rng(1)
    cells: dict[str, object] = {
        "<script>alert(1)</script>": np.where(rng.random(rows) < 0.5, '"><img src=x onerror=alert(2)>', "b & 'c'"),
        "a name that is very long, as exported by some survey tool (1990, weighted)": rng.normal(size=rows),
        "all equal": np.full(rows, 7.5),
        "one class": np.full(rows, "always"),
        "nearly empty": np.where(np.arange(rows) % 4, np.nan, rng.normal(size=rows)),
        "many labels": np.array([f"label number {k % 30}" for k in range(rows)]),
    }
    for k in range(columns - len(cells)):
        cells[f"c{k}"] = rng.poisson(3, rows) if k % 2 else np.exp(3 * rng.normal(size=rows))
    return pd.DataFrame(cells)


def test_both_trainings_differ_in_the_method_only(comparison: Comparison, table: Table) -> None:
    plain, surgery = comparison.arms
    assert torch.equal(plain.run.split.test, surgery.run.split.test)
    alone = fit(table, epochs=3, batch_size=32, seed=2)
    assert alone.evaluate().errors == pytest.approx(plain.evaluation.errors, rel=1e-3)
    assert plain.evaluation.errors != surgery.evaluation.errors
    heights = table.values[:, 0]
    wrong = heights[plain.run.split.test] - heights[plain.run.split.train].nanmean()
    assert comparison.guesses["height"] == pytest.approx(float(wrong.square().nanmean().sqrt() / table.ranges()[0]))
    first = [next(iter(arm.conflicts.values())) for arm in comparison.arms]
    assert [own.norms.shape for own in first] == [(3, 6), (3, 6)]
    torch.testing.assert_close(first[0].norms, first[0].pulls)  # the plain sum weighs nothing
    assert max(imbalance(first[1].pulls)) < min(imbalance(first[1].norms))


def test_the_page_is_whole_and_needs_nothing_else(comparison: Comparison) -> None:
    page = Page(comparison_page(comparison))
    assert not {"script", "img", "link", "iframe", "object"} & set(page.tags)
    links = [value for name, value in page.attributes if name in ("src", "href", "action", "data", "xlink:href")]
    assert links
    assert all(link.startswith("#") for link in links)
    anchors = {value for name, value in page.attributes if name == "id"}
    assert {link[1:] for link in links} == anchors
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    text = comparison_page(comparison)
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_it_is_the_same_every_time(comparison: Comparison, table: Table) -> None:
    again = compare(table, "people.csv", epochs=3, batch_size=32, seed=2)
    assert comparison_page(again) == comparison_page(comparison)


def test_every_column_has_its_numbers(comparison: Comparison) -> None:
    text = comparison_page(comparison)
    for column in comparison.table.schema:
        (row,) = re.findall(rf'<th scope="row">{column.name}<small>.*?</tr>', text)
        wanted = [comparison.guesses, *(arm.evaluation.errors for arm in comparison.arms)]
        assert [f"{own[column.name]:.3f}" for own in wanted] == re.findall(r'"number">([\d.]+)</td>', row)
        shares = re.findall(r'"number dim">([\d.<]+)%</td>', row)
        assert len(shares) == 2
    for arm in comparison.arms:
        assert f"{arm.evaluation.error:.3f}" in text
        assert f"{arm.run.best_epoch + 1} ({arm.label})" in text
    assert text.count('<svg class="map') == 6  # three stages of two trainings
    assert text.count("<figcaption>visits <small>count") == 2
    for settled in ("people.csv", "168 train, 24 validation, 48 test", torch.__version__, pd.__version__):
        assert settled in text


def _with_errors(comparison: Comparison, before: list[float], after: list[float]) -> Comparison:
    names = comparison.table.schema.names
    plain, surgery = (
        replace(arm, evaluation=Evaluation(dict(zip(names, errors, strict=True)), {}))
        for arm, errors in zip(comparison.arms, (before, after), strict=True)
    )
    return replace(comparison, plain=plain, surgery=surgery)


def test_the_headline_says_what_got_worse(comparison: Comparison) -> None:
    mixed = _with_errors(comparison, [0.4, 0.4, 0.1, 0.2, 0.2, math.nan], [0.1, 0.3, 0.15, 0.2004, 0.2, 0.1])
    found = verdict(mixed)
    assert [name for name, _ in found.better] == ["height", "income"]
    assert found.worse == [("visits", pytest.approx(0.05))]
    assert [name for name, _ in found.same] == ["smokes", "region"]
    text = headline(mixed)
    assert "lowers the mean test error by" in text
    assert "got worse: visits (+0.050)" in text
    assert "2 <span>of 5</span>" in text
    worse = headline(_with_errors(comparison, [0.1] * 6, [0.2] * 6))
    assert "<strong>raises</strong> the mean test error" in worse
    assert "Worse: height (+0.100)" in worse
    assert "leaves the mean test error as it is" in headline(_with_errors(comparison, [0.1] * 6, [0.1] * 6))
    assert "No column got worse." in headline(_with_errors(comparison, [0.3] * 6, [0.1] * 6))


def test_a_worse_mean_is_no_price(comparison: Comparison) -> None:
    text = headline(_with_errors(comparison, [0.3, 0.1, 0.1, 0.1, 0.1, 0.1], [0.2, 0.5, 0.1, 0.1, 0.1, 0.1]))
    assert "<strong>raises</strong> the mean test error" in text
    assert "Worse: income (+0.400)" in text
    assert "pays" not in text


def test_the_headline_says_who_only_guesses(comparison: Comparison) -> None:
    guessed = replace(comparison, guesses=dict.fromkeys(comparison.guesses, 0.25))
    assert "0 is perfect, guessing 0.250" in headline(guessed)
    assert "<strong>Neither model</strong> is better than guessing (0.250)" in headline(
        _with_errors(guessed, [0.4] * 6, [0.3] * 6)
    )
    assert "trained with plain sum is not better" in headline(_with_errors(guessed, [0.4] * 6, [0.1] * 6))
    assert "better than guessing" not in headline(_with_errors(guessed, [0.2] * 6, [0.1] * 6))


def test_silenced_columns_are_not_left_out_of_the_imbalance() -> None:
    found = imbalance(torch.tensor([[2.0, 0.0, math.nan], [2.0, 1.0, math.nan]]))
    assert found == [math.inf, 2.0]


def test_hostile_names_and_awkward_columns_are_harmless() -> None:
    frame = _awkward(9)
    text = comparison_page(compare(Table.from_frame(frame), "<b>&.csv", epochs=1, batch_size=20))
    page = Page(text)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert "b" not in page.tags
    said = "".join(page.text)
    assert "<script>alert(1)</script>" in said
    assert "<b>&.csv" in said
    assert "23 others" in said


def test_forty_columns_stay_below_a_megabyte() -> None:
    comparison = compare(Table.from_frame(_awkward(40)), epochs=3, batch_size=20)
    text = comparison_page(comparison)
    assert len(text.encode()) < 500_000
    assert "The numbers are those of the columns" in text
    Page(text)


def test_methods_without_weights_have_no_pulls(table: Table) -> None:
    text = comparison_page(compare(table, method="graddrop", epochs=1, batch_size=60))
    assert "GradDrop" in text
    assert "nan" not in "".join(Page(text).text)


@pytest.mark.parametrize("model", MODELS)
def test_every_block_of_a_model_has_its_maps(table: Table, model: ModelName) -> None:
    comparison = compare(table, model=model, epochs=1, batch_size=100)
    modules = comparison.plain.run.model.modules()
    blocks = sum(isinstance(module, ImpartialityBlock) for module in modules)
    assert blocks == (2 if model in ("dreg", "hivae") else 1)
    text = comparison_page(comparison)
    assert text.count('<svg class="map') == 2 * blocks
    said = {"dreg": "the pass that trains the decoder", "hivae": "the latent vector z"}.get(model, "")
    assert text.count(f", at {said}") == (3 if said else 0)  # whose pulls the numbers are: card, table and lines


def test_wrong_arguments(table: Table) -> None:
    with pytest.raises(ValueError, match="`method` must be other than the plain sum"):
        compare(table, method="sum")
    with pytest.raises(ValueError, match="compare: `model` must be among vae"):
        compare(table, model="gan")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="compare: `epochs` must be at least 1"):
        compare(table, epochs=0)


def test_a_model_has_a_page_with_and_without_a_table(table: Table) -> None:
    run = fit(table, epochs=1)
    settings = {"model": "vae <1>"}
    alone = Page(model_page("people.gsvae", run.model, run.encoding, run.history, settings))
    assert "Error of every column" not in "".join(alone.text)
    assert "vae <1>" in "".join(alone.text)
    beside = Page(model_page("people.gsvae", run.model, run.encoding, run.history, settings, table))
    assert "Error of every column" in "".join(beside.text)
    assert beside.tags.count("figure") == 2 * alone.tags.count("figure") == 12


def test_the_schema_on_the_page_can_be_read_again(table: Table) -> None:
    def written(schema: Schema) -> str:
        (found,) = re.findall(r"<details>.*?<pre>(.*?)</pre>", overriding(schema, "a b.csv"), re.DOTALL)
        return html.unescape(found)

    assert Schema.from_json(written(table.schema)) == table.schema
    assert "'a b.csv'" in html.unescape(overriding(table.schema, "a b.csv"))
    many = Schema([Column("town", "categorical", labels=[f"town {k}" for k in range(LABELS_WRITTEN + 1)])])
    assert Schema.from_json(written(many))["town"].classes == LABELS_WRITTEN + 1
    assert "town 7" not in written(many)


def test_stages_cover_the_training() -> None:
    assert stage_ends(1) == (1,)
    assert stage_ends(2000)[0] == 1
    assert stage_ends(2000)[-1] == 2000


@pytest.mark.parametrize(("batch_size", "steps"), [(60, 3), (167, 1), (168, 1), (1000, 1)])
def test_steps_are_counted_as_they_are_taken(table: Table, batch_size: int, steps: int) -> None:
    """Of 168 training rows; a last batch of one row joins the one before it."""
    assert steps_an_epoch(table, batch_size, 0) == steps
    (recorder,) = (
        module
        for module in compare(table, epochs=1, batch_size=batch_size).plain.run.model.modules()
        if isinstance(module, ConflictRecorder)
    )
    assert int(recorder.calls) == steps


def test_guesses_are_means_and_modes() -> None:
    frame = pd.DataFrame({"x": [0.0, 1.0, 2.0, 3.0, 14.0] * 4, "c": ["a", "b", "b", "b", "a"] * 4})
    table = Table.from_frame(frame, Schema.infer(frame, kinds={"x": "real"}))
    rows, source = torch.tensor([0, 1]), torch.tensor([1, 2, 3])  # mean 2, mode b
    found = guess_errors(table, rows, source)
    assert found["x"] == pytest.approx(math.sqrt((4 + 1) / 2) / 14)
    assert found["c"] == pytest.approx(0.5)
