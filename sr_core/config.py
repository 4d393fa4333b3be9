"""The one typed configuration: a YAML file with a section a stage, validated before anything runs.

Every key carries its unit and its allowed range. An unknown key or a value out of range raises
`ConfigError`, which names the key, what was found and what is allowed.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sr_core.errors import ConfigError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Box = tuple[float, float, float, float]
SplitName = Literal["train", "val", "test"]
BandName = Literal["blue", "green", "red", "nir"]
S3Address = Annotated[str, Field(pattern=r"^s3://[^/]+")]
AssetName = Literal["blue", "green", "red", "nir", "scl"]
PerBand = Annotated[float, Field(gt=0)] | dict[BandName, Annotated[float, Field(gt=0)]]


KubernetesName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
EnvironmentName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
SecretKey = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9._-]+$")]
Quantity = Annotated[
    str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$", coerce_numbers_to_str=True)
]
"""An amount as Kubernetes writes it: 500m, 8, 32Gi."""


class Section(BaseModel):
    """A part of the configuration: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=Section)


class Area(Section):
    """What ground to work on."""

    bbox: Box | None = Field(None, description="west, south, east, north, in units of `crs`")
    geojson: Path | None = Field(None, description="file with a polygon (EPSG:4326) instead of `bbox`")
    crs: str = Field("EPSG:4326", description="reference system of `bbox`")
    region: str = Field("area", pattern=r"^[a-z0-9][a-z0-9_-]*$", description="name of the region, for statistics")
    max_area_km2: float = Field(20_000.0, gt=0, description="larger areas are refused: split them into several runs")

    @model_validator(mode="after")
    def _one_outline(self) -> Area:
        if (self.bbox is None) == (self.geojson is None):
            raise ValueError("give exactly one of `bbox` and `geojson`")
        if self.bbox is not None and not (self.bbox[0] < self.bbox[2] and self.bbox[1] < self.bbox[3]):
            raise ValueError(f"bbox is west, south, east, north; found {list(self.bbox)}, which is empty or swapped")
        return self


class Period(Section):
    """First and last day, both included."""

    start: dt.date = Field(description="first day, YYYY-MM-DD")
    end: dt.date = Field(description="last day, YYYY-MM-DD")

    @model_validator(mode="after")
    def _in_order(self) -> Period:
        if self.start > self.end:
            raise ValueError(f"start {self.start} lies after end {self.end}: swap them")
        return self


class SimulatedSource(Section):
    """The deterministic farmland: a function of seed and place."""

    kind: Literal["simulated"] = Field(description="farmland that is computed, with known truth")
    seed: int = Field(7, ge=0, description="another seed is another landscape")
    revisit_days: int = Field(5, ge=1, le=30, description="days between Sentinel-2 passes")
    cloudy_share: Fraction = Field(0.35, description="share of passes with clouds over a place")
    jitter_px: float = Field(0.3, ge=0, le=2, description="misregistration of a pass, rms, in 10 m pixels")
    noise: float = Field(0.002, ge=0, le=0.1, description="sensor noise, standard deviation in reflectance")
    vhr_dates: tuple[dt.date, ...] = Field((), description="days of VHR acquisitions; none: Sentinel-2 only")
    vhr_ortho_error_m: float = Field(
        1.0, ge=0, le=20, description="residual orthorectification error of VHR, rms, metres"
    )
    vhr_cloudy_share: Fraction = Field(0.25, description="share of VHR tiles with some cloud")
    truth: bool = Field(True, description="write what the sensors hide as well: four fifths of the space of a patch")


