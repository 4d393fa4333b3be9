"""The page in a real Chromium, over folders and over a private bucket in SeaweedFS.

What the map draws is read back from its canvas and compared with the values that rasterio reads.
"""

import base64
import functools
import hashlib
import http.client
import io
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import Page, Route, expect, sync_playwright

from sr_core.radiometry.resample import bicubic_upsample
from sr_core.storage import storage_for
from subpixel.browser.server import STATIC, Browser, byte_range
from subpixel.site import build_catalog
from tests.browsed_run import ATTRIBUTION, NORTH, WEST, write_report, write_run
from tests.seaweed import BUCKET, S3Server, seaweed

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WEB = STATIC.parent / "web"
DAYS = ("2020-05-02", "2020-06-26", "2020-08-05")
PATIENCE_S = 30.0
NDVI_RAMP = {
    0.0: (74, 86, 110),
    0.18: (150, 118, 84),
    0.36: (222, 205, 160),
    0.55: (178, 205, 110),
    0.78: (68, 150, 66),
    1.0: (6, 72, 38),
}
"""Colours from NDVI -0.2 to 0.9, as the page's legend shows them."""
expect.set_options(timeout=PATIENCE_S * 1000)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs: three dates with all layers and a report, and one date as earlier versions wrote it."""
    root = tmp_path_factory.mktemp("runs")
    write_run(root / "farm", DAYS)
    write_report(root / "farm")
    write_run(root / "old", ["2019-06-26"], "elsewhere", companions=False)
    return root


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with seaweed(tmp_path_factory.mktemp("weed")) as server:
        yield server


@pytest.fixture(scope="module")
def bucket(s3: S3Server, runs: Path) -> str:
    """The runs in a private bucket."""
    uri = f"s3://{BUCKET}/shown"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.environment.items():
            patch.setenv(name, value)
        storage_for(uri).upload(runs, "")
    return uri


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    if not CHROMIUM.is_file() and os.environ.get("CI") != "true":
        pytest.skip(f"{CHROMIUM}: not found (set CHROMIUM)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Chromium) -> Iterator[Page]:
    """A page of which the test fails where its scripts do."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    opened = context.new_page()
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("console", lambda line: problems.append(line.text) if "Content Security Policy" in line.text else None)
    yield opened
    context.close()
    assert not problems


@contextmanager
def browsed(place: str, s3: S3Server | None = None, **options: Any) -> Iterator[Browser]:
    """`subpixel browse PLACE`, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (s3.environment if s3 else {}).items():
            patch.setenv(name, value)
        server = Browser(storage_for(place), **options)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            server.server_close()


def product(runs: Path, day: str) -> Path:
    return runs / "farm" / "products" / "farmland" / f"{day.replace('-', '')}T100031"


def view(day: str, **words: Any) -> str:
    """The address of a product, as a copied link has it."""
    path = f"farmland/{day.replace('-', '')}T100031"
    return "#" + "&".join(f"{name}={value}" for name, value in {"run": "farm", "product": path, **words}.items())


def place_map(page: Page, url: str, row: int, column: int, words: dict[str, Any], gsd: float = 2.5) -> tuple[int, int]:
    """Open a link by which pixel (row, column) of a grid of `gsd` metres is the map's first. Returns the map's size."""
    page.goto(url)
    settled = page.locator("html[data-shown]")
    settled.wait_for()
    width, height = page.evaluate(
        "(() => { const m = document.getElementById('map'); return [m.clientWidth, m.clientHeight]; })()"
    )
    x, y = WEST + (column + width / 2) * gsd, NORTH - (row + height / 2) * gsd
    page.evaluate("delete document.documentElement.dataset.shown")
    page.goto(f"{url}{view(words.pop('day', DAYS[-1]), **words, at=f'{x},{y}', res=gsd)}")
    settled.wait_for()
    return height, width


CANVAS = """(() => {
  const map = document.getElementById("map"), all = document.createElement("canvas");
  [all.width, all.height] = [map.clientWidth, map.clientHeight];
  const context = all.getContext("2d");
  for (const canvas of map.querySelectorAll("canvas")) context.drawImage(canvas, 0, 0);
  return all.toDataURL("image/png").split(",")[1];
})()"""


def drawn(page: Page) -> NDArray[np.int64]:
    """What the map's canvas shows: (H, W, 4)."""
    png = base64.b64decode(page.evaluate(CANVAS))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")).astype(np.int64)


