"""Asks the ExecuTorch program beside this file what it sees: the five likeliest classes of a picture, or of each in a
folder. Needs executorch with torch, numpy and pillow, and nothing else:

pip install torch numpy pillow flatbuffers ruamel.yaml tabulate
pip install --no-deps executorch

python NAME photo.jpg
python NAME folder            which also writes predictions.csv
"""

import csv  # noqa: F401  for the functions that answer
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from PIL import Image, ImageOps  # noqa: F401  for the functions that make the square

from quant.export.example import Answer, main
from utils.image_input import resize_and_crop, upright


def asker(beside: Path) -> Callable[[Path], Answer]:
    """A function that opens a picture and asks the program that this file is beside."""
    file = beside.with_name(beside.stem.removesuffix("_example") + ".pte")
    info = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    from executorch.runtime import Runtime  # here: seconds to import

    program = Runtime.get().load_program(file.read_bytes())
    mean, std = (torch.tensor(info[key])[:, None, None] for key in ("mean", "std"))
    square = [info[key] for key in ("image_size", "resize", "crop", "interpolation")]

    def ask(picture: Path) -> Answer:
        with picture.open("rb") as file:
            image = resize_and_crop(upright(Image.open(file), info["channels"]), *square)
        pixels = (
            torch.from_numpy(numpy.array(image)).reshape(info["image_size"], info["image_size"], -1).permute(2, 0, 1)
        )
        run = program.load_method("forward")  # which does not keep the program
        percent = 100 * run.execute([((pixels / 255 - mean) / std)[None].contiguous()])[0][0].softmax(0)
        best = percent.argsort(descending=True, stable=True)[:5].tolist()
        return [(info["classes"][i], float(percent[i])) for i in best]

    return ask


if __name__ == "__main__":
    main(sys.argv[1:], asker, Path(__file__), str(__doc__))
