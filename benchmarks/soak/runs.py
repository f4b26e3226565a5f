"""The kinds of runs that are disturbed, what each reads, and all that it ends with."""

import hashlib
import json
import re
import shutil
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from filelock import FileLock
from PIL import Image

from benchmarks.soak.processes import ROOT, How, Program, Violation
from utils.runs import tensor_file

SMALL = "tests.nets:Residual"
TRAIN = ["data.image_size=16", "data.batch_size=32", "data.limit=96", "data.val_fraction=0.25", "run.epochs=4"]
TRAIN += [f"model.name={SMALL}", "run.checkpoint_minutes=0.00001", 'run.engines=["reference"]']
FOUR_BITS = ["quant.weight_bits=4", "quant.act_bits=4"]
FOLDER = ["data.name=imagefolder", "data.root={images}", "data.image_size=16", "data.batch_size=8"]
EVALUATE = ["checkpoint={checkpoint}", 'engines=["reference"]', "output={runs}", f"trust={SMALL}"]
TIMES = ("seconds", "run_seconds", "images_per_second", "epoch_seconds")
"""Values that differ between two runs."""
PLACES = ("checkpoint", "root", "dir", "name")
"""Values that differ between two folders."""


@dataclass(frozen=True)
class Kind:
    """A command. In its arguments {images}, {runs} and {checkpoint} stand for what lies in the folder of a trial.

    saves: it is a single training, so that it has a last.pt from the first step on.
    """

    script: str
    arguments: list[str]
    saves: bool = False

    @property
    def reads_images(self) -> bool:
        return "data.root={images}" in self.arguments

    def command(self, folder: Path) -> list[str]:
        names = {"images": folder / "images", "runs": folder / "runs", "checkpoint": folder / "trained.pt"}
        own = ["run.dir={runs}", "run.name=run"] if self.script == "train" else []
        setting = ["-c", str(ROOT / "setting" / f"{self.script}.json")]
        return setting + [_filled(argument, names) for argument in [*self.arguments, *own]]

    def prepare(self, folder: Path, sources: Path) -> None:
        """Copy what the command reads into the folder of a trial."""
        (folder / "runs").mkdir(parents=True)
        if self.reads_images:
            shutil.copytree(sources / "images", folder / "images")
        if self.script == "evaluate":
            shutil.copyfile(sources / "trained.pt", folder / "trained.pt")


def _filled(argument: str, names: dict[str, Path]) -> str:
    for name, path in names.items():
        argument = argument.replace(f"{{{name}}}", str(path))
    return argument


KINDS = {
    "lsq": Kind("train", [*TRAIN, "quant.method=lsq", *FOUR_BITS, "optim.average=0.9"], saves=True),
    "resnet20": Kind("train", [*TRAIN, "model.name=resnet20", "run.epochs=2", "quant.float_epochs=1"], saves=True),
    "pact": Kind("train", [*TRAIN, "quant.method=pact", *FOUR_BITS], saves=True),
    "dorefa": Kind("train", [*TRAIN, "quant.method=dorefa", *FOUR_BITS, "quant.grad_bits=6"], saves=True),
    "statassist, qsgd": Kind("train", [*TRAIN, "quant.method=statassist", "optim.name=qsgd"], saves=True),
    "ptq": Kind("train", [*TRAIN, "quant.method=ptq", "quant.recipe=best", "quant.rounding_steps=5"], saves=True),
    "images in memory": Kind("train", [*TRAIN, *FOLDER, "data.cache=always"], saves=True),
    "images by the batch": Kind("train", [*TRAIN, *FOLDER, "data.cache=never", "data.workers=1"], saves=True),
    "sweep": Kind("train", [*TRAIN, "run.epochs=2", 'sweep={"quant.act_bits":[4,8]}']),
    "export, folder": Kind("evaluate", [*EVALUATE, "export={runs}/exported"]),
    "export, .onnx": Kind("evaluate", [*EVALUATE, "export={runs}/exported.onnx"]),
    "export, .npz": Kind("evaluate", [*EVALUATE, "export={runs}/exported.npz"]),
}


