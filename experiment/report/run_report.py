"""The page of one run or of one evaluation: what was trained on what, its accuracy, and what it confuses."""

from dataclasses import dataclass
from pathlib import Path

import data
from experiment import datasets
from experiment.report import charts, html
from experiment.report.accuracy_table import columns
from experiment.report.confusion import judged_model
from experiment.report.thumbnails import thumbnails
from experiment.settings import TrainSettings
from quant import QuantSettings
from utils import files
from utils.environment import environment
from utils.names import plain_name
from utils.sections import FLOAT_BITS

MOST_PICTURES = 12
"""Thumbnails of mistakes, and as many of images that changed their class."""
MOST_CLASSES = 20
"""With more, the classes that are confused most are listed instead of the whole matrix."""
MOST_PAIRS = 40


@dataclass(frozen=True)
class Layers:
    """The layer table of an engine: quant.Measurement.layer_records."""

    engine: str
    records: list[dict]


@dataclass(frozen=True)
class Contents:
    """What a page shows.

    summary: what summary.json or evaluation.json holds. rows: of metrics.csv.
    sensitivity: of quant.sensitivity, or None.
    """

    title: str
    settings: TrainSettings
    dataset: data.Dataset
    summary: dict
    rows: list[dict]
    layers: Layers
    sensitivity: dict | None = None


def write(contents: Contents, path: Path) -> None:
    """Write the page of a contents."""
    summary, size = contents.summary, contents.settings.data.image_size
    wrong, changed = _pictured(summary, "mistakes"), _pictured(summary, "changed_by_quantization")
    numbers = [one["index"] for one in (*wrong, *changed)]
    page = html.render(
        "run",
        title=contents.title,
        facts=facts(contents),
        accuracy=html.Table(*columns(summary)),
        notes=[*summary.get("failed", {}).values()],
        curves=charts.curves({"": contents.rows}),
        layers=layer_table(contents.layers.records, contents.sensitivity),
        engine=contents.layers.engine,
        sensitivity=sensitivity_table(contents.sensitivity),
        by_class=by_class(summary),
        confusions=[confusion(summary, model) for model in _judged_first(summary)],
        mistakes=wrong,
        judged=summary.get("mistakes", {}).get("model"),
        changes=summary.get("changed_by_quantization"),
        changed=changed,
        pictures=thumbnails(contents.dataset.test, numbers, size),
        environment=environment(),
        setting=contents.settings.model_dump_json(indent=2, exclude={"note"}),  # of the file, without the command line
    )
    files.write_text(path, page)


def facts(contents: Contents) -> dict[str, str]:
    """What was trained, on what and how, in lines."""
    s, found, dataset = contents.settings, contents.summary, contents.dataset
    names = ", ".join(dataset.names[:MOST_CLASSES]) + (", ..." if len(dataset.names) > MOST_CLASSES else "")
    epochs = f"{s.run.epochs} epoch{'s' * (s.run.epochs != 1)}"
    parts = {"training": dataset.train, "validation": dataset.val, "test": dataset.test}
    counts = ", ".join(f"{len(images):,} {name}" for name, images in parts.items() if images is not None)
    return {
        "model": f"{s.model.name}{_size(found)}",
        "dataset": _dataset(s.data),
        "classes": f"{len(dataset.classes)}: {names}",
        "images": f"{counts}; {datasets.description(s.data, dataset).removeprefix('images: ')}",
        "method": f"{s.quant.method}{_bits(s.quant, found)}",
        "training": f"{epochs}, {s.optim.name}, learning rate {s.optim.lr:g}{_minutes(found)}",
    }


def _dataset(d: data.DataSettings) -> str:
    """Its name, and the folder that it was read from if that was said."""
    root = getattr(d, "root", None)
    return f"{d.name}, {plain_name(str(root))}" if root else d.name


def _size(found: dict) -> str:
    sizes = {"params": "{:,} parameters", "macs": "{:,} multiply-accumulates an image"}
    return "".join(f", {text.format(found[key])}" for key, text in sizes.items() if key in found)


def _bits(spec: QuantSettings, found: dict) -> str:
    if "simulated" not in found["accuracy"]:
        return ""
    share = f"; {found['integer_macs_percent']:.1f} % of MACs in integers" if "integer_macs_percent" in found else ""
    return f", weights of {spec.weight_bits} bits, activations of {spec.act_bits}{share}"


