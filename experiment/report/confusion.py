"""What a model confuses, as values for summary.json and evaluation.json.

    by_class                 [{"class", "images", "top1": {model: percent, or None of a class without images}}]
    confusion                {model: {"cells": [[label, predicted, images], ...], "cells_left_out"}}, mistakes alone,
                             the most frequent first
    mistakes                 {"model", "images": [...]}, the most confident first
    changed_by_quantization  {"count", "to_right", "to_wrong", "images": [...]}, where the float model was measured:
                             images of which the simulation predicts another class, the most confident in float first

A model is "float", "simulated" or an engine. An engine that predicts what the simulation does has no entry of its own.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

import data
from quant import Predictions
from utils.names import plain_name

MOST_CELLS, MOST_MISTAKES, MOST_CHANGED = 1000, 20, 500


def tables(found: Predictions, seen: list[Tensor], images: data.Images | data.Files, classes: list[str]) -> dict:
    """The values that this module describes. seen: which of the images each batch had (data.batches.Batches)."""
    index = torch.cat([torch.empty(0, dtype=torch.int64), *seen])
    models = _told_apart(found)
    tables = {
        "by_class": _by_class(found, models, classes),
        "confusion": {name: _cells(found.labels, found.predicted[name], classes) for name in models},
    }
    if models:
        judged = judged_model(models)
        wrong = _most_confident(found, judged, found.predicted[judged] != found.labels, MOST_MISTAKES)
        told = _told(found, wrong, {judged: ("predicted", "probability")}, index, images, classes)
        tables["mistakes"] = {"model": judged, "images": list(told)}
    if {"float", "simulated"} <= set(models):
        tables["changed_by_quantization"] = _changed(found, index, images, classes)
    return tables


def judged_model(models: list[str]) -> str:
    """Whose mistakes count: the simulation's, or those in float of what has no quantizers."""
    return "simulated" if "simulated" in models else models[0]


def _told_apart(found: Predictions) -> list[str]:
    """The models without the engines that predict what the simulation does."""
    simulated = found.predicted.get("simulated")
    return [
        name
        for name, predicted in found.predicted.items()
        if name in ("float", "simulated") or simulated is None or not torch.equal(predicted, simulated)
    ]


def _by_class(found: Predictions, models: list[str], classes: list[str]) -> list[dict]:
    images = torch.bincount(found.labels, minlength=len(classes)).tolist()
    right = {
        name: torch.bincount(found.labels[found.predicted[name] == found.labels], minlength=len(classes)).tolist()
        for name in models
    }
    return [
        {
            "class": name,
            "images": count,
            "top1": {model: round(100 * right[model][i] / count, 4) if count else None for model in models},
        }
        for i, (name, count) in enumerate(zip(classes, images, strict=True))
    ]


def _cells(labels: Tensor, predicted: Tensor, classes: list[str]) -> dict:
    wrong, n = labels != predicted, len(classes)
    pairs, counts = (labels[wrong] * n + predicted[wrong]).unique(return_counts=True)
    order = counts.sort(descending=True, stable=True).indices
    cells = zip(pairs[order][:MOST_CELLS].tolist(), counts[order][:MOST_CELLS].tolist(), strict=True)
    return {
        "cells": [[classes[pair // n], classes[pair % n], count] for pair, count in cells],
        "cells_left_out": max(0, len(pairs) - MOST_CELLS),
    }


def _changed(found: Predictions, index: Tensor, images: data.Images | data.Files, classes: list[str]) -> dict:
    before, after = found.predicted["float"], found.predicted["simulated"]
    changed = _most_confident(found, "float", before != after, len(after))
    columns = {"float": ("float", "float_probability"), "simulated": ("simulated", "simulated_probability")}
    return {
        "count": len(changed),
        "to_right": int((after == found.labels)[changed].sum()),
        "to_wrong": int((before == found.labels)[changed].sum()),
        "images": list(_told(found, changed[:MOST_CHANGED], columns, index, images, classes)),
    }


def _most_confident(found: Predictions, model: str, where: Tensor, most: int) -> Tensor:
    """Positions of up to `most` images for which `where` holds, those first of which the model is most sure."""
    at = where.nonzero()[:, 0]
    return at[found.probability[model][at].sort(descending=True, stable=True).indices[:most]]


def _told(
    found: Predictions,
    positions: Tensor,
    columns: dict[str, tuple[str, str]],
    index: Tensor,
    images: data.Images | data.Files,
    classes: list[str],
) -> Iterator[dict]:
    """A dict for each position. columns: {model: (key of its class, key of that class's probability)}."""
    files = images if isinstance(images, data.Files) else images.source
    for at, number in zip(positions.tolist(), index[positions].tolist(), strict=True):
        told = {"index": number} | ({"path": plain_name(str(files.paths[number]))} if files else {})
        told["label"] = classes[int(found.labels[at])]
        for model, (predicted, probability) in columns.items():
            told[predicted] = classes[int(found.predicted[model][at])]
            told[probability] = round(float(found.probability[model][at]), 4)
        yield told