def eventually(problem: Callable[[], str | None]) -> None:
    """Wait until there is no problem left; fails with the last one."""
    deadline = time.monotonic() + PATIENCE_S
    while (found := problem()) is not None:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def shows(page: Page, expected: NDArray[Any], corner: tuple[int, int] = (0, 0)) -> None:
    """The canvas, from `corner` (row, column) on, has the colours (H, W, 3), to one count."""

    def problem() -> str | None:
        rows, columns = (slice(start, start + size) for start, size in zip(corner, expected.shape, strict=False))
        found = drawn(page)[rows, columns]
        wrong = (np.abs(found[..., :3] - expected) > 1).any(axis=-1) | (found[..., 3] != 255)
        return (
            f"{wrong.mean():.1%} of the pixels differ, notice {page.locator('#notice').inner_text()!r}"
            if wrong.any()
            else None
        )

    eventually(problem)


def colours(image: NDArray[Any], bands: tuple[int, int, int], low: float, high: float) -> NDArray[np.float64]:
    """(4, H, W) counts to the colours of the stretch from `low` to `high` reflectance."""
    shares = (image[list(bands)].astype(float) - low * 1e4) / ((high - low) * 1e4)
    return np.rint(np.moveaxis(shares.clip(0, 1) * 255, 0, -1))


def read(path: Path, row: int, column: int, size: int = 300) -> NDArray[np.uint16]:
    with rasterio.open(path) as raster:
        image: NDArray[np.uint16] = raster.read(window=((row, row + size), (column, column + size)))
    return image


# ------------------------------------------------------------------------------------------------------------ the build


def test_the_committed_page_is_built_from_the_committed_sources() -> None:
    files = ["build.mjs", "package.json", "package-lock.json", "tsconfig.json"]
    files += [f"src/{path.name}" for path in (WEB / "src").iterdir()]
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + (WEB / name).read_bytes() + b"\0")
    built = json.loads((STATIC / "build.json").read_text())["sources"]
    assert built == digest.hexdigest(), "run `npm ci && npm run build` in subpixel/browser/web"
    assert "resolved" not in (WEB / "package-lock.json").read_text()


def test_the_page_runs_no_script_but_its_own_and_names_what_it_is_made_of() -> None:
    text = (STATIC / "index.html").read_text()
    assert "script-src 'self'" in text
    assert "unsafe" not in text
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|style=", text)
    assert "://" not in text
    licences = (STATIC / "THIRD_PARTY.txt").read_text()
    for name in ("ol 10", "geotiff 3", "hyparquet 1", "pako 2"):
        assert f"\n{name}" in f"\n{licences}"


# ----------------------------------------------------------------------------------------------------------- the server


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", (0, 0)),
        ("bytes=10-", (10, 99)),
        ("bytes=90-200", (90, 99)),
        ("bytes=-5", (95, 99)),
        ("bytes=100-", None),
        ("bytes=5-2", None),
        ("bytes=-", None),
        ("bytes=0-1,4-5", None),
        ("lines=0-1", None),
    ],
)
def test_a_range_of_bytes(header: str, expected: tuple[int, int] | None) -> None:
    assert byte_range(header, 100) == expected


