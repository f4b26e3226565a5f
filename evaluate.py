"""Measure a checkpoint: float where it exists, simulated, and on every engine, side by side.

python evaluate.py checkpoint=runs/train/last.pt
python evaluate.py checkpoint=runs/train/best.pt 'engines=["fbgemm","qnnpack"]' data.limit=1000
"""

import functools
from pathlib import Path

import data
import models
import quant
from utils import checkpoint, config, files
from utils.errors import choose, run


def main(arguments: list[str]) -> None:
    options = config.parser(__doc__, "setting/evaluate.json", ["engines"]).parse_args(arguments)
    if options.list:
        print("\n".join(quant.ENGINES))
        return
    settings = config.load(config.EvaluateSettings, options.config, options.overrides)
    with config.blame(options.config):
        for name in settings.engines:
            quant.engine(name, "engines")
    if options.print_config:
        print(settings.model_dump_json(indent=2))
        return
    evaluate(settings)


def evaluate(settings: config.EvaluateSettings) -> None:
    model, state, trained = checkpoint.rebuild(settings.checkpoint, models.build, quant.prepare)
    d = config.check(config.DataSettings, trained.data.model_dump() | settings.data, "data")
    choose(data.DATASETS, d.name, "data.name")
    dataset = data.DATASETS[d.name](d.root, d.image_size, d.limit, d.workers, train=False)
    data.check_classes(dataset.classes, state["classes"])
    batches = functools.partial(data.batches, mean=state["mean"], std=state["std"], image_size=d.image_size)
    test = batches(dataset.test, data.evaluation_batch(d.image_size), workers=d.workers)
    with_float = quant.ends_in_float(trained.quant, trained.run.epochs)
    result, layers = quant.measure(model.eval(), settings.engines, test, with_float)
    folder = Path(settings.output or Path(settings.checkpoint).parent)
    files.write_json(folder / "evaluation.json", {"checkpoint": settings.checkpoint} | result)
    files.write_text(folder / "evaluation_layers.txt", layers)
    print(f"{quant.accuracy_table(result)}\n\n{len(dataset.test):,} test images; evaluation.json in {folder}")


if __name__ == "__main__":
    run(main)
