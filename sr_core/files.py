"""Small files, there whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> None:
    """Write JSON aside and rename it."""
    aside = path.with_name(f".{path.name}")
    aside.write_text(json.dumps(content, indent=1), encoding="utf-8")
    aside.replace(path)
