"""Train an image classifier as one JSON setting says, quantize it, and measure float, simulation and integers.

python train.py                                        setting/train.json: half a minute on two cores
python train.py -c setting/cifar10_jpeg_resnet20.json run.epochs=2 data.limit=5000
python train.py --list models
"""

import contextlib
import functools
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from torch import nn

import data
import models
import quant
from experiment import sweep as sweeps
from experiment.report import plot
from quant.methods import gradboost
from setting.names import TABLES
from utils import config, device, distributed, files, memory, metrics, seed
from utils.complexity import complexity
from utils.console import kept_in, quiet, say
from utils.distributed import Processes
from utils.environment import environment
from utils.errors import UserError, choose, run
from utils.runs import checkpoint, checkpointing, interrupt, tensor_file
from utils.runs import folder as run_folder
from utils.runs import log as run_log
from utils.training import average, distill, optim, precision, schedule
from utils.training.trainer import Trainer

MANY_MACS = 1e12
"""Multiply-accumulates of a training from which compiled quantizers gain more than they cost: minutes on two cores."""


def main(arguments: list[str]) -> None:
    options = config.parser(__doc__, "setting/train.json", TABLES).parse_intermixed_args(arguments)
    if options.list:
        print("\n".join(TABLES[options.list]))
        return
    settings = config.load(config.TrainSettings, options.config, options.overrides)
    with config.blame(options.config):
        cells = sweeps.cells(settings.sweep)
    sweeps.check_given(cells, [text.partition("=")[0] for text in options.overrides])
    with config.blame(options.config):
        name = settings.run.name or config.as_name(Path(options.config).stem)
        if cells:
            runs = sweeps.runs(settings, cells, lambda cell, part: check(cell, f"{name}/{part}"))
            settings = settings.model_copy(update={"run": settings.run.model_copy(update={"name": name})})
        else:
            settings = check(settings, name)
    if options.print_config:
        print(settings.model_dump_json(indent=2))
        return
    with interrupt.handled(), distributed.joined(device.find(settings.run.device)) as processes:
        if not processes.is_main:
            quiet()
        if cells:
            train_all(runs, name, processes)
        else:
            train(settings, processes)


def check(settings: config.TrainSettings, name: str) -> config.TrainSettings:
    """Refuse in the first second what cannot work; fill in what was left to the defaults."""
    d, m, o, r = settings.data, settings.model, settings.optim, settings.run
    choose(data.DATASETS, d.name, "data.name")
    models.check(m.name, m.options, d.image_size)
    device.find(r.device)
    optim.check(o)
    if r.tensorboard:
        run_log.check_tensorboard()
    q = quant.resolve(settings.quant)
    check_model(m, d.image_size, q)
    quant.check_run(q, r.epochs, trained_before=bool(m.weights))
    if o.name in optim.BOOSTED and quant.ends_in_float(q, r.epochs):
        raise UserError(
            f"optim.name: {o.name} adds its noise from where quantized training begins, and {q.method} has none; "
            f"take {o.name[1:]}"
        )
    if o.average and r.epochs == 0:
        raise UserError("optim.average: run.epochs=0 trains nothing")
    engines = [q.engine] if r.engines is None else r.engines
    if q.method != "float":
        for engine in engines:
            quant.engine(engine, "quant.engine" if r.engines is None else "run.engines")
    run_settings = r.model_copy(update={"name": name, "engines": engines})
    return settings.model_copy(update={"quant": q, "run": run_settings})


def check_model(asked: config.ModelSettings, image_size: int, spec: config.QuantSettings) -> None:
    """Try what only a built model shows: can a stranger's be traced, are the weights its own, do layers' names fit."""
    if not models.is_external(asked.name) and not asked.weights and not spec.layers:
        return
    trial = models.build(asked.name, None, image_size, asked.options)
    if spec.method != "float":
        quant.check_layers(trial, spec.by_name)
    if asked.weights:
        checkpoint.check_weights(trial, asked.weights, asked.name)


