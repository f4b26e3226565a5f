"""Train an image classifier as one JSON setting says, quantize it, and measure float, simulation and integers.

python train.py                                        setting/train.json: half a minute on two cores
python train.py -c setting/cifar10_jpeg_resnet20.json run.epochs=2 data.limit=5000
python train.py --list models
"""

import functools
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import data
import models
import quant
from setting.names import TABLES
from utils import checkpoint, config, device, files, gradboost, loop, metrics, optim, plot, runlog, schedule, seed
from utils import sweep as sweeps
from utils.complexity import complexity
from utils.environment import environment
from utils.errors import UserError, choose, run


def main(arguments: list[str]) -> None:
    options = config.parser(__doc__, "setting/train.json", TABLES).parse_args(arguments)
    if options.list:
        print("\n".join(TABLES[options.list]))
        return
    settings = config.load(config.TrainSettings, options.config, options.overrides)
    with config.blame(options.config):
        name = settings.run.name or Path(options.config).stem
        if settings.sweep:
            runs = sweeps.runs(settings, lambda cell, part: check(cell, f"{name}/{part}"))
        else:
            settings = check(settings, name)
    if options.print_config:
        print(settings.model_dump_json(indent=2))
    elif settings.sweep:
        title = f"{settings.model.name} on {settings.data.name}: {name}"
        sweeps.run(Path(settings.run.dir) / name, runs, train, lambda: float_score([cell for _, cell in runs]), title)
    else:
        train(settings)


def check(settings: config.TrainSettings, name: str) -> config.TrainSettings:
    """Refuse in the first second what cannot work; fill in what was left to the defaults."""
    choose(data.DATASETS, settings.data.name, "data.name")
    models.check(settings.model.name, settings.model.options, settings.data.image_size)
    device.find(settings.run.device)
    optim.check(settings.optim)
    quant_settings = quant.resolve(settings.quant)
    check_model(settings.model, settings.data.image_size, settings.quant)
    if settings.optim.name in optim.BOOSTED and quant.ends_in_float(quant_settings, settings.run.epochs):
        raise UserError(
            f"optim.name: {settings.optim.name} adds its noise from where quantized training begins, and "
            f"{quant_settings.method} has none; take {settings.optim.name[1:]}"
        )
    engines = [quant_settings.engine] if settings.run.engines is None else settings.run.engines
    if quant_settings.method != "float":
        for engine in engines:
            quant.engine(engine, "quant.engine" if settings.run.engines is None else "run.engines")
    run_settings = settings.run.model_copy(update={"name": name, "engines": engines})
    return settings.model_copy(update={"quant": quant_settings, "run": run_settings})


def check_model(asked: config.ModelSettings, image_size: int, spec: config.QuantSettings) -> None:
    """Try what only a built model shows: can a stranger's be traced, are the weights its own, do layers' names fit."""
    if not models.is_external(asked.name) and not asked.weights and not spec.layers:
        return
    trial = models.build(asked.name, None, image_size, asked.options)
    if spec.method != "float":
        quant.check_layers(trial, spec.layers)
    if asked.weights:
        checkpoint.check_weights(trial, asked.weights, asked.name)


@functools.lru_cache(maxsize=1)
def load_dataset(
    name: str, root: str, image_size: int, limit: int | None, workers: int, val_fraction: float
) -> data.Dataset:
    """The dataset, read once for all runs of a sweep."""
    return data.split(data.DATASETS[name](root, image_size, limit, workers), val_fraction)


def train(settings: config.TrainSettings) -> None:
    began, where = time.time(), device.find(settings.run.device)
    folder = files.make_folder(Path(settings.run.dir) / settings.run.name, "run.dir")
    (folder / "summary.json").unlink(missing_ok=True)  # until this run has one of its own
    files.write_json(folder / "config.json", settings.model_dump())
    files.write_json(folder / "environment.json", environment())
    generator = seed.seed_all(settings.run.seed)

    d, q, epochs = settings.data, settings.quant, settings.run.epochs
    dataset = load_dataset(d.name, d.root, d.image_size, d.limit, d.workers, d.val_fraction)
    batches = functools.partial(
        data.batches, mean=dataset.mean, std=dataset.std, image_size=d.image_size, workers=d.workers
    )
    model = models.build(settings.model.name, len(dataset.classes), d.image_size, settings.model.options)
    if settings.model.weights:
        checkpoint.load_weights(model, settings.model.weights)
    params, macs = complexity(model, d.image_size)
    print(
        f"{settings.model.name}: {params:,} parameters, {macs:,} MACs; {len(dataset.train):,} training images, {where}"
    )

    if q.method != "float" and q.reduce_range:
        print("weights stay within +-63: beyond, the engine's int8 kernels are not exact on this CPU (reduce_range)")

    log = runlog.RunLog(folder, epochs)
    model = fit(model, settings, dataset, batches, generator, where, log)
    model = quantized(model, settings, dataset, batches)
    kept = checkpoint.pack(model, settings, dataset, quant.is_prepared(model), epochs)
    in_float = quant.ends_in_float(q, epochs)
    if in_float:  # then every checkpoint so far is of the float net
        files.save_tensors(folder / "last.pt", kept)
    if log.best is not None:
        files.save_tensors(folder / "best.pt", kept)

    test = batches(dataset.test, data.evaluation_batch(d.image_size))
    result, layers = quant.measure(model, settings.run.engines, test, in_float)
    summary = {
        "model": settings.model.name,
        "dataset": d.name,
        "method": q.method,
        "weight_bits": q.weight_bits if quant.is_prepared(model) else 32,
        "act_bits": q.act_bits if quant.is_prepared(model) else 32,
        "engine": q.engine,
        "params": params,
        "macs": macs,
        "epochs": epochs,
        "seconds": time.time() - began,
    }
    files.write_json(folder / "summary.json", summary | result)
    files.write_text(folder / "layers.txt", layers)
    title = f"{settings.model.name} on {d.name}, {q.method}"
    plot.curves(log.rows, title, folder / "curves.png")
    print(f"\n{quant.accuracy_table(result)}\n\n{layers.splitlines()[0].rpartition('; ')[2]}")
    print(f"{len(dataset.test):,} test images; layers.txt and more in {folder}")