class FilesSource(Section):
    """Folders of SAFE products, GeoTIFFs (one file a band, or one a date) or NetCDF series; VHR optional."""

    kind: Literal["files"] = Field(description="Sentinel-2 that lies in a folder")
    path: Path = Field(description="folder with the Sentinel-2 series")
    s2_bands: dict[BandName, Literal["B02", "B03", "B04", "B08"]] | None = Field(
        None,
        description="which bands of the GeoTIFFs are blue, green, red and nir, where they are named otherwise than"
        " B02, B03, B04 and B08: {blue: B04, red: B02}; none: as they are named, and a look whether that can be",
    )
    vhr_path: Path | None = Field(
        None, description="folder with orthorectified VHR GeoTIFFs, a file an acquisition, DIMAP metadata beside"
    )
    vhr_bands: dict[BandName, Annotated[int, Field(ge=1)]] | None = Field(
        None, description="which bands of a VHR file are blue, green, red and nir, from 1; none: as its metadata say"
    )
    vhr_radiance_per_dn: PerBand | None = Field(
        None,
        description="radiance (W m-2 sr-1 um-1) of a VHR value of 1, for all bands or for each; none: by DIMAP",
    )
    vhr_gain: Literal["auto", "divide", "multiply"] = Field(
        "auto", description="what DIMAP gains do to VHR values; auto: multiply for Deimos-2, else divide"
    )
    region: str = Field("area", pattern=r"^[a-z0-9][a-z0-9_-]*$", description="name of the region, for statistics")
    nodata: int = Field(0, ge=0, le=65535, description="value of pixels without data")
    max_bad_scl: Fraction = Field(1.0, description="dates with a larger share of bad SCL classes are not read")

    @model_validator(mode="after")
    def _each_band_once(self) -> FilesSource:
        named = {"blue": "B02", "green": "B03", "red": "B04", "nir": "B08", **(self.s2_bands or {})}
        if len(set(named.values())) < 4:
            raise ValueError(f"s2_bands takes one band for two colours: {named}; say which band the other one is")
        return self

    @model_validator(mode="after")
    def _every_band(self) -> FilesSource:
        for key in ("vhr_bands", "vhr_radiance_per_dn"):
            given = getattr(self, key)
            if isinstance(given, dict) and len(given) < 4:
                raise ValueError(f"{key} needs blue, green, red and nir; found {', '.join(given) or 'none'}")
        return self


class SentinelHubSource(Section):
    """Sentinel Hub or the Copernicus Data Space by the Process API; VHR from a collection of one's own (BYOC)."""

    kind: Literal["sentinelhub"] = Field(description="Sentinel-2 from Sentinel Hub; needs an OAuth client")
    service: Literal["sentinel-hub", "copernicus"] = Field(
        "sentinel-hub", description="whose endpoints: services.sentinel-hub.com, or sh.dataspace.copernicus.eu"
    )
    base_url: str | None = Field(None, description="another endpoint of the same protocol; none: that of `service`")
    token_url: str | None = Field(None, description="where its tokens come from; none: that of `service`")
    credentials: Path | None = Field(
        None,
        description="mounted file of SH_CLIENT_ID=... and SH_CLIENT_SECRET=..., or folder with a file each; none: they"
        " are in the environment",
    )
    level: Literal["L1C", "L2A"] = Field("L2A", description="product level; L1C brings the bands of s2cloudless")
    max_cloud_cover: Fraction = Field(0.8, description="acquisitions whose tile is cloudier are not requested")
    byoc_collection: str | None = Field(None, description="id of the VHR collection; none: no VHR")
    byoc_bands: dict[BandName, str] = Field(
        {"blue": "B1", "green": "B2", "red": "B3", "nir": "B4"},
        description="names of the VHR collection's bands",
    )
    byoc_pan: str | None = Field(None, description="its panchromatic band, for pansharpening; none: as it is")
    byoc_radiance_scale: float = Field(
        1.0, gt=0, description="the collection's values are radiance (W m-2 sr-1 um-1) times this"
    )
    max_processing_units: float = Field(1000.0, gt=0, description="a download that is estimated at more is refused")
    requests_per_minute: int = Field(
        300, ge=1, description="of an account, by all processes of a machine together; share it out over machines"
    )
    max_retries: int = Field(6, ge=0, le=50, description="of a request that failed, with growing pauses")
    timeout_s: float = Field(120.0, gt=0, description="of one request, seconds")


