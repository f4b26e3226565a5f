"""A setting names a function as package.module:function; what is wrong with it is one line."""

import sys
from pathlib import Path

import pytest

from tests.test_layout import FOLDERS, SCRIPTS
from utils import importing
from utils.errors import UserError


def test_a_name_with_a_colon_is_external():
    assert importing.is_external("package.module:function")
    assert not importing.is_external("resnet20")


def test_a_function_of_the_current_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "mine_of_importing.py").write_text("def double(x):\n    return 2 * x\n")
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))  # restores sys.path afterwards
    monkeypatch.chdir(tmp_path)
    assert importing.call(importing.member("mine_of_importing", "double", "key"), {"x": 4}, "key") == 8


def test_a_method_of_a_class_is_a_function():
    assert importing.member("fractions", "Fraction.from_float", "key")(0.5) == 0.5


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("no_such_module", "f", "^key: cannot import no_such_module: No module named 'no_such_module'$"),
        ("math", "sqrd", r"^key: math has no function 'sqrd', did you mean sqrt\?$"),
        ("math", "pi", "^key: math has no function 'pi'"),
        ("datetime", "date.todya", r"^key: datetime\.date has no function 'todya', did you mean today\?$"),
        ("datetime", "dat.today", r"^key: datetime has no function 'dat', did you mean date\?$"),
    ],
)
def test_what_is_no_function_is_refused(source, name, message):
    with pytest.raises(UserError, match=message):
        importing.member(source, name, "key")


def test_a_call_that_fails_shows_its_arguments():
    def fail(**arguments):
        raise ValueError("first line\nsecond line")

    with pytest.raises(UserError, match=r"^key cannot be called with depth=3, name='a': first line$"):
        importing.call(fail, {"depth": 3, "name": "a"}, "key")
    with pytest.raises(UserError, match=r"^key cannot be called with no arguments"):
        importing.call(fail, {}, "key")


def test_a_users_mistake_passes_unchanged():
    def refuse():
        raise UserError("depth: too large")

    with pytest.raises(UserError, match=r"^depth: too large$"):
        importing.call(refuse, {}, "key")


def test_only_a_users_modules_are_their_own(tmp_path, monkeypatch):
    (tmp_path / "mine_of_importing.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    for source in ("os", "subprocess", "torch.hub", "quant.core", "models.resnet", "data.sources", "tests.nets", ""):
        assert not importing.is_own(source), source
    assert importing.is_own("mine_of_importing")


HOSTILE = [
    "os:system",
    "posix:system",
    "subprocess:call",
    "builtins:exec",
    "antigravity:geohash",
    "importlib:import_module",
    "__main__:main",
    "__hello__:main",
    "torch.hub:load",
    "sqlite3:connect",
    "quant.core.kernels:compile_all",
    "utils.files:locked",
    "utils.importing:member",
    "experiment.training:main",
    "train:main",
    "tests.nets:plain",
    "models:build",
    "models.external:build_external",
    "models.external:_torchvision",
    "models.resnet:no_such",
    "models.resnet:resnet20",
    "data.folders:imagefolder",
    "data:load",
    "mine_of_importing:run",
    "mine_of_importing:shell",
    "mine_of_importing.os:system",
    "mine_of_importing:os.system",
    "mine_of_importing:Path.cwd",
    "mine_of_importing:Net.mro",
    "mine_of_importing:net.__globals__.clear",
    "../elsewhere/evil:f",
    ":f",
    "mine of importing:f",
]
OWN = """
import functools, os
from subprocess import run
from pathlib import Path
from torchvision.models import resnet18
def net(): return 1
class Net: pass
small = functools.partial(Net)
shell = functools.partial(os.system, "touch code_was_run")
"""


def may_call(name: str, checkpoint: Path | None = None) -> None:
    importing.check_may_call(name, "its model's factory", checkpoint and str(checkpoint), "set trust=true")


@pytest.fixture
def working_directory(tmp_path, monkeypatch):
    (tmp_path / "mine_of_importing.py").write_text(OWN)
    (tmp_path / "package_of_importing").mkdir()
    (tmp_path / "package_of_importing" / "nets.py").write_text("def net(): return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))  # restores sys.path afterwards
    monkeypatch.chdir(tmp_path)
    for name in ("mine_of_importing", "package_of_importing", "package_of_importing.nets"):
        sys.modules.pop(name, None)
    return tmp_path


@pytest.mark.parametrize("name", HOSTILE)
def test_a_checkpoint_calls_nothing_that_is_not_the_users(name, working_directory):
    before = set(sys.modules)
    with pytest.raises(UserError) as refused:
        may_call(name, working_directory / "runs" / "a" / "last.pt")
    assert "\n" not in str(refused.value)
    assert not {"antigravity", "__hello__", "evil"} & (set(sys.modules) - before)


@pytest.mark.parametrize("function", ["net", "Net", "small", "resnet18"])
def test_a_checkpoint_calls_what_the_users_module_defines_or_takes_from_torchvision(function, working_directory):
    may_call(f"mine_of_importing:{function}", working_directory / "runs" / "a" / "last.pt")


def test_modules_of_the_users_are_theirs_beside_this_program_too(working_directory, monkeypatch):
    """Who works in the folder of this program writes modules there, and need not say that they trust them."""
    monkeypatch.setattr(importing, "ROOT", working_directory)
    may_call("mine_of_importing:net", working_directory / "runs" / "a" / "last.pt")
    may_call("package_of_importing.nets:net", working_directory / "runs" / "a" / "last.pt")


@pytest.mark.parametrize(
    ("name", "checkpoint"),
    [
        ("mine_of_importing:net", "last.pt"),
        ("package_of_importing.nets:net", "package_of_importing/last.pt"),
        ("package_of_importing.nets:net", "package_of_importing/deep/er/last.pt"),
        ("package_of_importing.nets:net", "last.pt"),
    ],
)
def test_a_module_that_may_have_come_with_the_checkpoint_is_not_imported(name, checkpoint, working_directory):
    with pytest.raises(UserError, match="as its model's factory, of a file that came with it; set trust=true"):
        may_call(name, working_directory / checkpoint)
    assert name.partition(":")[0] not in sys.modules


@pytest.mark.parametrize("linked", ["checkpoint", "module"])
def test_a_link_hides_not_what_came_together(linked, working_directory):
    """A folder may come with links in it: to a checkpoint that lies elsewhere, or to a module."""
    elsewhere = working_directory / "elsewhere"
    elsewhere.mkdir()
    if linked == "checkpoint":
        (working_directory / "last.pt").symlink_to(elsewhere / "last.pt")
    else:
        (working_directory / "mine_of_importing.py").rename(elsewhere / "mine.py")
        (working_directory / "mine_of_importing.py").symlink_to(elsewhere / "mine.py")
    with pytest.raises(UserError, match="as its model's factory, of a file that came with it; set trust=true"):
        may_call("mine_of_importing:net", working_directory / "last.pt")


def test_a_module_beside_the_checkpoint_is_not_found_from_elsewhere(working_directory):
    (working_directory / "download").mkdir()
    (working_directory / "download" / "evil_of_importing.py").write_text("raise SystemExit('code was run')")
    with pytest.raises(UserError, match="no module evil_of_importing here; start where evil_of_importing is"):
        may_call("evil_of_importing:net", working_directory / "download" / "last.pt")


def test_this_program_is_named_whole():
    assert {*FOLDERS, *SCRIPTS} == importing.PROJECT