def train_all(runs: list[tuple[sweeps.Cell, config.TrainSettings]], name: str, processes: Processes) -> None:
    """The runs of a sweep, in the folder of that name. The first process alone writes there, and no other program."""
    settings = [own for _, own in runs]
    folder = Path(settings[0].run.dir) / name
    if processes.is_main:
        files.make_folder(folder.parent, "run.dir")
        run_folder.check_is_sweeps(folder)
    with files.locked(folder) if processes.is_main else contextlib.nullcontext():
        sweeps.run(folder, runs, train, lambda: float_score(settings), sweeps.title(settings, name), processes)


def load_dataset(d: config.DataSettings) -> data.Dataset:
    """The dataset, read once for all runs of a sweep."""
    return _read(d.name, d.root, d.image_size, d.limit, d.workers, d.on_error, d.cache, d.val_fraction)


@functools.lru_cache(maxsize=1)
def _read(
    name: str, root: str, image_size: int, limit: int | None, workers: int, on_error: str, cache: str, val: float
):
    return data.split(data.DATASETS[name](root, image_size, limit, workers, True, on_error, cache), val)


def train(settings: config.TrainSettings, processes: Processes) -> None:
    """One run, from where its folder says. The first process alone writes into the folder, and no other program."""
    folder = Path(settings.run.dir) / settings.run.name
    with contextlib.ExitStack() as stack:
        stack.enter_context(interrupt.explained(f"stopped; {run_folder.how(folder, settings.run.resume)}"))
        begin = None
        if processes.is_main:
            files.make_folder(folder.parent, "run.dir")
            stack.enter_context(files.locked(folder))
            begin = open_folder(folder, settings)
            stack.enter_context(kept_in(folder / "run.log"))
        begin = processes.broadcast_object(begin)
        if begin.finished:
            say(f"{folder} is finished; run.resume=never trains it again\n")
            if processes.is_main:
                say(quant.accuracy_table(run_folder.summary(folder)))
        else:
            train_from(begin.state, settings, folder, processes)


def open_folder(folder: Path, settings: config.TrainSettings) -> run_folder.Start:
    """Where in the run to begin, and the folder ready for it."""
    asked = run_folder.request(settings.run.resume)
    begin = run_folder.find(folder, settings, asked)
    if begin.finished:
        return begin
    if begin.state is None or run_folder.is_elsewhere(folder, asked):
        run_folder.check_is_runs(folder)
        run_folder.make_room(folder)
    files.make_folder(folder, "run.dir")
    files.remove_parts(folder)
    run_folder.bring(folder, asked)
    (folder / run_folder.SUMMARY).unlink(missing_ok=True)  # until this run has one of its own
    files.write_json(folder / run_folder.SETTING, settings.model_dump())
    files.write_json(folder / "environment.json", environment() | {"engine": settings.quant.engine})
    return begin


def train_from(state: dict | None, settings: config.TrainSettings, folder: Path, processes: Processes) -> None:
    """Train from a checkpoint, or from the start; then the first process converts and measures."""
    d, q, r = settings.data, settings.quant, settings.run
    log = run_log.RunLog(folder, r.epochs, processes.is_main, r.tensorboard)
    seed.seed_all(r.seed, r.deterministic)
    if distributed.local_rank() > 0:
        processes.barrier()  # once the first of this machine has the files, which it may have to download
    dataset = load_dataset(d)
    if distributed.local_rank() == 0:
        processes.barrier()
    batches = functools.partial(
        data.batches,
        mean=dataset.mean,
        std=dataset.std,
        image_size=d.image_size,
        workers=d.workers,
        on_error=d.on_error,
    )
    model = models.build(settings.model.name, len(dataset.classes), d.image_size, settings.model.options)
    if settings.model.weights and state is None:
        start_from(model, settings.model.weights, head_anew=r.epochs > 0)
    params, macs = complexity(model, d.image_size)
    say(
        f"{settings.model.name}: {params:,} parameters, {macs:,} MACs; {len(dataset.train):,} training images, {processes}"
    )
    if q.method != "float" and q.reduce_range:
        say("weights stay within +-63: beyond, the engine's int8 kernels are not exact on this CPU (reduce_range)")

    in_float = quant.ends_in_float(q, r.epochs)
    if q.layers == "auto":
        chosen_by(dataset, q)  # refused here, not when all is trained
        settings = with_layers(settings, state["settings"]["quant"]["layers"], processes, folder) if state else settings
    if not in_float:
        settings = chosen(settings, model, dataset, batches, processes, folder)
    if worth_compiling(settings, macs, len(dataset.train)):
        quant.compile_kernels()
    else:
        quant.interpret_kernels()  # those of a sweep's cell before
    model = fit(model, settings, dataset, batches, processes, log, state)
    settings = chosen(settings, model, dataset, batches, processes, folder)
    model = quantized(model, settings, dataset, batches, processes)
    if processes.is_main:
        save_final(model, settings, dataset, log)
        test = batches(dataset.test, data.evaluation_batch(d.image_size))
        measure(model, settings, test, log, {"params": params, "macs": macs})
        say(f"{len(dataset.test):,} test images; layers.txt and more in {folder}")
        reached = run_log.time_to_accuracy(log.rows)
        if reached:
            say(f"top-1 of the held-out images, in training time: {reached}")