class StacSource(Section):
    """Cloud-optimised GeoTIFFs that a STAC catalogue names; needs no account where the catalogue needs none."""

    kind: Literal["stac"] = Field(description="Sentinel-2 from a STAC catalogue")
    catalog: str = Field(
        "earth-search",
        description="`earth-search`, `copernicus`, or another catalogue: its URL, or its path from where one works",
    )
    collection: str = Field("sentinel-2-c1-l2a", description="id of the collection")
    max_cloud_cover: Fraction = Field(0.8, description="items that say they are cloudier are not read")
    assets: dict[AssetName, str] | None = Field(
        None, description="names of the assets of blue, green, red, nir and scl; none: those of the catalogue"
    )
    offset: Literal["auto", "metadata", "none"] = Field(
        "auto", description="radiometric offset: found in metadata and pixels, as the metadata say, or already removed"
    )
    max_retries: int = Field(6, ge=0, le=50, description="of a request that failed, with growing pauses")
    timeout_s: float = Field(60.0, gt=0, description="of one request, seconds")


Source = Annotated[
    SimulatedSource | FilesSource | SentinelHubSource | StacSource,
    Field(discriminator="kind"),
]


class Grid(Section):
    """Overlapping square patches in UTM: cells of `cell_m`, grown by `buffer_m` on each side."""

    cell_m: int = Field(2000, ge=160, le=20_000, multiple_of=40, description="side of a cell, metres")
    buffer_m: int = Field(200, ge=0, le=2000, multiple_of=40, description="overlap into each neighbour, metres")
    anchor: Literal["utm", "source"] = Field(
        "utm", description="grid origin: that of the UTM zone, or the source's corner"
    )


class Preparation(Section):
    """How patches are shared out, from download to the gate; results do not depend on it."""

    workers: int = Field(2, ge=1, le=256, description="patches in work at the same time")
    executor: Literal["processes", "ray"] = Field(
        "processes", description="where: processes of this machine, or the Ray cluster that RAY_ADDRESS names"
    )
    patches_per_shard: int = Field(
        64, ge=1, description="in Kubeflow, so many patches are a shard, a container of its own; fewer need none"
    )
    max_shards: int = Field(16, ge=1, le=1000, description="in Kubeflow, never more shards than this; they grow")


class CloudShadowFilter(Section):
    """Masks, and which acquisitions are kept."""

    vhr_blue_threshold: float = Field(100.0, gt=0, description="VHR cloud: blue radiance above this, W m-2 sr-1 um-1")
    max_cloud_cover: Fraction = Field(0.10, description="acquisitions of a patch with more cloud are dropped")
    min_valid: Fraction = Field(0.05, description="acquisitions of a patch with less valid ground are dropped")
    dilate_px: int = Field(2, ge=0, le=20, description="clouds grow by this many pixels of 10 m")
    s2_mask: Literal["auto", "s2cloudless", "source", "4-band"] = Field(
        "auto", description="Sentinel-2 clouds by; auto: s2cloudless where its bands are, else SCL or CLM, else 4 bands"
    )
    shadows: Literal["geometric", "neighbours"] = Field(
        "geometric",
        description="VHR shadows: dark ground where clouds may shade it, or whole patches that touch cloudy ones",
    )
    max_shift_m: float = Field(
        10.0, gt=0, le=30, description="VHR that lies farther from Sentinel-2 than this is flagged, metres"
    )


class Normalize(Section):
    lower_percentile: float = Field(1.0, ge=0, lt=50, description="of clear pixels, kept as `p_low`")
    upper_percentile: float = Field(99.0, gt=50, le=100, description="of clear pixels, kept as `p_high`")
    min_pixels: int = Field(1000, ge=1, description="fewer clear pixels than this make no statistics")


class Split(Section):
    """Training, validation and test ground: by random blocks, or by boxes."""

    block_m: float = Field(2000.0, gt=0, description="side of a block of ground, metres")
    val: Fraction = Field(0.15, description="share of blocks for validation")
    test: Fraction = Field(0.2, description="share of blocks for test")
    val_boxes: tuple[Box, ...] = Field((), description="explicit validation ground, xmin ymin xmax ymax in UTM metres")
    test_boxes: tuple[Box, ...] = Field((), description="explicit test ground; with boxes all other ground is training")
    guard_m: float = Field(80.0, ge=0, description="chips stay this far away from ground of another split, metres")
    test_from: dt.date | None = Field(None, description="test targets begin on this day")


