"""The self-test of a component's program, `python -m components.<name> --self-test`: is all there that it can need?

It follows the imports of the program through this project's own modules, also those inside functions, which a stage
would only meet after hours, and imports everything they name. What code can do without (an import inside `try` with
`except ImportError`) is left out. Neither configuration nor data nor network is needed, so that an image can be tested
as it is.
"""

from __future__ import annotations

import ast
import importlib
import platform
import tempfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from sr_core.progress import console

OWN = ("sr_core", "components", "serving")
NOT_SAID = {
    # writes parquet files with it
    "pandas": "pyarrow",
    # runs it as a program of its own
    "serving.archive": "model_archiver",
}
"""What no import statement says, because a library or another process imports it once it is used."""
NOT_FOLLOWED = {
    # for shards: the stages that have them import it themselves
    ("components.stage", "sr_core.patches"),
    # for the names of its bands, not for its detector, which cloud_shadow_filter runs
    ("sr_core.sources.files", "sr_core.masks.s2cloudless"),
    ("sr_core.sources.sentinel_hub", "sr_core.masks.s2cloudless"),
}
"""Who imports what without needing all that it can import."""


def self_test(name: str) -> int:
    """Test the program of `components.<name>` where it is installed. Returns the exit status: 0, or 1 with reasons."""
    problems = []
    needed = imports_of(f"components.{name}.main")
    for module, user in needed.items():
        try:
            importlib.import_module(module)
        except Exception as error:
            problems.append(f"{module}, which {user} imports: {type(error).__name__}: {error}")
    try:
        with tempfile.TemporaryFile() as file:
            file.write(b"subpixel")
    except OSError as error:
        problems.append(f"the folder for temporary files cannot be written to: {error.strerror or error}")
    for problem in problems:
        console.print(f"{name}: self-test: {problem}", markup=False)
    if not problems:
        print(f"python {platform.python_version()}")
        for distribution in distributions(needed):
            print(distribution, metadata.version(distribution))
        console.print(f"{name}: self-test passed: {len(needed)} modules can be imported", markup=False)
    return 1 if problems else 0


def imports_of(program: str) -> dict[str, str]:
    """Every module that a module of ours can import, itself or through others of ours, and which of them does."""
    found, waiting = {program: "the program"}, [program]
    while waiting:
        module = waiting.pop()
        named = list(imports_in(module)) if module.partition(".")[0] in OWN else []
        for name in [*named, *([NOT_SAID[module]] if module in NOT_SAID else [])]:
            if name not in found and (module, name) not in NOT_FOLLOWED:
                found[name] = module
                waiting.append(name)
    return dict(sorted(found.items()))


def imports_in(module: str) -> Iterator[str]:
    """Modules named by the import statements of a module of ours, but for those it can do without."""
    path = file_of(module)
    if path is None:
        return
    for node in statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module.partition(".")[0] in OWN:
                inner = (f"{node.module}.{alias.name}" for alias in node.names)
                yield from (name for name in inner if file_of(name))


def file_of(module: str) -> Path | None:
    """The file of a module of ours; found without importing it, which may be what fails."""
    path = Path(__file__).parents[1].joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """A node's statements, but for those of a `try` that expects an ImportError, and those for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        expected = {name.id for handler in getattr(child, "handlers", ()) for name in names(handler.type)}
        if isinstance(child, ast.Try) and expected & {"ImportError", "ModuleNotFoundError"}:
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in {name.id for name in names(child.test)}:
            continue
        yield child
        yield from statements(child)


def names(node: ast.AST | None) -> Iterator[ast.Name]:
    """Names in an expression."""
    return (part for part in ast.walk(node) if isinstance(part, ast.Name)) if node is not None else iter(())


def distributions(modules: Iterable[str]) -> list[str]:
    """Names of the installed distributions that modules belong to, in order."""
    known = metadata.packages_distributions()
    return sorted({owner for module in modules for owner in known.get(module.partition(".")[0], ())})
