"""Datasets in their own file formats: a few small images written as each of them stores its own."""

import gzip
import pickle

import numpy
import pytest
import torch
from PIL import Image

import data
from utils.errors import UserError

COUNT = {True: 6, False: 4}


def pixels(train: bool, *shape: int) -> numpy.ndarray:
    return numpy.random.default_rng(train).integers(0, 256, (COUNT[train], *shape), dtype=numpy.uint8)


def write_cifar(root, monkeypatch, name, folder, files, meta, key):
    monkeypatch.setattr(f"torchvision.datasets.{name}._check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    (root / folder).mkdir()
    for file, train in files.items():
        entry = {"data": pixels(train, 3 * 32 * 32), key: list(range(COUNT[train]))}
        (root / folder / file).write_bytes(pickle.dumps(entry))
    (root / folder / meta[0]).write_bytes(pickle.dumps({meta[1]: [f"name{i}" for i in range(10)]}))


def write_cifar100(root, monkeypatch):
    files = {"train": True, "test": False}
    write_cifar(root, monkeypatch, "CIFAR100", "cifar-100-python", files, ("meta", "fine_label_names"), "fine_labels")


def write_svhn(root, monkeypatch):
    from scipy.io import savemat

    monkeypatch.setattr("torchvision.datasets.svhn.download_url", lambda *_, **__: None)
    monkeypatch.setattr("torchvision.datasets.SVHN._check_integrity", lambda self: True)
    for train, name in ((True, "train"), (False, "test")):
        labels = numpy.array([[10], *[[i] for i in range(1, COUNT[train])]])  # SVHN writes the digit 0 as 10
        image = pixels(train, 32, 32, 3).transpose(1, 2, 3, 0)
        savemat(root / f"{name}_32x32.mat", {"X": image, "y": labels})


def write_fashion_mnist(root, monkeypatch):
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for train, name in ((True, "train"), (False, "t10k")):
        head = [2051, COUNT[train], 28, 28]
        images = numpy.array(head, dtype=">i4").tobytes() + pixels(train, 28, 28).tobytes()
        labels = numpy.array([2049, COUNT[train]], dtype=">i4").tobytes() + bytes(range(COUNT[train]))
        (raw / f"{name}-images-idx3-ubyte").write_bytes(images)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(labels)


ARCHIVES = {
    "cifar100": (write_cifar100, lambda train: pixels(train, 3, 32, 32).transpose(0, 2, 3, 1)),
    "svhn": (write_svhn, lambda train: pixels(train, 32, 32, 3)),
    "fashion_mnist": (write_fashion_mnist, lambda train: pixels(train, 28, 28, 1).repeat(3, axis=3)),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_of_torchvision(name, tmp_path, monkeypatch):
    write, expected = ARCHIVES[name]
    write(tmp_path, monkeypatch)
    size = expected(True).shape[1]
    dataset = data.DATASETS[name].load(size, None, root=str(tmp_path))
    for train, part in ((True, dataset.train), (False, dataset.test)):
        assert numpy.array_equal(part.pixels.numpy(), expected(train))
        assert part.labels.tolist() == list(range(COUNT[train]))
    assert dataset.flip == (name != "svhn"), "digits are not mirrored"
    larger = data.DATASETS[name].load(40, 3, train=False, root=str(tmp_path))
    assert larger.train is None
    assert larger.test.pixels.shape == (3, 40, 40, 3)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "fashion_mnist"])
