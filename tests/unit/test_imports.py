"""Imports go one way: subpixel -> pipelines, serving, components -> sr_core."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MAY_IMPORT = {
    "sr_core": {"sr_core"},
    "serving": {"serving", "sr_core"},
    "components": {"components", "sr_core"},
    "pipelines": {"pipelines", "components", "sr_core"},
    "subpixel": {"subpixel", "pipelines", "serving", "components", "sr_core"},
}
NEVER_IN_SR_CORE = {"kfp", "ts", "typer", "click", "argparse"}
EXCEPTIONS = {"components/package/main.py": {"serving"}}  # builds the archive that serving defines


def imported(path: Path) -> set[str]:
    """Top-level names of all modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def modules(package: str) -> list[Path]:
    return sorted((REPOSITORY / package).rglob("*.py"))


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_only_what_stands_below_them(package):
    paths = modules(package)
    assert paths
    for path in paths:
        name = path.relative_to(REPOSITORY).as_posix()
        allowed = MAY_IMPORT[package] | EXCEPTIONS.get(name, set())
        assert imported(path) & set(MAY_IMPORT) <= allowed, name


def test_the_science_knows_neither_kubeflow_nor_torchserve_nor_the_command_line():
    for path in modules("sr_core"):
        assert not imported(path) & NEVER_IN_SR_CORE, path
        assert "os.environ" not in path.read_text(encoding="utf-8"), path


def test_only_interfaces_know_kubeflow_below_the_pipelines():
    for path in modules("components"):
        if path.name not in ("component.py", "interface.py"):
            assert "kfp" not in imported(path), path
