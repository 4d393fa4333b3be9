"""What values of the chart mean, from the comments of values.yaml into the chart's README and values.schema.json.

`python -m charts.documentation` writes both; a test holds that they are up to date.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent / "subpixel-serving"
VALUES, SCHEMA, README = CHART / "values.yaml", CHART / "values.schema.json", CHART / "README.md"


@dataclass(frozen=True)
class Value:
    """A documented key of values.yaml."""

    path: tuple[str, ...]
    about: str
    default: Any


def main() -> None:
    README.write_text(readme(), encoding="utf-8")
    SCHEMA.write_text(schema(), encoding="utf-8")


def documented() -> list[Value]:
    """All keys with a comment directly above them, in their order."""
    text = VALUES.read_text(encoding="utf-8")
    defaults, found = yaml.safe_load(text), []
    comment: list[str] = []
    path: list[str] = []
    for line in text.splitlines():
        words = line.strip()
        if words.startswith("# "):
            comment.append(words[2:])
            continue
        key = re.match(r"( *)([A-Za-z0-9]+):", line)
        if key:
            path = [*path[: len(key[1]) // 2], key[2]]
            if comment:
                default = defaults
                for name in path:
                    default = default[name]
                found.append(Value(tuple(path), " ".join(comment), default))
        comment = []
    return found


def readme() -> str:
    """README.md with the tables of examples and values between their marks."""
    values = documented()
    rows = ["| value | default | |", "|---|---|---|"]
    for value in values:
        group = any(other.path[: len(value.path)] == value.path for other in values if other is not value)
        default = "" if group else f"`{json.dumps(value.default)}`"
        rows.append(f"| `{'.'.join(value.path)}` | {default} | {value.about} |")
    examples = ["| values | |", "|---|---|"]
    for path in sorted(CHART.glob("ci/*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        examples.append(f"| [{path.name}](ci/{path.name}) | {first.removeprefix('# ')} |")
    text = README.read_text(encoding="utf-8")
    for mark, table in (("values", rows), ("examples", examples)):
        begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
        before, _, rest = text.partition(begin)
        text = "\n".join([f"{before}{begin}", *table, ""]) + end + rest.partition(end)[2]
    return text


def schema() -> str:
    """values.schema.json with the comments as descriptions."""
    content = json.loads(SCHEMA.read_text(encoding="utf-8"))
    for value in documented():
        place = content
        for name in value.path:
            place = place["properties"][name]
        place["description"] = value.about
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    main()