def start_from(model: nn.Module, path: str, head_anew: bool) -> None:
    head = checkpoint.load_weights(model, path, head_anew)
    if head:
        say(f"{path}: of other classes; all but {head} is taken from it, which is learned anew")


def save_final(model: nn.Module, settings: config.TrainSettings, dataset: data.Dataset, log: run_log.RunLog) -> None:
    """Save the finished model where checkpoints so far are of another: quantized, averaged or measured anew since."""
    q, epochs = settings.quant, settings.run.epochs
    final = checkpoint.pack(model, settings, dataset, quant.is_prepared(model), epochs, {"log": log.state()})
    changed = quant.ends_in_float(q, epochs) or (log.best is None and (settings.optim.average or q.norm_images))
    if changed:
        tensor_file.save(log.folder / "last.pt", final)
    if log.best is not None:
        tensor_file.save(log.folder / "best.pt", final)


def measure(
    model: nn.Module, settings: config.TrainSettings, test: Collection, log: run_log.RunLog, facts: dict[str, int]
) -> None:
    """Convert to each engine and compare them on the test images: summary.json, layers.txt, curves.png and a table."""
    q, r, folder = settings.quant, settings.run, log.folder
    in_float, prepared = quant.ends_in_float(q, r.epochs), quant.is_prepared(model)
    result, layers = quant.measure(model, r.engines, test, in_float)
    summary = {
        "model": settings.model.name,
        "dataset": settings.data.name,
        "method": q.method,
        "weight_bits": q.weight_bits if prepared else 32,
        "act_bits": q.act_bits if prepared else 32,
        "engine": q.engine,
        **facts,
        "epochs": r.epochs,
        "seconds": log.run_seconds(),
        "checkpoint": "last.pt" if log.best is None or in_float else "best.pt",
    }
    files.write_text(folder / "layers.txt", layers)
    plot.curves(log.rows, f"{settings.model.name} on {settings.data.name}, {q.method}", folder / "curves.png")
    files.write_json(folder / run_folder.SUMMARY, summary | result)  # last: with it the run is finished
    (folder / run_folder.PREVIOUS).unlink(missing_ok=True)
    say(f"\n{quant.accuracy_table(result)}\n\n{layers.splitlines()[0].rpartition('; ')[2]}")


def float_score(runs: list[config.TrainSettings]) -> dict[str, float] | None:
    """Test accuracy of the float weights that all these runs quantize; None if there are none such."""
    d, asked = runs[0].data, runs[0].model
    same = all(run.data == d and run.model == asked for run in runs)
    if not same or not asked.weights or any(quant.ends_in_float(run.quant, 1) and run.run.epochs for run in runs):
        return None
    dataset = load_dataset(d)
    model = models.build(asked.name, len(dataset.classes), d.image_size, asked.options)
    if checkpoint.load_weights(model, asked.weights, head_anew=all(run.run.epochs for run in runs)):
        return None  # of other classes
    side = data.evaluation_batch(d.image_size)
    test = data.batches(dataset.test, side, dataset.mean, dataset.std, d.image_size, d.workers, on_error=d.on_error)
    return metrics.score(model.eval(), test, torch.device("cpu")).summary()