def _min_samples() -> dict[SplitName, int]:
    return {"train": 32, "val": 4, "test": 8}


class QualityGate(Section):
    """Cutting samples, scoring and filtering them, and the verdict on the set."""

    pairing: Literal["auto", "vhr", "wald"] = Field(
        "auto",
        description="where the truth comes from: VHR, or Wald's protocol (degraded by 4); auto: VHR if there is any",
    )
    wald_mtf: float = Field(0.3, gt=0, lt=1, description="MTF at the Nyquist frequency of the degraded frames")
    frames: int = Field(8, ge=1, le=16, description="frames a sample, latest first")
    min_frames: int = Field(2, ge=1, le=16, description="samples with fewer clear frames are dropped")
    max_age_days: int = Field(60, ge=1, le=400, description="frames older than this before the target are not used")
    max_latest_age_days: int = Field(
        10, ge=0, le=60, description="the latest frame is at most this old for a VHR target"
    )
    max_frame_cloud: Fraction = Field(0.05, description="frames cloudier than this over the chip are not used")
    chip_px: int = Field(32, ge=8, le=256, description="side of a sample in low-resolution pixels")
    stride_px: int = Field(32, ge=1, le=256, description="step between training samples in low-resolution pixels")
    align_vhr: bool = Field(True, description="move VHR by its displacement from Sentinel-2 before cutting")
    histogram_matching: bool = Field(True, description="match VHR, as Sentinel-2 would see it, to the latest frame")
    thresholds: Literal["fixed", "mixture"] = Field(
        "fixed", description="min_ssim and min_psnr as given, or found between the clusters of a Gaussian mixture"
    )
    min_ssim: float = Field(0.2, ge=-1, le=1, description="VHR against bicubic Sentinel-2, per sample")
    min_psnr: float = Field(10.0, description="VHR against bicubic Sentinel-2, dB, per sample")
    max_monotonous: Fraction = Field(
        0.5, description="training samples of one kind of monotonous land beyond this share of them are dropped"
    )
    min_samples: dict[SplitName, int] = Field(
        default_factory=_min_samples, description="fewer kept samples of a split fail the gate"
    )
    max_drift: float = Field(
        0.05,
        gt=0,
        description="a tile whose truth lies farther from Sentinel-2 than this (median, reflectance) is reported",
    )
    max_dropped: Fraction = Field(0.9, description="a larger share of dropped samples fails the gate")
    split: Split = Field(default_factory=lambda: Split())
    seed: int = Field(42, ge=0, description="of the draw of blocks")


