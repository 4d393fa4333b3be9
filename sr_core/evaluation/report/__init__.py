"""The report of a run: one self-contained page, and the numbers on it as `metrics.json`.

`artifacts` reads what the finished stages left behind, `summary` makes the numbers and the sentence on top,
`charts` draws them as SVG, `pictures` embeds images, `page` puts them together.
"""

from sr_core.evaluation.report.artifacts import Run, read_run
from sr_core.evaluation.report.page import write_report
from sr_core.evaluation.report.summary import metrics_json, verdict

__all__ = ["Run", "metrics_json", "read_run", "verdict", "write_report"]
