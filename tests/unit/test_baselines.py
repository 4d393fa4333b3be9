"""Baselines: plain bicubic and mean where all is clear, sensible where it is not."""

import torch

from sr_core.evaluation.baselines import bicubic_latest, temporal_mean
from sr_core.models.highresnet import bicubic


def test_on_clear_frames_they_are_what_their_names_say():
    frames, clear = torch.rand(2, 3, 4, 6, 7), torch.ones(2, 3, 6, 7)
    torch.testing.assert_close(bicubic_latest(frames, clear), bicubic(frames[:, 0]))
    each = torch.stack([bicubic(frames[:, index]) for index in range(3)]).mean(dim=0)
    torch.testing.assert_close(temporal_mean(frames, clear), each)


def test_clouds_and_padding_leave_no_trace():
    frames, clear = torch.rand(1, 4, 4, 6, 7), torch.ones(1, 4, 6, 7)
    clear[:, 0, 2:4] = 0
    clear[:, 3] = 0
    spoiled = torch.where(clear.unsqueeze(2) > 0, frames, 9.0)
    for baseline in (bicubic_latest, temporal_mean):
        torch.testing.assert_close(baseline(spoiled, clear), baseline(frames, clear))
    filled = frames[:, 0].clone()
    filled[..., 2:4, :] = frames[:, 1:3, :, 2:4].mean(dim=1)
    torch.testing.assert_close(bicubic_latest(frames, clear), bicubic(filled))


def test_where_nothing_is_clear_they_are_zero():
    frames = torch.rand(1, 2, 4, 5, 5)
    for baseline in (bicubic_latest, temporal_mean):
        assert (baseline(frames, torch.zeros(1, 2, 5, 5)) == 0).all()
