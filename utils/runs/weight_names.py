"""State dicts of other programs under the names of a model: one step for each thing that programs do to names.

A step takes the tensors by name and the model, and returns the tensors and what it did, in a few words; "" if nothing.
It never gives a name of the model a tensor that could as well belong to another.
"""

import copy
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

import torch
from torch import Tensor, fx, nn

Tensors = dict[str, Tensor]
Step = Callable[[Tensors, nn.Module], tuple[Tensors, str]]

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Names under which DataParallel, torch.compile, FSDP and activation checkpointing hold the module that they wrap."""
COUNTERS = frozenset({"num_batches_tracked", "total_ops", "total_params", "n_averaged"})
"""Counters: of batch norm, of thop, and of an average of the weights."""
QUANTIZER = re.compile(r"quan(?!tile)|fake_q|observer|activation_post_process")
"""In names of quantizers' modules: of lsq-net (quan_w_fn), MQBench, torch.ao, brevitas, NVIDIA and others."""
FUSED = re.compile(r".+\.(bn|0|1)\.[^.]+")
"""Names of tensors within a layer that torch.ao fused: its batch norm (bn), or a pair of layers (0, 1)."""
AUXILIARY = re.compile(r"^aux", re.IGNORECASE)
"""The name of a classifier that serves training alone, of Inception and GoogLeNet."""
USUAL_PREFIXES = ("model", "net", "network", "backbone")
"""Under which programs keep the model that they train, the most usual first."""
AVERAGE = re.compile(r"(^|[_.])(ema|swa|averaged?)(?=$|[_.])")
"""In names of averaged weights, which are those that their authors measure."""


def preferred(names: Collection[str], usual: Collection[str]) -> str | None:
    """The one of several places to take: the average of the weights, else the most usual; None if that is not clear.

    A single one is taken whatever it is called.
    """
    averages = [name for name in names if AVERAGE.search(name)]
    known = [name for word in usual for name in names if name.rpartition(".")[2] == word]
    found = averages or known[:1] or [*names]
    return found[0] if len(found) == 1 else None


def prefixes(longer: Iterable[str], shorter: Collection[str]) -> Counter[str]:
    """For each prefix, "" or with a dot at its end: how many longer names are it and a shorter name."""
    counts: Counter[str] = Counter()
    for name in longer:
        parts = name.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in shorter:
                counts["".join(f"{part}." for part in parts[:i])] += 1
    return counts


def best_prefixes(longer: Iterable[str], shorter: Collection[str]) -> list[str]:
    """The prefixes that most names have, if half of the shorter ones occur; several if no one of them is better."""
    counts = prefixes(longer, shorter)
    most = max(counts.values(), default=0)
    return [prefix for prefix, count in counts.items() if count == most and 2 * count >= len(shorter)]


def weights_of_layers(tensors: Mapping[str, Tensor]) -> set[str]:
    """Names of the weights of layers, by which a prefix is told; those of norms may be elsewhere in the file."""
    return {name for name, value in tensors.items() if value.ndim > 1}


def without_wrappers(tensors: Tensors, model: nn.Module) -> tuple[Tensors, str]:
    """Leave out the names of wrappers, wherever in a name they are, as the model has them or has not."""
    ours = {_bare(name): name for name in model.state_dict()}
    renamed = {name: name if name in ours.values() else ours.get(_bare(name), _bare(name)) for name in tensors}
    changed = {part for old, new in renamed.items() if old != new for part in old.split(".") if part in WRAPPERS}
    if not changed or len(set(renamed.values())) < len(tensors):
        return tensors, ""
    return {renamed[name]: value for name, value in tensors.items()}, f"without {', '.join(sorted(changed))} in names"


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def without_prefix(tensors: Tensors, model: nn.Module) -> tuple[Tensors, str]:
    """Take the tensors under the prefix that the model's names have in the file; those beside it are of another use."""
    fused = [re.sub(r"\.0(\.[^.]+)$", r"\1", name) for name in tensors if FUSED.fullmatch(name)]
    found = best_prefixes([*tensors, *fused], weights_of_layers(model.state_dict()))
    names = {prefix.removesuffix("."): prefix for prefix in found}
    prefix = "" if "" in found else names.get(preferred(names, USUAL_PREFIXES) or "", "")
    if not prefix:
        return tensors, ""
    inside = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    beside = len(tensors) - len(inside)
    return inside, f"{prefix}* alone" + (f" ({beside} tensors beside it left out)" if beside else "")


