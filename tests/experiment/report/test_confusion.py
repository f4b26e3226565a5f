"""What a model confuses, from what it predicts."""

from pathlib import Path

import pytest
import torch

import data
from data.decoding import preprocessing
from experiment.report import confusion
from quant import Predictions

CLASSES = ["cat", "dog", "owl"]


def predictions(labels: list[int], **models: list[tuple[int, float]]) -> Predictions:
    """models: (class, probability) of each image."""
    return Predictions(
        torch.tensor(labels, dtype=torch.int64),
        {name: torch.tensor([c for c, _ in found], dtype=torch.int64) for name, found in models.items()},
        {name: torch.tensor([p for _, p in found]) for name, found in models.items()},
    )


def images(count: int) -> data.Images:
    return data.Images(torch.zeros(count, 4, 4, 3, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64))


LABELS = [0, 0, 0, 1, 1]
FLOAT = [(0, 0.9), (0, 0.6), (1, 0.8), (1, 0.7), (0, 0.5)]
SIMULATED = [(0, 0.9), (1, 0.75), (1, 0.85), (1, 0.7), (1, 0.5)]
"""Of two images another class than in float: the second is wrong now, the last is right now."""


def found(**more: list[tuple[int, float]]) -> dict:
    made = predictions(LABELS, float=FLOAT, simulated=SIMULATED, **more)
    return confusion.tables(made, [torch.arange(3), torch.arange(3, 5)], images(5), CLASSES)


def test_each_class_has_its_accuracy_and_its_images():
    cat, dog, owl = found()["by_class"]
    assert cat == {"class": "cat", "images": 3, "top1": {"float": 66.6667, "simulated": 33.3333}}
    assert dog == {"class": "dog", "images": 2, "top1": {"float": 50.0, "simulated": 100.0}}
    assert owl == {"class": "owl", "images": 0, "top1": {"float": None, "simulated": None}}


def test_the_pairs_are_mistakes_alone_the_most_frequent_first():
    assert found()["confusion"] == {
        "float": {"cells": [["cat", "dog", 1], ["dog", "cat", 1]], "cells_left_out": 0},
        "simulated": {"cells": [["cat", "dog", 2]], "cells_left_out": 0},
    }


def test_an_engine_that_predicts_the_same_has_no_entry():
    models = found(same=SIMULATED, other=FLOAT)
    assert list(models["confusion"]) == list(models["by_class"][0]["top1"]) == ["float", "simulated", "other"]


def test_the_most_confident_mistakes_come_first():
    assert found()["mistakes"] == {
        "model": "simulated",
        "images": [
            {"index": 2, "label": "cat", "predicted": "dog", "probability": 0.85},
            {"index": 1, "label": "cat", "predicted": "dog", "probability": 0.75},
        ],
    }


def test_what_quantization_changed():
    changed = found()["changed_by_quantization"]
    assert (changed["count"], changed["to_right"], changed["to_wrong"]) == (2, 1, 1)
    assert changed["images"][0] == {
        **{"index": 1, "label": "cat"},
        **{"float": "cat", "float_probability": 0.6, "simulated": "dog", "simulated_probability": 0.75},
    }
    assert changed["images"][1]["index"] == 4


@pytest.mark.parametrize("name", ["float", "simulated"])
def test_one_model_alone_changes_nothing(name):
    alone = confusion.tables(predictions(LABELS, **{name: FLOAT}), [torch.arange(5)], images(5), CLASSES)
    assert "changed_by_quantization" not in alone
    assert alone["mistakes"]["model"] == name


@pytest.mark.parametrize("in_memory", [True, False])
def test_names_do_not_shift_where_an_image_was_left_out(in_memory):
    files = data.Files([Path(f"{i}.png") for i in range(6)], torch.zeros(6, dtype=torch.int64), preprocessing(32))
    read = torch.tensor([0, 1, 3, 4, 5])
    holder = data.Images(torch.zeros(6, 4, 4, 3, dtype=torch.uint8), files.labels, files) if in_memory else files
    tables = confusion.tables(predictions(LABELS, simulated=SIMULATED), [read[:2], read[2:]], holder, CLASSES)
    assert [(one["index"], one["path"]) for one in tables["mistakes"]["images"]] == [(3, "3.png"), (1, "1.png")]


def test_names_of_files_are_printable():
    files = data.Files([Path("a\x1b[31m\udce9.png")], torch.zeros(1, dtype=torch.int64), preprocessing(32))
    tables = confusion.tables(predictions([0], simulated=[(1, 0.5)]), [torch.arange(1)], files, CLASSES)
    assert tables["mistakes"]["images"][0]["path"] == r"a\x1b[31m\xe9.png"


def test_of_many_classes_the_largest_cells_are_kept(monkeypatch):
    monkeypatch.setattr(confusion, "MOST_CELLS", 3)
    labels = torch.arange(50)
    once = Predictions(labels, {"simulated": (labels + 1) % 50}, {"simulated": torch.ones(50)})
    cells = confusion.tables(once, [torch.arange(50)], images(50), [str(i) for i in range(50)])["confusion"]
    assert len(cells["simulated"]["cells"]) == 3
    assert cells["simulated"]["cells_left_out"] == 47


def test_no_images_are_no_error():
    nothing = confusion.tables(predictions([], float=[], simulated=[]), [], images(0), CLASSES)
    assert nothing["mistakes"]["images"] == []
    assert nothing["changed_by_quantization"]["count"] == 0
