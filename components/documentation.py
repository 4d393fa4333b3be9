"""README.md of each component, from its program's docstring, its interface and its configuration section.

`python -m components.documentation` writes them; a test holds that they are up to date.
"""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo

from components.stage import STAGES
from sr_core.config import Config, Section

HERE = Path(__file__).parent
COMPONENTS = ("plan_shards", *STAGES)
"""All components: the stages, and what decides over how many containers their work is shared out."""


def readme(name: str) -> str:
    """The README of one component."""
    program = importlib.import_module(f"components.{name}.main")
    stage = STAGES.get(name)
    interface = getattr(importlib.import_module(f"components.{name}.component"), name)
    lines = [f"# {name}", "", inspect.cleandoc(program.__doc__ or ""), ""]
    lines += ["## Interface", "", "| | name | type | |", "|---|---|---|---|"]
    spec = interface.component_spec
    for key, value in (spec.inputs or {}).items():
        lines.append(f"| input | `{key}` | {_type(value.type)} | {_cell(value.description)} |")
    described = _described_arguments(interface.pipeline_func.__doc__ or "")
    for key, value in (spec.outputs or {}).items():
        lines.append(f"| output | `{key}` | {_type(value.type)} | {_cell(described[key])} |")
    if stage is not None:
        read = ", ".join(stage.input_names) or "nothing"
        lines += ["", f"Reads the output of: {read}. Writes `<root>/{stage.folder}/`."]
        if stage.by_patch:
            lines += ["With a parameter `shard`, I/N, it does its work on the I-th of N shares of the patches only."]
    for section in stage.sections if stage is not None else program.SECTIONS:
        for kind in _section_classes(section):
            title = f"`{section}`"
            if "kind" in kind.model_fields:
                title += f" of kind `{get_args(kind.model_fields['kind'].annotation)[0]}`"
            lines += ["", f"## Configuration: {title}", "", "| key | default | allowed | |", "|---|---|---|---|"]
            lines += _rows(kind)
    by_hand = f"python -m components.{name} --config examples/demo.yaml"
    lines += ["", "## By hand", "", "```"]
    if stage is None:
        lines += [by_hand]
    else:
        lines += [f"subpixel {name.replace('_', '-')} examples/demo.yaml --root artifacts/demo"]
        lines += [f"{by_hand} --root artifacts/demo"]
    lines += ["```", ""]
    return "\n".join(lines)


def _section_classes(section: str) -> list[type[Section]]:
    """The classes a section of the configuration may be of; none where it is a plain value."""
    annotation = Config.model_fields[section].annotation
    candidates = [annotation, *get_args(annotation)]
    return [found for found in candidates if isinstance(found, type) and issubclass(found, Section)]


def _rows(section: type[Section], prefix: str = "") -> list[str]:
    rows: list[str] = []
    for key, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            rows += _rows(field.annotation, f"{prefix}{key}.")
            continue
        default = "required" if field.is_required() else f"`{field.get_default(call_default_factory=True)}`"
        rows.append(f"| `{prefix}{key}` | {default} | {_allowed(field)} | {_cell(field.description)} |")
    return rows


def _allowed(field: FieldInfo) -> str:
    limits = []
    for limit in field.metadata:
        for attribute, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
            if getattr(limit, attribute, None) is not None:
                limits.append(f"{sign} {getattr(limit, attribute)}")
    kind = re.sub(r"[\w.]*\.(\w+)", r"\1", str(field.annotation)).replace("<class '", "").replace("'>", "")
    return _cell(", ".join([f"`{kind}`", *limits]))


def _cell(text: Any) -> str:
    return str(text or "").replace("|", "\\|").replace("\n", " ")


def _type(kind: str) -> str:
    return kind.split("@")[0].removeprefix("system.")


def _described_arguments(text: str) -> dict[str, str]:
    return dict(re.findall(r"^\s+(\w+): (.+)$", text, re.MULTILINE))


def main() -> None:
    for name in COMPONENTS:
        (HERE / name / "README.md").write_text(readme(name), encoding="utf-8")


if __name__ == "__main__":
    main()
