"""A setting names a function as package.module:function; what is wrong with it is one line."""

import pytest

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


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("no_such_module", "f", "^key: cannot import no_such_module: No module named 'no_such_module'$"),
        ("math", "sqrd", r"^key: math has no function 'sqrd', did you mean sqrt\?$"),
        ("math", "pi", "^key: math has no function 'pi'"),
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
    for source in ("os", "subprocess", "torch.hub", "quant.core", ""):
        assert not importing.is_own(source, "tests"), source
    assert importing.is_own("mine_of_importing", "tests")
    assert importing.is_own("tests.nets", "tests")
    assert not importing.is_own("tests.nets", "models")
