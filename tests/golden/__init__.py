"""What the graphs compile to on the example platform: a change of them is seen as a change of these files.

`python -m tests.golden` writes them again. Left out is what says nothing of how a run goes: descriptions, which the
READMEs of the stages are tested for, and the version of kfp.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from pipelines.platform import load_platform
from pipelines.submission import GRAPHS, compile_graph

HERE = Path(__file__).parent
PLATFORM = HERE.parent.parent / "examples" / "kubeflow" / "platform.yaml"


def compiled(graph: str, platform: Path | None = PLATFORM) -> list[Any]:
    """The two documents of a graph's IR: its specification, and what only Kubernetes knows."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "graph.yaml"
        compile_graph(graph, load_platform(platform), path)
        return list(yaml.safe_load_all(path.read_text()))


def golden(graph: str) -> str:
    """The text of a golden file."""
    specification, platforms = compiled(graph)
    del specification["sdkVersion"]
    return yaml.safe_dump_all([undescribed(specification), platforms], sort_keys=True, width=120)


def undescribed(node: Any) -> Any:
    if isinstance(node, list):
        return [undescribed(item) for item in node]
    if isinstance(node, dict):
        return {key: undescribed(value) for key, value in node.items() if key != "description"}
    return node


def write() -> None:
    for graph in GRAPHS:
        (HERE / f"{graph}.yaml").write_text(golden(graph), encoding="utf-8")
