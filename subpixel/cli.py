"""`subpixel`: one program for runs, single stages and the compiled graphs."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.table import Table

from components.stage import FOLDERS, STAGES, main, only_run
from sr_core.config import Config, StorageSettings, load_config, validated
from sr_core.errors import ArtifactError, ConfigError, SubpixelError
from sr_core.progress import console
from sr_core.storage import is_remote, storage_for

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Multi-temporal super-resolution of Sentinel-2: 10 m frames to 2.5 m images, measured against baselines.",
)
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, a section a stage; see examples/.")]
Out = Annotated[
    str | None,
    typer.Option("--out", help="Where artifacts go: a folder or s3://bucket/prefix.  [default: artifacts/NAME]"),
]


class Runner(StrEnum):
    """How stages run on this machine."""

    subprocess = "subprocess"
    docker = "docker"


@app.command()
def demo(out: Out = None) -> None:
    """Run the whole chain on simulated farmland: no account, no download, about ten minutes on two cores."""
    config = EXAMPLES / "demo.yaml"
    if not config.is_file():
        raise SubpixelError(f"{config}: missing; `subpixel demo` runs from a checkout of the project")
    run(config, out, Runner.subprocess)


@app.command()
def run(
    config: ConfigFile,
    out: Out = None,
    runner: Annotated[
        Runner, typer.Option(help="Each stage as a process, or in its container: `make images` builds them.")
    ] = Runner.subprocess,
) -> None:
    """Run the training graph, then the inference graph, every stage on this machine.

    What an earlier run has finished is kept; after Ctrl-C the same command continues.
    """
    from pipelines.inference import inference_graph
    from pipelines.local import StageFailedError, run_locally
    from pipelines.platform import LOCAL
    from pipelines.training import training_graph

    loaded = load_config(config, os.environ)
    root = out or f"artifacts/{loaded.name}"
    if not is_remote(root):
        root = str(Path(root).resolve())
    with only_run(root):
        try:
            run_locally(training_graph(LOCAL), loaded.model_dump_json(), root, runner.value)
            _stop_at_failed_gate(root)
            run_locally(inference_graph(LOCAL), loaded.model_dump_json(), root, runner.value)
        except StageFailedError as failure:
            console.print(f"[red]stopped[/red]: {failure}; finished stages are kept below {root}")
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            console.print("[yellow]stopped[/yellow]: run the same command again to continue")
            raise typer.Exit(130) from None
    _show_result(loaded.name, root)


@app.command()
def ablate(
    grid: Annotated[Path, typer.Argument(metavar="GRID", help="YAML file with bases, seeds and questions.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the points and the results.  [default: artifacts/ablate/NAME]"),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, help="Points at the same time, each with its share of the cores.")
    ] = 1,
    only: Annotated[str | None, typer.Option("--only", metavar="QUESTION", help="One question of the grid.")] = None,
    point: Annotated[
        str | None,
        typer.Option("--point", metavar="ID", help="Run this point, print its gain in PSNR over bicubic, dB."),
    ] = None,
    sweep: Annotated[
        Path | None, typer.Option("--sweep", help="Write the grid as a Weights & Biases sweep, and run nothing.")
    ] = None,
    dry: Annotated[bool, typer.Option("--no-run", help="Run nothing: tables and plots of what is finished.")] = False,
    page: Annotated[
        Path | None, typer.Option("--write", metavar="PAGE", help="Write the page here too, such as docs/ablations.md.")
    ] = None,
) -> None:
    """Train and evaluate every point of a grid: tables, plots and verdicts with their spread.

    Finished points are kept, also after a kill: the same command continues. A point that fails is recorded and the
    others go on; the exit status is then 1.
    """
    from sr_core.training.ablation import read_grid
    from subpixel.ablate import Ablation, report, work_off, write_sweep

    loaded = read_grid(grid, os.environ)
    folder = here(out or Path("artifacts/ablate") / loaded.file.name)
    ablation = Ablation(loaded, folder)
    command = ["subpixel", "ablate", os.path.relpath(grid)]
    if sweep is not None:
        number = write_sweep(ablation, sweep, [*command, "--out", os.path.relpath(folder)], only)
        console.print(f"{sweep}: {number} points", markup=False)
        return
    if point is not None:
        wanted = {found.id: found for found in ablation.points(only)}.get(point)
        if wanted is None:
            raise ConfigError(f"{grid}: no point {point!r}; `--sweep FILE` lists the points of this grid")
        record = ablation.run_point(wanted)
        if record["status"] != "done":
            raise SubpixelError(f"point {point}: {record['error']}")
        # in the form that Katib's collector reads
        print(f"psnr_gain={record['scores']['psnr_sr'] - record['scores']['psnr_bicubic']:.4f}")
        return
    failed = 0
    if not dry:
        # a scheduler's SIGTERM stops the run as Ctrl-C does
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            failed = work_off(ablation, jobs, only)
        except KeyboardInterrupt:
            console.print("[yellow]stopped[/yellow]: run the same command again to continue")
            raise typer.Exit(130) from None
        finally:
            signal.signal(signal.SIGTERM, before)
    options = (("--only", only), ("--write", page and os.path.relpath(page)))
    said = [*command, *(str(word) for option in options if option[1] for word in option)]
    report(ablation, " ".join(said), page, only)
    console.print(f"{page or folder / 'ablations.md'}", markup=False)
    if failed:
        console.print(f"[red]{failed} points failed[/red]: the page names them; run the same command to try them again")
        raise typer.Exit(1)


def _read_json(root: str, name: str) -> dict[str, Any]:
    content = storage_for(root).read(name)
    if content is None:
        raise ArtifactError(f"{root}/{name}: missing, though its stage has finished; delete its folder and run again")
    found: dict[str, Any] = json.loads(content)
    return found


def _stop_at_failed_gate(root: str) -> None:
    """A failed gate has ended the training graph without a model; say why, and end the run."""
    gate = _read_json(root, f"{FOLDERS['quality_gate']}/gate.json")
    if gate["verdict"] == "pass":
        return
    console.print("[red]the quality gate failed[/red]: the samples are not fit for training")
    for expectation in gate["expectations"]:
        if not expectation["success"]:
            name, expected, found = (expectation[key] for key in ("name", "expected", "found"))
            console.print(f"  - {name}: expected {expected}, found {found}", markup=False)
    console.print(f"see {root}/{FOLDERS['quality_gate']}/gate.html and {root}/report.html", markup=False)
    raise typer.Exit(1)


def _show_result(name: str, root: str) -> None:
    test = _read_json(root, "metrics.json").get("evaluation", {}).get("test")
    if test:
        table = Table(title=f"{name}: {test['n_samples']} held-out test samples", title_justify="left")
        for column in ("metric", "bicubic", "temporal mean", "super-resolved"):
            table.add_column(column, justify="left" if column == "metric" else "right")
        for metric, label, digits in (
            ("psnr", "PSNR, dB", 2),
            ("cpsnr", "cPSNR, dB", 2),
            ("ssim", "SSIM", 4),
            ("mae", "MAE, reflectance", 5),
        ):
            values = (f"{test[metric][arm]:.{digits}f}" for arm in ("bicubic", "temporal_mean", "sr"))
            table.add_row(label, *values)
        console.print(table)
        console.print(f"better than bicubic on {test['win_rate_vs_bicubic']:.0%} of the samples")
    for label, place in (
        ("report", "report.html"),
        ("metrics", "metrics.json"),
        ("products", FOLDERS["super_resolve"]),
    ):
        console.print(f"{label + ':':<9} {root}/{place}", markup=False)


def _known_graph(name: str) -> str:
    if name not in ("training", "inference"):
        raise typer.BadParameter(f"found {name!r}, expected training or inference")
    return name


def here(folder: Path) -> Path:
    """The folder, absolute. Raises `typer.BadParameter` for a place in S3: links and locks need a file system."""
    if folder.parts[0] == "s3:":
        raise typer.BadParameter(
            f"found {folder.parts[0]}//..., expected a folder of a file system", param_hint="--out"
        )
    return folder.resolve()


@app.command()
def bundle(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file; see examples/bundle/recipe.yaml.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the bundle and its scores.  [default: artifacts/NAME]")
    ] = None,
    runs: Annotated[Path | None, typer.Option("--runs", help="Folder of prepared ground.  [default: OUT/runs]")] = None,
    reuse: Annotated[
        bool, typer.Option("--reuse-runs", help="Take finished ground as it is, whatever code prepared it.")
    ] = False,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a key, such as train_hrn.steps=500.")
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option("--card", metavar="PAGE", help="Write the model card here, such as docs/model-card.md."),
    ] = None,
) -> None:
    """Make a model bundle from a recipe: prepare its ground, train, and judge it on ground held out.

    After Ctrl-C the same command continues.
    """
    from sr_core.evaluation.model_card import write_model_card
    from sr_core.training.recipe import load_recipe
    from subpixel.bundle import Bundle

    pairs = dict(change.split("=", 1) if "=" in change else (change, "") for change in changes or ())
    loaded = load_recipe(recipe, {key: yaml.safe_load(value) for key, value in pairs.items()})
    folder = here(out or Path("artifacts") / loaded.name)
    made = Bundle(loaded, folder, runs.resolve() if runs else folder / "runs")
    with only_run(str(folder)):
        try:
            made.prepare(reuse)
            scores = made.make()
        except KeyboardInterrupt:
            console.print("[yellow]stopped[/yellow]: run the same command again to continue")
            raise typer.Exit(130) from None
    table = Table(title=f"{loaded.name}: held-out ground", title_justify="left")
    for column in ("trial", "bicubic, dB", "super-resolved, dB"):
        table.add_column(column, justify="left" if column == "trial" else "right")
    for trial, score in scores["trials"].items():
        table.add_row(trial, *(f"{score['cpsnr'][arm]:.2f}" for arm in ("bicubic", "sr")))
    console.print(table)
    if card is not None:
        command = [
            "subpixel",
            "bundle",
            recipe.name if recipe.is_absolute() else str(recipe),
            *(f"--set {change}" for change in changes or ()),
        ]
        write_model_card(folder, card, " ".join(command))
        console.print(f"model card: {card}", markup=False)
    console.print(f"bundle: {folder}", markup=False)


Graph = Annotated[
    str, typer.Option("--graph", metavar="GRAPH", help="Which graph: training or inference.", callback=_known_graph)
]
PlatformFile = Annotated[
    Path | None,
    typer.Option("--platform", metavar="FILE", help="Images, resources, GPUs, secrets; see examples/kubeflow."),
]


@app.command("compile")
def compile_run(
    config: ConfigFile,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the IR YAML goes.")],
    graph: Graph = "training",
    platform: PlatformFile = None,
    root: Annotated[
        str, typer.Option("--root", help="Default of the parameter `root`, such as s3://bucket/prefix.")
    ] = "",
) -> None:
    """Compile a graph to Kubeflow's IR YAML, with CONFIG as the default of its parameter `config`."""
    from pipelines.platform import load_platform
    from pipelines.submission import compile_graph

    compile_graph(graph, load_platform(platform), out, load_config(config, os.environ), root)
    console.print(f"{out}", markup=False)


