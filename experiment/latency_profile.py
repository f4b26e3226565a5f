"""latency.py profile=true: the operators of each integer model, timed one by one."""

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, fx, nn

import quant
from experiment.report.profile_report import Profiled
from utils import timing
from utils.console import say
from utils.errors import first_line


def take(
    label: str,
    prepared: fx.GraphModule,
    plain: nn.Module,
    integer: Mapping[str, quant.IntegerModel],
    images: Tensor,
    repeats: int,
) -> list[Profiled]:
    """A profile of the prepared model on each engine. label: its name. plain: the float model.

    An engine that runs a model as one program, in a library of its own, is left out, in a line.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    forms = quant.float_baseline(plain).torchscript_variants(images)
    calls: dict[str, Callable] = {name: functools.partial(run, images) for name, run in forms.items()}
    times = timing.time_interleaved(calls, 2, timing.BURST, lambda count: None)
    in_float = forms[min(times, key=lambda name: times[name].median)]
    found = []
    for name, model in integer.items():
        if not model.runs_by_operator:
            say(f"profile: {name} runs {label} as one program of its own; the engines of torch can be taken apart")
            continue
        try:
            timed = quant.profile(prepared, model, in_float, images, repeats)
        except Exception as error:  # the times of the whole model are not to be lost for this
            say(f"profile: {label} cannot be taken apart on {name}: {first_line(error, 200)}")
            continue
        found.append(Profiled(label, name, images.shape[-1], len(images), torch.get_num_threads(), timed))
    return found
