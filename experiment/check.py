"""Refuse in the first second, before any data is read, what cannot work; fill in what the settings leave open."""

import data
import models
import quant
from experiment.preprocessing import as_weights
from experiment.settings import ModelSettings, TrainSettings, resolved
from utils import device
from utils.errors import UserError, choose
from utils.runs import checkpoint
from utils.runs.log import check_tensorboard
from utils.training import optim


def check(settings: TrainSettings, name: str) -> TrainSettings:
    """The settings of one training run, checked and resolved. name: the run's, as its folder is called."""
    d, o, r = settings.data, settings.optim, settings.run
    data.check(d)
    models.check(settings.model.name, settings.model.options, d.image_size)
    m = with_weights_file(settings.model, d)
    device.find(r.device)
    if r.tensorboard:
        check_tensorboard()
    settings = resolved(settings)
    q = quant.resolve(settings.quant)
    check_model(m, d.image_size, d.channels, q)
    quant.check_run(q, r.epochs, trained_before=bool(m.weights), averages=bool(o.average))
    if o.name in optim.BOOSTED and quant.ends_in_float(q, r.epochs):
        raise UserError(
            f"optim.name: {o.name} adds its noise from where quantized training begins, and {q.method} has none; "
            f"take {o.name[1:]}"
        )
    if o.learned_lr != type(o).model_fields["learned_lr"].default:
        check_learns(q, r.epochs)
    if o.average and r.epochs == 0:
        raise UserError("optim.average: run.epochs=0 trains nothing")
    check_engines(settings.engines, "quant.engine" if r.engines is None else "run.engines", run=q.method != "float")
    run_settings = r.model_copy(update={"name": name, "engines": settings.engines})
    return settings.model_copy(
        update={"run": run_settings, "data": as_weights(data.with_val_fraction(d), m), "model": m}
    )


def with_weights_file(m: ModelSettings, d: data.DataSettings) -> ModelSettings:
    """The section with the file that weights=pretrained stands for, downloaded if it is not there.

    Raises UserError before that if the images are not there.
    """
    if m.weights != models.PRETRAINED:
        return m
    data.check_folder(d)
    return m.model_copy(update={"weights": models.file_of(m.name)})


def check_learns(q: quant.ResolvedQuant, epochs: int) -> None:
    """Raise UserError, for optim.learned_lr, if a run of `epochs` epochs trains no parameter of a quantizer."""
    if not quant.METHODS[q.method].learns:
        learners = ", ".join(name for name, row in quant.METHODS.items() if row.learns)
        raise UserError(f"optim.learned_lr: quantizers of {q.method} learn nothing; those of {learners} do")
    if not q.quantizes or quant.ends_in_float(q, epochs):
        raise UserError("optim.learned_lr: no quantizer is trained here")


def check_engines(names: list[str], key: str, run: bool = True, auto: bool = True) -> None:
    """Raise UserError, under this key, for an engine that does not exist or, if it is to run, cannot run here.

    auto: whether "auto" may stand for one.
    """
    for name in names:
        if auto and name == quant.AUTO:
            continue
        choose(quant.ENGINES, name, key, quant.AUTO if auto else "")
        if run:
            quant.engine(name, key)


def notices(q: quant.ResolvedQuant, from_scratch: bool = False) -> list[str]:
    """What a run says of its quant section when it starts, one line each. from_scratch: it trains, without weights."""
    unread = quant.unread_by_float(q)
    if unread:
        return [f"quant.method=float reads none of {', '.join(f'quant.{key}' for key in unread)}"]
    found = []
    if q.method != "float" and q.reduce_range:
        found.append("weights stay within +-63: beyond, the engine's int8 kernels are not exact here (reduce_range)")
    if from_scratch and q.method not in ("float", "ptq") and min(q.weight_bits, q.act_bits) < 8:
        found.append(
            "below 8 bits, training from scratch ends lower than fine-tuning a float model: train that first with "
            "quant.method=float, then start from it: model.weights=runs/NAME/last.pt"
        )
    return found


def check_model(asked: ModelSettings, image_size: int, channels: int, spec: quant.ResolvedQuant) -> None:
    """Build the model to check what only a built one shows.

    Raises UserError if a third-party model cannot be traced, too little of it runs in integers, a key of quant.layers
    matches no layer, or the weights belong to another model. Skipped where none of these can be wrong.
    """
    in_table = not models.is_external(asked.name)
    if in_table and not asked.weights and not spec.layers and not spec.chooses_layers and channels == 3:
        return
    trial = models.build(asked.name, None, image_size, asked.options, channels)
    if spec.method != "float":
        quant.check_layers(trial, spec)
    if spec.quantizes:
        quant.planned_integer_share(trial, spec, image_size, channels)
    if asked.weights:
        checkpoint.check_weights(trial, asked.weights, asked.name)