@app.command()
def submit(
    config: ConfigFile,
    endpoint: Annotated[
        str, typer.Option("--endpoint", metavar="URL", envvar="KF_PIPELINES_ENDPOINT", help="Kubeflow Pipelines API.")
    ],
    root: Annotated[
        str | None, typer.Option("--root", metavar="S3", help="Where artifacts go: s3://bucket/prefix.")
    ] = None,
    graph: Graph = "training",
    platform: PlatformFile = None,
    experiment: Annotated[str, typer.Option("--experiment", help="Experiment that the run belongs to.")] = "subpixel",
    name: Annotated[
        str | None, typer.Option("--run", metavar="NAME", help="Name of the run.  [default: NAME-GRAPH]")
    ] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", help="Namespace of the profile, where Kubeflow has several users.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the run; the exit status is 1 where it fails.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Follow the run, then show its figures, read from --root.")
    ] = False,
) -> None:
    """Run a graph on a Kubeflow Pipelines endpoint.

    A token is read from KF_PIPELINES_TOKEN, or from the file that KF_PIPELINES_SA_TOKEN_PATH names.
    """
    from pipelines.platform import load_platform
    from pipelines.submission import Endpoint, check

    loaded, where = load_config(config, os.environ), load_platform(platform)
    place = check(loaded, root, where)
    server = Endpoint(endpoint, namespace)
    run = server.submit(graph, loaded, place, where, experiment, name or f"{loaded.name}-{graph}")
    console.print(f"run {run.id}: {run.link}", markup=False)
    if wait or report:
        try:
            server.wait(run, lambda line: console.print(line, markup=False))
        except KeyboardInterrupt:
            console.print("[yellow]no longer followed[/yellow]; the run goes on: " + run.link)
            raise typer.Exit(130) from None
    if report:
        _show_result(loaded.name, place)