def float_score(runs: list[config.TrainSettings]) -> dict[str, float] | None:
    """Test accuracy of the float weights that all these runs quantize; None if there are none such."""
    d, asked = runs[0].data, runs[0].model
    same = all(run.data == d and run.model == asked for run in runs)
    if not same or not asked.weights or any(quant.ends_in_float(run.quant, 1) and run.run.epochs for run in runs):
        return None
    dataset = load_dataset(d.name, d.root, d.image_size, d.limit, d.workers, d.val_fraction)
    model = models.build(asked.name, len(dataset.classes), d.image_size, asked.options)
    checkpoint.load_weights(model, asked.weights)
    side = data.evaluation_batch(d.image_size)
    test = data.batches(dataset.test, side, dataset.mean, dataset.std, d.image_size, d.workers)
    return metrics.score(model.eval(), test, torch.device("cpu")).summary()


def fit(
    model: nn.Module,
    settings: config.TrainSettings,
    dataset: data.Dataset,
    batches: Callable,
    generator: torch.Generator,
    where: torch.device,
    log: runlog.RunLog,
) -> nn.Module:
    """Train: float epochs, then fake-quantized ones, under one optimizer. Returns the best epoch's model, or the last.

    `batches(images, batch_size, ...)` makes batches of the dataset; the best epoch is that on the validation images.
    """
    d, o, epochs, folder = settings.data, settings.optim, settings.run.epochs, log.folder
    training = batches(dataset.train, d.batch_size, generator=generator, augment=d.augment, flip=dataset.flip)
    held_out = dataset.val and batches(dataset.val, data.evaluation_batch(d.image_size))
    model = model.to(where, memory_format=torch.channels_last)
    optimizer = optim.build(o.name, model, o.lr, o.momentum, o.nesterov, o.weight_decay, o.decay)
    noise = seed.noise(settings.run.seed, where)
    if o.name in optim.BOOSTED:
        gradboost.GradBoost(optimizer, o.mode, o.clip_by, o.noise_decay, o.toss_coin, noise)
    float_epochs = quant.METHODS[settings.quant.method].float_epochs(settings.quant, epochs)
    in_float = quant.ends_in_float(settings.quant, epochs)
    for epoch in range(epochs):
        if epoch == float_epochs:
            model = quant.prepare(model, settings.quant).to(where)
            quant.draw_from(model, noise)
            optim.add_learned(optimizer, quant.learned(model), o.learned_lr)
            gradboost.end_warm_up(optimizer)
        optim.check_covers(optimizer, model)

        def set_rate(share: float, epoch: int = epoch) -> None:
            optim.set_rate(
                optimizer, o.lr * schedule.factor(o.schedule, epoch + share, epochs, o.warmup_epochs, o.milestones)
            )

        with log.bar(len(dataset.train)) as progress:
            bf16 = settings.run.precision == "bf16"
            score = loop.train_epoch(
                model, training, optimizer, set_rate, o.label_smoothing, o.clip_norm, bf16, where, progress
            )
        held = metrics.score(model.eval(), held_out, where) if held_out else None
        stage = "float" if epoch < float_epochs else settings.quant.method
        better = log.epoch(stage, score, held, optimizer.param_groups[0]["lr"], stage != "float" or in_float)
        state = checkpoint.pack(model, settings, dataset, quant.is_prepared(model), epoch + 1)
        files.save_tensors(folder / "last.pt", state)
        if better:
            files.save_tensors(folder / "best.pt", state)
    if log.best is not None:
        checkpoint.restore(model, checkpoint.load(str(folder / "best.pt"))[0], str(folder / "best.pt"))
    return model.cpu().eval()


def quantized(model: nn.Module, settings: config.TrainSettings, dataset: data.Dataset, batches: Callable) -> nn.Module:
    """Prepare what was trained in float alone, and find its ranges on training images without augmentation."""
    spec, d = settings.quant, settings.data
    if spec.method == "float" or quant.is_prepared(model):
        return model
    model = quant.prepare(model, spec)
    sample = batches(data.first(dataset.train, spec.calibration_images), data.evaluation_batch(d.image_size))
    quant.calibrate(model, (images for images, _ in sample))
    return model


if __name__ == "__main__":
    run(main)
