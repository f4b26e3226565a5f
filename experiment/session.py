"""One training run: load the data, build the model, train, quantize, save, measure."""

import functools
from pathlib import Path

import torch
from torch import nn

import data
import models
import quant
from experiment import check, datasets, results
from experiment.run_folder import write_settings
from experiment.settings import ModelSettings, TrainSettings
from experiment.teacher import load_teacher
from quant.methods import gradboost
from utils import config, device, seed
from utils.complexity import complexity
from utils.console import duration, say, tracked
from utils.device import CPU
from utils.distributed import Processes
from utils.runs import checkpoint, checkpointing
from utils.runs.folder import resume_hint
from utils.runs.log import RunLog, time_to_accuracy
from utils.sections import part
from utils.training import average, distill, estimate, optim, precision, schedule
from utils.training.precision import Precision
from utils.training.trainer import Trainer

MANY_MACS = 1e12
"""Multiply-accumulates of a training run from which compiling the quantizers saves time: minutes on two cores."""
OTHER_CLASSES = (
    "{}: its last layer was trained on other classes, or on these in another order; without training (run.epochs=0) "
    "those are what the model predicts"
)


class Session:
    """One training run, from a checkpoint or from the start. `run` does all steps in order.

    settings: checked settings (experiment/check.py). folder: where the run writes, which exists. dataset, inputs: what
    it reads (experiment/inputs.py). state: the checkpoint to continue from, or None.
    All processes of a run have a Session each; the first alone writes, converts and measures.
    """

    model: nn.Module
    """Set by build_model; each later step leaves it as trained or quantized so far."""

    def __init__(
        self,
        settings: TrainSettings,
        folder: Path,
        processes: Processes,
        dataset: data.Dataset,
        inputs: dict | None = None,
        state: dict | None = None,
    ):
        self.settings, self.folder, self.processes, self.state = settings, folder, processes, state
        self.dataset, self.inputs = dataset, inputs
        self.log = RunLog(folder, settings.run.epochs, processes.is_main, settings.run.tensorboard)
        self.size: dict[str, float] = {}
        """{"params", "macs"} of the float model, and "integer_macs_percent", the share that runs in integers."""

    def run(self) -> None:
        seed.seed_all(self.settings.run.seed, self.settings.run.deterministic)
        self.build_model()
        self.restore_chosen_layers()
        if not self.settings.ends_in_float:
            self.choose_layers()
        self.compile_or_interpret()
        self.fit()
        self.choose_layers()
        self.quantize_after_training()
        if self.processes.is_main:
            self.finish()

    @property
    def quant_spec(self) -> quant.ResolvedQuant:
        """The resolved quant section."""
        return quant.resolve(self.settings.quant)

    def batches(
        self,
        images: data.Images | data.Files,
        batch_size: int | None = None,
        draw: data.Draw | None = None,
        device: torch.device = CPU,
    ):
        """Batches of these images, as the dataset normalizes them. batch_size: None takes that of evaluation."""
        make = datasets.batch_maker(self.settings.data, self.dataset.mean, self.dataset.std)
        size = batch_size or data.evaluation_batch(self.settings.data.image_size)
        return make(images, size, draw=draw, device=device)

    def build_model(self) -> None:
        """Build the float model, load model.weights into it unless a checkpoint follows, and report its size."""
        asked, d = self.settings.model, self.settings.data
        self.model = models.build(asked.name, len(self.dataset.classes), d.image_size, asked.options, d.channels)
        if asked.weights and self.state is None:
            loaded = start_from_weights(self.model, asked.weights, allow_new_head=self.settings.run.epochs > 0)
            if has_other_classes(loaded, asked, self.dataset.names):
                say(OTHER_CLASSES.format(asked.weights))
        params, macs = complexity(self.model, d.image_size, channels=d.channels)
        self.size = {"params": params, "macs": macs}
        images = len(self.dataset.training)
        say(f"{asked.name}: {params:,} parameters, {macs:,} MACs; {images:,} training images, {self.processes}")
        say(datasets.description(d, self.dataset))
        if asked.weights and d.mean is None:
            say(f"{asked.weights} does not say how its images were made: mean and std are the usual ones of {d.name}")
        if self.quant_spec.quantizes:
            share = quant.planned_integer_share(self.model, self.quant_spec, d.image_size, d.channels)
            self.size["integer_macs_percent"] = share.percent
            say(str(share))
        from_scratch = self.settings.run.epochs > 0 and not asked.weights
        for notice in check.notices(self.quant_spec, from_scratch):
            say(notice)

    def restore_chosen_layers(self) -> None:
        """Restore the layer bits that quant.layers=auto chose before an interruption.

        Also checks now, rather than after training, that there are images to choose on (UserError).
        """
        if not self.quant_spec.chooses_layers:
            return
        datasets.selection_images(self.dataset, self.quant_spec)
        if self.state:
            self.set_layers(self.state["settings"]["quant"]["layers"])

    def choose_layers(self) -> None:
        """Let quant.layers=auto choose the bits of each layer by the float model, if it is still to choose."""
        if not self.quant_spec.chooses_layers:
            return
        calibration, held_out = (
            self.batches(images) for images in datasets.selection_images(self.dataset, self.quant_spec)
        )
        chosen = quant.choose_layers(self.model, self.quant_spec, calibration, held_out)
        self.set_layers(self.processes.broadcast_object(chosen))

    def set_layers(self, layers: dict | str) -> None:
        """Set quant.layers, in config.json too."""
        self.settings = config.vary(self.settings, {"quant.layers": layers}, "quant.layers")
        if self.processes.is_main:
            write_settings(self.folder, self.settings)

    def compile_or_interpret(self) -> None:
        """Compile the quantizers if this run is long enough to gain from it."""
        if worth_compiling(self.settings, int(self.size["macs"]), len(self.dataset.training)):
            quant.compile_kernels(self.processes.device)
        else:
            quant.interpret_kernels()  # an earlier cell of the sweep may have compiled them

    def say_how_long(self, arithmetic: Precision, steps: int) -> None:
        """Say, before training starts, about how long it will take on this machine. steps: of an epoch."""
        d, run, processes = self.settings.data, self.settings.run, self.processes
        left = run.epochs - (self.state["epoch"] if self.state else 0)
        if left < 1 or not processes.is_main:
            return
        share = max(2, d.batch_size // processes.world_size)
        step = estimate.seconds_of_step(self.model, share, d.image_size, processes.device, arithmetic, d.channels)
        more = "" if self.settings.ends_in_float else " or more, since quantized steps take longer"
        say(f"{left} epochs of {steps:,} steps: about {duration(max(1, left * steps * step))}{more}")

    def fit(self) -> None:
        """Train: float epochs, then fake-quantized ones. Leaves the best epoch's model, or the last epoch's."""
        settings, processes = self.settings, self.processes
        self.model = self.model.to(processes.device).to(memory_format=torch.channels_last)
        arithmetic = self.choose_precision()
        trainer = self.trainer(arithmetic)
        self.say_how_long(arithmetic, len(trainer.train_batches))
        if self.state and self.state["prepared"]:
            trainer.to_quantized()
        position = checkpointing.resume(
            self.state, trainer.model, trainer.optimizer, settings.run.epochs, self.log, processes
        )
        trainer.run(position)
        if not position.ended:
            trainer.finish(reestimate=bool(self.quant_spec.bn_reestimation_images))
        self.model = trainer.model.cpu().eval()

    def trainer(self, arithmetic: Precision) -> Trainer:
        """A new Trainer for this run, before a checkpoint is loaded into it."""
        asked, run, processes = self.settings.optim, self.settings.run, self.processes
        noise = seed.Noise(run.seed, processes.rank, processes.device)
        optimizer, norm_batches = self.build_optimizer(noise), self.reestimation_batches()
        trainer = Trainer(
            model=self.model,
            optimizer=optimizer,
            train_batches=self.train_batches(),
            val_batches=self.val_batches(),
            rate=lambda done: (
                asked.lr * schedule.factor(asked.schedule, done, run.epochs, asked.warmup_epochs, asked.milestones)
            ),
            loss_of=self.loss(bf16=arithmetic == "bf16"),
            clip_norm=asked.clip_norm,
            bf16=arithmetic == "bf16",
            epochs=run.epochs,
            quantize_from=self.settings.float_epochs,
            quantize=lambda model: self.prepare(model, trainer),
            method=self.quant_spec.method,
            average=average.Average(optimizer, asked.average) if asked.average else None,
            reestimate_batch_norm=lambda model: quant.reestimate_batch_norm(
                model, (images for images, _ in norm_batches)
            ),
            noise=noise,
            processes=processes,
            log=self.log,
            read_every=device.steps_between_reads(processes.device),
            saver=checkpointing.CheckpointSaver(
                self.folder,
                functools.partial(self.pack, arithmetic),
                run.checkpoint_minutes,
                resume_hint(self.folder, run.resume),
                processes,
            ),
        )
        return trainer

    def build_optimizer(self, noise: seed.Noise) -> torch.optim.Optimizer:
        """The optimizer of the model's parameters. A boosted one draws its gradient noise from the shared generator."""
        asked = self.settings.optim
        optimizer = optim.build(asked, self.model)
        if asked.name in optim.BOOSTED:
            boost = part(asked, gradboost.Options).model_dump()
            gradboost.GradBoost(optimizer, **boost, generator=noise.shared)
        return optimizer

    def reestimation_batches(self):
        """Batches of the training images, cropped at random, from which batch norm statistics are estimated again."""
        count = self.quant_spec.bn_reestimation_images or self.quant_spec.calibration_images
        draw = data.plain_draw_of(self.settings.data, self.dataset, self.settings.run.seed)
        return self.batches(data.first(self.dataset.training, count), draw=draw, device=self.processes.device)

    def choose_precision(self) -> Precision:
        """ "fp32" or "bf16": a continued run keeps the precision that it began with."""
        asked, d, processes = self.settings.run.precision, self.settings.data, self.processes
        known = ((self.state or {}).get("training") or {}).get("precision")
        return precision.choose(asked, known, self.model, d.batch_size, d.image_size, processes, d.channels)

    def train_batches(self):
        """This process's share of the augmented training images."""
        asked, processes = self.settings.data, self.processes
        draw = data.draw_of(asked, self.dataset, self.settings.run.seed, processes.rank, processes.world_size)
        return self.batches(self.dataset.training, asked.batch_size, draw, processes.device)

    def val_batches(self):
        """This process's share of the validation images; None if there are none."""
        val, processes = self.dataset.val, self.processes
        return self.batches(val.take(processes.shard_indices(len(val))), device=processes.device) if val else None

    def loss(self, bf16: bool) -> distill.Loss:
        """The loss of training, with distillation if quant.teacher names a teacher."""
        spec, image_size = self.quant_spec, self.settings.data.image_size
        teacher = None
        if spec.teacher:
            model_name, device = self.settings.model.name, self.processes.device
            teacher = load_teacher(spec.teacher, model_name, self.dataset, image_size, device, bf16)
        return distill.loss(self.settings.optim.label_smoothing, teacher, spec.teacher_share, spec.temperature)

    def prepare(self, model: nn.Module, trainer: Trainer) -> nn.Module:
        """The model with fake-quantization; its learned parameters join the trainer's optimizer."""
        prepared = quant.prepare(model, self.quant_spec).to(self.processes.device)
        quant.draw_from(prepared, trainer.noise.own)
        rate, lr = quant.transition_rate(self.quant_spec), self.settings.optim.lr
        if rate:
            quant.fix_steps(prepared)
            quant.TransitionRate(trainer.optimizer, prepared, rate, lr, lambda: trainer.rate(trainer.done) / lr)
        optim.add_learned(trainer.optimizer, quant.learned(prepared), self.settings.optim.learned_lr)
        gradboost.end_warm_up(trainer.optimizer)
        strength = quant.dampening(self.quant_spec)
        if strength:
            quant.Dampening(trainer.optimizer, prepared, strength, lambda: trainer.progress)
        return prepared

    def pack(self, arithmetic: Precision, model: nn.Module, epoch: int, training: dict) -> dict:
        """The contents of a checkpoint during training."""
        training, prepared = training | {"precision": arithmetic}, quant.is_prepared(model)
        values = self.settings.model_dump()
        return checkpoint.pack(model, values, self.dataset, prepared, epoch, training, self.inputs)

    def quantize_after_training(self) -> None:
        """Post-training quantization of a model that trained in float: calibrate it on training images.

        Only the first process goes on to learn roundings and correct biases.
        """
        spec = self.quant_spec
        if spec.method == "float" or quant.is_prepared(self.model):
            return
        if quant.equalizes(spec):
            say(f"channels of {quant.equalize_cross_layer(self.model)} pairs of layers equalized")
        self.model = prepared = quant.prepare(self.model, spec)
        sample = self.batches(data.first(self.dataset.training, spec.calibration_images))
        shown = tracked(sample, len(sample), "calibration", "batches")
        quant.calibrate(prepared, (images for images, _ in shown))
        if self.processes.is_main:
            quant.run_ptq_pipeline(prepared, (images for images, _ in sample), spec)

    def finish(self) -> None:
        """Save the final model, measure it on the test images and report."""
        results.save_final(self.model, self.settings, self.dataset, self.log, self.inputs)
        test = self.batches(self.dataset.test)
        results.measure(self.model, self.settings, self.dataset, test, self.log, self.size)
        say(f"{len(self.dataset.test):,} test images; report.html, layers.txt and more in {self.folder}")
        reached = time_to_accuracy(self.log.rows)
        if reached:
            best = self.log.best_epoch()
            chosen = f"; measured: epoch {best}, the best by top-1, then by loss" if best else ""
            say(f"training first reached, on the validation images, a top-1 of {reached}{chosen}")


def start_from_weights(model: nn.Module, path: str, allow_new_head: bool) -> checkpoint.Loaded:
    """Load trained float weights; report what was done to them, and which layers the classes leave random."""
    loaded = checkpoint.load_weights(model, path, allow_new_head)
    if loaded.done:
        say(f"{path}: {'; '.join(loaded.done)}")
    if loaded.new_head:
        head = ", ".join(loaded.new_head)
        say(f"{path} was trained on other classes: loaded all layers except {head}, which starts from random weights")
    return loaded


def has_other_classes(loaded: checkpoint.Loaded, model: ModelSettings, names: list[str]) -> bool:
    """Whether the last layer that was loaded tells other classes apart, as many. names: of the dataset's classes."""
    if loaded.new_head:
        return False
    if loaded.classes is not None:
        return data.readable(loaded.classes) != names
    is_published = len(names) == 1000 and models.preprocessing(model.name, model.weights or "") is not None
    return is_published and names != data.imagenet_names()


def worth_compiling(settings: TrainSettings, macs: int, images: int) -> bool:
    """Whether to compile the quantizers of a run: as run.compile says, or if there is much to train.

    It depends on nothing but the settings and the data, so that the same run computes the same bits.
    """
    asked, quantized = settings.run.compile, settings.run.epochs - settings.float_epochs
    return quantized > 0 and (asked == "always" or (asked == "auto" and macs * images * quantized > MANY_MACS))
