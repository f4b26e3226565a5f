"""Measure a checkpoint: float where it exists, simulated, and on every engine, side by side.

python evaluate.py checkpoint=runs/train/last.pt
python evaluate.py checkpoint=runs/train/best.pt 'engines=["fbgemm","qnnpack"]' data.limit=1000
python evaluate.py checkpoint=runs/train/last.pt sensitivity=true    # and which layers cost how much
python evaluate.py checkpoint=runs/train/last.pt export=my_model     # and write the integer model to take away
python evaluate.py checkpoint=runs/train/last.pt export=model.onnx   # as an ONNX file
python evaluate.py checkpoint=runs/train/last.pt export=model.npz    # as small as its bits
"""

import functools
from pathlib import Path

from torch import nn

import data
import models
import quant
from experiment.report import sensitivity_table
from setting.names import TABLES
from utils import config, files, memory
from utils.errors import UserError, choose, run
from utils.runs import checkpoint, tensor_file

FILES = {".onnx": quant.export_onnx, ".npz": quant.export_packed}
"""What writes a single file, by the ending of its name; any other name is a folder's."""


def main(arguments: list[str]) -> None:
    options = config.parser(__doc__, "setting/evaluate.json", TABLES).parse_intermixed_args(arguments)
    if options.list:
        print("\n".join(TABLES[options.list]))
        return
    settings = config.load(config.EvaluateSettings, options.config, options.overrides)
    with config.blame(options.config):
        for name in settings.engines:
            quant.engine(name, "engines")
        tensor_file.check_exists(settings.checkpoint)
        if settings.export and Path(settings.export).suffix == ".onnx":
            quant.check_onnx("export")
    if options.print_config:
        print(settings.model_dump_json(indent=2))
        return
    evaluate(settings)


def evaluate(settings: config.EvaluateSettings) -> None:
    check_trusted = functools.partial(models.check_trusted, trust=settings.trust)
    model, state, trained = checkpoint.rebuild(settings.checkpoint, models.build, quant.prepare, check_trusted)
    for key in ("export", "sensitivity"):
        if getattr(settings, key) and not state["prepared"]:
            raise UserError(f"{key}: {settings.checkpoint} is a float model: nothing is quantized")
    if settings.sensitivity and quant.METHODS[trained.quant.method].rescales(trained.quant):
        raise UserError(
            f"sensitivity: {trained.quant.method}'s weights are on a scale of their own, which batch norm has learned: "
            "with quantizers off it is no net to compare with"
        )
    d = config.check(config.DataSettings, trained.data.model_dump() | settings.data, "data")
    choose(data.DATASETS, d.name, "data.name")
    models.check_output(model.eval(), trained.model.name, len(state["classes"]), d.image_size)
    folder = files.make_folder(Path(settings.output or Path(settings.checkpoint).parent), "output")
    if settings.export:
        target = Path(settings.export)
        if target.suffix in FILES and target.is_dir():
            raise UserError(f"export: {target} is a folder, and {target.suffix} a file's ending")
        files.make_folder(target.parent if target.suffix in FILES else target, "export")
    dataset = data.DATASETS[d.name](d.root, d.image_size, d.limit, d.workers, False, d.on_error, d.cache)
    data.check_classes(dataset.classes, state["classes"])
    side = data.evaluation_batch(d.image_size)
    mean, std = state["mean"], state["std"]
    test = data.batches(dataset.test, side, mean, std, d.image_size, d.workers, on_error=d.on_error)
    with_float = quant.ends_in_float(trained.quant, trained.run.epochs)
    result, layers = quant.measure(model.eval(), settings.engines, test, with_float)
    files.write_json(folder / "evaluation.json", {"checkpoint": settings.checkpoint} | result)
    files.write_text(folder / "evaluation_layers.txt", layers)
    print(f"{quant.accuracy_table(result)}\n\n{layers.splitlines()[0].rpartition('; ')[2]}")
    print(f"{len(dataset.test):,} test images; evaluation.json in {folder}")
    if settings.sensitivity:
        found = quant.sensitivity(model, test)
        print(f"\n{sensitivity_table.text(found)}\n\nsensitivity.csv and sensitivity.png in {folder}")
        sensitivity_table.write(found, f"{trained.model.name} on {d.name}, {trained.quant.method}", folder)
    if settings.export:
        export(model, target, state, trained, isinstance(dataset.test, data.Files))


def export(model: nn.Module, target: Path, state: dict, trained: config.TrainSettings, from_files: bool) -> None:
    """Write the integer model with what its user must know to feed it."""
    size = trained.data.image_size
    info = {
        "model": trained.model.name,
        "weight_bits": trained.quant.weight_bits,
        "act_bits": trained.quant.act_bits,
        "image_size": size,
        "resize": data.evaluation_side(size) if from_files else size,
        "mean": state["mean"],
        "std": state["std"],
        "classes": state["classes"],
    }
    if target.suffix in FILES:
        FILES[target.suffix](model, target, size, info)
        print(f"{target} ({target.stat().st_size / 1e6:.3f} MB): images [N, 3, {size}, {size}] -> logits")
        return
    quant.export(model, target, size, info)
    megabytes = (target / "model.pt2").stat().st_size / 1e6
    print(
        f"{target}: model.pt2 ({megabytes:.2f} MB), integer_ops.py, model.json and example.py: python example.py IMAGE"
    )


if __name__ == "__main__":
    memory.keep()
    run(main)