def ask(server: Browser, path: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    found = answer.status, answer.read(), dict(answer.getheaders())
    connection.close()
    return found


def test_only_this_user_s_page_reaches_what_is_served(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_text("secret")
    folder = Path(shutil.copytree(runs, tmp_path / "runs"))
    (folder / ".env").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "outside.txt")
    with browsed(str(folder)) as server:
        assert server.server_address[0] == "127.0.0.1"
        metrics = "farm/metrics.json"
        assert ask(server, server.path + metrics)[0] == 200
        assert ask(server, "/" + metrics)[0] == 404
        assert ask(server, server.path + metrics, Host="example.org")[0] == 421
        for name in ("../outside.txt", "%2e%2e/outside.txt", "..%2foutside.txt", "/etc/passwd", ".env", "link.txt"):
            status, content, _ = ask(server, server.path + name)
            assert (status, b"secret" in content) == (404, False), name


def test_a_report_cannot_read_the_rest_of_the_bucket(runs: Path) -> None:
    with browsed(str(runs)) as server:
        _, _, headers = ask(server, f"{server.path}farm/report.html")
    assert headers["Content-Security-Policy"] == "sandbox allow-scripts"


def test_pixels_come_straight_from_the_bucket_and_the_rest_through_the_server(bucket: str, s3: S3Server) -> None:
    with browsed(bucket, s3) as server:
        tif = f"{server.path}farm/products/farmland/20200805T100031/sr.tif"
        status, _, headers = ask(server, tif)
        assert status == 307
        assert headers["Location"].startswith(s3.endpoint)
        assert ask(server, tif)[2]["Location"] == headers["Location"], "a link is used again while it is valid"
        assert ask(server, tif, **{"Cache-Control": "no-cache"})[2]["Location"] is not None
        policy = ask(server, server.path)[2]["Content-Security-Policy"]
        assert f"connect-src 'self' {s3.endpoint};" in policy
        status, content, _ = ask(server, f"{server.path}farm/metrics.json", Range="bytes=0-0")
        assert (status, content) == (206, b"{")
        assert ask(server, f"{server.path}farm/none.json")[0] == 404


# ------------------------------------------------------------------------------------------------------------- the list


def test_runs_and_products_are_listed_and_filtered(page: Page, bucket: str, s3: S3Server) -> None:
    with browsed(bucket, s3) as server:
        page.goto(server.url)
        expect(page.locator("#count")).to_have_text("4 products in 2 runs")
        expect(page.locator("#list summary")).to_contain_text(["farm", "old"])
        expect(page.locator("#when")).to_have_text("2020-08-05")
        expect(page.locator("#attribution")).to_have_text(ATTRIBUTION)

        page.locator("#from").fill("2020-06-01")
        expect(page.locator("#count")).to_have_text("2 of 4 products")
        page.locator("#from").fill("")
        page.locator("#place").fill("elsewhere")
        expect(page.locator("#count")).to_have_text("1 of 4 products")
        page.locator("#place").fill("55.32, 23.89")
        expect(page.locator("#count")).to_have_text("4 products in 2 runs")
        page.locator("#place").fill("0, 0")
        expect(page.locator("#count")).to_have_text("0 of 4 products")


def test_a_run_shows_its_scores_its_report_and_its_files(page: Page, runs: Path) -> None:
    with browsed(str(runs)) as server:
        page.goto(server.url)
        expect(page.locator("#run")).to_contain_text("287 held-out test samples; better than bicubic on 99 %")
        expect(page.locator("#run table")).to_contain_text("35.70")
        with page.expect_popup() as popup:
            page.get_by_role("link", name="Report").click()
        expect(popup.value.locator("h1")).to_have_text("Report of the run")
        with page.expect_download() as download:
            page.get_by_role("link", name="sr.tif").click()
        assert Path(download.value.path()).read_bytes() == (product(runs, DAYS[-1]) / "sr.tif").read_bytes()
        page.get_by_text("Sources and processing").click()
        expect(page.locator("#product")).to_contain_text("S2A_MSIL2A_20200805T100031")


# -------------------------------------------------------------------------------------------------------------- the map


def test_the_map_draws_the_pixels_of_the_file(page: Page, bucket: str, runs: Path, s3: S3Server) -> None:
    with browsed(bucket, s3) as server:
        place_map(page, server.url, 100, 300, {"swipe": 0, "low": 0.03, "high": 0.12})
        expected = read(product(runs, DAYS[-1]) / "sr.tif", 100, 300)
        shows(page, colours(expected, (2, 1, 0), 0.03, 0.12))
        page.get_by_role("button", name="False colour").click()
        shows(page, colours(expected, (3, 2, 1), 0.03, 0.12))


def test_where_the_bucket_has_no_cors_rule_the_server_passes_pixels_on(
    page: Page, bucket: str, runs: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Browser, "open_to_pages", lambda self, link: False)
    hosts: set[str] = set()
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    with browsed(bucket, s3) as server:
        place_map(page, server.url, 100, 300, {"swipe": 0, "low": 0.03, "high": 0.12})
        shows(page, colours(read(product(runs, DAYS[-1]) / "sr.tif", 100, 300), (2, 1, 0), 0.03, 0.12))
        assert {host for host in hosts if host} == {f"127.0.0.1:{server.server_port}"}


def test_from_afar_an_overview_is_read(page: Page, runs: Path) -> None:
    path = product(runs, DAYS[-1]) / "sr.tif"
    with browsed(str(runs)) as server:
        place_map(page, server.url, 50, 130, {"swipe": 0, "low": 0.03, "high": 0.12}, gsd=5)
        with rasterio.open(path, overview_level=0) as overview:
            expected = overview.read(window=((50, 250), (130, 330)))
        shows(page, colours(expected, (2, 1, 0), 0.03, 0.12))


def test_sentinel_2_is_shown_bicubically_and_as_pixels(page: Page, runs: Path) -> None:
    path = product(runs, DAYS[-1]) / "s2.tif"
    with rasterio.open(path) as raster:
        s2 = raster.read()
    with browsed(str(runs)) as server:
        words = {"swipe": 1, "low": 0.03, "high": 0.12}
        place_map(page, server.url, 400, 400, dict(words))
        # away from nodata, and from the edge, both of which weigh differently
        near = bicubic_upsample(s2[:, 90:190, 90:190].astype(np.float32))[:, 40:340, 40:340]
        shows(page, colours(near, (2, 1, 0), 0.03, 0.12))
        page.locator("#method").select_option("nearest")
        blocks = s2[:, 100:175, 100:175].repeat(4, axis=1).repeat(4, axis=2)
        shows(page, colours(blocks, (2, 1, 0), 0.03, 0.12))


def test_the_handle_divides_sentinel_2_from_the_super_resolved_image(page: Page, runs: Path) -> None:
    folder = product(runs, DAYS[-1])
    sr = colours(read(folder / "sr.tif", 400, 400, 200), (2, 1, 0), 0.03, 0.12)
    with rasterio.open(folder / "s2.tif") as raster:
        blocks = raster.read()[:, 100:150, 100:150].repeat(4, axis=1).repeat(4, axis=2)
    s2 = colours(blocks, (2, 1, 0), 0.03, 0.12)
    with browsed(str(runs)) as server:
        place_map(page, server.url, 400, 400, {"s2": "nearest", "low": 0.03, "high": 0.12})
        shows(page, s2)
        box = page.locator("#handle").bounding_box()
        assert box is not None
        left = page.locator("#map").bounding_box()["x"]
        page.mouse.move(box["x"] + 14, box["y"] + 100)
        page.mouse.down()
        page.mouse.move(left + 80, box["y"] + 100, steps=3)
        page.mouse.up()
        shows(page, np.concatenate([s2[:, :80], sr[:, 80:]], axis=1))
        # by the keyboard: all of it Sentinel-2, and none
        page.locator("#handle").press("End")
        shows(page, s2)
        page.locator("#handle").press("Home")
        shows(page, sr)
        page.keyboard.down("b")
        shows(page, s2)
        page.keyboard.up("b")
        shows(page, sr)


def test_the_slider_moves_through_the_season(page: Page, runs: Path) -> None:
    with browsed(str(runs)) as server:
        place_map(page, server.url, 400, 400, {"swipe": 0, "low": 0.03, "high": 0.12})
        page.locator("#date").press("ArrowLeft")
        expect(page.locator("#when")).to_have_text("2020-06-26")
        shows(page, colours(read(product(runs, DAYS[1]) / "sr.tif", 400, 400), (2, 1, 0), 0.03, 0.12))
        page.locator("#map").press(",")
        expect(page.locator("#when")).to_have_text("2020-05-02")
        shows(page, colours(read(product(runs, DAYS[0]) / "sr.tif", 400, 400), (2, 1, 0), 0.03, 0.12))
        expect(page.locator("#earlier")).to_be_disabled()


def test_ndvi(page: Page, runs: Path) -> None:
    image = read(product(runs, DAYS[-1]) / "sr.tif", 400, 400).astype(float)
    ndvi = (image[3] - image[2]) / (image[3] + image[2])
    share = np.rint(((ndvi + 0.2) / 1.1).clip(0, 1) * 255) / 255
    ramp = np.array(list(NDVI_RAMP.values()))
    expected = np.stack([np.interp(share, list(NDVI_RAMP), ramp[:, band]) for band in range(3)], axis=-1)
    with browsed(str(runs)) as server:
        place_map(page, server.url, 400, 400, {"swipe": 0})
        page.locator("#map").press("3")
        shows(page, expected)
        expect(page.locator("#legend")).to_contain_text("NDVI")


def test_an_overlay_lies_where_the_difference_is_large(page: Page, runs: Path) -> None:
    folder = product(runs, DAYS[-1])
    with rasterio.open(folder / "consistency.tif") as raster:
        difference = raster.read()[:, 100:175, 100:175].mean(axis=0).repeat(4, axis=0).repeat(4, axis=1)
    plain = colours(read(folder / "sr.tif", 400, 400), (2, 1, 0), 0.03, 0.12)
    with browsed(str(runs)) as server:
        place_map(page, server.url, 400, 400, {"swipe": 0, "low": 0.03, "high": 0.12})
        shows(page, plain)
        page.locator("#overlay").select_option("consistency")
        expect(page.locator("#legend")).to_contain_text("Sentinel-2")

        def problem() -> str | None:
            changed = np.abs(drawn(page)[:300, :300, :3] - plain).sum(axis=-1)
            small, large = difference < np.quantile(difference, 0.05), difference > np.quantile(difference, 0.95)
            found = changed[small].mean(), changed[large].mean()
            return None if found[1] > 3 * found[0] > 0 else f"changes of small and large differences: {found}"

        eventually(problem)
        page.locator("#overlay").select_option("")
        shows(page, plain)


def test_polygons_are_read_from_geoparquet(page: Page, runs: Path) -> None:
    with browsed(str(runs)) as server:
        # the parcel's corner is at column 400, row 320 of 2.5 m
        place_map(page, server.url, 300, 380, {"swipe": 0, "polygons": 1})

        def problem() -> str | None:
            edge = drawn(page)[20, 30:120, :3].mean(axis=0)
            return None if edge[0] > 200 > 150 > edge[2] else f"found {edge} where the yellow edge of the parcel is"

        eventually(problem)


def test_a_click_reads_the_values(page: Page, bucket: str, runs: Path, s3: S3Server) -> None:
    folder = product(runs, DAYS[-1])
    with browsed(bucket, s3) as server:
        place_map(page, server.url, 400, 400, {"swipe": 0})
        page.locator("#map").click(position={"x": 120.5, "y": 230.5})
        expected = read(folder / "sr.tif", 630, 520, 1)[:, 0, 0] / 1e4
        ground = read(folder / "s2.tif", 157, 130, 1)[:, 0, 0] / 1e4
        rows = page.locator("#pixel tbody tr")
        for number, band in enumerate(("blue", "green", "red", "nir")):
            expect(rows.nth(number)).to_contain_text(f"{band}{ground[number]:.4f}{expected[number]:.4f}")
        ndvi = (expected[3] - expected[2]) / (expected[3] + expected[2])
        expect(rows.nth(4)).to_contain_text(f"{ndvi:.3f}")
        page.get_by_role("button", name="NDVI through the season").click()
        expect(page.locator("#pixel circle")).to_have_count(len(DAYS))
        # another date, the same place
        page.locator("#map").press(",")
        other = read(product(runs, DAYS[1]) / "sr.tif", 630, 520, 1)[:, 0, 0] / 1e4
        expect(rows.nth(3)).to_contain_text(f"{other[3]:.4f}")


def test_a_link_opens_the_same_view(page: Page, chromium: Chromium, runs: Path) -> None:
    with browsed(str(runs)) as server:
        place_map(
            page, server.url, 400, 400, {"day": DAYS[1], "bands": "ndvi", "swipe": 0.25, "overlay": "uncertainty"}
        )
        page.locator("#map").click(position={"x": 120.5, "y": 230.5})
        expect(page.locator("#pixel table")).to_be_visible()
        page.wait_for_timeout(300)
        here, image = page.url, drawn(page)
        other = chromium.new_page(viewport={"width": 1280, "height": 800})
        other.goto(here)
        expect(other.locator("#when")).to_have_text(DAYS[1])
        expect(other.locator("#overlay")).to_have_value("uncertainty")
        expect(other.locator("#pixel table")).to_be_visible()
        eventually(lambda: None if (drawn(other) == image).mean() > 0.999 else "another picture")
        assert other.url == here
        other.close()


# ------------------------------------------------------------------------------------------------------ what is missing


def test_an_empty_bucket_says_how_to_fill_it(page: Page, s3: S3Server) -> None:
    with browsed(f"s3://{BUCKET}/nothing", s3) as server:
        page.goto(server.url)
        expect(page.locator("#empty")).to_contain_text("Nothing here yet")
        expect(page.locator("#empty")).to_contain_text("subpixel publish")


@pytest.mark.parametrize(
    ("name", "value"), [("AWS_SECRET_ACCESS_KEY", "not-this-key"), ("AWS_ACCESS_KEY_ID", "unknown")]
)
def test_a_denied_bucket_says_why(page: Page, bucket: str, s3: S3Server, name: str, value: str) -> None:
    denied = S3Server(s3.endpoint)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(S3Server, "environment", {**s3.environment, name: value})
        with browsed(bucket, denied) as server:
            page.goto(server.url)
            expect(page.locator("#notice")).to_contain_text(name)
            expect(page.locator("#notice")).not_to_contain_text(
                value if name != "AWS_ACCESS_KEY_ID" else "test-secret-key"
            )
            expect(page.locator("#empty")).to_contain_text("Nothing can be shown")


def test_a_product_of_an_earlier_version_says_what_it_lacks(page: Page, runs: Path) -> None:
    with browsed(str(runs)) as server:
        page.goto(f"{server.url}#run=old&product=elsewhere/20190626T100031")
        expect(page.locator("#product")).to_contain_text("nothing to swipe against")
        expect(page.locator("#product")).to_contain_text("no uncertainty layer")
        expect(page.locator("#overlay option[value=uncertainty]")).to_be_disabled()
        expect(page.locator("#handle")).to_be_hidden()
        expect(page.locator("#polygons")).to_be_disabled()
        expect(page.locator("#run")).to_contain_text("This run has no report")


def test_a_link_to_what_is_gone_says_so(page: Page, runs: Path) -> None:
    with browsed(str(runs)) as server:
        page.goto(f"{server.url}{view('2001-01-01')}")
        expect(page.locator("#notice")).to_contain_text("farmland/20010101T100031: not here")
        expect(page.locator("#when")).to_have_text("2020-08-05")


def test_an_expired_link_is_asked_for_again(page: Page, bucket: str, runs: Path, s3: S3Server) -> None:
    refused: list[str] = []

    def expire_once(route: Route) -> None:
        if len(refused) < 1:
            refused.append(route.request.url)
            route.fulfill(status=403, headers={"Access-Control-Allow-Origin": "*"}, body="Request has expired")
        else:
            route.continue_()

    with browsed(bucket, s3) as server:
        page.route(re.compile(rf"{re.escape(server.url)}.*/sr\.tif"), expire_once)
        place_map(page, server.url, 400, 400, {"swipe": 0, "low": 0.03, "high": 0.12})
        shows(page, colours(read(product(runs, DAYS[-1]) / "sr.tif", 400, 400), (2, 1, 0), 0.03, 0.12))
        assert refused


def test_a_file_that_stays_denied_is_named(page: Page, bucket: str, s3: S3Server) -> None:
    with browsed(bucket, s3) as server:
        page.route(re.compile(rf"{re.escape(server.url)}.*/sr\.tif"), lambda route: route.fulfill(status=403))
        page.goto(server.url)
        expect(page.locator("#notice")).to_contain_text("20200805T100031/sr.tif: denied (403)")


# ----------------------------------------------------------------------------------------------------- a published site


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_as_static_files_the_page_needs_no_server_of_ours(page: Page, runs: Path, tmp_path: Path) -> None:
    site = Path(shutil.copytree(STATIC, tmp_path / "site"))
    shutil.copytree(runs, site / "runs")
    (site / "catalog.json").write_text(json.dumps(build_catalog(storage_for(str(site)))))
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            place_map(
                page, f"http://127.0.0.1:{server.server_port}/", 400, 400, {"swipe": 0, "low": 0.03, "high": 0.12}
            )
            shows(page, colours(read(product(runs, DAYS[-1]) / "sr.tif", 400, 400), (2, 1, 0), 0.03, 0.12))
        finally:
            server.shutdown()
