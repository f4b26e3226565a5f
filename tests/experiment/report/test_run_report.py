"""The page of a run: what it says, that names in it are text, and what a browser makes of it."""

import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import data
from experiment.report import confusion, run_report
from experiment.settings import TrainSettings, resolved
from quant import Predictions
from tests import browser

HOSTILE = "<script>alert(1)</script>"
NEEDS_BROWSER = pytest.mark.skipif(browser.path() is None, reason=f"none of {', '.join(browser.NAMES)} is installed")


class Contents(HTMLParser):
    """The tags of a page, and the text of each element that has some."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.sources: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data):
        self.texts += [data.strip()] if data.strip() else []


def noisy(labels: torch.Tensor, classes: int, share: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(len(labels), generator=generator) < share
    return torch.where(wrong, torch.randint(0, classes, labels.shape, generator=generator), labels)


def contents(count: int = 300, classes: int = 10, size: int = 16, **more) -> run_report.Contents:
    names = [HOSTILE, *(f"class {i}" for i in range(1, classes))]
    labels = torch.arange(count) % classes
    pixels = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8)
    dataset = data.Dataset(None, data.Images(pixels, labels), names, (0.5,) * 3, (0.25,) * 3, False)
    predicted = {name: noisy(labels, classes, share, i) for i, (name, share) in enumerate(SHARES.items())}
    found = Predictions(labels, predicted, {name: torch.rand(count) for name in predicted})
    score = {"top1": 90.0, "top5": 99.0, "loss": 0.5}
    result = {
        "accuracy": {"float": score | {"top1": 91.25}, "simulated": score, HOSTILE: score},
        "agreement": {HOSTILE: 99.5},
        "bit_equal": {HOSTILE: 42.0},
        "size_mb": {"float": 1.0, HOSTILE: 0.25},
        "size_mb_at_bits": 0.2,
        "failed": {"openvino": f"{HOSTILE} cannot run it"},
    }
    tables = confusion.tables(found, [torch.arange(count)], dataset.test, names)
    layers = run_report.Layers("x86", [LAYER | {"layer": HOSTILE}, LAYER])
    settings = resolved(TrainSettings.model_validate({"data": {"image_size": 16}, "note": HOSTILE}))
    return run_report.Contents(HOSTILE, settings, dataset, result | tables, ROWS, layers, **more)


SHARES = {"float": 0.1, "simulated": 0.2}
LAYER = {"layer": "conv1", "weight_bits": "4", "input_bits": "8", "output_bits": "8", "runs_on": "x86 vnni"}
LAYER |= {"note": "", "macs_percent": 12.5}
ROWS = [
    {"epoch": i, "stage": HOSTILE, "train_loss": 1 / i, "train_top1": 50.0, "val_loss": 1 / i, "val_top1": 40.0}
    for i in (1, 2, 3)
]
SENSITIVITY = {
    "float_top1": 91.0,
    "all_top1": 89.0,
    "rows": [
        {"layer": "conv1", "weight_bits": 4, "input_bits": 32, "weight_sqnr_db": 20.04, "input_sqnr_db": None}
        | {"only_top1": 90.5, "all_but_top1": 89.25, "kl_divergence": 0.125}
    ],
}


def written(folder: Path, **keys) -> str:
    run_report.write(contents(**keys), folder / "report.html")
    return (folder / "report.html").read_text()


def test_a_page_says_what_there_is_to_say(tmp_path):
    found = Contents(written(tmp_path))
    text = "\n".join(found.texts)
    for said in ("300 test; 16 x 16, 3 channel(s), mean 0.500 0.500 0.500", "91.25", "-1.25", "42.00", "0.250"):
        assert said in text, said
    for said in (
        "conv1",
        "x86 vnni",
        "12.50",
        "class 9",
        "cross-entropy",
        "validation",
        "cpu_flags",
        '"image_size": 16',
    ):
        assert any(said in one for one in found.texts), said
    assert found.tags.count("svg") == 2
    assert found.tags.count("img") == 24
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in found.sources)


def test_a_page_of_what_trained_nothing_and_was_not_quantized(tmp_path):
    plain = contents()
    summary = {key: plain.summary[key] for key in ("accuracy", "size_mb")}
    bare = run_report.Contents("bare", plain.settings, plain.dataset, summary, [], run_report.Layers("", []))
    run_report.write(bare, tmp_path / "report.html")
    assert "svg" not in Contents((tmp_path / "report.html").read_text()).tags


def test_a_page_names_the_folder_the_files_and_the_engine_and_no_note_of_a_setting_that_was_changed(tmp_path):
    (tmp_path / "photos/cat").mkdir(parents=True)
    plain = contents()
    section = {"name": "imagefolder", "root": str(tmp_path / "photos"), "image_size": 16}
    settings = resolved(TrainSettings.model_validate({"data": section, "note": "of another model"}))
    told = plain.summary["mistakes"]["images"][0] | {"path": "photos/cat/<b>1.png"}
    summary = plain.summary | {"mistakes": {"model": "simulated", "images": [told]}}
    one = run_report.Contents("one", settings, plain.dataset, summary, [], run_report.Layers("x86", [LAYER]))
    run_report.write(one, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    texts = Contents(page).texts
    assert f"imagefolder, {tmp_path}/photos" in texts
    assert "<b>1.png" in texts
    assert "On x86." in texts
    assert "of another model" not in page


def test_names_are_text(tmp_path):
    page = written(tmp_path)
    assert page.count("<script") == 1, "ours"
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 10


def test_sensitivity_is_a_table_and_gives_layers_their_noise(tmp_path):
    texts = Contents(written(tmp_path, sensitivity=SENSITIVITY)).texts
    assert {"0.12500", "+0.50", "+0.25", "20.0", "KL divergence", "weights, dB"} <= set(texts)
    assert "weights, dB" not in Contents(written(tmp_path)).texts


def test_the_matrix_has_every_image():
    summary = contents().summary
    found = run_report.confusion(summary, "simulated")
    assert sum(count for row in found.matrix for count, _ in row) == 300
    for row in found.matrix:
        assert sum(share for _, share in row) == pytest.approx(1)
    right = sum(found.matrix[i][i][0] for i in range(10))
    assert right == round(sum(row["images"] * row["top1"]["simulated"] / 100 for row in summary["by_class"]))


def test_of_many_classes_the_worst_pairs_are_listed(tmp_path):
    many = contents(2000, classes=40)
    found = run_report.confusion(many.summary, "simulated")
    assert found.matrix == []
    counts = [int(row[2]) for row in found.pairs.rows]
    assert len(counts) == run_report.MOST_PAIRS
    assert counts == sorted(counts, reverse=True)


def test_ten_thousand_images_of_a_thousand_classes_are_a_small_page(tmp_path):
    many = contents(10_000, classes=1000, size=64)
    run_report.write(many, tmp_path / "report.html")  # imports matplotlib
    began = time.process_time()
    run_report.write(many, tmp_path / "report.html")
    assert time.process_time() - began < 2
    assert (tmp_path / "report.html").stat().st_size < 2e6


@NEEDS_BROWSER
def test_a_browser_shows_it_without_a_complaint_at_any_width(tmp_path):
    written(tmp_path, sensitivity=SENSITIVITY)
    with browser.opened(tmp_path / "browser") as page:
        for width in (400, 1600):
            for dark in (False, True):
                page.open(tmp_path / "report.html", width, dark)
                assert page.complaints() == []
                assert page.requests() == [(tmp_path / "report.html").as_uri()]
                assert page.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
                assert page.run("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
                background = page.run("getComputedStyle(document.body).backgroundColor")
                ink = page.run("getComputedStyle(document.querySelector('svg text')).fill")
                assert (background, ink) == (("rgb(22, 24, 28)", "rgb(228, 231, 235)") if dark else LIGHT)


LIGHT = "rgb(255, 255, 255)", "rgb(28, 31, 36)"
