"""The report of a run: `report.html` and `metrics.json` of whatever stages have finished."""

from components.stage import STAGES, Context, Result, Shown
from sr_core.evaluation.report import read_run, write_report


def work(context: Context) -> Result:
    """Gather what the finished stages left below the root; write the page and the numbers at the root."""
    run = read_run(context.config, context.inputs)
    metrics = write_report(run, context.output.parent)
    states = [stage.state for stage in run.stages.values()]
    psnr = metrics.get("evaluation", {}).get("test", {}).get("psnr", {})
    return Result(
        counts={f"stages_{state}": states.count(state) for state in dict.fromkeys(states)},
        metrics={f"psnr_{arm}": value for arm, value in psnr.items()},
        artifacts={"page": Shown(place="report.html")},
    )


STAGE = STAGES["report"]
