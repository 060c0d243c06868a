"""Dependencies point one way: router <- gateway <- retrain, and heavy libraries stay in retrain."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "router": {"router"},
    "gateway": {"gateway", "router"},
    "retrain": {"retrain", "gateway", "router"},
}
FORBIDDEN = {
    "router": {"fastapi", "starlette", "sqlmodel", "sqlalchemy", "aiohttp", "torch", "openai"},
    "gateway": {"torch", "transformers", "peft", "trl", "datasets", "matplotlib", "openai"},
    "retrain": set[str](),
}


def imported_packages(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.level > 0:
            raise AssertionError(f"{path}: relative import")


@pytest.mark.parametrize("package", ALLOWED)
def test_dependencies_point_one_way(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        names = set(imported_packages(path))
        assert set(ALLOWED) & names <= ALLOWED[package], path
        assert not names & FORBIDDEN[package], path


@pytest.mark.parametrize("package", ALLOWED)
def test_package_init_holds_a_docstring_and_nothing_else(package: str) -> None:
    for path in (ROOT / package).rglob("__init__.py"):
        body = ast.parse(path.read_text()).body
        assert len(body) == 1 and isinstance(body[0], ast.Expr), path