class TrainHRN(Section):
    """The network, what it is asked to do, and how it learns."""

    frames: int | None = Field(None, ge=1, le=16, description="frames the network sees; none: all that samples hold")
    channels: int = Field(64, ge=8, le=512, description="features of each convolution")
    residual_blocks: int = Field(2, ge=1, le=16, description="residual blocks of the encoder, which sees every frame")
    fused_blocks: int = Field(0, ge=0, le=32, description="residual blocks after the fusion, where one image is left")
    reference: Literal["median", "latest"] = Field("median", description="what each frame is shown beside")
    fusion: Literal["recursive", "attention"] = Field(
        "recursive", description="pairwise, the latest first; or attention over time at each pixel"
    )
    decoder: Literal["pixel_shuffle", "transposed", "resize"] = Field(
        "pixel_shuffle", description="pixel shuffle, transposed convolution, or nearest neighbour and convolution"
    )
    residual: Literal["latest", "mean", "none"] = Field(
        "latest", description="the network adds to the bicubic latest frame, to the cloud-aware mean, or to nothing"
    )
    uncertainty: bool = Field(False, description="predict the scale of a Laplace distribution a pixel and band as well")
    loss: Literal["l1", "mse", "ssim", "mixed", "cmse"] = Field(
        "l1", description="of clear pixels: absolute, squared, 1 - SSIM, mse + 0.1 (1 - SSIM), or mse without bias"
    )
    registration: Literal["grid", "shiftnet", "none"] = Field(
        "grid", description="how the output is laid on the truth: best of a grid of shifts, ShiftNet, or as it is"
    )
    registration_px: float = Field(
        1.0, gt=0, le=8, description="largest shift that is searched for, high-resolution pixels"
    )
    registration_step_px: float = Field(0.5, gt=0, le=2, description="step of the grid, high-resolution pixels")
    remove_bias: bool = Field(False, description="remove each band's mean difference inside the loss")
    mean_matching: float = Field(0.0, ge=0, description="weight of the difference of means to the latest frame")
    low_frequency: float = Field(
        0.0, ge=0, description="weight of the difference to the latest frame after degrading the output to its grid"
    )
    perceptual: float = Field(0.0, ge=0, description="weight of the feature difference in a delineation network")
    style: float = Field(0.0, ge=0, description="weight of the style difference in the same network")
    perceptual_network: Path | None = Field(
        None, description="folder with that network, as `delineate` saves it; none: random weights, the control"
    )
    steps: int = Field(400, ge=1, description="optimiser steps")
    batch_size: int = Field(8, ge=1, le=1024, description="samples a step, of all processes together")
    crop_px: int | None = Field(None, ge=8, description="train on random crops of this side (low-resolution pixels)")
    learning_rate: float = Field(1e-3, gt=0, le=1, description="of AdamW, after the warm-up; cosine from there")
    weight_decay: float = Field(1e-4, ge=0, description="of AdamW")
    warmup_steps: int = Field(20, ge=0, description="steps in which the learning rate rises from zero")
    clip_norm: float = Field(1.0, gt=0, description="gradients with a larger norm are scaled down to it")
    ema_decay: float = Field(0.99, ge=0, lt=1, description="weight averaging; 0: none")
    patience: int | None = Field(
        None, ge=1, description="stop after so many validations without a better one; none: never"
    )
    frame_choice: Literal["latest", "random"] = Field(
        "latest", description="earlier frames in training: the latest ones, or random ones, clear ones more often"
    )
    max_latest_age_days: int = Field(
        0,
        ge=0,
        le=60,
        description="a random frame at most this old counts as the latest; 0: the latest, as Wald's protocol needs",
    )
    frame_dropout: Fraction = Field(0.2, description="share of earlier frames hidden at random in training")
    gain_augmentation: float = Field(0.05, ge=0, le=0.5, description="random radiometric gain of a sample, +-")
    precision: Literal["float32", "bfloat16"] = Field("bfloat16", description="of the network's arithmetic in training")
    compile: bool = Field(False, description="compile the network with torch.compile; on CPUs it has not paid off")
    validate_every: int = Field(50, ge=1, description="steps between validations and checkpoints")
    threads: int | None = Field(None, ge=1, description="CPU threads of each process; none: as many as cores")
    processes: int = Field(
        1, ge=1, le=64, description="processes of one machine that share each batch, one a GPU or some cores each"
    )
    nodes: int = Field(
        1, ge=1, le=64, description="machines with so many processes each; above 1: a Kubeflow TrainJob, see `trainjob`"
    )
    seed: int = Field(0, ge=0, description="of the weights, the batches and the augmentation")
    wandb_project: str = Field("subpixel", description="Weights & Biases project of the curves")

    @model_validator(mode="after")
    def _style_has_its_network(self) -> TrainHRN:
        if self.perceptual_network is not None and not self.perceptual and not self.style:
            raise ValueError("perceptual_network is given, but `perceptual` and `style` are both 0")
        return self


class Toleration(Section):
    """A taint of machines that does not keep a pod away, as Kubernetes has it."""

    key: str | None = Field(None, description="of the taint; none: every taint")
    operator: Literal["Exists", "Equal"] = Field("Exists", description="whether the taint's value counts")
    value: str | None = Field(None, description="of the taint, with `Equal`")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(None, description="none: all effects")