def _minutes(found: dict) -> str:
    return f", {found['seconds'] / 60:.1f} minutes" if "seconds" in found else ""


def layer_table(layers: list[dict], measured: dict | None) -> html.Table | None:
    """The layers, with signal to noise where sensitivity was measured."""
    if not layers:
        return None
    noted = any(one["note"] for one in layers)
    known = {row["layer"]: row for row in (measured or {"rows": []})["rows"]}
    rows = [
        [
            *(one[key] for key in ("layer", "weight_bits", "input_bits", "output_bits")),
            f"{one['macs_percent']:.2f}" if one["macs_percent"] else "",
            *(_number(known.get(one["layer"], {}).get(f"{what}_sqnr_db"), 1) for what in ("weight", "input") if known),
            one["runs_on"],
            *([one["note"]] if noted else []),
        ]
        for one in layers
    ]
    signal = ["weights, dB", "input, dB"] if known else []
    header = ["layer", "weight bits", "input bits", "output bits", "MACs %", *signal, "runs on"]
    words = (0, len(header) - 1, len(header))
    return html.Table([*header, *(["note"] if noted else [])], rows, words, {4: _bars(layers, "macs_percent")})


def sensitivity_table(measured: dict | None) -> html.Table | None:
    """What each layer's quantization costs, the most harmful first."""
    if measured is None:
        return None
    rows = [
        [
            one["layer"],
            *("float" if one[key] == FLOAT_BITS else str(one[key]) for key in ("weight_bits", "input_bits")),
            f"{one['kl_divergence']:.5f}",
            f"{measured['float_top1'] - one['only_top1']:+.2f}",
            f"{one['all_but_top1'] - measured['all_top1']:+.2f}",
        ]
        for one in measured["rows"]
    ]
    header = [
        "layer",
        "weight bits",
        "input bits",
        "KL divergence",
        "lost, it alone quantized",
        "won, it alone in float",
    ]
    return html.Table(header, rows, bars={3: _bars(measured["rows"], "kl_divergence")})


def _bars(rows: list[dict], key: str) -> list[float]:
    most = max((row[key] for row in rows), default=0) or 1
    return [max(0.0, row[key] / most) for row in rows]


def by_class(summary: dict) -> html.Table | None:
    """Top-1 of each class for each model, and how many images it has."""
    rows = summary.get("by_class")
    if not rows:
        return None
    models = list(rows[0]["top1"])
    cells = [[row["class"], f"{row['images']:,}", *(_number(row["top1"][name]) for name in models)] for row in rows]
    return html.Table(["class", "images", *(f"{name}, top-1 %" for name in models)], cells)


def _judged_first(summary: dict) -> list[str]:
    models = list(summary.get("confusion", {}))
    return sorted(models, key=lambda name: name != judged_model(models))


@dataclass(frozen=True)
class Confusion:
    """What a model confuses: a matrix of (images, share of the label's images) or, of many classes, pairs alone."""

    model: str
    classes: list[str]
    matrix: list[list[tuple[int, float]]]
    pairs: html.Table


def confusion(summary: dict, model: str) -> Confusion:
    """Of one of the models of summary["confusion"]."""
    rows, found = summary["by_class"], summary["confusion"][model]
    images = {row["class"]: row["images"] for row in rows}
    worst = [[label, predicted, f"{n:,}", f"{100 * n / images[label]:.1f}"] for label, predicted, n in found["cells"]]
    pairs = html.Table(["is", "taken for", "images", "% of its images"], worst[:MOST_PAIRS], (0, 1))
    classes = [row["class"] for row in rows]
    if len(classes) > MOST_CLASSES:
        return Confusion(model, classes, [], pairs)
    counts = {(label, predicted): n for label, predicted, n in found["cells"]}
    counts |= {(row["class"],) * 2: round((row["top1"][model] or 0) * row["images"] / 100) for row in rows}
    matrix = [[(counts.get((a, b), 0), counts.get((a, b), 0) / max(images[a], 1)) for b in classes] for a in classes]
    return Confusion(model, classes, matrix, pairs)


def _pictured(summary: dict, key: str) -> list[dict]:
    return summary.get(key, {}).get("images", [])[:MOST_PICTURES]


def _number(value: float | None, places: int = 2) -> str:
    return "" if value is None else f"{value:.{places}f}"
