"""Nothing imports the scripts, which parse and call; and the tests mirror the tree of modules."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = ("train", "evaluate", "latency")
FOLDERS = ("benchmarks", "data", "experiment", "models", "quant", "setting", "tests", "utils")
MIRRORED = ("data", "experiment", "models", "quant", "utils")
REGISTRY = "its rows of models.MODELS: tests/models/test_models.py tests every row"
NOT_MIRRORED = {
    "models/fast.py": REGISTRY,
    "models/resnet.py": REGISTRY,
    "models/shufflenet.py": REGISTRY,
    "models/svhn.py": REGISTRY,
    "quant/graph/operator_row.py": "the fields of a row: tests/quant/graph/test_op_table.py",
}
"""Modules without a test file under the same path, and why."""
FILES = sorted([*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))])


def imported_modules(source: str) -> set[str]:
    """Names of all modules that Python source imports, at the top, in functions, or in programs within its strings."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "import " in node.value:
            try:
                found |= imported_modules(node.value)
            except (SyntaxError, ValueError):
                continue  # prose
    return found


def test_imports_are_found_wherever_they_stand():
    source = "import a.b\ndef f():\n    from c import d\nPROGRAM = '''\nimport os, e\n'''\n"
    assert imported_modules(source) == {"a.b", "c", "os", "e"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_imports_a_script(path):
    assert not imported_modules(path.read_text()) & set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_parses_and_calls(script):
    source = (ROOT / f"{script}.py").read_text()
    assert len(source.splitlines()) <= 60
    assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.walk(ast.parse(source)))


def modules_without_tests() -> set[str]:
    """Paths of modules, below the root, that have no tests/<path>/test_<name>.py."""
    found = [path.relative_to(ROOT) for folder in MIRRORED for path in (ROOT / folder).rglob("*.py")]
    return {
        path.as_posix()
        for path in found
        if path.name != "__init__.py" and not (ROOT / "tests" / path.parent / f"test_{path.name}").is_file()
    }


def test_every_module_has_its_test_file_under_the_same_path():
    assert modules_without_tests() == set(NOT_MIRRORED)


def test_a_start_does_not_import_what_few_runs_need():
    """Each of these takes seconds, which the line of a misspelt key would come later by."""
    slow = {"torchvision", "matplotlib", "sklearn", "timm", "onnxruntime", "openvino", "ray"}
    program = f"import sys, experiment.training, experiment.evaluation; print(*{slow} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
