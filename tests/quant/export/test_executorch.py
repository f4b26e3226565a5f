"""A .pte file is run by ExecuTorch alone, and says beside it what it takes."""

import pytest
import torch

import quant
from tests.conftest import needs_executorch
from tests.quant.export.test_torch_export import run_alone
from utils.errors import UserError

PROGRAM = """
import torch
from executorch.runtime import Runtime
program = Runtime.get().load_program(open("net.pte", "rb").read())
run = program.load_method("forward")
images = torch.load("images.pt")
torch.save(torch.cat([run.execute([image[None].contiguous()])[0].clone() for image in images]), "logits.pt")
"""


@needs_executorch
def test_a_trained_net_taken_away_gives_the_same_logits(net, simulated, digits32, tmp_path):
    _, images, _ = digits32
    quant.export_executorch(net, tmp_path / "net.pte", 32, {"classes": []})
    torch.save(images[:64], tmp_path / "images.pt")
    done = run_alone(tmp_path, "-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "logits.pt"), simulated[:64])
    int8 = sum(converted.layer.weight.numel() for converted in quant.convert(net, "reference").layers.values())
    assert (tmp_path / "net.pte").stat().st_size < 1.2 * int8 + 200_000, "int8 weights but for the last layer"


def test_what_is_missing_is_a_line(monkeypatch):
    from quant.engines import executorch
    from quant.export.executorch import check_executorch

    monkeypatch.setattr(executorch, "_is_here", lambda name: name != "torchao")
    with pytest.raises(
        UserError, match=r"^export: a \.pte file needs torchao: pip install --no-deps -r requirements-ex"
    ):
        check_executorch("export")
