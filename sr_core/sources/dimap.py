"""DIMAP metadata beside VHR GeoTIFFs: what a count is in radiance, and where the sun stood.

Three conventions turn counts (DN) into radiance L at the top of the atmosphere, in W m-2 sr-1 um-1:

- DIMAP v1, SPOT and those that follow it:    L = DN / PHYSICAL_GAIN + PHYSICAL_BIAS
- DIMAP v1, Deimos-2 (GEOSAT-2):              L = DN * PHYSICAL_GAIN + PHYSICAL_BIAS
- DIMAP v2, Pleiades and SPOT 6/7:            L = DN / GAIN + BIAS (element Band_Radiance)

Sources: Airbus, DIMAP dictionary 1.1, PHYSICAL_UNIT; GEOSAT-2 Imagery User Guide 3.2, as EOReader applies it; Astrium,
Pleiades Imagery User Guide, appendix on radiometry. The mission in the metadata decides; the result is then held
against what a sunlit planet can reflect (`check_plausible`).
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from sr_core.errors import DataError, SourceError

Gain = Literal["divide", "multiply"]

_MULTIPLIED = re.compile(r"(deimos|geosat)\W*2\b|\bDE2_", re.IGNORECASE)
"""Names of the mission, or of its products."""
_WORDS = {"blue": "blue", "green": "green", "red": "red", "nir": "nir", "nearinfrared": "nir"}
_WORDS |= {"xs1": "green", "xs2": "red", "xs3": "nir"}
"""BAND_DESCRIPTION of DIMAP v1."""
_IDS = {"b0": "blue", "b1": "green", "b2": "red", "b3": "nir", "b": "blue", "g": "green", "r": "red", "nir": "nir"}
"""BAND_ID of DIMAP v2: Pleiades and SPOT 6/7, and letters of Pleiades Neo."""
_COUNTS = ("", "basic", "radiance")
_MILLI, _PER_CM2, _PER_NM = 1e-3, 1e4, 1e3

TYPICAL_IRRADIANCE = {"blue": 1950.0, "green": 1830.0, "red": 1550.0, "nir": 1050.0}
"""Solar irradiance outside the atmosphere, W m-2 um-1, where metadata give none. Source: Thuillier et al., The solar
spectral irradiance from 200 to 2400 nm, Solar Physics 214, 2003, rounded over bands of common VHR instruments."""
DARKEST_BLUE, DARKEST, BRIGHTEST = 0.005, -0.01, 2.0
"""Reflectance that the middle pixel of an image may have. In the blue clear sky alone scatters more than the first; in
the infrared water reflects nearly nothing, and a bias may leave less; no cloud reflects twice the light. A gain used
the wrong way round misses this by the gain's square."""


@dataclass(frozen=True)
class Calibration:
    """One band of a file."""

    colour: str | None
    """One of `BANDS`, or None for others."""
    gain: float
    bias: float
    per_unit: float
    """Radiance in W m-2 sr-1 um-1 of the metadata's unit."""
    irradiance: float | None
    """Of the sun outside the atmosphere (ESUN), W m-2 um-1."""


@dataclass(frozen=True)
class Dimap:
    """Metadata of one acquisition."""

    path: Path
    gain: Gain
    """Whether counts are divided or multiplied by the gain."""
    calibrations: Mapping[int, Calibration]
    """By the file's band number."""
    timestamp: dt.datetime | None
    """Naive UTC."""
    sun: tuple[float, float] | None
    """Azimuth, from north to east, and elevation; degrees."""
    incidence_deg: float | None
    """Angle at the ground between the zenith and the satellite (v1 and v2 INCIDENCE_ANGLE, else VIEWING_ANGLE)."""
    nodata: int | None
    files: Sequence[str]
    """Names of the image files it belongs to; empty where it does not say."""

    def band_numbers(self) -> dict[str, int]:
        """File's band number of each colour that it names."""
        return {each.colour: number for number, each in self.calibrations.items() if each.colour}

    def radiance(self, counts: NDArray[np.floating], number: int, gain: Gain | None = None) -> NDArray[np.floating]:
        """Radiance, W m-2 sr-1 um-1, of counts of band `number`. `gain` overrides the metadata's convention."""
        band = self.calibrations[number]
        scaled = counts / band.gain if (gain or self.gain) == "divide" else counts * band.gain
        return (scaled + band.bias) * band.per_unit


def find_dimap(image: Path) -> Dimap | None:
    """The metadata beside an image: `<name>.dim`, `DIM_<name>.XML`, or those of the folder that name the image.

    Raises `SourceError` when it is cut short or lacks what radiance needs.
    """
    beside = sorted(path for path in image.parent.iterdir() if path.suffix.lower() in (".dim", ".xml"))
    named = [path for path in beside if _plain(path.stem) == _plain(image.stem)]
    for path in named:
        root = _document(path)
        if root is not None:
            return _read(path, root)
    for path in beside:
        try:
            root = _document(path)
        except SourceError:
            continue  # some other XML; this image's own would have its name
        if root is None:
            continue
        files = _files(root)
        alone = len([path for path in image.parent.iterdir() if path.suffix.lower() == image.suffix.lower()]) == 1
        if image.name.lower() in files or (not files and alone):
            return _read(path, root)
    return None


