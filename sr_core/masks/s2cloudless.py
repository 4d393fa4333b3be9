"""Clouds in Sentinel-2 L1C by the s2cloudless classifier, from ten bands at 60 m.

Source: Zupanc, Improving cloud detection with machine learning, 2017; Skakun et al., Cloud Mask Intercomparison
eXercise (CMIX), Remote Sensing of Environment 274, 2022.
"""

from __future__ import annotations

S2CLOUDLESS_BANDS = ("B01", "B02", "B04", "B05", "B08", "B8A", "B09", "B10", "B11", "B12")
"""The bands that the classifier reads, in its order: the last axis of `DATA["CLOUD_BANDS"]`."""
