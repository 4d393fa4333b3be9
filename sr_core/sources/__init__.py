"""Where pixels come from, one module a source, each behind the interface `Source`."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from eolearn.core import EOPatch

from sr_core.config import Config
from sr_core.patches import Patch

SECRETS = ("SH_CLIENT_ID", "SH_CLIENT_SECRET")
"""Names of the credentials that sources need, in the environment or in a mounted file."""

Dates = tuple[dt.date, dt.date]
"""First and last day, both included."""


@dataclass(frozen=True)
class Region:
    """Ground that a source covers: bounds (xmin, ymin, xmax, ymax) in metres of UTM zone `epsg`."""

    name: str
    epsg: int
    bounds: tuple[float, float, float, float]


class Source(Protocol):
    """Reads EOPatches as docs/architecture.md describes them. All errors are `SourceError` or `DataError`."""

    def regions(self) -> list[Region]:
        """The ground the source covers; empty where it covers everything."""

    def s2(self, patch: Patch, period: Dates | None) -> EOPatch:
        """Sentinel-2 at 10 m: `DATA["BANDS"]`, `MASK["VALID"]`, and `MASK["CLM"]` where the source has a mask."""

    def vhr(self, patch: Patch, period: Dates | None) -> EOPatch | None:
        """VHR at 2.5 m, or None where the source has none for this patch."""

    def reference(self, patch: Patch) -> EOPatch | None:
        """Reference parcels, or None."""

    def truth(self, patch: Patch, period: Dates | None) -> dict[str, EOPatch]:
        """What only a simulation knows: parts `truth` and `truth_vhr`; empty for real data."""

    def fingerprint(self) -> Any:
        """JSON-ready value that changes when the source's own files do; None for a pure function."""


@dataclass(frozen=True)
class Estimate:
    """What a download takes, before it is made."""

    patches: int
    acquisitions: Mapping[str, int]
    """By sensor ("s2", "vhr"), counted patch by patch."""
    requests: int
    processing_units: float
    bytes: int


@runtime_checkable
class Metered(Protocol):
    """A source whose service counts what is taken from it."""

    @property
    def max_processing_units(self) -> float:
        """What a download may cost."""

    def estimate(self, patches: Sequence[Patch], period: Dates | None) -> Estimate:
        """What reading these patches takes, without reading them."""

    def admit(self, patches: Sequence[Patch], period: Dates | None) -> Estimate:
        """The same. Raises `SourceError` where it costs more than `max_processing_units`."""


def open_source(config: Config, secrets: Mapping[str, str] | None = None) -> Source:
    """The source that the configuration names. `secrets` holds what the caller's environment has of `SECRETS`."""
    section = config.source
    match section.kind:
        case "simulated":
            from sr_core.sources.simulated import SimulatedFarmland

            return SimulatedFarmland(section)
        case "files":
            from sr_core.sources.files import FileSeries

            return FileSeries(section)
        case "sentinelhub":
            from sr_core.sources.sentinel_hub import SentinelHub

            return SentinelHub(section, secrets or {})
        case "stac":
            from sr_core.sources.stac import StacCatalogue

            return StacCatalogue(section)