@app.command()
def browse(
    where: Annotated[
        str, typer.Argument(metavar="PLACE", help="A run, a folder of runs or a site: a folder or s3://bucket/prefix.")
    ],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port of 127.0.0.1; 0 is any free one.")] = 0,
    no_open: Annotated[bool, typer.Option("--no-open", help="Print the address only.")] = False,
) -> None:
    """Look at runs and products in the browser: maps, dates, pixel values, reports. A bucket may be private."""
    import webbrowser

    from subpixel.browser.server import Browser

    server = Browser(storage_for(where), port)
    console.print(f"{where}: [bold]{server.url}[/bold]  (Ctrl-C ends it)", soft_wrap=True)
    if not no_open:
        webbrowser.open(server.url)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        console.print("ended")
    finally:
        server.server_close()


def _stage_command(name: str) -> Callable[..., None]:
    def command(
        config: ConfigFile,
        root: Annotated[str, typer.Option("--root", help="Where artifacts are: a folder or s3://bucket/prefix.")],
    ) -> None:
        raise typer.Exit(main(STAGES[name], ["--config", str(config), "--root", root]))

    return command


@app.command()
def download(
    config: ConfigFile,
    root: Annotated[
        str | None, typer.Option("--root", help="Where artifacts are: a folder or s3://bucket/prefix.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Ask the catalogue only: patches, dates, processing units, bytes.")
    ] = False,
) -> None:
    """Stage: Read patches of the area for the period from the source."""
    if dry_run:
        _show_estimate(config)
    elif root is None:
        raise typer.BadParameter("missing; where shall the patches go?", param_hint="--root")
    else:
        raise typer.Exit(main(STAGES["download"], ["--config", str(config), "--root", root]))