def test_without_the_files_one_line_says_which_goes_where(name, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", fail)
    (tmp_path / "empty").mkdir()
    for root in (tmp_path, tmp_path / "not" / "there"):
        with pytest.raises(UserError, match=rf"could not be downloaded .*; \w+ [^\n]* into {root}"):
            data.DATASETS[name].load(32, None, root=str(root))
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"], "nothing new is left behind"


@pytest.mark.parametrize("packed", [True, False])
def test_files_of_fashion_mnist_are_read_where_they_lie(packed, tmp_path, monkeypatch):
    """As Debian's package has them, in a folder that nobody can write to."""
    write_fashion_mnist(tmp_path, monkeypatch)
    (tmp_path / "FashionMNIST" / "raw").rename(tmp_path / "mine")
    for path in [*(tmp_path / "mine").iterdir()] if packed else []:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    before = sorted(tmp_path.rglob("*"))
    dataset = data.DATASETS["fashion_mnist"].load(28, None, root=str(tmp_path / "mine"))
    assert numpy.array_equal(dataset.train.pixels.numpy(), pixels(True, 28, 28, 1).repeat(3, axis=3))
    assert dataset.test.labels.tolist() == list(range(COUNT[False]))
    assert sorted(tmp_path.rglob("*")) == before
    damaged = next((tmp_path / "mine").glob("train-images*"))
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(UserError, match=rf"data.root: {damaged} is not a readable IDX file"):
        data.DATASETS["fashion_mnist"].load(28, None, root=str(tmp_path / "mine"))


@pytest.mark.parametrize("name", [name for name, row in data.DATASETS.items() if row.downloads])
def test_without_download_a_root_is_only_read(name, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("downloads")

    monkeypatch.setattr("urllib.request.urlopen", fail)
    root = tmp_path / "theirs"
    with pytest.raises(UserError, match=rf"^data.root: .* is not in {root}, which only the checkpoint names"):
        data.DATASETS[name].load(32, None, root=str(root), download=False)
    assert not root.exists()


WNIDS = ["n01440764", "n01443537", "n02112018"]


def save_images(folder, count: int, start: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        image = numpy.random.default_rng(i).integers(0, 256, (60 + i, 70, 3), dtype=numpy.uint8)
        Image.fromarray(image).save(folder / f"ILSVRC2012_val_{i:08d}.JPEG")


@pytest.mark.parametrize("labels", ["folders", "table", "annotations"])
def test_imagenet_in_its_layouts(labels, tmp_path):
    top = tmp_path if labels == "folders" else tmp_path / "Data" / "CLS-LOC"
    for wnid in WNIDS:
        save_images(top / "train" / wnid, 2)
    for i, wnid in enumerate(reversed(WNIDS)):
        save_images(top / "val" / wnid if labels == "folders" else top / "val", 1, start=i)
    if labels == "table":
        lines = [f"ILSVRC2012_val_{i:08d},{wnid} 1 2 3 4 n00000000 5 6 7 8" for i, wnid in enumerate(reversed(WNIDS))]
        (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines]))
        (tmp_path / "LOC_synset_mapping.txt").write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish")
    if labels == "annotations":
        folder = tmp_path / "Annotations" / "CLS-LOC" / "val"
        folder.mkdir(parents=True)
        for i, wnid in enumerate(reversed(WNIDS)):
            (folder / f"ILSVRC2012_val_{i:08d}.xml").write_text(f"<object><name>{wnid}</name></object>")
    dataset = data.DATASETS["imagenet"].load(32, None, root=str(tmp_path), workers=0)
    by_name = sorted(zip((path.stem[-1] for path in dataset.test.paths), dataset.test.labels.tolist(), strict=True))
    assert by_name == [("0", 2), ("1", 1), ("2", 0)]
    assert dataset.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert dataset.classes == (["tench, Tinca tinca", "goldfish", "n02112018"] if labels == "table" else WNIDS)


def test_imagenet_validation_images_without_classes_are_an_error(tmp_path):
    save_images(tmp_path / "Data" / "CLS-LOC" / "train" / WNIDS[0], 1)
    save_images(tmp_path / "Data" / "CLS-LOC" / "val", 1)
    with pytest.raises(UserError, match=r"are in neither .*LOC_val_solution.csv nor .*val$"):
        data.DATASETS["imagenet"].load(32, None, root=str(tmp_path), workers=0)
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\nILSVRC2012_val_00000007,n01440764 1")
    with pytest.raises(UserError, match=r"ILSVRC2012_val_00000000.JPEG: its class is not known"):
        data.DATASETS["imagenet"].load(32, None, root=str(tmp_path), workers=0)


def test_imagenet_is_measured_on_resize_256_and_center_crop_224(tmp_path):
    """Against torchvision's own two transforms: never a random crop."""
    from torchvision.transforms import v2

    for part in ("train", "val"):
        (tmp_path / part / WNIDS[0]).mkdir(parents=True)
        ramp = numpy.linspace(0, 255, 500 * 375 * 3).reshape(375, 500, 3).astype(numpy.uint8)
        Image.fromarray(ramp).save(tmp_path / part / WNIDS[0] / "0.png")
    dataset = data.DATASETS["imagenet"].load(224, None, train=False, root=str(tmp_path), workers=0)
    image, _ = next(iter(data.batches(dataset.test, 1, (0.0,) * 3, (1.0,) * 3, 224)))
    theirs = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    expected = theirs(Image.open(dataset.test.paths[0]))
    assert (image[0] - expected).abs().max() <= 1.5 / 255


def test_measuring_does_not_need_the_training_images(tmp_path):
    save_images(tmp_path / "test" / "cat", 2)
    save_images(tmp_path / "test" / "dog", 2)
    dataset = data.DATASETS["imagefolder"].load(32, None, train=False, root=str(tmp_path), workers=0)
    assert (dataset.train, len(dataset.test), dataset.classes) == (None, 4, ["cat", "dog"])
    with pytest.raises(UserError, match="no folder"):
        data.DATASETS["imagefolder"].load(32, None, root=str(tmp_path), workers=0)
    (tmp_path / "test").rename(tmp_path / "val")
    dataset = data.DATASETS["imagenet"].load(32, None, train=False, root=str(tmp_path), workers=0)
    assert (dataset.train, len(dataset.test), dataset.classes) == (None, 4, ["cat", "dog"])


@pytest.mark.parametrize("name", ["digits", "fake"])
def test_embedded_datasets(name):
    dataset = data.DATASETS[name].load(16, None)
    for part in (dataset.train, dataset.test):
        assert part.pixels.dtype == torch.uint8
        assert part.pixels.shape == (len(part), 16, 16, 3)
        assert set(part.labels.tolist()) == set(range(10))
    again = data.DATASETS[name].load(16, None)
    assert torch.equal(dataset.train.pixels, again.train.pixels)
    assert torch.equal(dataset.test.labels, again.test.labels)


def test_digits_are_all_there_once():
    dataset = data.DATASETS["digits"].load(8, None)
    assert (len(dataset.train), len(dataset.test)) == (1437, 360)


def test_cifar10_without_a_network_says_where_the_file_goes(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no network")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", fail)
    with pytest.raises(UserError, match=r"put cifar-10-python.tar.gz into"):
        data.DATASETS["cifar10"].load(32, None, root=str(tmp_path))
