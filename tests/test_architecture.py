import ast
import subprocess
import sys
from pathlib import Path

import pytest

import capture
import gateway
import quant
import trainer

ROOT = Path(__file__).parent.parent
PACKAGES = ("gateway", "capture", "trainer", "quant")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
HEAVY = {"torch", "transformers", "vllm", "duckdb"}


def test_each_package_lies_in_this_tree() -> None:
    for package in (gateway, capture, trainer, quant):
        assert package.__file__ is not None
        assert Path(package.__file__).is_relative_to(ROOT)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    functions = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]

    assert len(text.splitlines()) <= 300
    for node in functions:
        assert (node.end_lineno or 0) - node.lineno < 75, node.name


@pytest.mark.parametrize("module", ["gateway.app", "gateway.serve", "quant.bundle"])
def test_the_serving_path_loads_nothing_heavy(module: str) -> None:
    code = f"import {module}, sys; print(*sys.modules)"

    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )

    assert not HEAVY & set(loaded.stdout.split())


def test_every_init_is_only_its_docstring() -> None:
    for path in SOURCES:
        if path.name == "__init__.py":
            body = ast.parse(path.read_text(encoding="utf-8")).body
            assert len(body) == 1, path
            assert isinstance(body[0], ast.Expr), path