def with_prefix(tensors: Tensors, model: nn.Module) -> tuple[Tensors, str]:
    """Put the prefix before the names that the model has and the file has not."""
    found = best_prefixes(model.state_dict(), weights_of_layers(tensors))
    if len(found) != 1 or not found[0]:
        return tensors, ""
    return {found[0] + name: value for name, value in tensors.items()}, f"as {found[0]}*"


def without_training_state(tensors: Tensors, model: nn.Module) -> tuple[Tensors, str]:
    """Leave out counters, quantizers, auxiliary classifiers and constants, which the model computes by itself."""
    wanted, constants = model.state_dict(), dict(model.named_buffers())
    kinds = {name: _kind(name, constants) for name in tensors if name not in wanted}
    counts = Counter(kind for kind in kinds.values() if kind)
    kept = {name: value for name, value in tensors.items() if not kinds.get(name)}
    return kept, ", ".join(f"{kind} left out: {count}" for kind, count in counts.items())


def _kind(name: str, constants: Mapping[str, Tensor]) -> str:
    parts = name.split(".")
    if parts[-1] in COUNTERS:
        return "counters"
    if any(QUANTIZER.search(part) for part in parts):
        return "tensors of quantizers"
    if AUXILIARY.match(parts[0]):
        return "tensors of an auxiliary classifier"
    return "constants" if name in constants else ""


def pruned(tensors: Tensors, model: nn.Module) -> tuple[Tensors, str]:
    """Multiply weights with the masks of torch.nn.utils.prune."""
    masked = [name.removesuffix("_mask") for name in tensors if name.endswith("_mask")]
    names = [name for name in masked if f"{name}_orig" in tensors and f"{name}_orig" not in model.state_dict()]
    products = {name: tensors[f"{name}_orig"] * tensors[f"{name}_mask"] for name in names}
    parts = {f"{name}_{part}" for name in names for part in ("orig", "mask")}
    kept = {name: value for name, value in tensors.items() if name not in parts}
    return kept | products, f"weights pruned by their masks: {len(names)}" if names else ""


def unfused(tensors: Tensors, model: nn.Module) -> tuple[Tensors, str]:
    """Give layers and batch norms that torch.ao and MQBench fuse for training (`conv.bn`, `conv.0`) their own names."""
    wanted = model.state_dict()
    inside = [name for name in tensors if name not in wanted and FUSED.fullmatch(name)]
    behind = norms_behind(model) if inside else {}
    renamed = {name: new for name in inside if (new := _unfused_name(name, behind)) in wanted and new not in tensors}
    moved = {renamed.get(name, name): value for name, value in tensors.items()}
    return moved, f"tensors of fused layers: {len(renamed)}" if renamed else ""


def _unfused_name(name: str, behind: Mapping[str, str]) -> str:
    layer, part, leaf = name.rsplit(".", 2)
    return f"{layer if part == '0' else behind.get(layer)}.{leaf}"


def norms_behind(model: nn.Module) -> dict[str, str]:
    """The batch norm that reads each layer's output, by name; {} for a model that torch.fx cannot trace."""
    try:
        graph = fx.symbolic_trace(copy.deepcopy(model)).graph  # torch.fx leaves constants on what it traces
    except Exception:
        return {}
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    return {
        str(node.args[0].target): str(node.target)
        for node in graph.nodes
        if node.op == "call_module" and node.target in norms and isinstance(node.args[0], fx.Node)
    }


