"""Scripts read and write UTF-8 in any locale, and names of any bytes reach neither the terminal nor a file raw."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from utils.names import printable

ROOT = Path(__file__).parents[2]
CLASSES = [b"caf\xe9", b"=HYPERLINK(1)", b"a\x1b[2J\nb", "猫".encode()]
SAVED = ["=HYPERLINK(1)", r"a\x1b[2J\x0ab", r"caf\xe9", "猫"]
LOCALES = [{"LC_ALL": "C", "PYTHONUTF8": "0"}, {"LC_ALL": "C.utf8"}]


def run(locale: dict, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **locale}
    command = (sys.executable, *command)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=300)
    shown = (done.stdout + done.stderr).decode()
    assert shown == printable(shown, keep="\n\r")
    assert done.returncode == 0, shown
    return shown


@pytest.fixture
def hostile(tmp_path) -> Path:
    for part in (b"train", b"test"):
        for i, name in enumerate(CLASSES):
            folder = os.path.join(os.fsencode(tmp_path), "bildér".encode(), part, name)
            os.makedirs(folder)
            for n in range(4):
                Image.effect_noise((12, 12), 30 + i).save(os.fsdecode(folder) + f"/{n}.png")
            with open(folder + b"/\x1b]0;title\x07\xff.txt", "w"):
                pass
    return tmp_path


@pytest.mark.parametrize(("trained_in", "measured_in"), [LOCALES, LOCALES[::-1]])
def test_a_run_on_hostile_names_is_saved_and_loaded_again(hostile, trained_in, measured_in):
    keys = ["data.name=imagefolder", f"data.root={hostile}/bildér", "data.image_size=12", "data.batch_size=8"]
    keys += ["model.name=tests.nets:plain", "quant.method=ptq", "run.epochs=1", f"run.dir={hostile}", "run.name=run"]
    out = run(trained_in, "train.py", *keys, 'run.engines=["reference"]')
    assert (
        "not images: 1 .txt in class =HYPERLINK(1); 1 .txt in class a\\x1b[2J\\x0ab; 1 .txt in class caf\\xe9;" in out
    )
    log = (hostile / "run" / "run.log").read_text(encoding="utf-8")
    assert log == printable(log, keep="\n")
    export = hostile / "out"
    checkpoint = f"checkpoint={hostile}/run/last.pt"
    run(measured_in, "evaluate.py", checkpoint, f"export={export}", "trust=true", 'engines=["reference"]')
    assert json.loads((export / "model.json").read_text(encoding="utf-8"))["classes"] == SAVED
    shown = run(measured_in, str(export / "example.py"), f"{hostile}/bildér/test/猫/0.png")
    assert {line.split(" %  ")[1] for line in shown.splitlines()} == {*SAVED}


def test_an_argument_that_is_not_utf_8_is_refused_in_a_line():
    command = [sys.executable, "train.py", b"data.root=caf\xe9\x1b[2J"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=300)
    assert (done.returncode, done.stderr) == (2, b"command line: data.root=caf\\xe9\\x1b[2J is not UTF-8\n")
