"""Charts in a page: what they show, and that what is in them is text."""

import re
import xml.etree.ElementTree as ElementTree

from experiment.report import charts
from experiment.report.charts import Point

HOSTILE = "$\\frac{$</text><script>alert(1)</script>"


def row(epoch: int, stage: str = "lsq", **more: float) -> dict:
    return {"epoch": epoch, "stage": stage, "train_loss": 1.0, "train_top1": 50.0} | more


def texts(svg: str) -> set[str]:
    return {text.text for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")}


def test_training_and_validation_are_curves():
    loss, top1 = charts.curves(
        {"": [row(1, "float", val_loss=2.0, val_top1=40.0), row(2, val_loss=1.5, val_top1=60.0)]}
    )
    assert {"cross-entropy", "training", "validation", "float epochs"} <= texts(loss)
    assert {"top-1 accuracy, %", "training", "validation"} <= texts(top1)


def test_without_validation_images_there_is_one_curve():
    loss, _ = charts.curves({"": [row(1), row(2)]})
    assert "training" in texts(loss)
    assert not {"validation", "float epochs"} & texts(loss)
    assert charts.curves({"": []}) == charts.curves({}) == []


def test_epochs_are_whole_numbers():
    _, top1 = charts.curves({"": [row(1)]})  # at 50 %
    assert "1" in texts(top1)
    assert not [text for text in texts(top1) if text.startswith(("0.", "1."))]


def test_several_runs_have_a_curve_each():
    runs = {"first": [row(1, val_loss=1.0, val_top1=9.0)], HOSTILE: [row(1), row(2)], "untrained": []}
    loss, _ = charts.curves(runs)
    assert {"first", f"{charts.short(HOSTILE)} (training)"} <= texts(loss)
    assert "untrained" not in texts(loss)


def test_names_are_text_and_no_mathematics():
    svg = charts.accuracy_against_size([Point(HOSTILE, 1.0, 90.0)])
    assert charts.short(HOSTILE) in texts(svg)
    assert "<script" not in svg


def test_points_at_one_place_have_both_names_below_each_other():
    shown = charts.accuracy_against_size([Point("first", 1.0, 90.0), Point("second", 1.0, 90.0)])
    assert {"first", "second"} <= texts(shown)
    tags = re.findall(r"<text[^>]*>(?=first|second)", shown)
    assert len({re.search(r"translate\([\d.]+ ([\d.]+)\)", tag)[1] for tag in tags}) == 2


def test_of_many_points_those_on_the_front_are_named():
    points = [Point(f"p{i}", 1.0 + i, 50.0 + i if i % 2 else 50.0 - i) for i in range(20)]
    named = {text for text in texts(charts.accuracy_against_size(points)) if text.startswith("p")}
    assert named == {"p0", *(f"p{i}" for i in range(1, 20, 2))}
    assert charts.accuracy_against_size([]) == ""


def test_charts_take_the_colour_of_the_page_and_share_no_ids():
    one, other = charts.curves({"": [row(1), row(2)]})
    assert "currentColor" in one
    assert charts.INK not in one
    assert "<style" not in one, "it would be for the whole page"
    ids = [set(re.findall(r'\bid="([^"]*)"', svg)) for svg in (one, other)]
    assert ids[0]
    assert not ids[0] & ids[1]
    references = set(re.findall(r'(?:url\(|href=")#([^")]*)', one))
    assert references
    assert references <= ids[0]


def test_the_same_values_make_the_same_chart():
    rows = {"": [row(1), row(2)]}
    assert charts.curves(rows) == charts.curves(rows)


def test_long_names_are_shortened_in_the_middle():
    assert charts.short("a" * 10) == "a" * 10
    assert charts.short("a" * 30 + "b" * 30) == "a" * 18 + "…" + "b" * 17
