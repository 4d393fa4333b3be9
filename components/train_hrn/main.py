"""Train HighRes-Net on the kept samples of the training ground, judged on those of the validation ground.

Writes the model bundle (`model.safetensors`, `model.json`), `metrics.jsonl`, and `checkpoint.pt`, from which a
stopped training goes on: SIGTERM and Ctrl-C save it and leave. Curves, pictures and the bundle go to Weights & Biases:
online where `WANDB_API_KEY` is set, otherwise to files below `wandb/` that `wandb sync` uploads later;
`WANDB_MODE=disabled` turns it off.

Several processes, one a GPU or a few CPU cores each, share the batches: as many as `train_hrn.processes` says, or as
torchrun starts:

    torchrun --standalone --nproc-per-node 2 -m components.train_hrn --config run.yaml --root artifacts/run

With `train_hrn.nodes` above 1 this program launches a TrainJob of Kubeflow Trainer v2 instead, as section `trainjob` of
the configuration says, and waits for it; docs/several-nodes.md tells what a cluster needs for that.
"""

import hashlib
import json
import os
from collections import Counter

import numpy as np
import torch
from numpy.typing import NDArray

from components.stage import STAGES, Context, Result, Shown, git_commit, torchrun_numbers, versions
from sr_core.config import Config
from sr_core.delineation.network import DESCRIPTION, WEIGHTS
from sr_core.errors import ConfigError
from sr_core.evaluation.evaluate import PICTURES, pictures
from sr_core.models.bundle import SuperResolver, save_bundle
from sr_core.models.highresnet import HighResNet
from sr_core.models.normalization import read_places
from sr_core.progress import say
from sr_core.samples.dataset import BatchSampler, SampleSet
from sr_core.samples.store import SampleStore
from sr_core.training.distributed import Workers
from sr_core.training.loop import train
from sr_core.training.tracking import Mode, Tracker


def work(context: Context) -> Result:
    """Train HighRes-Net and write the model bundle; of several processes the first alone writes."""
    settings = context.config.train_hrn
    workers = Workers(*torchrun_numbers())
    if settings.nodes * settings.processes not in (1, workers.world):
        raise ConfigError(
            f"train_hrn.processes: found {settings.processes} on each of {settings.nodes} nodes, but {workers.world}"
            " started in all; run train_hrn as a program"
        )
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    statistics = read_places(context.inputs["normalize"])
    training, validation = (SampleSet.load(context.inputs["quality_gate"], split) for split in ("train", "val"))
    batches = BatchSampler(training, statistics, settings, workers.device)
    if not workers.first:
        with workers.joined():
            train(settings, batches, validation, statistics, context.output, workers=workers)
        return Result()
    say(f"{len(training)} training samples, {len(validation)} for validation")
    store = SampleStore(context.inputs["quality_gate"])
    counts = {"train": len(training), "val": len(validation)}
    with tracker_of(context) as tracker, workers.joined():

        def show(step: int, model: HighResNet) -> None:
            def side_by_side() -> NDArray[np.uint8]:
                shown = pictures(SuperResolver(model, batches.frames, {}), validation, statistics, 0)
                return np.concatenate([shown[name] for name in PICTURES], axis=1)

            if len(validation):
                tracker.picture("validation", side_by_side, f"{validation.ids[0]}: {', '.join(PICTURES)}", step)

        trained = train(
            settings,
            batches,
            validation,
            statistics,
            context.output,
            tracker.log,
            show,
            workers,
            keep=context.unfinished.save,
        )
        meta = {
            "frames": batches.frames,
            "normalization": {region: place.to_json() for region, place in statistics.items()},
            "lineage": {
                "key": context.key,
                "samples": counts,
                # products say at which scale the network learned
                "gsd_m": store.gsd_m,
                "pairing": store.pairing,
                "training_samples_by_region": dict(sorted(Counter(training.region).items())),
                "train_hrn": json.loads(settings.model_dump_json()),
                "best_step": trained.best_step,
            },
            "scores": trained.scores,
        }
        save_bundle(context.output, trained.model, meta)
        tracker.bundle(context.output, trained.scores)
    parameters = sum(weights.numel() for weights in trained.model.parameters())
    return Result(
        counts={"samples": counts, "steps": settings.steps, "best_step": trained.best_step, "parameters": parameters},
        metrics=trained.scores,
        artifacts={
            "model": Shown(
                {
                    "framework": "PyTorch",
                    "frames": batches.frames,
                    "gsd_m": store.gsd_m,
                    "pairing": store.pairing,
                    **trained.scores,
                }
            )
        },
    )


def launch(config: Config, root: str, key: str) -> None:
    """Train on the nodes of a cluster; raises what `components.train_hrn.trainjob.launch` does."""
    from components.train_hrn import trainjob  # the SDK of Kubeflow, which one machine does not need

    trainjob.launch(config, root, key)


def fingerprint(config: Config) -> str | None:
    """Changes when the perceptual network that the configuration names does."""
    folder = config.train_hrn.perceptual_network
    if folder is None:
        return None
    files = [folder / name for name in (DESCRIPTION, WEIGHTS)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files if path.is_file())).hexdigest()


def tracker_of(context: Context) -> Tracker:
    """The W&B run of this training: one a key, so that a training that was stopped continues its curves."""
    for variable in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        os.environ.setdefault(variable, str(context.output / "wandb" / "home"))  # a container's home may be read-only
    settings = context.config.train_hrn
    return Tracker(
        tracking_mode(),
        context.output,
        project=settings.wandb_project,
        run_id=context.key,
        name=f"{context.config.name}-{context.key[:8]}",
        config=json.loads(settings.model_dump_json()) | {"git_commit": git_commit(), "versions": versions()},
    )


def tracking_mode() -> Mode:
    """Where W&B's curves go: its server with a key, files without one, nowhere if W&B's own switch says so."""
    if os.environ.get("WANDB_MODE") == "disabled":
        return "disabled"
    return "online" if os.environ.get("WANDB_API_KEY") else "offline"


STAGE = STAGES["train_hrn"]
