"""What the Space shows: progress by stage, pictures, tables; whatever came from outside is escaped."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import charts
import gallery
import pytest
import views
from inspection import inspect
from jobs import DONE, Job, Visitor
from limits import Limits
from orders import Order
from timeline import read_timeline

from hf_mamba_prune import Progress, PruningReport

REPORTS = Path(__file__).parents[2] / "model_cards"
EVIL = '<img src=x onerror="alert(1)">'


@pytest.fixture
def report() -> PruningReport:
    """Of a real run."""
    return next(iter(gallery.read_reports().values()))


def steps(stage: str, total: int, **values: float) -> list[tuple[float, Progress]]:
    return [(float(i), Progress(stage=stage, done=i, total=total, values=values)) for i in range(total + 1)]


def test_a_quick_run_goes_through_its_stages_in_order():
    order = Order()
    said = steps("evaluate", 2, perplexity=159.5) + steps("calibrate", 4, loss=5.1) + steps("prune", 8, sparsity=0.7)
    seen, shares = [], []
    for i in range(1, len(said) + 1):
        timeline = read_timeline(order, said[:i])
        seen.append(timeline.stage)
        shares.append(timeline.share)
    assert list(dict.fromkeys(seen)) == ["dense", "prune"]
    assert timeline.stages == ("dense", "prune", "pruned", "speed")
    assert shares == sorted(shares) and shares[-1] < 1
    end = read_timeline(order, said + steps("evaluate", 2) + steps("measure speed", 3))
    assert (end.stage, end.share) == ("speed", 1.0)
    assert end.perplexity == 159.5
    assert end.sparsity[-1][1] == 0.7 and end.loss[0][1] == 5.1


@pytest.mark.parametrize(
    "recipe, stages",
    [
        ("quick", ("dense", "prune", "pruned", "speed")),
        ("standard", ("dense", "prune", "recover", "pruned", "speed")),
        ("paper", ("dense", "recover", "pruned", "speed")),
    ],
)
def test_each_recipe_has_its_stages(recipe, stages):
    assert read_timeline(Order(recipe=recipe), []).stages == stages


@pytest.mark.parametrize("points", [[], [(0.0, 0.5)], [(0.0, 0.0), (3.0, 0.7), (9.0, 2.5)]])
def test_a_line_chart_is_a_picture_with_a_text_for_those_who_do_not_see_it(points):
    picture = ElementTree.fromstring(charts.line_chart(EVIL, points, ".2f", 0, 1, 9))
    assert picture.get("role") == "img" and picture.get("aria-label").startswith(EVIL)
    circles = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in picture.iter("circle")]
    assert len(circles) == len(points)
    assert all(0 <= x <= charts.WIDTH and 0 <= y <= charts.HEIGHT for x, y in circles)


def test_a_scatter_escapes_names_and_stays_inside():
    picture = ElementTree.fromstring(charts.scatter("t", "x", "y", [(EVIL, 0.0, 5.0), ("b", 9.0, 1.0)]))
    assert EVIL in [text.text for text in picture.iter("text")]
    assert all(0 <= float(dot.get("cx")) <= 640 and 0 <= float(dot.get("cy")) <= 300 for dot in picture.iter("circle"))


def test_facts_of_a_model_that_fits_and_of_one_that_does_not():
    fits, too_big = (views.facts(inspect(Order(), Limits(memory_gb=gb))) for gb in (8, 0.01))
    assert "2.80 M" in fits and "in_proj" in fits and "does not fit" not in fits
    assert "does not fit here: it needs about" in too_big and "Hugging Face Job" in too_big


def test_notices_are_escaped():
    assert EVIL not in views.notice(EVIL)
    assert views.notice("") == ""


def test_a_result_shows_the_numbers_of_its_report(report, tmp_path):
    job = Job(Visitor("anne", ""), tmp_path, len, (Order(),), state=DONE, result=report.to_dict())
    (tmp_path / "model.zip").write_bytes(bytes(2_000_000))
    shown = views.result(report, job)
    assert f"{report.before[0].perplexity:,.1f}" in shown and f"{report.after[0].perplexity:,.1f}" in shown
    assert f"{report.speeds[-1].decode_tokens_per_second:,.0f}" in shown
    heat = ElementTree.fromstring(views.heat_map(report))
    assert len(list(heat.iter("tr"))) == 1 + len({target.layer for target in report.sparsity.targets})
    link = ElementTree.fromstring(views.download(job))
    assert link.get("href") == f"result/{job.id}.zip" and "2.0 MB" in link.text


def test_the_gallery_shows_every_committed_report():
    shown = gallery.read_reports()
    assert set(shown) == {path.parent.name for path in REPORTS.glob("*/report.json")}
    rows = gallery.rows(shown)
    assert [len(row) for row in rows] == [len(gallery.COLUMNS)] * len(shown)
    for name, row in zip(shown, rows, strict=True):
        assert row[3] / row[2] == pytest.approx(row[4], abs=0.002), name
    by_name = {row[0]: row[-1] for row in rows}
    assert by_name["mamba-wiki-3m-pruned-70"] == "reconstruction + 120 steps"
    assert by_name["mamba-wiki-4m-2.5-bits"] == "2.50 bits"  # rounding repairs by itself
    assert "<svg" in gallery.picture(shown)