def fit(
    model: nn.Module,
    settings: config.TrainSettings,
    dataset: data.Dataset,
    batches: Callable,
    processes: Processes,
    log: run_log.RunLog,
    state: dict | None,
) -> nn.Module:
    """Train: float epochs, then fake-quantized ones, under one optimizer. Returns the best epoch's model, or the last.

    `batches(images, batch_size, ...)` makes batches of the dataset; the best epoch is that on the validation images.
    state: the checkpoint to go on from, or None.
    """
    d, q, o, r = settings.data, settings.quant, settings.optim, settings.run
    if r.epochs > 0:
        data.check_training(len(dataset.train), d.batch_size, processes.world_size)
    side = data.evaluation_batch(d.image_size)
    model = model.to(processes.device, memory_format=torch.channels_last)
    before = (state or {}).get("training") or {}
    arithmetic = precision.choose(r.precision, before.get("precision"), model, d.batch_size, d.image_size, processes)
    bf16 = arithmetic == "bf16"
    optimizer = optim.build(o.name, model, o.lr, o.momentum, o.nesterov, o.weight_decay, o.decay)
    noise = seed.Noise(r.seed, processes.rank, processes.device)
    if o.name in optim.BOOSTED:
        gradboost.GradBoost(optimizer, o.mode, o.clip_by, o.noise_decay, o.toss_coin, noise.shared)
    few = data.first(dataset.train, q.norm_images or q.calibration_images)
    drawn = batches(few, side, draw=data.Draw(r.seed, d.augment, dataset.flip))

    def quantize(model: nn.Module) -> nn.Module:
        prepared = quant.prepare(model, q).to(processes.device)
        quant.draw_from(prepared, noise.own)
        optim.add_learned(optimizer, quant.learned(prepared), o.learned_lr)
        gradboost.end_warm_up(optimizer)
        if q.damping:
            quant.Damping(optimizer, prepared, q.damping, lambda: trainer.progress)
        return prepared

    def pack(model: nn.Module, epoch: int, training: dict) -> dict:
        training = training | {"precision": arithmetic}
        return checkpoint.pack(model, settings, dataset, quant.is_prepared(model), epoch, training)

    trainer = Trainer(
        model=model,
        optimizer=optimizer,
        training=batches(
            dataset.train,
            d.batch_size,
            draw=data.Draw(r.seed, d.augment, dataset.flip, processes.rank, processes.world_size),
        ),
        held_out=batches(dataset.val.take(processes.shard_indices(len(dataset.val))), side) if dataset.val else None,
        rate=lambda done: o.lr * schedule.factor(o.schedule, done, r.epochs, o.warmup_epochs, o.milestones),
        loss_of=distill.loss(
            o.label_smoothing, teacher(settings, dataset, processes, bf16), q.teacher_share, q.temperature
        ),
        clip_norm=o.clip_norm,
        bf16=bf16,
        epochs=r.epochs,
        quantize_from=float_epochs(settings),
        quantize=quantize,
        method=q.method,
        average=average.Average(optimizer, o.average) if o.average else None,
        renorm=lambda model: quant.renorm(model, (images for images, _ in drawn)),
        noise=noise,
        processes=processes,
        log=log,
        saves=checkpointing.Keeper(
            log.folder, pack, r.checkpoint_minutes, run_folder.how(log.folder, r.resume), processes
        ),
    )
    if state and state["prepared"]:
        trainer.to_quantized()
    at = checkpointing.restored(state, trainer.model, optimizer, r.epochs, log, processes)
    trainer.run(at)
    if not at.ended:
        trainer.finish(renorm=bool(q.norm_images))
    return trainer.model.cpu().eval()