def _show_estimate(path: Path) -> None:
    from components.download.main import period_of, plan, secrets
    from sr_core.sources import Metered, open_source

    config = load_config(path, os.environ)
    source = open_source(config, secrets())
    patches = plan(config, source)[0]
    table = Table(title=f"{config.name}: nothing is downloaded", title_justify="left", show_header=False)
    rows = [("patches", f"{len(patches)}")]
    if isinstance(source, Metered):
        found, most = source.estimate(patches, period_of(config)), source.max_processing_units
        rows += [(f"{sensor} acquisitions, patch by patch", f"{count}") for sensor, count in found.acquisitions.items()]
        rows += [
            ("requests", f"{found.requests}"),
            ("processing units", f"{found.processing_units:.2f} of at most {most:g} (source.max_processing_units)"),
            ("bytes, uncompressed", f"{found.bytes / 1e6:.1f} MB"),
        ]
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if not isinstance(source, Metered):
        console.print(f"the source {config.source.kind} is not charged for", markup=False)
    elif found.processing_units > most:
        console.print("[red]refused[/red]: the download would be more than source.max_processing_units")
        raise typer.Exit(1)


@app.command("serve")
def serve_model(
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="Folder of a model bundle.  [default: the one that ships]")
    ] = None,
    archive: Annotated[
        Path | None, typer.Option("--archive", metavar="MAR", help="Serve this archive instead of a bundle.")
    ] = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port of 127.0.0.1.")] = 8080,
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", metavar="S3", help="s3://bucket/prefix that requests may name; may be repeated."),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            "--workers",
            min=1,
            max=64,
            help="Processes that share the cores: several answer more requests a second, each of them later.",
        ),
    ] = 1,
    out: Annotated[Path, typer.Option("--out", help="Folder where archives are kept.")] = Path("artifacts/serve"),
) -> None:
    """Serve a model on this machine until Ctrl-C: TorchServe with the archive of the shipped bundle."""
    from serving.local import Server
    from sr_core.models.bundle import SHIPPED
    from subpixel.service import archive_of, serve_until_stopped

    if archive and bundle:
        raise typer.BadParameter("give --bundle or --archive, not both", param_hint="--archive")

    def started(server: Server) -> None:
        console.print(f"model:   {server.url}", markup=False)
        console.print(f"metrics: {server.metrics}", markup=False)
        address, _, model = server.url.partition("/predictions/")
        console.print(
            f"try:     subpixel predict examples/requests/*.tif --out sr.tif --server {address} --model {model}",
            markup=False,
        )

    serve_until_stopped(archive or archive_of(bundle or SHIPPED, "subpixel", out), port, allow or (), started, workers)


