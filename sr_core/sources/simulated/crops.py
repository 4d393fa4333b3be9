"""What a surface reflects on a day of the year: crops that grow, ripen, are harvested and ploughed in.

Reflectances are typical bottom-of-atmosphere values in blue, green, red and near infrared. A crop is a linear mixture
of soil, stubble, green and ripe canopy; the shares follow logistic curves of the day of the year, as is usual for
vegetation index series (Beck et al., Remote Sensing of Environment 100, 2006).
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sr_core.sources.simulated.landscape import Face
from sr_core.sources.simulated.noise import Numbers, draws, normal, uniform

Spectrum = tuple[float, float, float, float]
SOIL: Spectrum = (0.080, 0.108, 0.148, 0.215)
STUBBLE: Spectrum = (0.098, 0.143, 0.192, 0.300)
NEVER = 999.0


@dataclass(frozen=True)
class Crop:
    """Calendar (days of the year, means over parcels) and colours of a crop."""

    green: Spectrum
    ripe: Spectrum
    winter: float
    """Green cover at the start of the year."""
    peak: float
    growth: float
    """Day on which half of the growth is done."""
    pace: float
    """Days of the logistic curve's time scale."""
    ripening: float
    harvest: float
    autumn: float = NEVER
    """Day on which the next crop, or a catch crop, is half grown to `winter`."""
    rows: float = 0.05
    """Contrast of drill rows and tramlines in the standing crop."""


CROPS = {
    "winter wheat": Crop(
        (0.024, 0.056, 0.028, 0.43), (0.080, 0.128, 0.180, 0.300), 0.35, 0.96, 88, 12, 181, 205, 300, 0.07
    ),
    "winter barley": Crop(
        (0.028, 0.066, 0.033, 0.42), (0.092, 0.146, 0.200, 0.320), 0.40, 0.95, 80, 12, 163, 183, 285, 0.07
    ),
    "rapeseed": Crop(
        (0.028, 0.062, 0.030, 0.47), (0.070, 0.105, 0.128, 0.270), 0.50, 0.97, 72, 11, 174, 195, 255, 0.04
    ),
    "spring barley": Crop(
        (0.030, 0.072, 0.036, 0.41), (0.092, 0.146, 0.200, 0.320), 0.02, 0.93, 116, 9, 186, 209, NEVER, 0.07
    ),
    "maize": Crop((0.027, 0.068, 0.031, 0.46), (0.062, 0.095, 0.112, 0.260), 0.02, 0.95, 159, 9, 250, 268, NEVER, 0.06),
    "sugar beet": Crop(
        (0.027, 0.078, 0.032, 0.55), (0.045, 0.085, 0.060, 0.400), 0.02, 0.97, 150, 9, 280, 290, NEVER, 0.04
    ),
    "potato": Crop(
        (0.028, 0.068, 0.036, 0.44), (0.070, 0.100, 0.120, 0.240), 0.02, 0.92, 152, 7, 236, 256, NEVER, 0.10
    ),
    "grassland": Crop(
        (0.032, 0.074, 0.042, 0.40), (0.060, 0.098, 0.095, 0.280), 0.62, 0.90, 92, 14, NEVER, NEVER, NEVER, 0.03
    ),
    "orchard": Crop(
        (0.034, 0.074, 0.046, 0.36), (0.060, 0.098, 0.095, 0.280), 0.60, 0.82, 96, 14, NEVER, NEVER, NEVER, 0.03
    ),
    "fallow": Crop(
        (0.040, 0.080, 0.062, 0.32), (0.075, 0.110, 0.130, 0.260), 0.30, 0.62, 118, 16, 200, NEVER, NEVER, 0.02
    ),
}
FLOWER: Spectrum = (0.050, 0.152, 0.138, 0.480)
SURFACES: dict[str, Spectrum] = {
    "road": (0.092, 0.102, 0.110, 0.128),
    "track": (0.118, 0.148, 0.178, 0.225),
    "yard": (0.106, 0.122, 0.136, 0.170),
    "water": (0.034, 0.042, 0.028, 0.012),
    "forest floor": (0.026, 0.040, 0.034, 0.150),
    "garden": (0.044, 0.078, 0.062, 0.300),
    "verge": (0.040, 0.080, 0.058, 0.320),
    "tiles": (0.070, 0.090, 0.165, 0.215),
    "slate": (0.072, 0.078, 0.084, 0.105),
    "metal": (0.215, 0.225, 0.230, 0.245),
}
ROOFS = ("tiles", "slate", "metal")
TONES = {"garden": 0.16, "tiles": 0.18, "slate": 0.22, "metal": 0.18, "yard": 0.15, "forest floor": 0.1}
"""Standard deviation of the brightness between faces of a surface."""
BROADLEAF: Spectrum = (0.022, 0.046, 0.026, 0.360)
LEAFLESS: Spectrum = (0.045, 0.056, 0.064, 0.165)
CONIFER: Spectrum = (0.017, 0.031, 0.021, 0.225)
COLUMNS = 11
"""Of `Surfaces.state`: reflectance (4), its change with one unit of patchiness (4), contrast of rows, grain, crumbs."""