def make_sources(folder: Path) -> None:
    """The image folder that runs read, and the checkpoint that is exported."""
    numbers = numpy.random.default_rng(0)
    for part, count in (("train", 10), ("test", 4)):
        for label, name in enumerate(("ant", "bee", "cat")):
            (folder / "images" / part / name).mkdir(parents=True)
            for i in range(count):
                size = (*numbers.integers(16, 33, 2), 3)
                pixels = numbers.integers(0, 128, size, dtype=numpy.uint8)
                pixels[..., label] += 100
                Image.fromarray(pixels).save(folder / "images" / part / name / f"{i}.png")
    kind = KINDS["ptq"]
    program = Program(kind.script, kind.command(folder), How(), folder / "made")
    if program.end()[0]:
        raise Violation(f"no checkpoint to export: {program.end()}")
    (folder / "runs" / "run" / "last.pt").rename(folder / "trained.pt")


def undisturbed(name: str, threads: int, sources: Path) -> tuple[dict[str, str], float]:
    """(all that a run of this kind ends with if nothing happens to it, its seconds); run once and kept."""
    folder = undisturbed_folder(name, threads, sources)
    with FileLock(f"{folder}.lock"):
        if not (folder / "outcome.json").is_file():
            kind = KINDS[name]
            kind.prepare(folder, sources)
            began = time.monotonic()
            how = How(threads=threads, fresh=threads > 1)
            code, line = Program(kind.script, kind.command(folder), how, folder / "made").end()
            if code:
                raise Violation(f"the undisturbed run ends with {code}: {line}")
            found = {"outcome": outcome(folder), "seconds": time.monotonic() - began}
            (folder / "outcome.json").write_text(json.dumps(found))
        found = json.loads((folder / "outcome.json").read_text())
    return found["outcome"], found["seconds"]


def undisturbed_folder(name: str, threads: int, sources: Path) -> Path:
    return sources / f"{name} {threads}"


def outcome(folder: Path) -> dict[str, str]:
    """Digests of all that the runs in the folder of a trial left, less times and places.

    A file that is half written is among it; an earlier run that was moved aside, whose folder ends in a number, is not.
    """
    kept = [path for path in files_of(folder) if path.suffix != ".lock" and path.name not in UNCOMPARED]
    kept = [path for path in kept if not re.search(r"\.\d+$", path.relative_to(folder / "runs").parts[0])]
    return {
        f"{path.relative_to(folder / 'runs')}{name}": hashlib.sha256(content).hexdigest()[:16]
        for path in kept
        for name, content in _contents(path)
    }


ADDRESSES = re.compile(rb"0x[0-9a-f]{8,}|(?<=graph_id)\W+\d+")
"""Where objects were in memory, which torch writes into a model.pt2."""
UNCOMPARED = ("run.log", "environment.json", "config.json", "curves.png", "table.png", "report.html", "evaluation.html")


def _contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """(where in the file, bytes) of all parts that two equal runs have in common."""
    if path.suffix == ".pt":
        yield from _leaves(tensor_file.load(str(path)))
    elif path.suffix in (".npz", ".pt2"):
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if not name.endswith("serialization_id"))
            yield from ((f" {name}", ADDRESSES.sub(b"", archive.read(name))) for name in names)
    elif path.suffix == ".json":
        yield from _leaves(json.loads(path.read_text()))
    elif path.name == "metrics.csv":
        yield "", "\n".join(line.rsplit(",", 2)[0] for line in path.read_text().splitlines()).encode()
    elif path.suffix in (".csv", ".md"):
        yield "", b""  # times are among the columns
    else:
        yield "", path.read_bytes()


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, bytes]]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            if key not in (*TIMES, *PLACES):
                yield from _leaves(item, f"{name}.{key}")
    else:
        yield name, tensor_file.checksum(value).encode()


def difference(expected: dict[str, str], found: dict[str, str]) -> str:
    """The first names that differ; "" if none do."""
    wrong = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    return f"{len(wrong)} of {len(expected)} differ: {', '.join(wrong[:4])}" if wrong else ""


def files_of(folder: Path) -> list[Path]:
    """All files that the runs in the folder of a trial have written."""
    return sorted(path for path in (folder / "runs").rglob("*") if path.is_file())
