"""Which checkpoint the folder of a run stands for."""

import json

import pytest

from experiment.run_results import checkpoint_of, summary_of
from utils.errors import UserError


def test_a_folder_stands_for_the_checkpoint_that_was_measured(tmp_path):
    assert checkpoint_of(str(tmp_path)) == str(tmp_path / "last.pt")
    (tmp_path / "summary.json").write_text(json.dumps({"accuracy": {"x86": {"top1": 1.0}}, "checkpoint": "best.pt"}))
    assert checkpoint_of(str(tmp_path)) == str(tmp_path / "best.pt")
    assert checkpoint_of("other/best.pt") == "other/best.pt"
    assert summary_of(tmp_path)["accuracy"] == {"x86": {"top1": 1.0}}


def test_a_summary_that_names_no_file_is_refused(tmp_path):
    (tmp_path / "summary.json").write_text('{"accuracy": {}, "checkpoint": 3}')
    with pytest.raises(UserError, match=r"summary.json: not what train.py writes there$"):
        checkpoint_of(str(tmp_path))