class TrainJob(Section):
    """Where the nodes of a training run that has several: a TrainJob of Kubeflow Trainer v2. Results do not depend on
    it."""

    namespace: KubernetesName | None = Field(None, description="none: that of this pod, or of the kubeconfig's context")
    runtime: str = Field("torch-distributed", description="TrainingRuntime or ClusterTrainingRuntime, of PyTorch")
    image: str | None = Field(None, description="of the nodes: that of train_hrn; none: the one of this pod")
    service_account: KubernetesName | None = Field(None, description="of the nodes' pods; none: that of this pod")
    resources: dict[str, Quantity] = Field(
        default_factory=dict,
        description="of each node, requested and at most: cpu, memory, nvidia.com/gpu; none: the runtime's",
    )
    shared_memory: Quantity | None = Field(None, description="size of each node's /dev/shm, such as 8Gi; none: 64 MiB")
    node_selector: dict[str, str] = Field(default_factory=dict, description="labels of the machines")
    tolerations: tuple[Toleration, ...] = Field((), description="taints of the machines")
    secrets: dict[EnvironmentName, SecretKey] = Field(
        default_factory=dict, description="environment variable: `secret/key`, beside those of this pod"
    )
    environment: dict[EnvironmentName, str] = Field(
        default_factory=dict, description="variables of the nodes that are no secret, such as NCCL_DEBUG"
    )
    volumes: dict[KubernetesName, Path] = Field(
        default_factory=dict, description="volume claim: where the nodes mount it, for a root that is not in S3"
    )
    time_limit_h: float | None = Field(
        None, gt=0, description="hours after which the cluster ends the job; none: never"
    )
    restarts: int = Field(2, ge=0, le=100, description="a node that crashes more often ends the job")


class Evaluate(Section):
    border_px: int = Field(4, ge=0, description="high-resolution pixels left out at each side of a sample")
    max_shift_px: int = Field(3, ge=0, le=8, description="shift search of cPSNR, +- high-resolution pixels")
    gallery: int = Field(6, ge=0, le=50, description="samples shown side by side in the report")
    min_gain_db: float = Field(
        0.1,
        description="the verdict is `better` from this gain over every baseline on, dB, in PSNR and in cPSNR;"
        " only such a model is packaged and published",
    )


class Delineate(Section):
    arms: tuple[Literal["bicubic", "sr", "s2_x4", "truth"], ...] = Field(
        ("bicubic", "sr"),
        min_length=1,
        description="input images: bicubic, super-resolved, 10 m with a x4 learned here, the simulation's own 2.5 m",
    )
    channels: int = Field(16, ge=4, le=128, multiple_of=4, description="of the network's finest level; doubled a level")
    steps: int = Field(300, ge=1, description="optimiser steps of each arm")
    batch_size: int = Field(4, ge=1, description="tiles a step")
    tile_px: int = Field(128, ge=32, le=1024, multiple_of=16, description="training tile in high-resolution pixels")
    learning_rate: float = Field(3e-3, gt=0, le=1, description="of AdamW, falling by a cosine")
    dates: int = Field(2, ge=1, le=20, description="clear dates a patch that the network sees")
    min_area_m2: float = Field(500.0, ge=0, description="smaller polygons are left out")
    precision: Literal["float32", "bfloat16"] = Field("bfloat16", description="of the networks' arithmetic")
    threads: int | None = Field(None, ge=1, description="CPU threads; none: as many as cores")
    gallery: int = Field(4, ge=0, le=50, description="test patches shown in the report")
    seed: int = Field(0, ge=0, description="of the weights, the batches and the augmentation")


class Package(Section):
    model_name: str = Field(
        "subpixel", pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_-]*$", description="name of the archive and of the served model"
    )
    version: str = Field("1.0", pattern=r"^[0-9]+(\.[0-9]+)*$", description="version of the served model")
    publish_to: S3Address | Path | None = Field(
        None, description="folder or s3://bucket/prefix that promoted models are published in; none: nowhere"
    )

    @field_validator("publish_to")
    @classmethod
    def _folder_or_s3(cls, value: str | Path | None) -> str | Path | None:
        if isinstance(value, Path) and value.parts[:1] and value.parts[0].endswith(":"):
            raise ValueError("expected a folder or s3://bucket/prefix")
        return value


