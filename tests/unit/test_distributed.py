"""Several processes train as one would."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sr_core.config import TrainHRN
from sr_core.errors import ConfigError
from sr_core.models.highresnet import HighResNet
from sr_core.samples.dataset import BatchSampler
from sr_core.training.distributed import Workers
from sr_core.training.loop import train
from sr_core.training.objective import Objective, scene_of
from tests.sample_sets import PLACES, sample_set

REPOSITORY = Path(__file__).resolve().parents[2]
SETTINGS = TrainHRN(channels=8, residual_blocks=1, steps=12, batch_size=4, crop_px=None, validate_every=6,
                    warmup_steps=4, precision="float32", registration_px=0.5, patience=5)  # fmt: skip


def gradients(workers: Workers) -> list[torch.Tensor]:
    """Of one batch, averaged over the workers."""
    torch.manual_seed(0)
    model = HighResNet.from_settings(SETTINGS)
    torch.nn.init.normal_(model.project.weight)  # from zero, nothing before it would have a gradient
    batch = BatchSampler(sample_set(), PLACES, SETTINGS).batch(0).part(workers.rank, workers.world)
    scene = scene_of(batch)
    losses, _ = Objective(SETTINGS)(model(scene.frames, scene.clear, batch.shift), scene)
    losses.mean().backward()
    found = [weight.grad for weight in model.parameters()]
    workers.average(found)
    return found


def program(folder: Path, *numbers: str) -> None:
    """What each process runs."""
    torch.set_num_threads(1)
    workers = Workers(*map(int, numbers))
    with workers.joined():
        torch.save(gradients(workers), folder / f"gradients-{workers.rank}.pt")
        batches = BatchSampler(sample_set(), PLACES, SETTINGS)
        trained = train(SETTINGS, batches, sample_set(3, seed=50), PLACES, folder, workers=workers)
        # the first process's state is everyone's when training goes on
        told = workers.told({"weights": trained.model.state_dict()} if workers.first else None)
        flags = workers.any(workers.first, not workers.first, False)
    torch.save({"told": told, "any": flags}, folder / f"told-{workers.rank}.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """What two processes leave behind."""
    folder = tmp_path_factory.mktemp("two")
    script = folder / "program.py"
    script.write_text(
        f"import os, sys; sys.path.insert(0, {str(REPOSITORY)!r}); from pathlib import Path\n"
        f"from {__name__} import program\n"
        f"program(Path({str(folder)!r}), *(os.environ[name] for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')))\n"
    )
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    subprocess.run([sys.executable, "-m", *command], cwd=REPOSITORY, check=True, timeout=300)
    return folder


def test_gradients_of_two_processes_are_those_of_one(two):
    torch.set_num_threads(1)
    alone = gradients(Workers())
    both = [torch.load(two / f"gradients-{rank}.pt") for rank in (0, 1)]
    for one, first, second in zip(alone, *both, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(one, first, rtol=1e-5, atol=1e-6)


def test_training_with_two_processes_gives_the_weights_of_one(two, tmp_path):
    torch.set_num_threads(1)
    alone = train(SETTINGS, BatchSampler(sample_set(), PLACES, SETTINGS), sample_set(3, seed=50), PLACES, tmp_path)
    told = [torch.load(two / f"told-{rank}.pt") for rank in (0, 1)]
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(value, told[0]["told"]["weights"][name], rtol=0, atol=1e-5)
        assert torch.equal(told[0]["told"]["weights"][name], told[1]["told"]["weights"][name])
    assert len((two / "metrics.jsonl").read_text().splitlines()) == 3  # written once
    assert told[0]["any"] == told[1]["any"] == [True, True, False]


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ConfigError, match=r"batch_size: found 4, expected a multiple of the 3 processes"):
        Workers(0, 3).check(SETTINGS)