@app.command("predict")
def predict_files(
    frames: Annotated[
        list[str],
        typer.Argument(metavar="FRAMES", help="GeoTIFFs of 4 bands, one a date; s3:// objects; or one .npz."),
    ],
    out: Annotated[str, typer.Option("--out", help="GeoTIFF, .npz, or s3:// prefix for frames in S3.")],
    server: Annotated[
        str, typer.Option("--server", metavar="URL", envvar="SUBPIXEL_SERVER", help="Address of the model server.")
    ] = "http://127.0.0.1:8080",
    model: Annotated[str, typer.Option("--model", help="Name of the model there.")] = "subpixel",
    version: Annotated[str | None, typer.Option("--version", help="Version of the model.")] = None,
    clear: Annotated[
        list[str] | None,
        typer.Option("--clear", metavar="MASK", help="Mask of a frame, 0 where unusable; once for each, in order."),
    ] = None,
    window: Annotated[
        tuple[int, int, int, int] | None,
        typer.Option("--window", metavar="ROW COLUMN HEIGHT WIDTH", help="Part of frames in S3, 10 m pixels."),
    ] = None,
    uncertainty: Annotated[bool, typer.Option("--uncertainty", help="Also how far off each pixel may be.")] = False,
    consistency: Annotated[bool, typer.Option("--consistency", help="Also how well the latest frame is kept.")] = False,
) -> None:
    """Super-resolve files by a model server.

    Frames are sent latest first where their names hold dates, else in the order given. A token for a gateway in front
    of the server is read from SUBPIXEL_TOKEN.
    """
    from subpixel.client import Client
    from subpixel.predict import predict

    client = Client(server, model, version, os.environ.get("SUBPIXEL_TOKEN"))
    for place in predict(client, frames, out, clear or (), window, uncertainty, consistency):
        console.print(place, markup=False)


Root = Annotated[
    str | None,
    typer.Option("--root", help="Run the stage alone, on the artifacts that lie here: a folder or s3://bucket/prefix."),
]
S3Endpoint = Annotated[
    str | None, typer.Option("--s3-endpoint", metavar="URL", help="S3-compatible server.  [default: AWS_ENDPOINT_URL]")
]
S3Region = Annotated[str | None, typer.Option("--s3-region", help="Region of the bucket.  [default: AWS_REGION]")]
S3Addressing = Annotated[
    str | None, typer.Option("--s3-addressing", metavar="STYLE", help="Bucket in the `path` or the host: `virtual`.")
]


def _s3_settings(endpoint: str | None, region: str | None, addressing: str | None) -> dict[str, str]:
    given = {"endpoint": endpoint, "region": region, "addressing_style": addressing}
    return {key: value for key, value in given.items() if value is not None}