class Surfaces:
    """The faces of a landscape as a table; the first row is the verge that lies below everything."""

    def __init__(self, seed: int, faces: Sequence[Face]) -> None:
        self.seed = seed
        self.names = np.array(["verge", *(face.surface for face in faces)])
        self.aspect = np.array([0.0, *(face.axis for face in faces)])
        keys = np.array([0, *(face.key for face in faces)], np.int64)
        self.luck = {
            name: normal(seed, name, keys).astype(np.float64)
            for name in ("spring", "harvest", "plough", "vigour", "soil", "redness", "patches", "cut", "tone")
        }
        self.share = uniform(seed, "share", keys)

    def state(self, day: dt.date, sun_azimuth: float) -> NDArray[np.float32]:
        """Optical state (faces + 1, COLUMNS) of each surface on a date; azimuth in radians from north, clockwise."""
        table = np.zeros((len(self.names), COLUMNS))
        season = draws(self.seed, "season", day.year)
        early, wet = season.gauss(0, 4.0), draws(self.seed, "rain", day.toordinal() // 4).random()
        soil_gain = (1 - 0.22 * wet) * np.exp(0.17 * self.luck["soil"])[:, None]
        tint = 1 + 0.05 * self.luck["redness"][:, None] * np.array([-1.0, -0.3, 0.6, 0.8])
        soil = soil_gain * tint * np.array(SOIL)
        today = day.timetuple().tm_yday + early
        for name, crop in CROPS.items():
            rows = np.flatnonzero(self.names == name)
            table[rows] = self._crop(crop, name, rows, today, soil[rows])
        leaf = leaf_cover(today)
        for name, spectrum in SURFACES.items():
            rows = np.flatnonzero(self.names == name)
            if not len(rows):
                continue
            colour = np.array(spectrum)
            if name in ("garden", "verge"):
                colour = colour * (1 - leaf) + leaf * np.array([0.85, 0.95, 0.72, 1.15]) * colour
            gain = np.exp(TONES.get(name, 0.0) * self.luck["tone"][rows])
            if name in ROOFS:
                # a roof that looks at the sun is brighter than its other half
                toward = np.cos(self.aspect[rows] - (math.pi / 2 - sun_azimuth))
                gain = gain * (1 + 0.28 * toward)
            table[rows, :4] = gain[:, None] * colour
            table[rows, 9] = {"garden": 0.16, "verge": 0.10, "yard": 0.07, "road": 0.03, "track": 0.06}.get(name, 0.03)
            table[rows, 10] = {"garden": 0.22, "verge": 0.10, "forest floor": 0.2}.get(name, 0.0)
            if name == "verge":
                table[rows, 4:8] = 0.07 * np.array([-0.05, 0.0, -0.1, 0.3])
        return table.astype(np.float32)

    def _crop(self, crop: Crop, name: str, rows: NDArray[np.int64], today: float, soil: Numbers) -> Numbers:
        luck = {key: values[rows] for key, values in self.luck.items()}
        vigour = np.clip(1 + 0.07 * luck["vigour"], 0.75, 1.1)
        growth = crop.growth + 5.0 * luck["spring"]
        harvest = crop.harvest + 6.0 * luck["harvest"]
        ploughed = harvest + 16.0 + 7.0 * luck["plough"]
        green = crop.winter + (crop.peak * vigour - crop.winter) * logistic((today - growth) / crop.pace)
        ripe = logistic((today - crop.ripening - 4.0 * luck["harvest"]) / 4.0)
        standing = logistic((harvest - today) / 0.15)
        tilled = logistic((today - ploughed) / 0.15)
        if name in ("grassland", "orchard"):
            green = self._cut(green, luck["cut"], today, meadow=name == "grassland", share=self.share[rows])
        if crop.autumn < NEVER:
            regrown = crop.winter * logistic((today - crop.autumn - 6.0 * luck["spring"]) / 8.0)
        else:
            regrown = np.zeros(len(rows))
        cover = np.where(standing > 0.5, green, regrown)[:, None]
        colour = np.array(crop.green) * (1 - ripe[:, None]) + np.array(crop.ripe) * ripe[:, None]
        colour = np.where(standing[:, None] > 0.5, colour, np.array(crop.green))
        colour = colour * (1 + 0.05 * luck["tone"][:, None] * np.array([1.0, 1.0, 1.0, -0.8]))
        if name == "rapeseed":
            bloom = 0.85 * np.exp(-0.5 * ((today - 121 - 4.0 * luck["spring"]) / 9.0) ** 2)[:, None]
            colour = colour * (1 - bloom) + np.array(FLOWER) * bloom
        stubble = ((1 - standing) * (1 - tilled))[:, None]
        ground = soil * (1 - stubble) + np.array(STUBBLE) * (0.85 + 0.15 * soil / np.array(SOIL)) * stubble
        reflectance = ground * (1 - cover) + colour * cover
        table = np.zeros((len(rows), COLUMNS))
        table[:, :4] = reflectance
        patchy = (0.055 + 0.035 * np.abs(luck["patches"]))[:, None]
        # patches of poor growth show the soil; bare soil has darker, moister patches of its own
        table[:, 4:8] = patchy * (np.minimum(1.0, 3.0 * cover) * (colour - ground) + 1.3 * (1 - cover) * ground)
        table[:, 8] = crop.rows * cover[:, 0] + 0.085 * (1 - cover[:, 0])
        table[:, 9] = 0.022
        table[:, 10] = 0.05 if name in ("grassland", "orchard", "fallow") else 0.012
        return table

    @staticmethod
    def _cut(green: Numbers, luck: Numbers, today: float, meadow: bool, share: Numbers) -> Numbers:
        """Mown meadows: three cuts a year, each followed by regrowth; the others are pastures."""
        if not meadow:
            return green
        for first in (138.0, 186.0, 240.0):
            since = today - (first + 8.0 * luck)
            lost = np.where(since > 0, 0.6 * np.exp(-np.maximum(since, 0.0) / 14.0), 0.0)
            green = np.where(share < 0.6, green * (1 - lost), green)
        return green


def leaf_cover(today: float) -> float:
    """Share of leaves on broadleaved trees."""
    return float(logistic(np.array((today - 112) / 6.0)) * logistic(np.array((302 - today) / 8.0)))


def tree_spectra(seed: int, day: dt.date) -> Numbers:
    """Reflectance (2, 4) of a sunlit broadleaf and conifer crown."""
    leaf = leaf_cover(day.timetuple().tm_yday + draws(seed, "season", day.year).gauss(0, 4.0))
    return np.array([leaf * np.array(BROADLEAF) + (1 - leaf) * np.array(LEAFLESS), np.array(CONIFER)])


def logistic(value: Numbers) -> Numbers:
    result: Numbers = 1.0 / (1.0 + np.exp(-np.clip(value, -60.0, 60.0)))
    return result
