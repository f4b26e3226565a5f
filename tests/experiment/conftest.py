"""A run on pictures, and its exports, which several tests ask and measure."""

import numpy
import pytest
from PIL import Image

from experiment import evaluation, training


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A run on bright and dark pictures, and its exports."""
    folder = tmp_path_factory.mktemp("run")
    random = numpy.random.default_rng(0)
    for name, light in (("dark", 40), ("bright", 200), ("middle", 120)):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(12):
            pixels = random.integers(light - 30, light + 30, (40, 30 + i, 3)).astype(numpy.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{i}.png")
    keys = ["data.name=imagefolder", f"data.root={folder / 'images'}", "data.image_size=16", "data.batch_size=6"]
    options = ["model.name=resnet20", "quant.method=ptq", "run.epochs=6", "optim.lr=0.05", 'run.engines=["x86"]']
    training.main([*keys, *options, f"run.dir={folder}", "run.name=a"])
    for target in ("a.npz", "a.onnx", "exported"):
        evaluation.main([str(folder / "a"), f"export={folder / target}"])
    return folder
