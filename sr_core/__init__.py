"""Subpixel's science: multi-temporal super-resolution of Sentinel-2, as a pure library.

No kfp, no TorchServe, no command-line parsing and no environment variables in here.
"""

import warnings

# eo-learn's file system layer imports pkg_resources, which says at every start that it will go
warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)

BANDS = ("blue", "green", "red", "nir")
"""Band order of every array: Sentinel-2 B02, B03, B04, B08."""

SCALE = 4
"""High-resolution pixels along one side of a low-resolution pixel (10 m to 2.5 m, or 40 m to 10 m)."""

REFLECTANCE_SCALE = 10_000
"""Integers on disk for a reflectance of one."""
