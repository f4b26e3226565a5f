"""Asks the LiteRT file beside this one what it sees: the five likeliest classes of a picture, or of each in a folder.
Needs ai-edge-litert with numpy and pillow, and nothing else:

pip install ai-edge-litert numpy pillow

python NAME photo.jpg
python NAME folder            which also writes predictions.csv
"""

import csv  # noqa: F401  for the functions that answer
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy
from PIL import Image, ImageOps  # noqa: F401  for the functions that make the square

from quant.export.example import Answer, main
from utils.image_input import resize_and_crop, upright


def asker(beside: Path) -> Callable[[Path], Answer]:
    """A function that opens a picture and asks the file that this one is beside."""
    file = beside.with_name(beside.stem.removesuffix("_example") + ".tflite")
    info = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    from ai_edge_litert.interpreter import Interpreter  # here: what is missing is said first

    run = Interpreter(model_path=str(file)).get_signature_runner()
    mean, std = (numpy.array(info[key], numpy.float32) for key in ("mean", "std"))
    square = [info[key] for key in ("image_size", "resize", "crop", "interpolation")]

    def ask(picture: Path) -> Answer:
        with picture.open("rb") as file:
            image = resize_and_crop(upright(Image.open(file), info["channels"]), *square)
        pixels = numpy.array(image, numpy.float32).reshape(1, info["image_size"], info["image_size"], -1)
        logits = run(images=(pixels / numpy.float32(255) - mean) / std)["logits"][0]
        shares = numpy.exp(logits - logits.max())
        percent = 100 * shares / shares.sum()
        best = numpy.argsort(-percent, kind="stable")[:5].tolist()
        return [(info["classes"][i], float(percent[i])) for i in best]

    return ask


if __name__ == "__main__":
    main(sys.argv[1:], asker, Path(__file__), str(__doc__))
