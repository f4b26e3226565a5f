"""--help prints every key with its values, its default and its description."""

import pytest

from experiment.settings import EvaluateSettings, LatencySettings, TrainSettings
from utils import help
from utils.errors import UserError

KINDS = [TrainSettings, EvaluateSettings, LatencySettings]


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_has_a_description_and_values(kind):
    for key in help.keys(kind):
        assert key.field.description, key.name
        title, *lines = str(key).splitlines()
        assert title.startswith(f"{key.name}: "), title
        assert lines
        assert all(len(line) <= 125 for line in lines)


def test_a_section_is_explained_with_the_keys_of_all_of_its_kinds():
    shown = help.explain(TrainSettings, "quant")
    assert 'quant.method: "float", "ptq", "dorefa", "pact", "lsq", "statassist"; "statassist" by default\n' in shown
    assert "quant.grad_bits:" in shown
    assert "(method dorefa)" in shown
    assert "optim." not in shown


def test_a_key_is_found_by_its_own_name():
    assert help.explain(TrainSettings, "lr") == "optim.lr: number, above 0; 0.1 by default\n    Peak learning rate."
    assert help.explain(TrainSettings, "run.seed").startswith("run.seed: integer, at least 0, below ")


def test_what_differs_between_kinds_is_said_of_each():
    shown = help.explain(TrainSettings, "data.image_size").replace("\n    ", " ")
    assert "16 (digits), 32 (cifar10, cifar100, " in shown
    assert "224 (imagenet, imagefolder) by default" in shown
    channels = help.explain(TrainSettings, "data.channels").replace("\n    ", " ")
    assert (
        "1 or 3 or 4 (imagenet, imagefolder), integer, at least 1, at most 64 (package.module:function); 3 by"
        in channels
    )


def test_a_word_that_is_no_key_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"^command line: --help quan: no such key, did you mean quant\?$"):
        help.explain(TrainSettings, "quan")


def test_what_can_be_asked_for_are_the_sections():
    assert help.sections(TrainSettings) == ["note", "data", "model", "quant", "optim", "run", "sweep"]
