"""Predicts, by the model in this folder, the five likeliest classes of a picture, or of each picture in a folder.

python example.py photo.jpg
python example.py folder            which also writes predictions.csv
"""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy  # noqa: F401  for the functions that make the square
import torch
from PIL import Image, ImageOps  # noqa: F401  as above
from torchvision.transforms import v2

from quant.export import integer_ops  # noqa: F401  the operators of model.pt2
from utils.image_input import resize_and_crop, upright

Answer = list[tuple[str, float]]
"""Classes and their percent, the likeliest first."""


def asker(folder: Path) -> Callable[[Path], Answer]:
    """A function that opens a picture and asks the exported model in this folder."""
    info = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    model = torch.export.load(folder / "model.pt2").module()
    values = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(info["mean"], info["std"])])
    prepare = v2.Compose([v2.ToImage(), values])
    square = [info[key] for key in ("image_size", "resize", "crop", "interpolation")]

    @torch.inference_mode()
    def ask(picture: Path) -> Answer:
        with picture.open("rb") as file:
            image = resize_and_crop(upright(Image.open(file), info["channels"]), *square)
        percent = 100 * model(prepare(image)[None])[0].softmax(0)
        best = percent.argsort(descending=True, stable=True)[:5].tolist()
        return [(info["classes"][i], float(percent[i])) for i in best]

    return ask


def of_picture(ask: Callable[[Path], Answer], path: Path) -> None:
    """Print the answer, a class a line. Exits with a line if the picture cannot be read."""
    try:
        answer = ask(path)
    except Exception as error:  # Pillow raises anything for what is no picture
        sys.exit(f"{plain(path)}: {error}")
    for name, share in answer:
        print(f"{share:6.2f} %  {name}")


def of_folder(ask: Callable[[Path], Answer], folder: Path) -> None:
    """Print the likeliest class of each picture, and write all answers to predictions.csv."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    with open("predictions.csv", "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        table = csv.writer(file)
        for path in paths:
            try:
                answer = ask(path)
            except Exception as error:  # as above
                print(f"left out: {plain(path)} ({error})", file=sys.stderr)
                continue
            if file.tell() == 0:
                places = range(1, len(answer) + 1)
                table.writerow(["image", *(f"{key} {i}" for i in places for key in ("class", "percent"))])
            table.writerow(
                [text(plain(path)), *(cell for name, share in answer for cell in (text(name), f"{share:.2f}"))]
            )
            print(f"{plain(path)}  {answer[0][0]}  {answer[0][1]:.2f} %")


def plain(path: Path) -> str:
    """A name without control characters."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(path))


def text(cell: str) -> str:
    """What a spreadsheet shows, and does not compute."""
    return f"'{cell}" if cell[:1] in ("=", "+", "-", "@") else cell


def main(arguments: list[str], asker: Callable[[Path], Callable[[Path], Answer]], beside: Path, usage: str) -> None:
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        sys.exit(usage)
    path = Path(arguments[0])
    if not path.exists():
        sys.exit(f"no picture and no folder: {plain(path)}")
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    (of_folder if path.is_dir() else of_picture)(asker(beside), path)


if __name__ == "__main__":
    main(sys.argv[1:], asker, Path(__file__).parent, str(__doc__))