def toa_reflectance(
    radiance: NDArray[np.floating], irradiance: float, sun_elevation_deg: float, day: dt.date
) -> NDArray[np.floating]:
    """Reflectance at the top of the atmosphere: pi L d^2 / (ESUN sin(sun elevation)), d in astronomical units."""
    distance = 1 - 0.01672 * np.cos(np.radians(0.9856 * (day.timetuple().tm_yday - 4)))
    return radiance * float(np.pi * distance**2 / (irradiance * np.sin(np.radians(sun_elevation_deg))))


def check_plausible(
    radiance: NDArray[np.floating],
    colour: str,
    irradiance: float | None,
    sun_elevation_deg: float | None,
    day: dt.date,
    how: str,
) -> None:
    """Raise `DataError` when the middle of a band's radiances (n,) is none that a sunlit planet reflects.

    `how` names the file and the conversion. A sun that is not known is taken to stand at 45 degrees.
    """
    if not len(radiance):
        return
    middle = np.median(radiance, keepdims=True)
    esun = irradiance or TYPICAL_IRRADIANCE[colour]
    found = float(toa_reflectance(middle, esun, max(sun_elevation_deg or 45.0, 5.0), day)[0])
    darkest = DARKEST_BLUE if colour == "blue" else DARKEST
    if not darkest <= found <= BRIGHTEST:
        raise DataError(
            f"{how}: the median {colour} radiance is {float(middle[0]):.4g} W m-2 sr-1 um-1, reflectance {found:.3g};"
            f" expected {darkest:g} to {BRIGHTEST:g}. Are these counts, or is the gain the other way round? See"
            " source.vhr_gain and source.vhr_radiance_per_dn"
        )


def _plain(stem: str) -> str:
    """What an image and its metadata share: no DIM_ or IMG_ before, no tile _R1C1 behind."""
    return re.sub(r"^(dim|img)_|_r\d+c\d+$", "", stem.lower())


def _document(path: Path) -> ElementTree.Element | None:
    """The root of a DIMAP document; None where the XML is something else."""
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError) as error:
        raise SourceError(f"{path}: not readable as XML, it may be truncated ({error})") from error
    return root if root.tag.rpartition("}")[2].lower().endswith("dimap_document") else None


def _files(root: ElementTree.Element) -> list[str]:
    return [Path(item.get("href", "")).name.lower() for item in root.iter("DATA_FILE_PATH") if item.get("href")]


def _read(path: Path, root: ElementTree.Element) -> Dimap:
    text = {
        tag: (root.findtext(f".//{tag}") or "").strip()
        for tag in ("MISSION", "MISSION_INDEX", "DATASET_NAME", "RADIOMETRIC_PROCESSING")
    }
    second = root.find(".//Band_Measurement_List") is not None
    if second and text["RADIOMETRIC_PROCESSING"].lower() not in _COUNTS:
        raise SourceError(
            f"{path}: RADIOMETRIC_PROCESSING is {text['RADIOMETRIC_PROCESSING']}; expected BASIC, counts that become"
            " radiance. Order the product anew, or give source.vhr_radiance_per_dn"
        )
    mission = f"{text['MISSION']} {text['MISSION_INDEX']} {text['DATASET_NAME']}".strip() or path.stem
    return Dimap(
        path,
        "multiply" if not second and _MULTIPLIED.search(mission) else "divide",
        _bands_v2(root, path) if second else _bands_v1(root, path),
        _timestamp(root, path),
        _sun(root, path),
        _number(_central(root), ("INCIDENCE_ANGLE", "VIEWING_ANGLE"), path),
        _nodata(root),
        _files(root),
    )


def _bands_v1(root: ElementTree.Element, path: Path) -> dict[int, Calibration]:
    esun = {
        item.findtext("BAND_INDEX"): item.findtext("SOLAR_IRRADIANCE_VALUE")
        for item in root.iter("Band_Solar_Irradiance")
    }
    bands = {}
    for item in root.iter("Spectral_Band_Info"):
        index = item.findtext("BAND_INDEX") or ""
        bands[int(_float(index, "BAND_INDEX", path))] = Calibration(
            _WORDS.get(re.sub(r"[^a-z0-9]", "", (item.findtext("BAND_DESCRIPTION") or "").lower())),
            _float(item.findtext("PHYSICAL_GAIN"), f"PHYSICAL_GAIN of band {index}", path),
            _float(item.findtext("PHYSICAL_BIAS") or "0", f"PHYSICAL_BIAS of band {index}", path),
            _per_unit(item.findtext("PHYSICAL_UNIT"), path),
            _irradiance(item.findtext("ESUN") or esun.get(index), path),
        )
    return _checked(bands, "Spectral_Band_Info", path)


