"""The benchmarks: the naive network is the published one, and every table can be made without a GPU."""

import pytest
import torch

from tests.benchmarks.bench_network import Size, Times, accelerator, inference, training
from tests.benchmarks.naive_highresnet import NaiveHighResNet

TINY = Size(batch=2, frames=2, side=8, channels=8, residual_blocks=1)


def test_the_naive_network_has_the_published_number_of_parameters():
    assert sum(weights.numel() for weights in NaiveHighResNet().parameters()) == 1_038_617


@pytest.mark.parametrize("table", [inference, training, accelerator])
def test_every_table_can_be_made_at_a_tiny_size(table):
    assert table(TINY, torch.device("cpu"), 2).startswith("| ")


def test_ratios_are_taken_round_by_round():
    times = Times({"naive": [10.0, 20.0, 30.0], "ours": [5.0, 5.0, 5.0]})
    assert times.ratio("ours")[0] == 4.0
