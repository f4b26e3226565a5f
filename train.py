"""Train an image classifier as one JSON setting says, quantize it, and measure float, simulation and integers.

    python train.py                                        setting/train.json: two minutes on two cores
    python train.py -c setting/cifar10_jpeg_resnet20.json run.epochs=2 data.limit=5000
    python train.py --list models
"""

import time
from pathlib import Path

import torch
from tqdm import tqdm

import data
import models
import quant
from utils import checkpoint, config, device, files, loop, metrics, optim, plot, schedule, seed
from utils.complexity import complexity
from utils.environment import environment
from utils.errors import choose, run


def main(arguments: list[str]) -> None:
    cli = config.parser(__doc__, "setting/train.json")
    options = cli.parse_args(arguments)
    settings = config.load(config.TrainSettings, options.config, options.overrides)
    settings = check(settings, Path(options.config).stem)
    if options.print_config:
        print(settings.model_dump_json(indent=2))
        return
    train(settings)


def check(settings: config.TrainSettings, name: str) -> config.TrainSettings:
    """Refuse in the first second what cannot work; fill in what was left to the defaults."""
    choose(data.DATASETS, settings.data.name, "data.name")
    choose(optim.OPTIMIZERS, settings.optim.name, "optim.name")
    models.check(settings.model.name, settings.model.options)
    quant_settings = quant.resolve(settings.quant)
    engines = [settings.quant.engine] if settings.run.engines is None else settings.run.engines
    run_settings = settings.run.model_copy(update={"name": settings.run.name or name, "engines": engines})
    return settings.model_copy(update={"quant": quant_settings, "run": run_settings})


def train(settings: config.TrainSettings) -> None:
    start, where = time.time(), device.find(settings.run.device)
    folder = Path(settings.run.dir) / settings.run.name
    files.write_json(folder / "config.json", settings.model_dump())
    files.write_json(folder / "environment.json", environment())
    generator = seed.seed_all(settings.run.seed)

    d = settings.data
    dataset = data.DATASETS[d.name](d.root, d.image_size, d.limit, d.workers)
    dataset = data.split(dataset, d.val_fraction)
    shape = dict(mean=dataset.mean, std=dataset.std, image_size=d.image_size, workers=d.workers)
    batches = data.batches(
        dataset.train, d.batch_size, **shape, generator=generator, augment=d.augment, flip=dataset.flip
    )
    val = dataset.val and data.batches(dataset.val, max(d.batch_size, 256), **shape)

    model = models.build(settings.model.name, len(dataset.classes), d.image_size, settings.model.options)
    if settings.model.weights:
        checkpoint.load_weights(model, settings.model.weights)
    params, macs = complexity(model, d.image_size)
    print(f"{settings.model.name}: {params:,} parameters, {macs:,} MACs; {len(dataset.train):,} training images, {where}")
    model = model.to(where, memory_format=torch.channels_last)

    o, method = settings.optim, quant.METHODS[settings.quant.method]
    optimizer = optim.build(o.name, model, o.lr, o.momentum, o.nesterov, o.weight_decay)
    float_epochs = method.float_epochs(settings.quant, settings.run.epochs)
    rows, best = [], -1.0
    for epoch in range(settings.run.epochs):
        if epoch == float_epochs:
            model = quant.prepare(model, settings.quant).to(where)
            optim.add_new(optimizer, model.parameters())
        optim.check_covers(optimizer, model)

        def set_rate(share: float, epoch: int = epoch) -> None:
            rate = schedule.factor(o.schedule, epoch + share, settings.run.epochs, o.warmup_epochs, o.milestones)
            for group in optimizer.param_groups:
                group["lr"] = o.lr * rate

        bar = tqdm(total=len(dataset.train), desc=f"epoch {epoch + 1}", unit="image", leave=False, disable=None)
        began = time.time()
        score = loop.train_epoch(
            model, batches, optimizer, set_rate, o.label_smoothing, settings.run.precision == "bf16", where, show(bar)
        )
        bar.close()
        seconds = time.time() - began
        held = metrics.score(model.eval(), val, where).summary() if val else {}
        row = {"epoch": epoch + 1, "stage": "float" if epoch < float_epochs else settings.quant.method}
        row |= {f"train_{k}": v for k, v in score.summary().items()} | {f"val_{k}": v for k, v in held.items()}
        row |= {"lr": optimizer.param_groups[0]["lr"], "seconds": seconds, "images_per_second": score.images / seconds}
        rows.append(row)
        print(line(row, settings.run.epochs), flush=True)
        files.write_csv(folder / "metrics.csv", rows)
        state = checkpoint.pack(model, settings, dataset, epoch >= float_epochs, epoch + 1)
        files.save_tensors(folder / "last.pt", state)
        if held and epoch >= float_epochs % settings.run.epochs and held["top1"] > best:
            best = held["top1"]
            files.save_tensors(folder / "best.pt", state)
    if rows:
        plot.curves(rows, float_epochs, f"{settings.model.name} on {d.name}, {settings.quant.method}", folder / "curves.png")
    print(time.time() - start)


def show(bar: tqdm):
    def progress(score: metrics.Score, images: int) -> None:
        values = score.summary()
        bar.set_postfix_str(f"loss {values['loss']:.3f}, top-1 {values['top1']:.2f} %", refresh=False)
        bar.update(images)

    return progress


def line(row: dict, epochs: int) -> str:
    held = f"  val top-1 {row['val_top1']:6.2f} %" if "val_top1" in row else ""
    return (
        f"epoch {row['epoch']:3}/{epochs}  {row['stage']:10}  loss {row['train_loss']:.4f}  "
        f"top-1 {row['train_top1']:6.2f} %{held}  {row['seconds']:6.1f} s  {row['images_per_second']:6.0f} images/s"
    )


if __name__ == "__main__":
    run(main)