def _bands_v2(root: ElementTree.Element, path: Path) -> dict[int, Calibration]:
    numbers = {item.findtext("BAND_ID"): item.findtext("BAND_INDEX") for item in root.iter("Raster_Index")}
    esun = {item.findtext("BAND_ID"): item.findtext("VALUE") for item in root.iter("Band_Solar_Irradiance")}
    bands = {}
    for item in root.iter("Band_Radiance"):
        name = item.findtext("BAND_ID") or ""
        colour = _IDS.get(name.lower())
        if name not in numbers:
            if colour:
                raise SourceError(
                    f"{path}: Raster_Index_List does not say which band of the file is {name}; expected it in the"
                    " metadata; without it give source.vhr_bands and source.vhr_radiance_per_dn"
                )
            continue
        bands[int(_float(numbers[name], f"BAND_INDEX of {name}", path))] = Calibration(
            colour,
            _float(item.findtext("GAIN"), f"GAIN of {name}", path),
            _float(item.findtext("BIAS") or "0", f"BIAS of {name}", path),
            _per_unit(item.findtext("MEASURE_UNIT"), path),
            _irradiance(esun.get(name), path),
        )
    return _checked(bands, "Band_Radiance", path)


def _checked(bands: dict[int, Calibration], element: str, path: Path) -> dict[int, Calibration]:
    if not bands:
        raise SourceError(f"{path}: found no {element}; expected gain and bias of each band")
    for number, band in bands.items():
        if not band.gain > 0:
            raise SourceError(f"{path}: the gain of band {number} is {band.gain:g}; expected a positive number")
    return bands


def _per_unit(unit: str | None, path: Path) -> float:
    """Factor to W m-2 sr-1 um-1. Without a unit it is that: the specification's example."""
    text = re.sub(r"micromet(er|re)s?|micron?s?|µm|μm", "um", (unit or "").lower())
    if not text.strip():
        return 1.0
    found = re.search(r"(m?w)(?:att)?s?[^a-z]*(cm|m)[^a-z]*\W?(?:sr|st|steradian)s?[^a-z]*(um|nm)", text)
    if found is None:
        raise SourceError(
            f"{path}: the unit of the gain is {unit!r}; expected radiance such as W.m-2.sr-1.um-1. Where counts cannot"
            " become radiance, give source.vhr_radiance_per_dn"
        )
    power, area, wavelength = found.groups()
    return (
        (_MILLI if power == "mw" else 1.0)
        * (_PER_CM2 if area == "cm" else 1.0)
        * (_PER_NM if wavelength == "nm" else 1.0)
    )


def _irradiance(text: str | None, path: Path) -> float | None:
    """ESUN; None where it is missing, or 999, which some DIMAP v2 files hold for unknown."""
    value = _float(text, "solar irradiance", path) if text else 999.0
    return None if value in (0.0, 999.0) else value


def _timestamp(root: ElementTree.Element, path: Path) -> dt.datetime | None:
    text = (root.findtext(".//START_TIME") or "").strip()
    if not text:
        day, time = (root.findtext(f".//{tag}") for tag in ("IMAGING_DATE", "IMAGING_TIME"))
        if not day:
            return None
        text = f"{day.strip()}T{(time or '00:00:00').strip()}"
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise SourceError(f"{path}: the acquisition's time is {text!r}; expected YYYY-MM-DDTHH:MM:SS") from error
    return (found.astimezone(dt.UTC) if found.tzinfo else found).replace(tzinfo=None, microsecond=0)


def _central(root: ElementTree.Element) -> ElementTree.Element:
    """Where angles are given at several places of the image, those of its centre."""
    places = list(root.iter("Located_Geometric_Values"))
    central = [place for place in places if (place.findtext("LOCATION_TYPE") or "").lower() == "center"]
    return (central or places or [root])[0]


def _sun(root: ElementTree.Element, path: Path) -> tuple[float, float] | None:
    place = _central(root)
    azimuth, elevation = _number(place, ("SUN_AZIMUTH",), path), _number(place, ("SUN_ELEVATION",), path)
    if azimuth is None or elevation is None:
        return None
    if not (-360 <= azimuth <= 360 and 0 < elevation <= 90):
        raise SourceError(
            f"{path}: the sun's azimuth is {azimuth:g} and its elevation {elevation:g}; expected degrees, the sun above"
            " the horizon"
        )
    return azimuth % 360, elevation


def _nodata(root: ElementTree.Element) -> int | None:
    for item in root.iter("Special_Value"):
        if (item.findtext("SPECIAL_VALUE_TEXT") or "").strip().upper() == "NODATA":
            # v1 has the value in SPECIAL_VALUE_INDEX, v2 in SPECIAL_VALUE_COUNT
            value = item.findtext("SPECIAL_VALUE_INDEX") or item.findtext("SPECIAL_VALUE_COUNT")
            return int(float(value)) if value else None
    return None


def _number(place: ElementTree.Element, tags: Sequence[str], path: Path) -> float | None:
    for tag in tags:
        text = place.findtext(f".//{tag}")
        if text:
            return _float(text, tag, path)
    return None


def _float(text: str | None, what: str, path: Path) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise SourceError(f"{path}: {what} is {(text or '').strip()!r}; expected a number")
    return value
