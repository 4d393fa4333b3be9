"""Build the TorchServe archive of the model bundle.

The archive holds the network as an exported program, the handler, and a stored sample that every worker reproduces
before it serves. `archive.json` beside it names its digest, sizes and the versions it was built with.
"""

from typing import Any

from components.stage import STAGES, Context, Result, Shown
from serving.archive import build_archive, sources
from sr_core.config import Config


def work(context: Context) -> Result:
    """Build the TorchServe archive of the model bundle."""
    settings = context.config.package
    built = build_archive(context.inputs["train_hrn"], context.output, settings.model_name, settings.version)
    about = {key: built[key] for key in ("model_name", "version", "sha256")}
    return Result(
        counts={"files": len(built["files"]), "bytes": built["bytes"]},
        artifacts={"archive": Shown({"framework": "TorchServe", **about})},
    )


def fingerprint(config: Config) -> Any:
    """The files of `serving/` that go into the archive."""
    return sources()


STAGE = STAGES["package"]
