"""Whatever is in a folder of images: batches of the right shape and of finite numbers, or one printable line.

`python -m benchmarks.faults` tries more trees: FAULTS is how many, each time others.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
import random
import resource
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import data
from utils.config import validate_section
from utils.errors import UserError
from utils.names import HOSTILE

FAULTS = int(os.environ.get("FAULTS", 0))
MANY = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck), "derandomize": not FAULTS}
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16", "RGBa")
SIDES = (1, 2, 3, 7, 8, 9, 16, 31, 33, 64, 65, 90)
PICTURES = 60 + 10 * FAULTS
"""How many different images there are."""
ODD_NAMES = (
    *(b"two\nlines", b"\x1b[2Jred", b"not utf-8 \xff\xe9", b"x" * 250, b".hidden", b"..twice", b" ", b"-rf", b"~"),
    *(b"a\\b", b"\\x1b", b"0", b"%s", b"a:b*?", b"con", b"x.png.", b"{name}", b"'quoted\"", b"\t", b"\x7f\x85"),
    *(text.encode("utf-8", "surrogatepass") for text in ("été", "e\u0301", "\u202eback", "日本", "\ud800")),
)
STARTS = (b"", b"text\n", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBP", bytes(50))
"""Contents of files that are no images, though some look so."""
ENDINGS = (b"", b".png", b".jpg", b".JPG", b".tif", b".gif", b".webp", b".bmp", b".txt", b".npy", b".ico", b".pt")


def name(choose: random.Random) -> bytes:
    return choose.choice(ODD_NAMES) if choose.random() < 0.4 else b"%d" % choose.randrange(30)


@functools.cache
def picture(number: int) -> tuple[bytes, bytes]:
    """(ending, contents) of an image of any mode, any size and any format that Pillow writes."""
    choose = random.Random(number)
    Image.init()
    while True:
        mode, kind = choose.choice(MODES), choose.choice([name for name in Image.SAVE if name != "ICNS"])
        size = choose.choice(SIDES), choose.choice(SIDES)
        content = io.BytesIO()
        with contextlib.suppress(Exception), warnings.catch_warnings():  # most formats have few modes
            warnings.simplefilter("ignore")
            _noise(mode, size, choose).save(content, kind)
            ending = next((e for e, k in Image.registered_extensions().items() if k == kind), "")
            return ending.encode(), content.getvalue()


def _noise(mode: str, size: tuple[int, int], choose: random.Random) -> Image.Image:
    if mode == "I;16":
        return Image.frombytes(mode, size, choose.randbytes(2 * size[0] * size[1]))
    seen = Image.frombytes("RGB", size, choose.randbytes(3 * size[0] * size[1]))
    if mode in ("PA", "RGBa"):
        return seen.convert({"PA": "P", "RGBa": "RGBA"}[mode]).convert(mode)
    return seen.convert(mode)


def mutated(content: bytes, choose: random.Random) -> bytes:
    """With some bytes changed, cut out, doubled or cut off; most of them at the beginning, where sizes are."""
    some = bytearray(content)
    for _ in range(choose.choice([1, 1, 2, 8])):
        at = int(len(some) * choose.random() ** 3)
        change = choose.randrange(4)
        if change == 0 and some:
            some[at] = choose.choice([0, 1, 127, 128, 255, choose.randrange(256)])
        elif change == 1:
            some[at : at + choose.randrange(1, 40)] = b""
        elif change == 2:
            some[at:at] = some[at : at + 40]
        else:
            some = some[: max(at, len(some) // 2)]
    return bytes(some)


def put_file(folder: bytes, choose: random.Random) -> None:
    """A file, a link or something else in a folder."""
    ending, content = picture(choose.randrange(PICTURES))
    kind = choose.random()
    if kind < 0.12:
        content = mutated(content, choose)
    elif kind < 0.2:
        content = choose.choice(STARTS)
    if kind < 0.3:
        ending = choose.choice(ENDINGS)
    path = os.path.join(folder, (name(choose) + ending)[:255])
    if os.path.lexists(path):
        return
    if kind > 0.95:
        put_link(path, choose)
    elif kind > 0.94:
        os.mkfifo(path)
    else:
        with open(path, "wb") as file:
            file.write(content)
        if kind > 0.93 and os.geteuid():  # root may read it all the same
            os.chmod(path, 0)


def put_link(path: bytes, choose: random.Random) -> None:
    """To itself, to nothing, to a folder above, and to a file and a folder outside the tree."""
    os.symlink(choose.choice([os.path.basename(path), b"nothing", b"..", b".", b"../../../outside"]), path)
    if choose.random() < 0.3:
        os.unlink(path)
        os.symlink(b"../../../outside/0.png", path)


def put_folder(folder: bytes, choose: random.Random, depth: int = 0) -> None:
    os.makedirs(folder, exist_ok=True)
    for _ in range(choose.choice([0, 1, 2, 2, 3, 5])):
        put_file(folder, choose)
    while depth < 3 and choose.random() < 0.15:
        inside = os.path.join(folder, name(choose))
        if not os.path.lexists(inside):
            put_folder(inside, choose, depth + 1)


def put_tree(root: Path, choose: random.Random) -> None:
    """Mostly train/, test/ and val/ with the same classes and a sound image in each."""
    outside = root.parent / "outside"
    outside.mkdir(parents=True)
    Image.new("RGB", (9, 9), "red").save(outside / "0.png")
    classes = [name(choose) for _ in range(choose.choice([1, 2, 2, 3]))]
    for part in ("train", "test", "val"):
        if choose.random() < 0.05 + 0.5 * (part == "val"):
            continue
        for one in classes + [name(choose)] * (choose.random() < 0.05):
            folder = os.path.join(os.fsencode(root / part), one)
            if os.path.lexists(folder) or choose.random() < 0.03:
                continue
            put_folder(folder, choose)
            if choose.random() < 0.9:
                Image.new("RGB", (12, 10), (len(one), 9, 99)).save(os.path.join(os.fsdecode(folder), "sound.png"))
        if choose.random() < 0.1 and (root / part).is_dir():
            put_file(os.fsencode(root / part), choose)


def section(root: Path, choose: random.Random) -> dict:
    """A data section with usual and unusual values."""
    size = choose.choice([8, 9, 16, 33, 64, 65])
    asked = {"name": "imagefolder", "root": str(root), "image_size": size, "workers": 0}
    others = {
        "resize": [size, size + 1, 2 * size, 3 * size + 7, 100, size - 1],
        "crop": ["center", "squash"],
        "interpolation": ["nearest", "bilinear", "bicubic", "lanczos"],
        "channels": [1, 1, 4, 4, 2],
        "on_error": ["skip"],
        "limit": [1, 2, 5],
        "batch_size": [2, 5],
    }
    often = {"on_error": 0.6}
    return asked | {key: choose.choice(some) for key, some in others.items() if choose.random() < often.get(key, 0.3)}


def everything(folder: Path) -> dict[bytes, tuple]:
    """All that is under a folder: kind and permissions, size, time of the last change, contents."""
    found = {}
    for path, folders, names in os.walk(os.fsencode(folder)):
        for one in [path, *(os.path.join(path, name) for name in folders + names)]:
            status = os.lstat(one)
            regular = os.path.isfile(one) and not os.path.islink(one) and status.st_mode & 0o400
            digest = hashlib.blake2b(Path(os.fsdecode(one)).read_bytes()).digest() if regular else b""
            found[one] = status.st_mode, status.st_size, status.st_mtime_ns, digest
    return found


Read = dict[str, list[tuple[torch.Tensor, torch.Tensor]]]


def read(asked: dict) -> Read:
    """All batches of each part, those of the training images augmented, too; checked. Raises UserError."""
    d = validate_section("data", data.SECTIONS, asked)
    dataset = data.load(d)
    json.dumps(data.identity(dataset))
    found = {}
    for part in ("train", "val", "test"):
        images = getattr(dataset, part)
        draws = [None, data.Draw(seed=3, augment="crop", flip=True)] if part == "train" else [None]
        made = [data.batches(images, 3, dataset.mean, dataset.std, d.image_size, draw) for draw in draws if images]
        found[part] = [batch for batches in made for batch in batches.epoch(1)]
        for x, labels in found[part]:
            assert x.shape == (len(labels), d.channels, d.image_size, d.image_size)
            assert x.isfinite().all()
            assert len(labels) == 0 or 0 <= labels.min() <= labels.max() < len(dataset.classes)
    return found


def outcome(asked: dict) -> tuple[Read | None, str]:
    """(all batches, what was printed); or (None, the line of a UserError)."""
    said, found, refused = io.StringIO(), None, ""
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            found = read(asked)
    except UserError as error:
        refused = str(error)
    printed = said.getvalue().translate({ord(end): None for end in "\n\r"})
    assert not HOSTILE.search(refused + printed), refused or printed
    return found, refused or said.getvalue()


def same(one: Read, other: Read) -> bool:
    pairs = [(a, b) for part in one for a, b in zip(one[part], other[part], strict=True)]
    return all(torch.equal(a, b) for first, second in pairs for a, b in zip(first, second, strict=True))


def same_images(one: list, other: list) -> bool:
    """Whether they are the same in their order: what is left out of a batch makes it smaller, but out of memory it
    makes room for others."""
    joined = [[torch.cat(parts) for parts in zip(*batches, strict=True)] for batches in (one, other)]
    return all(torch.equal(a, b) for a, b in zip(*joined, strict=True))


def check(seed: int, base: Path) -> bool:
    """Whether the tree of this seed is a dataset."""
    choose = random.Random(seed)
    root = base / "tree" / (os.fsdecode(name(choose)) if choose.random() < 0.2 else "root")
    put_tree(root, choose)
    asked, before = section(root, choose), everything(base)
    if choose.random() < 0.1:
        found, _ = outcome(asked | {"name": "imagenet"})
        assert everything(base) == before
        return found is not None
    kept, line = outcome(asked | {"cache": "always"})
    decoded, _ = outcome(asked | {"cache": "never"})
    assert everything(base) == before
    if kept is not None and "left out: " in line:
        assert decoded is None or same_images(kept["test"], decoded["test"])
    else:
        assert (kept is None) == (decoded is None), line
        assert kept is None or same(kept, decoded)
    return kept is not None


@pytest.fixture(scope="module", autouse=True)
def little_memory():
    """Whatever is in a folder, it takes no more than 1 GB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20, "in kB"


@settings(max_examples=FAULTS or 120, **MANY)
@given(seed=st.integers(0, 2**32))
def test_a_tree_of_anything_is_batches_or_a_line(seed, tmp_path_factory):
    base = tmp_path_factory.mktemp("trees")
    try:
        check(seed, base)
    finally:
        shutil.rmtree(base)


def test_some_trees_are_datasets_and_some_are_not(tmp_path):
    """So that the test above tries both."""
    found = [check(seed, tmp_path / str(seed)) for seed in range(12)]
    assert 2 < sum(found) < 12
