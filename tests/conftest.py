"""What tests share: real images, and small nets trained on them."""

import functools
import itertools
import os
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from filelock import FileLock

import data
import models
import quant
from experiment.settings import OPTIM_SECTIONS
from quant.engines.layerwise_check import check_layerwise
from quant.engines.nhwc_builder import Builder
from tests.nets import plain
from utils import memory
from utils.config import validate_section
from utils.training import optim

pytest.register_assert_rewrite("tests.helpers")
memory.keep_freed()
RUNTIMES = [name for name in ("onnxruntime", "openvino") if quant.ENGINES[name]().available()]
PROGRAMS = ("executorch", "litert")
"""Engines that run the programs that export= writes."""
KERNELS = [name for name, make in quant.ENGINES.items() if make().available() and name not in (*RUNTIMES, *PROGRAMS)]
"""Engines whose operators are ours to choose, and which run what stays in float: all but other people's runtimes."""


needs_executorch = pytest.mark.skipif(
    not quant.ENGINES["executorch"]().available(), reason="executorch is not installed: requirements-executorch.txt"
)

needs_litert = pytest.mark.skipif(
    not quant.ENGINES["litert"]().available(), reason="ai-edge-litert is not installed: requirements-litert.txt"
)
ON_PROGRAMS = [
    pytest.param("executorch", marks=[needs_executorch]),
    pytest.param("litert", marks=[needs_litert]),
]
"""Parameters for tests of what the engines of PROGRAMS have in common."""


@pytest.fixture(params=ON_PROGRAMS)
def builder(request) -> type[Builder]:
    """What writes the graphs of a runtime."""
    return quant.engine(request.param).builder


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def digits32():
    """All real digits at 32 x 32: (training batches of 128, the 360 test images, their labels)."""
    dataset = data.DATASETS["digits"].load(32, None)
    batches = data.batches(dataset.train, 128, dataset.mean, dataset.std, 32, data.Draw(seed=0))
    images, labels = next(iter(data.batches(dataset.test, 360, dataset.mean, dataset.std, 32)))
    return batches, images, labels


@pytest.fixture(scope="session")
def digits16():
    """The same at 16 x 16."""
    dataset = data.DATASETS["digits"].load(16, None)
    batches = data.batches(dataset.train, 128, dataset.mean, dataset.std, 16, data.Draw(seed=0))
    images, labels = next(iter(data.batches(dataset.test, 360, dataset.mean, dataset.std, 16)))
    return batches, images, labels


@pytest.fixture(scope="session")
def plain_net(digits16):
    """tests.nets.plain after two seconds of training in float on digits at 16 x 16: 96 %."""
    torch.manual_seed(0)
    model = plain(10).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters())
    for epoch in range(25):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 - epoch / 25)
        for x, y in digits16[0].epoch(epoch):
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


def build_optimizer(model: torch.nn.Module, **keys) -> torch.optim.Optimizer:
    """The optimizer of an optim section with these keys."""
    return optim.build(validate_section("optim", OPTIM_SECTIONS, keys), model)


def spec(**keys) -> quant.ResolvedQuant:
    return quant.resolve(quant.parse(**keys))


@functools.cache
@torch.inference_mode(False)  # whichever test asks first
def photos(count: int, size: int) -> torch.Tensor:
    """Normalized crops of scikit-learn's two photographs, [count, 3, size, size], channels_last."""
    from sklearn.datasets import load_sample_images

    pictures = [torch.tensor(image) for image in load_sample_images().images]
    generator, crops = torch.Generator().manual_seed(0), []
    for i in range(count):
        picture = pictures[i % 2]
        top, left = (int(torch.randint(0, side - size, (1,), generator=generator)) for side in picture.shape[:2])
        crops.append(picture[top : top + size, left : left + size])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((torch.stack(crops) / 255 - mean) / std).permute(0, 3, 1, 2)


def with_real_statistics(model: torch.nn.Module, images: torch.Tensor) -> torch.nn.Module:
    """The model in eval, its batch norms' statistics those of the images: random weights, but live activations."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        model.train()(images)
    return model.eval()


def trained(digits, name: str, options: dict, epochs: int, settings: quant.ResolvedQuant):
    """A net trained on digits: one float epoch, then prepared with `settings` if they train, else calibrated after."""
    batches, images, _ = digits
    model = models.build(name, 10, images.shape[-1], options).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    late = quant.ends_in_float(settings, epochs)
    for epoch in range(epochs):
        if epoch == 1 and not late:
            model = quant.prepare(model, settings)
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - epoch / epochs)
        for x, y in batches:
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    if late:
        model = quant.prepare(model, settings)
        quant.calibrate(model, (x for x, _ in batches))
    return model.eval()


def quickly_trained(name: str, options: dict, batch_size: int, float_steps: int) -> torch.nn.Module:
    """A net after `float_steps` steps in float and 12 quantized at 8/8 on digits at 32 x 32.

    One cycle of the rate, and Adam with a short memory: of all that was tried, the fewest steps to more than 95 %.
    """
    dataset, steps = data.DATASETS["digits"].load(32, None), float_steps + 12
    batches = data.batches(dataset.train, batch_size, dataset.mean, dataset.std, 32, data.Draw(seed=0))
    model = models.build(name, 10, 32, options).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps, pct_start=0.2, cycle_momentum=False)
    images = itertools.chain.from_iterable(map(batches.epoch, itertools.count()))
    for step, (x, y) in enumerate(itertools.islice(images, steps)):
        if step == float_steps:
            model = quant.prepare(model, spec(method="statassist")).train()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        rates.step()
    return model.eval()


NETS = {"resnet20": ({}, 32, 75), "mobilenet_v2": ({"form": "imagenet"}, 64, 130)}
"""Options of the model, images in a batch, steps in float."""


@pytest.fixture(scope="session")
def nets_folder(tmp_path_factory) -> Path:
    """Where trained nets are kept for the suite's other processes; a child process is given it as TRAINED_NETS."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return Path(os.environ.get("TRAINED_NETS") or shared)


@pytest.fixture(scope="session", params=list(NETS))
def net(request, nets_folder):
    """resnet20 and the ImageNet-stride mobilenet_v2 after quantization-aware training at 8/8 on digits."""
    name, (options, batch_size, float_steps) = request.param, NETS[request.param]
    file = nets_folder / f"{name}.pt"
    with FileLock(f"{file}.lock"):
        if not file.is_file():
            torch.manual_seed(0)
            torch.save(quickly_trained(name, options, batch_size, float_steps).state_dict(), file)
    model = quant.prepare(models.build(name, 10, 32, options), spec(method="statassist"))
    model.load_state_dict(torch.load(file, weights_only=True))
    return model.to(memory_format=torch.channels_last).eval()


@pytest.fixture(scope="session")
@torch.inference_mode()
def simulated(net, digits32):
    """What the net predicts for the test images: logits."""
    return net(digits32[1])


def a_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    torch.nn.functional.cross_entropy(model(torch.randn(8, 3, 32, 32)), torch.arange(8)).backward()
    optimizer.step()
    optimizer.zero_grad()


@torch.inference_mode()
def agrees_in_integers(model, digits, least: float) -> None:
    """The net is at least so good (top-1, %) on the test digits, and on every engine predicts what it simulates."""
    _, images, labels = digits
    simulated = model(images)
    assert 100 * (simulated.argmax(1) == labels).float().mean() >= least
    for engine in KERNELS:
        integer = quant.convert(model, engine)
        assert (integer(images).argmax(1) == simulated.argmax(1)).all(), engine
        assert all(found.counts_as_exact() for found in check_layerwise(model, integer, images[:64]).values()), engine
