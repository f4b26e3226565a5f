"""ImageNet's classes are shown by the names that published weights give them, other classes as they are."""

from importlib.resources import files

import pytest

import data
from utils.errors import UserError


@pytest.fixture(scope="module")
def ids() -> list[str]:
    return files("timm").joinpath("data/_info/imagenet_synsets.txt").read_text().split()


def test_each_id_has_the_name_that_timm_has_for_it(ids):
    lines = files("timm").joinpath("data/_info/imagenet_synset_to_lemma.txt").read_text().splitlines()
    timms = dict(line.split("\t") for line in lines)
    names = data.readable(ids)
    differ = [name for key, name in zip(ids, names, strict=True) if name not in timms[key].split(", ")]
    assert differ == ["crane bird", "maillot tank suit"], "torchvision tells these from another crane and maillot"
    assert len({*names}) == 1000


def test_other_classes_are_shown_as_they_are(ids):
    for classes in (ids[::-1], ids[:10], data.readable(ids), ["cat", "dog"]):
        assert data.readable(classes) is classes


def test_a_folder_of_ids_has_the_classes_of_an_export_that_names_them(ids):
    data.check_classes(ids, data.readable(ids))
    data.check_classes(data.readable(ids), ids)
    with pytest.raises(UserError, match="1000 classes"):
        data.check_classes(ids[::-1], ids)