class SuperResolve(Section):
    bundle: Path | None = Field(None, description="model bundle to use instead of the one this run trains")
    dates: tuple[dt.date, ...] = Field((), description="only these dates; none: every clear date")
    since: dt.date | None = Field(None, description="earlier dates are only frames of later ones; none: no such day")
    max_dates: int | None = Field(None, ge=1, description="at most this many of each region, the latest")
    window_px: int = Field(256, ge=16, le=4096, description="side of a window in low-resolution pixels")
    max_frame_cloud: Fraction = Field(0.10, description="a frame cloudier than this over a patch is not used")
    max_age_days: int = Field(60, ge=1, le=400, description="frames older than this before a date are not used")
    precision: Literal["float32", "bfloat16"] = Field("bfloat16", description="of the network's arithmetic")
    threads: int | None = Field(None, ge=1, description="CPU threads; none: as many as cores")


class StorageSettings(Section):
    """How S3 is spoken to. Results do not depend on it. What is not given here is as boto3 finds it (AWS_ENDPOINT_URL,
    AWS_REGION, profiles, roles); credentials always are."""

    endpoint: Annotated[str, Field(pattern=r"^https?://[^/]+")] | None = Field(
        None, description="URL of an S3-compatible server; none: AWS_ENDPOINT_URL, or AWS itself"
    )
    region: str | None = Field(
        None, min_length=1, description="region of the bucket; none: AWS_REGION, or the profile's"
    )
    addressing_style: Literal["auto", "path", "virtual"] = Field(
        "auto", description="bucket in the path (endpoint/bucket/key) or in the host name (bucket.endpoint/key)"
    )
    anonymous: bool = Field(False, description="sign nothing: for public buckets, without credentials")
    max_attempts: int = Field(
        6, ge=1, le=50, description="of a request that fails for a passing reason, with growing pauses"
    )
    timeout_s: float = Field(
        60.0, gt=0, le=3600, description="silence of the server after which a request is made again"
    )
    transfers: int = Field(8, ge=1, le=64, description="objects in transfer at the same time")


class Config(Section):
    """A whole run."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", description="name of the run")
    area: Area | tuple[Area, ...] | None = Field(
        None,
        description="one, or several of different regions; none: all that the source covers (files only)",
    )
    period: Period | None = Field(None, description="none: all dates of the source (files only)")
    source: Source
    grid: Grid = Field(default_factory=lambda: Grid())
    storage: StorageSettings = Field(default_factory=lambda: StorageSettings())
    preparation: Preparation = Field(default_factory=lambda: Preparation())
    cloud_shadow_filter: CloudShadowFilter = Field(default_factory=lambda: CloudShadowFilter())
    normalize: Normalize = Field(default_factory=lambda: Normalize())
    quality_gate: QualityGate = Field(default_factory=lambda: QualityGate())
    train_hrn: TrainHRN = Field(default_factory=lambda: TrainHRN())
    trainjob: TrainJob = Field(default_factory=lambda: TrainJob())
    evaluate: Evaluate = Field(default_factory=lambda: Evaluate())
    delineate: Delineate = Field(default_factory=lambda: Delineate())
    package: Package = Field(default_factory=lambda: Package())
    super_resolve: SuperResolve = Field(default_factory=lambda: SuperResolve())

    @property
    def areas(self) -> tuple[Area, ...]:
        """The areas; none where all the ground that the source covers is meant."""
        if self.area is None:
            return ()
        return self.area if isinstance(self.area, tuple) else (self.area,)

    @model_validator(mode="after")
    def _source_has_ground(self) -> Config:
        if self.source.kind != "files" and (self.area is None or self.period is None):
            raise ValueError(f"the source {self.source.kind} covers much ground: `area` and `period` must be given")
        return self

    @model_validator(mode="after")
    def _areas_are_regions(self) -> Config:
        names = [area.region for area in self.areas]
        if self.area is not None and (not names or len(set(names)) < len(names)):
            raise ValueError(f"area: expected one or more areas, each with a region of its own; found {names}")
        return self


def load_config(path: Path, environment: Mapping[str, str] | None = None) -> Config:
    """Read and validate a YAML file. Relative paths are relative to the file; `${NAME:-default}` is
    replaced from `environment`.

    Raises `ConfigError` with every problem found.
    """
    raw = read_yaml(path, "configuration", lambda text: _substitute(text, environment or {}, path))
    if not isinstance(raw, dict):
        raise ConfigError(
            f"configuration {path}: expected sections (`name:`, `source:`, ...), found {type(raw).__name__}"
        )
    return resolve_paths(parse_config(raw, str(path)), path.resolve().parent)


def read_yaml(path: Path, what: str, change: Callable[[str], str] = str) -> Any:
    """What a YAML file holds, its text `change`d first. Raises `ConfigError` that calls the file a `what`."""
    try:
        return yaml.safe_load(change(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{what} {path}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{what} {path}: not valid YAML: {error}") from error


def validated(kind: type[S], raw: Any, origin: str) -> S:
    """A section from plain data, not a whole configuration. Raises `ConfigError` with every problem."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        problems = [
            f"  - `{'.'.join(map(str, item['loc'])) or '(top level)'}`: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors()
        ]
        raise ConfigError(f"{origin}:\n" + "\n".join(problems)) from None


