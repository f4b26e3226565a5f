"""The command line that all scripts share."""

import json

import pytest
from pydantic import Field

from experiment import cli
from experiment.settings import EvaluateSettings
from utils.errors import UserError
from utils.importing import ROOT
from utils.sections import Section


class Settings(Section):
    a: int = 1
    """A number."""


def call(tmp_path, *arguments: str, plan=None, **options) -> list:
    """What ran: the settings of the job, if it was run."""
    ran = []
    file = tmp_path / "mine.json"
    file.write_text('{"a": 2}')
    plan = plan or (lambda settings, path: cli.Job(settings, lambda: ran.append((settings.a, path))))
    cli.main([*arguments], "what it does", str(file), Settings, plan, **options)
    return ran


def test_the_job_of_the_settings_runs(tmp_path, capsys):
    assert call(tmp_path) == [(2, str(tmp_path / "mine.json"))]
    assert call(tmp_path, "a=3") == [(3, str(tmp_path / "mine.json"))]
    assert capsys.readouterr().out == ""


def test_lists_settings_and_help_are_printed_and_nothing_runs(tmp_path, capsys):
    assert call(tmp_path, "--list", "methods") == []
    assert "lsq" in capsys.readouterr().out.split()
    assert call(tmp_path, "--list") == []
    assert "methods" in capsys.readouterr().out.split()
    assert call(tmp_path, "--print-config", "a=3") == []
    assert json.loads(capsys.readouterr().out) == {"a": 3}
    assert call(tmp_path, "--help") == []
    assert "what it does" in capsys.readouterr().out
    assert call(tmp_path, "--help", "a") == []
    assert capsys.readouterr().out.startswith("a: ")


def test_a_mistake_of_the_command_line_is_blamed_on_it(tmp_path):
    def refuse(settings, path):
        raise UserError("a: too small")

    with pytest.raises(UserError, match=r"^command line: a: too small$"):
        call(tmp_path, "a=3", plan=refuse)


def test_a_file_that_the_command_line_named_is_blamed_on_it(tmp_path):
    def refuse(settings, path):
        raise UserError(f"{tmp_path}/none.pt: no such checkpoint")

    class Files(Section):
        a: int = 1
        weights: str = ""
        runs: list[str] = Field([])

    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(UserError, match=rf"^command line: weights: {tmp_path}/none.pt: no such checkpoint$"):
        cli.main([f"weights={tmp_path}/none.pt"], "", str(tmp_path / "mine.json"), Files, refuse)
    with pytest.raises(UserError, match=rf"^command line: runs: {tmp_path}/none.pt: no such checkpoint$"):
        cli.main([f'runs=["other","{tmp_path}"]'], "", str(tmp_path / "mine.json"), Files, refuse)


def test_the_programs_own_setting_file_is_found_from_elsewhere(tmp_path, monkeypatch):
    found = []
    monkeypatch.chdir(tmp_path)
    plan = lambda settings, path: cli.Job(settings, lambda: found.append(path))  # noqa: E731
    cli.main([], "", "setting/evaluate.json", EvaluateSettings, plan)
    assert found == [str(ROOT / "setting" / "evaluate.json")]
    (tmp_path / "setting").mkdir()
    (tmp_path / "setting" / "evaluate.json").write_text("{}")
    cli.main([], "", "setting/evaluate.json", EvaluateSettings, plan)
    assert found[1] == "setting/evaluate.json", "one in the working directory comes first"


def test_an_error_of_the_plan_names_the_setting_file(tmp_path):
    def refuse(settings, path):
        raise UserError("a: too small")

    with pytest.raises(UserError, match=r"mine.json: a: too small$"):
        call(tmp_path, plan=refuse)


def test_overrides_without_effect_are_refused_before_the_plan(tmp_path):
    def refuse(settings, path):
        raise UserError("not reached")

    with pytest.raises(UserError, match=r"^command line: a is fixed$"):
        call(tmp_path, "a=3", plan=refuse, find_conflict=lambda settings, keys: f"{keys[0]} is fixed")
