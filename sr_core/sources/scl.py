"""Scene classes of Sentinel-2 Level-2A (SCL): which of them are no ground, and which hide it.

Source: Sentinel-2 Level-2A Algorithm Theoretical Basis Document, scene classification.
"""

SCL_NODATA = (0, 1)
"""No data, and saturated or defective."""
SCL_CLOUD = (3, 8, 9, 10, 11)
"""Cloud shadow, cloud of medium and of high probability, thin cirrus, snow or ice: ground that is not seen as it is."""
SCL_DARK_GROUND = (4, 6)
"""Vegetation and water, which reflect little of visible light."""