def teacher(settings: config.TrainSettings, dataset: data.Dataset, processes: Processes, bf16: bool) -> Callable | None:
    """The net that quant.teacher names, for the images of this run; None if there is none to be.

    bf16: it computes as the net that it teaches does.
    """
    path = settings.quant.teacher
    if path is None:
        return None
    own = settings.model.name

    def check_trusted(name: str) -> None:
        models.check_trusted(name, name == own, f"quant.teacher takes models of a table, or {own}")

    model, state, trained = checkpoint.rebuild(path, models.build, quant.prepare, check_trusted)
    data.check_classes(dataset.classes, state["classes"])
    if trained.data.image_size != settings.data.image_size:
        raise UserError(f"quant.teacher: {path} was trained on images of {trained.data.image_size} pixels")
    model = model.to(processes.device, memory_format=torch.channels_last).eval()
    line = data.renormalized((dataset.mean, dataset.std), (state["mean"], state["std"]))
    gain, shift = (values.to(processes.device) for values in line)

    def answers(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            return model(images * gain + shift)

    return answers


def worth_compiling(settings: config.TrainSettings, macs: int, images: int) -> bool:
    """Whether quantizers of this run are to be compiled: said by the setting, or by how much there is to train.

    A matter of the setting and the data alone, so that the same run computes the same bits.
    """
    asked, quantized = settings.run.compile, settings.run.epochs - float_epochs(settings)
    return quantized > 0 and (asked == "always" or (asked == "auto" and macs * images * quantized > MANY_MACS))


def float_epochs(settings: config.TrainSettings) -> int:
    return quant.METHODS[settings.quant.method].float_epochs(settings.quant, settings.run.epochs)


def chosen(
    settings: config.TrainSettings,
    model: nn.Module,
    dataset: data.Dataset,
    batches: Callable,
    processes: Processes,
    folder: Path,
) -> config.TrainSettings:
    """The setting with the layers that quant.layers=auto chooses by a float model. No labels."""
    spec, side = settings.quant, data.evaluation_batch(settings.data.image_size)
    if spec.method == "float" or spec.layers != "auto":
        return settings
    sample, held_out = (batches(images, side) for images in chosen_by(dataset, spec))
    return with_layers(
        settings, processes.broadcast_object(quant.choose_layers(model, spec, sample, held_out)), processes, folder
    )


def chosen_by(dataset: data.Dataset, spec: config.QuantSettings) -> tuple:
    """What quant.layers=auto chooses by: the images of the calibration, and as many validation images or, without
    such, others of the training set."""
    count = spec.calibration_images
    held_out = data.first(dataset.val, count) if dataset.val else data.first(dataset.train, count, after=count)
    if spec.target_drop is not None and not len(held_out):
        raise UserError(f"quant.calibration_images: {count} leave no training images to measure quant.target_drop on")
    return data.first(dataset.train, count), held_out


def with_layers(
    settings: config.TrainSettings, layers: dict | str, processes: Processes, folder: Path
) -> config.TrainSettings:
    """The setting with these quant.layers, in config.json too."""
    settings = config.vary(settings, {"quant.layers": layers}, "quant.layers")
    if processes.is_main:
        files.write_json(folder / run_folder.SETTING, settings.model_dump())
    return settings


def quantized(
    model: nn.Module, settings: config.TrainSettings, dataset: data.Dataset, batches: Callable, processes: Processes
) -> nn.Module:
    """Prepare what was trained in float alone, and find its ranges on training images without augmentation.

    The first process alone goes on to learn roundings and to correct.
    """
    spec, d = settings.quant, settings.data
    if spec.method == "float" or quant.is_prepared(model):
        return model
    if spec.equalize:
        say(f"channels of {quant.equalize(model)} pairs of layers equalized")
    model = quant.prepare(model, spec)
    sample = batches(data.first(dataset.train, spec.calibration_images), data.evaluation_batch(d.image_size))
    quant.calibrate(model, (images for images, _ in sample))
    if processes.is_main:
        quant.refine(model, (images for images, _ in sample), spec)
    return model


if __name__ == "__main__":
    memory.keep()
    run(main)
