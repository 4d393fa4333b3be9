"""Field delineation, the downstream experiment: does super-resolved input find parcels better than bicubic input?"""

HEADS = ("extent", "boundary", "distance")
"""What the network predicts for every pixel, in this order wherever the three are stacked."""