def parse_config(raw: Mapping[str, Any], origin: str = "configuration") -> Config:
    """Validate a mapping. Raises `ConfigError` naming each wrong key, what was found and what is allowed."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        problems = [_explain(item) for item in error.errors()]
        raise ConfigError(f"{origin}:\n" + "\n".join(f"  - {problem}" for problem in problems)) from None


def _substitute(text: str, environment: Mapping[str, str], path: Path) -> str:
    def value(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        found = environment.get(name) or default
        if found is None:
            raise ConfigError(f"configuration {path}: environment variable {name} is not set and has no default")
        return found

    return re.sub(r"\$\{(?P<name>[A-Z_][A-Z0-9_]*)(?::-(?P<default>[^}]*))?\}", value, text)


def resolve_paths(config: Config, folder: Path) -> Config:
    """The configuration with its relative paths made absolute, as seen from `folder`."""

    def absolute(section: Section) -> Section:
        changes: dict[str, Any] = {}
        for key in type(section).model_fields:
            value = getattr(section, key)
            if isinstance(value, Path) and not value.is_absolute():
                changes[key] = (folder / value).resolve()
            elif isinstance(value, Section):
                changes[key] = absolute(value)
            elif isinstance(value, tuple) and any(isinstance(item, Section) for item in value):
                changes[key] = tuple(absolute(item) for item in value)
        return section.model_copy(update=changes)

    resolved = absolute(config)
    assert isinstance(resolved, Config)
    return resolved


def _explain(item: Any) -> str:
    location = [str(part) for part in item["loc"]]
    # pydantic puts the discriminator's value into the location of a union's member
    if len(location) > 1 and location[0] == "source":
        location = [location[0], *location[2:]]
    key = ".".join(location) or "(top level)"
    found = item.get("input")
    if item["type"] == "extra_forbidden":
        return f"`{key}`: unknown key; allowed here: {', '.join(_siblings(item['loc']))}"
    if item["type"] == "missing":
        return f"`{key}`: missing"
    message = str(item["msg"]).removeprefix("Value error, ")
    if isinstance(found, dict):
        return f"`{key}`: {message}"
    return f"`{key}`: found {found!r}; {message}"


def _siblings(location: tuple[Any, ...]) -> list[str]:
    members: dict[str, type[Section]] = {
        "simulated": SimulatedSource,
        "files": FilesSource,
        "sentinelhub": SentinelHubSource,
        "stac": StacSource,
    }
    section: type[BaseModel] = Config
    for part in location[:-1]:
        if part in members:
            section = members[part]
            continue
        field = section.model_fields.get(str(part))
        for candidate in _section_types(field.annotation if field else None):
            section = candidate
    return sorted(section.model_fields)


def _section_types(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _section_types(part)][:1]