def with_constants(tensors: Tensors, model: nn.Module) -> tuple[Tensors, str]:
    """Leave counters and tables of indices that are not in the file, of layers that are, as the model was built."""
    layers = {name.rpartition(".")[0] for name in tensors}
    own = {
        name: value
        for name, value in model.state_dict().items()
        if name not in tensors and name.rpartition(".")[0] in layers and not value.is_floating_point()
    }
    return tensors | own, f"counters as built: {len(own)}" if own else ""


def renamed_head(tensors: Tensors, model: nn.Module) -> tuple[Tensors, str]:
    """Give the one layer that is called otherwise, such as `linear` for `fc`, the name that it has in the model."""
    wanted = model.state_dict()
    missing = {name: value for name, value in wanted.items() if name not in tensors}
    unknown = {name: value for name, value in tensors.items() if name not in wanted}
    owners = [{name.rpartition(".")[0] for name in names} for names in (missing, unknown)]
    if [len(names) for names in owners] != [1, 1]:
        return tensors, ""
    (here,), (there,) = owners
    same = {f"{here}.{name.rpartition('.')[2]}": _shape(value)[1:] for name, value in unknown.items()}
    if same != {name: _shape(value)[1:] for name, value in missing.items()}:
        return tensors, ""
    moved = {f"{here}.{name.rpartition('.')[2]}" if name in unknown else name: v for name, v in tensors.items()}
    return moved, f"{there} as {here}"


def reshaped(tensors: Tensors, model: nn.Module) -> tuple[Tensors, str]:
    """Bring a linear layer that was saved as a 1 x 1 convolution, or the reverse, into the model's shape."""
    wanted = model.state_dict()
    other = {
        name: value.reshape(wanted[name].shape)
        for name, value in tensors.items()
        if name in wanted and value.shape != wanted[name].shape and _shape(value) == _shape(wanted[name])
    }
    return tensors | other, f"dimensions of 1 added or removed: {len(other)}" if other else ""


def _shape(x: Tensor) -> list[int]:
    """The shape without dimensions of 1 at its end."""
    shape = list(x.shape)
    while shape and shape[-1] == 1:
        shape.pop()
    return shape


def for_channels(tensors: Tensors, model: nn.Module) -> tuple[Tensors, str]:
    """Bring the first layer's filters of three channels to the model's: summed up for grey, else repeated."""
    wanted = model.state_dict()
    name = next((name for name, value in wanted.items() if value.ndim == 4), "")
    there, here = tensors.get(name), wanted.get(name)
    if there is None or here is None or there.shape[1:2] != (3,) or here.shape[1] == 3:
        return tensors, ""
    if there.shape[:1] + there.shape[2:] != here.shape[:1] + here.shape[2:]:
        return tensors, ""
    channels = here.shape[1]
    repeated = there[:, torch.arange(channels) % 3] * (3 / channels)
    value = there.sum(1, keepdim=True) if channels == 1 else repeated
    return tensors | {name: value}, f"the filters of {name} for {channels} channel(s) instead of 3"


def in_float32(tensors: Tensors, model: nn.Module) -> tuple[Tensors, str]:
    """Name other floating-point types; loading converts them."""
    wanted = model.state_dict()
    kinds = {
        str(value.dtype).removeprefix("torch.")
        for name, value in tensors.items()
        if name in wanted and value.is_floating_point() and value.dtype != wanted[name].dtype
    }
    return tensors, f"{' and '.join(sorted(kinds))} as float32" if kinds else ""


STEPS: tuple[Step, ...] = (
    pruned,
    without_wrappers,
    without_prefix,
    with_prefix,
    unfused,
    without_training_state,
    with_constants,
    renamed_head,
    reshaped,
    for_channels,
    in_float32,
)


def under_names_of(model: nn.Module, tensors: Tensors) -> tuple[Tensors, list[str]]:
    """(the tensors under the names of the model, what was done to them)."""
    done = []
    for step in STEPS:
        tensors, what = step(tensors, model)
        done += [what] if what else []
    return tensors, done
