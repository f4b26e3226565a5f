"""What can happen to the images of an interrupted run before it is continued."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from benchmarks.soak.trial import Trial

OTHER_IMAGES = r"other inputs \(data\.(training|validation|test|classes)"
UNREADABLE = r"not a readable image"


def _some_image(trial: Trial) -> Path:
    return trial.choose.choice(sorted((trial.folder / "images").rglob("*.png")))


def rename_image(trial: Trial) -> None:
    path = _some_image(trial)
    path.rename(path.with_name(f"{path.stem} of another name.png"))


def rename_class(trial: Trial) -> None:
    for part in ("train", "test"):
        (trial.folder / "images" / part / "bee").rename(trial.folder / "images" / part / "wasp")


def move_to_another_class(trial: Trial) -> None:
    path = _some_image(trial)
    other = next(folder for folder in path.parent.parent.iterdir() if folder.name != path.parent.name)
    path.rename(other / "moved.png")


def remove_image(trial: Trial) -> None:
    _some_image(trial).unlink()


def add_image(trial: Trial) -> None:
    path = _some_image(trial)
    shutil.copyfile(path, path.with_name("added.png"))


def truncate_image(trial: Trial) -> None:
    path = _some_image(trial)
    os.truncate(path, trial.choose.randrange(path.stat().st_size))


def zero_image(trial: Trial) -> None:
    path = _some_image(trial)
    path.write_bytes(bytes(path.stat().st_size))


def change_image(trial: Trial) -> None:
    path = _some_image(trial)
    content = bytearray(path.read_bytes())
    content[trial.choose.randrange(len(content))] ^= 1 << trial.choose.randrange(8)
    path.write_bytes(content)


def add_class(trial: Trial) -> None:
    for part in ("train", "test"):
        shutil.copytree(trial.folder / "images" / part / "bee", trial.folder / "images" / part / "beetle")


CHANGES: dict[Callable[[Trial], None], str] = {
    rename_image: OTHER_IMAGES,
    rename_class: r"other inputs \(data\.classes\.1: \"bee\" there.*\"wasp\" here",
    move_to_another_class: OTHER_IMAGES,
    remove_image: OTHER_IMAGES,
    add_image: OTHER_IMAGES,
    truncate_image: f"{OTHER_IMAGES}|{UNREADABLE}",
    zero_image: f"{OTHER_IMAGES}|{UNREADABLE}",
    change_image: f"{OTHER_IMAGES}|{UNREADABLE}",
    add_class: "beetle",
}
"""What can happen to images -> the cause that a line then names."""


def other_images(trial: Trial) -> str:
    """Between a kill and the continuation, something happens to the images; then they are as they were."""
    trial.interrupt()
    images, kept = trial.folder / "images", trial.folder / "kept"
    shutil.copytree(images, kept)
    change = trial.choose.choice(list(CHANGES))
    trial.note(change.__name__)
    change(trial)

    def mend() -> None:
        shutil.rmtree(images)
        kept.rename(images)

    return trial.is_refused_until(CHANGES[change], mend)


def images_elsewhere(trial: Trial) -> str:
    """Between a kill and the continuation, the images are copied: other times, another folder."""
    trial.interrupt()
    (trial.folder / "images").rename(trial.folder / "as they were")
    elsewhere = trial.folder / "copied to another place"
    shutil.copytree(trial.folder / "as they were", elsewhere, copy_function=shutil.copyfile)
    return trial.ends_identical(more=(f"data.root={elsewhere}",))
