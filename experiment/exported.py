"""Models in exported files (.npz, .onnx, .pte, .tflite, folders with a model.pt2), and what they say of images."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, FiniteFloat, PositiveFloat
from torch import Tensor

import quant
from experiment.settings import EvaluateSettings
from utils.config import validate
from utils.errors import UserError, first_line
from utils.runs.checkpoint import Channels
from utils.sections import Section

PT2 = "model.pt2"


class Info(Section):
    """What an export says of itself: model.json, the metadata of an ONNX file, `info` of a packed model."""

    model: str = ""
    weight_bits: int = 8
    act_bits: int = 8
    image_size: int = Field(ge=8, le=1024)
    channels: int = Field(3, ge=1, le=64)
    resize: int = Field(ge=8)
    crop: str = "center"
    interpolation: str = "bilinear"
    mean: Annotated[list[FiniteFloat], Channels]
    std: Annotated[list[PositiveFloat], Channels]
    classes: Annotated[list[str], Field(min_length=1)]


@dataclass(frozen=True)
class Exported:
    """A model in a file: float images [N, C, H, W] -> float logits [N, classes]. engine: what runs it."""

    run: Callable[[Tensor], Tensor]
    info: Info
    engine: str


def is_export(path: str) -> bool:
    """Whether a path is called as a file of an export, or is a folder with a model.pt2."""
    return Path(path).suffix in READERS or (Path(path) / PT2).is_file()


def check_asked(settings: EvaluateSettings) -> None:
    """Raise UserError for keys that an exported model cannot serve."""
    for key in ("export", "sensitivity", "engines"):
        if getattr(settings, key):
            raise UserError(f"{key}: {settings.checkpoint} is an exported model: name the checkpoint that it is of")


def read(path: str, trust: bool | str) -> Exported:
    """The model of an exported file. Raises UserError if it cannot be read.

    trust: has to be True for a model.pt2, of which torch may run code.
    """
    check_exists(path)
    found = _folder(path, trust) if Path(path).is_dir() else READERS[Path(path).suffix](path)
    return replace(found, run=functools.partial(_finite_logits, found.run, path))


def check_exists(path: str) -> None:
    if not Path(path).exists():
        raise UserError(f"checkpoint: there is no {path}")


def _finite_logits(run: Callable[[Tensor], Tensor], path: str, images: Tensor) -> Tensor:
    """run(images). Raises UserError if it is no table of finite numbers: a file may hold scales of zero, say."""
    logits = run(images)
    if logits.ndim != 2 or len(logits) != len(images) or not bool(torch.isfinite(logits).all()):
        raise UserError(f"{path}: its logits {list(logits.shape)} are not finite numbers [N, classes]: a damaged model")
    return logits


def _packed(path: str) -> Exported:
    model = quant.load_packed(path)
    return Exported(model, validate(Info, model.info, path), "packed")


def _onnx(path: str) -> Exported:
    quant.check_onnx("checkpoint")
    import onnx

    try:
        proto = onnx.load(path)
    except Exception as error:  # of protobuf, of the system
        raise UserError(f"{path}: not a readable ONNX file ({first_line(error, 100)})") from None
    texts = {pair.key: pair.value for pair in proto.metadata_props if pair.key in Info.model_fields}
    session_of = functools.partial(quant.onnxruntime_session, proto.SerializeToString())
    open_session = functools.lru_cache(maxsize=4)(session_of)  # one for each size of a batch

    def run(images: Tensor) -> Tensor:
        return open_session(images.shape, torch.get_num_threads())(images)

    return Exported(run, validate(Info, {key: _plain(text) for key, text in texts.items()}, path), "onnxruntime")


def _executorch(path: str) -> Exported:
    quant.check_executorch("checkpoint")
    return _program(path, "executorch", quant.executorch_program)


def _litert(path: str) -> Exported:
    quant.check_litert("checkpoint")
    return _program(path, "litert", quant.litert_program)


def _program(path: str, engine: str, load: Callable[[bytes], Callable[..., list[Tensor]]]) -> Exported:
    """A program of one image, and what NAME.json beside it says of its images."""
    file, beside = Path(path), Path(path).with_suffix(".json")
    try:
        said = dict(json.loads(beside.read_text(encoding="utf-8")))
        program = load(file.read_bytes())
    except Exception as error:  # of the runtime, of the system
        raise UserError(f"{path}: not a readable program with {beside.name} ({first_line(error, 100)})") from None
    info = validate(Info, {key: said[key] for key in Info.model_fields if key in said}, str(beside))
    probe = torch.zeros(1, info.channels, info.image_size, info.image_size)

    def run(images: Tensor) -> Tensor:
        return torch.cat([program(image)[0].clone() for image in images.split(1)])

    try:
        run(probe)
    except Exception as error:
        raise UserError(f"{path}: not a program for images {[*probe.shape]} ({first_line(error, 100)})") from None
    return Exported(run, info, engine)


def _plain(text: str) -> Any:
    """A value of an ONNX file's metadata: text as it is, all else as JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _folder(path: str, trust: bool | str) -> Exported:
    if trust is not True:
        raise UserError(f"checkpoint: torch may run code of {path}/{PT2}: set trust=true if you trust its origin")
    try:  # its operators are those that quant defines; the copy in the folder is not imported
        info = json.loads((Path(path) / "model.json").read_text(encoding="utf-8"))
        model = torch.export.load(Path(path) / PT2).module()
    except Exception as error:  # torch raises anything for a damaged file
        raise UserError(f"{path}: not a readable export ({first_line(error, 100)})") from None
    return Exported(model, validate(Info, info, f"{path}/model.json"), "torch.export")


READERS: dict[str, Callable[[str], Exported]] = {
    ".npz": _packed,
    ".onnx": _onnx,
    ".pte": _executorch,
    ".tflite": _litert,
}
"""How an exported file is read, by its suffix."""
