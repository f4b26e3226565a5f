"""What evaluate.py refuses of a checkpoint, where it exports to, and what it tells about the images."""

import pytest

from experiment import evaluation
from experiment.settings import EvaluateSettings, TrainSettings, resolved
from utils.errors import UserError


def evaluate(**keys) -> EvaluateSettings:
    return EvaluateSettings.model_validate({"checkpoint": "last.pt"} | keys)


def trained(**quant) -> TrainSettings:
    return resolved(TrainSettings.model_validate({"data": {"image_size": 32}, "quant": quant}))


@pytest.mark.parametrize("asked", [{"export": "m.npz"}, {"sensitivity": True}])
def test_a_float_model_has_no_integers(asked):
    evaluation.check_possible(evaluate(**asked), trained(), prepared=True)
    evaluation.check_possible(evaluate(), trained(), prepared=False)
    with pytest.raises(UserError, match=rf"^{next(iter(asked))}: last.pt is a float model"):
        evaluation.check_possible(evaluate(**asked), trained(), prepared=False)


def test_weights_of_another_scale_have_no_sensitivity():
    with pytest.raises(UserError, match=r"^sensitivity: dorefa trains weights on"):
        evaluation.check_possible(evaluate(sensitivity=True), trained(method="dorefa", weight_bits=4), prepared=True)


def test_a_checkpoint_that_is_not_there_is_refused_before_anything_else(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.pt"):
        evaluation.plan(evaluate(checkpoint=str(tmp_path / "nowhere.pt")), "evaluate.json")


def test_the_folder_to_export_to_is_made(tmp_path):
    assert evaluation.prepare_target(tmp_path / "a" / "m.npz") == tmp_path / "a" / "m.npz"
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"], "of a file, the folder that it is in"
    assert evaluation.prepare_target(tmp_path / "b" / "folder").is_dir()
    (tmp_path / "c.onnx").mkdir()
    with pytest.raises(UserError, match=r"^export: .*c.onnx is a folder, but .onnx is the suffix of a file"):
        evaluation.prepare_target(tmp_path / "c.onnx")


def test_images_from_files_are_resized_before_they_are_cropped():
    state = {"mean": [0.5] * 3, "std": [0.2] * 3, "classes": ["a", "b"]}
    whole, cropped = (evaluation.export_info(state, trained(weight_bits=4), files) for files in (False, True))
    assert (whole["image_size"], whole["resize"], whole["weight_bits"]) == (32, 32, 4)
    assert cropped["resize"] > cropped["image_size"] == 32
    assert {key: whole[key] for key in state} == state
