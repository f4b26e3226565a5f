"""Files of tensors: reading one never runs code, and a damaged one is named."""

import pytest
import torch

from utils.errors import UserError
from utils.runs import tensor_file


class Payload:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_checkpoints_never_run_code(tmp_path, capsys):
    torch.save({"a": Payload()}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match=r"bad.pt: not a readable checkpoint"):
        tensor_file.load(str(tmp_path / "bad.pt"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"rubbish", b"PK\x03\x04 half a zip"])
def test_corrupt_checkpoints_are_named(tmp_path, content):
    path = tmp_path / "bad.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bad.pt: not a readable checkpoint"):
        tensor_file.load(str(path))


def test_a_tensor_without_values_is_refused(tmp_path):
    torch.save({"a": torch.zeros(3, device="meta")}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a.pt: not a checkpoint: a tensor of \(3,\) without values"):
        tensor_file.load(str(tmp_path / "a.pt"))


def test_a_number_of_many_digits_is_refused(tmp_path):
    torch.save({"a": 10**5000}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a.pt: not a readable checkpoint"):
        tensor_file.load(str(tmp_path / "a.pt"))


def test_a_missing_checkpoint_is_compared_with_checkpoints_and_runs_alone(tmp_path):
    for folder in ("lite1", "lites"):
        (tmp_path / folder).mkdir()
    (tmp_path / "lite1" / "last.pt").touch()
    with pytest.raises(UserError, match=r"litel: no such checkpoint, did you mean .*/lite1\?$"):
        tensor_file.check_exists(str(tmp_path / "litel"))
    (tmp_path / "lite1" / "last.pt").unlink()
    with pytest.raises(UserError, match=r"litel: no such checkpoint$"):
        tensor_file.check_exists(str(tmp_path / "litel"))
