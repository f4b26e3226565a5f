"""Why weights of a file do not fit a model: by cause, such as another number of classes, rather than by symptom."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from utils.runs.weight_names import best_prefixes, weights_of_layers
from utils.runs.weights import Reading, new_head

Cause = Callable[[Reading, nn.Module], str]
"""Why weights do not fit and, after a semicolon, what cures it; "" where it is something else."""


def explain(reading: Reading, model: nn.Module, found: dict) -> str:
    """What keeps these weights from fitting, for a message. found: the whole file, which may name its architecture."""
    why = next(filter(None, (cause(reading, model) for cause in CAUSES)), "")
    cause, _, cure = why.partition("; ")
    detail = f"{_example(reading, model)} ({_count(reading.misfits)} not fit)"
    says = _architecture(found)
    return "; ".join(filter(None, [": ".join(filter(None, [cause, detail])), cure, says and f"the file says {says}"]))


def _example(reading: Reading, model: nn.Module) -> str:
    wanted = model.state_dict()
    if reading.missing:
        return f"{reading.missing[0]} is missing"
    if reading.unknown:
        return f"it also has {reading.unknown[0]}"
    name = reading.wrong[0]
    there, here = reading.tensors[name], wanted[name]
    if there.shape == here.shape:
        return f"{name} is {_kind(there)} there, {_kind(here)} here"
    return f"{name} is {tuple(there.shape)} there, {tuple(here.shape)} here"


def _kind(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _count(number: int) -> str:
    return "1 name does" if number == 1 else f"{number} names do"


def _architecture(found: dict) -> str:
    """What a training script wrote about its model: `arch`, of itself or of its arguments."""
    args = found.get("args")
    for place in (found, args if isinstance(args, dict) else {}):
        for key in ("arch", "model_name", "model"):
            if isinstance(place.get(key), str):
                return f"{key}={place[key][:60]}"
    return ""


def _no_weights(reading: Reading, model: nn.Module) -> str:
    return "" if reading.original else "no tensors by name in it"


def _several(reading: Reading, model: nn.Module) -> str:
    places = best_prefixes(reading.original, weights_of_layers(model.state_dict()))
    if len(places) < 2 or "" in places:
        return ""
    return f"several models in it ({', '.join(place + '*' for place in places)}); save the one that you mean alone"


def _integers(reading: Reading, model: nn.Module) -> str:
    packed = any(name.endswith("zero_point") for name in reading.unknown)
    integers = [name for name in reading.wrong if not reading.tensors[name].is_floating_point()]
    if not packed and not integers and not any(value.is_quantized for value in reading.original.values()):
        return ""
    return "integers of a model that another library quantized; give its float weights, from before it was converted"


def _two_parts(reading: Reading, model: nn.Module) -> str:
    ends = ("weight_g", "weight_v", "weight_orig")
    if not any(name.endswith(ends) or "parametrizations." in name for name in reading.unknown):
        return ""
    return "weights in parts (weight_norm, spectral_norm or another parametrization); make them plain before saving"


def _low_rank(reading: Reading, model: nn.Module) -> str:
    return "adapters (LoRA); merge them before saving" if any("lora_" in name for name in reading.unknown) else ""


def _folded_norms(reading: Reading, model: nn.Module) -> str:
    norms = _tensors_of(model, nn.modules.batchnorm._BatchNorm)
    if not reading.missing or not norms.issuperset(reading.missing):
        return ""
    if all(name.endswith(("running_mean", "running_var")) for name in reading.missing):
        return "the statistics of batch norm are missing; save state_dict(), not parameters()"
    return "batch norms are missing, perhaps folded into their convolutions; give the weights from before"


def _classes(reading: Reading, model: nn.Module) -> str:
    layers = new_head(reading, model)
    if not layers:
        return ""
    if reading.missing:
        return f"no classifier in it; with run.epochs > 0 {layers[0]} starts from random weights"
    return f"another number of classes; with run.epochs > 0 {', '.join(layers)} starts from random weights"


def _depth(reading: Reading, model: nn.Module) -> str:
    """One of the two has all tensors of the other, and whole layers more; the classes may be others, too."""
    wanted = model.state_dict()
    if bool(reading.missing) == bool(reading.unknown) or not all(
        reading.tensors[name].shape[1:] == wanted[name].shape[1:] for name in reading.wrong
    ):
        return ""
    names = reading.missing or reading.unknown
    layers = {name.rpartition(".")[0] for name in names}
    shared = {name.rpartition(".")[0] for name in reading.tensors.keys() & wanted.keys()}
    if layers & shared:
        return f"layers with {'fewer' if reading.missing else 'more'} tensors, such as a bias"
    return f"another depth: {len(layers)} layers {'here' if reading.missing else 'there'} that the other has not"


def _architectures(reading: Reading, model: nn.Module) -> str:
    wanted = model.state_dict()
    alike = len((reading.tensors.keys() & wanted.keys()) - set(reading.wrong))
    if bool(reading.missing) + bool(reading.unknown) + bool(reading.wrong) < 2:
        return ""
    return f"another architecture ({alike} of {len(wanted)} tensors are alike)"


def _shapes(reading: Reading, model: nn.Module) -> str:
    wanted = model.state_dict()
    pairs = [(tuple(reading.tensors[name].shape), tuple(wanted[name].shape)) for name in reading.wrong]
    if not pairs:
        return ""
    kernels = [pair for pair in pairs if len(pair[0]) == len(pair[1]) == 4 and pair[0][:2] == pair[1][:2]]
    if len(kernels) == len(pairs):
        there, here = kernels[0]
        return f"kernels of {_sides(there[2:])} there, {_sides(here[2:])} here"
    first_there, first_here = pairs[0]
    is_input = len(pairs) == 1 and len(first_there) == len(first_here) == 4 and reading.wrong[0] == _first(model)
    if is_input and first_there[0] == first_here[0] and first_there[2:] == first_here[2:]:
        return f"images of {first_there[1]} channels there, {first_here[1]} here"
    if all(len(there) == len(here) and there[2:] == here[2:] for there, here in pairs):
        return "another width of its layers"
    return "other shapes of its layers"


def _sides(sides: Sequence[int]) -> str:
    return " x ".join(map(str, sides))


def _first(model: nn.Module) -> str:
    return next(name for name, value in model.state_dict().items() if value.ndim == 4)


def _tensors_of(model: nn.Module, kind: Any) -> set[str]:
    """Names of all tensors of the modules of a type."""
    found = ((name, module) for name, module in model.named_modules() if isinstance(module, kind))
    return {f"{name}.{tensor}" if name else tensor for name, module in found for tensor in module.state_dict()}


CAUSES: tuple[Cause, ...] = (
    _no_weights,
    _integers,
    _two_parts,
    _low_rank,
    _several,
    _folded_norms,
    _classes,
    _depth,
    _architectures,
    _shapes,
)
"""Tried in this order: the first that applies is the one."""