@app.command("super-resolve")
def super_resolve_area(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="YAML file; the options replace what it says.")
    ] = None,
    area: Annotated[
        Path | None, typer.Option("--area", metavar="FILE", help="Polygons as GeoJSON, longitude and latitude.")
    ] = None,
    bbox: Annotated[str | None, typer.Option("--bbox", metavar="W,S,E,N", help="Box in degrees.")] = None,
    tile: Annotated[str | None, typer.Option("--tile", help="Sentinel-2 tile, such as 32TNR: 110 km square.")] = None,
    place: Annotated[
        list[str] | None, typer.Option("--place", metavar="NAME", help="Scene of a folder; may be repeated.")
    ] = None,
    start: Annotated[
        dt.datetime | None, typer.Option("--start", formats=["%Y-%m-%d"], metavar="DAY", help="First day of images.")
    ] = None,
    end: Annotated[
        dt.datetime | None, typer.Option("--end", formats=["%Y-%m-%d"], metavar="DAY", help="Last day of images.")
    ] = None,
    date: Annotated[
        list[dt.datetime] | None,
        typer.Option("--date", formats=["%Y-%m-%d"], metavar="DAY", help="Only this day; may be repeated."),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            help="earth-search, cdse, sentinelhub, simulated, a STAC catalogue's URL or file, or a folder of files."
            "  [default: earth-search]",
        ),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="Folder of a model bundle.  [default: the one that ships]")
    ] = None,
    out: Out = None,
    publish_to: Annotated[
        str | None,
        typer.Option("--publish", metavar="SITE", help="Then publish: a folder or s3://bucket/prefix."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Begin without asking.")] = False,
    s3_endpoint: S3Endpoint = None,
    s3_region: S3Region = None,
    s3_addressing: S3Addressing = None,
    root: Root = None,
) -> None:
    """Super-resolve an area: every clear date of a period becomes a GeoTIFF of 2.5 m, from eight frames each.

    Reads the area from the source, masks clouds, and makes the images; says before what that takes. What is finished is
    kept: after Ctrl-C, or a kill, the same command continues.

    With --root, the stage alone, as in a graph.
    """
    from subpixel.area import Request, configure

    days = tuple(day.date() for day in date or ())
    settings = _s3_settings(s3_endpoint, s3_region, s3_addressing)
    if root is not None:
        others = (area, bbox, tile, place, start, end, date, source, bundle, out, publish_to, *settings)
        if config is None or any(others):
            raise typer.BadParameter("the stage alone takes CONFIG, and no other option", param_hint="--root")
        raise typer.Exit(main(STAGES["super_resolve"], ["--config", str(config), "--root", root]))
    request = Request(
        config=config,
        area=area,
        bbox=bbox,
        tile=tile,
        places=tuple(place or ()),
        start=start and start.date(),
        end=end and end.date(),
        dates=days,
        source=source,
        bundle=bundle,
        storage=settings,
    )
    loaded = configure(request, os.environ)
    place_of_run = out or f"artifacts/{loaded.name}"
    if not is_remote(place_of_run):
        place_of_run = str(Path(place_of_run).resolve())
    _super_resolve(loaded, place_of_run, publish_to, ask=not yes)


def _super_resolve(config: Config, root: str, site: str | None, *, ask: bool) -> None:
    from subpixel.area import announce, super_resolve
    from subpixel.publish import publish

    announce(config, root)
    if ask and sys.stdin.isatty() and not typer.confirm("begin?", default=True, err=True):
        raise typer.Exit(0)
    with only_run(root):
        try:
            record = super_resolve(config, root)
            if site is not None:
                run = storage_for(root, config.storage)
                publish([run], storage_for(site, config.storage), name=config.name)
        except KeyboardInterrupt:
            console.print("[yellow]stopped[/yellow]: run the same command again to continue")
            raise typer.Exit(130) from None
    console.print(f"{record['counts']['products']} images: {root}/{FOLDERS['super_resolve']}", markup=False)
    console.print(f"look at them: subpixel browse {site or root}", markup=False)


@app.command("publish")
def publish_runs(
    places: Annotated[
        list[str],
        typer.Argument(metavar="RUN... SITE", help="Runs, then the site: folders or s3://bucket/prefix."),
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="Of the run in the site.  [default: that of its folder]")
    ] = None,
    title: Annotated[str | None, typer.Option("--title", help="Of the site.  [default: its own, or its name]")] = None,
    s3_endpoint: S3Endpoint = None,
    s3_region: S3Region = None,
    s3_addressing: S3Addressing = None,
    root: Root = None,
) -> None:
    """Publish runs as a site: products, reports and the page that shows them, as static files.

    What is there already is not sent again, and other runs in the site stay. With --root, the stage that publishes
    models: `subpixel publish CONFIG --root ROOT`.
    """
    from subpixel.publish import publish

    if root is not None:
        if len(places) != 1 or name or title:
            raise typer.BadParameter("the stage alone takes CONFIG, and no other option", param_hint="--root")
        raise typer.Exit(main(STAGES["publish"], ["--config", places[0], "--root", root]))
    if len(places) < 2:
        raise typer.BadParameter(
            "found one place, expected one or more runs and then the site", param_hint="RUN... SITE"
        )
    *runs, site = places
    if name is not None and len(runs) > 1:
        raise typer.BadParameter("found several runs, expected one where it is given a name", param_hint="--name")
    settings = validated(StorageSettings, _s3_settings(s3_endpoint, s3_region, s3_addressing), "--s3-...")
    catalog = publish([storage_for(run, settings) for run in runs], storage_for(site, settings), name=name, title=title)
    console.print(f"{site}: {len(catalog['runs'])} runs; look at them: subpixel browse {site}", markup=False)


STAGE_HELP = {
    "cloud_shadow_filter": "Mask clouds and shadows; decide which acquisitions are kept.",
    "normalize": "Cloud-free statistics by region and VHR tile.",
    "quality_gate": "Cut, score and filter samples; validate the set.",
    "train_hrn": "Train HighRes-Net.",
    "evaluate": "Compare the model with bicubic and the temporal mean on test samples.",
    "delineate": "Field delineation on bicubic and on super-resolved images.",
    "package": "Build the TorchServe archive.",
    "report": "Write report.html and metrics.json of what has been reached.",
}
for stage_name, stage_help in STAGE_HELP.items():
    app.command(stage_name.replace("_", "-"), help=f"Stage: {stage_help}")(_stage_command(stage_name))


def main_program() -> None:
    """Entry point: errors of ours are one line, not a traceback."""
    try:
        app()
    except SubpixelError as error:
        console.print(f"error: {error}", markup=False)
        sys.exit(1)


if __name__ == "__main__":
    main_program()
