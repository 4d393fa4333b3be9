"""The report's numbers, its sentence, its page and its charts, on fabricated artifacts."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest

from sr_core.config import Config
from sr_core.errors import ArtifactError
from sr_core.evaluation.report import charts, metrics_json, read_run, verdict, write_report
from sr_core.evaluation.report.pictures import embed
from sr_core.evaluation.report.summary import duration, percent, signed
from tests.fabricated_run import FOLDERS, configuration, fabricate, fail_gate, farmland_views, write_record

ARMS = {"bicubic", "temporal_mean", "sr"}


class Page(HTMLParser):
    """What a browser would fetch, follow and show, and whether every element is closed."""

    VOID = ("meta", "img", "input", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.links += [found["href"] or ""] if tag == "a" else []
        self.fetched += [found[name] or "" for name in ("src", "srcset", "poster", "data") if name in found]
        self.fetched += [found["href"] or ""] if tag in ("link", "image", "use", "base") else []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


def report(root: Path, config: Config, folders: dict[str, Path]) -> tuple[dict, Page]:
    """Write the report at the root; its numbers as read from the file, and its page."""
    write_report(read_run(config, folders), root)
    text = (root / "metrics.json").read_text(encoding="utf-8")
    assert "NaN" not in text and "Infinity" not in text
    return json.loads(text), Page((root / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Page, Path]:
    root = tmp_path_factory.mktemp("complete")
    config = configuration()
    return *report(root, config, fabricate(root, config)), root


def test_metrics_of_a_complete_run_have_exactly_the_agreed_keys(complete):
    metrics, _, _ = complete
    assert metrics.keys() == {"evaluation", "delineation", "gate", "timings_s"}
    test = metrics["evaluation"]["test"]
    assert test.keys() == {"n_samples", "psnr", "cpsnr", "ssim", "mae", "win_rate_vs_bicubic"}
    assert all(test[score].keys() == ARMS for score in ("psnr", "cpsnr", "ssim", "mae"))
    assert metrics["delineation"].keys() == {"raster", "vector"}
    for arm in ("bicubic", "sr"):
        assert metrics["delineation"]["raster"][arm].keys() == {"extent_mcc", "boundary_mcc", "distance_mcc"}
        assert metrics["delineation"]["vector"][arm].keys() == {
            "over_segmentation",
            "under_segmentation",
            "border_error",
        }
    gate = metrics["gate"]
    assert gate["samples"] == gate["kept"] + sum(gate["dropped"].values())
    assert gate["dropped"].keys() == {"cloud", "ssim"}
    assert metrics["timings_s"].keys() == FOLDERS.keys()


def test_page_is_whole_and_fetches_nothing(complete):
    _, page, root = complete
    assert not page.open
    assert len(page.ids) == len(set(page.ids))
    assert page.fetched and all(uri.startswith("data:image/webp;base64,") for uri in page.fetched)
    assert all(link.startswith("#") or not re.match(r"\w+:|//", link) for link in page.links)
    anchors = {link[1:] for link in page.links if link.startswith("#")}
    assert anchors <= set(page.ids)
    html = (root / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|url\(|@import", html)
    assert len(html) < 8_000_000


def test_page_links_to_what_lies_beside_it(complete):
    _, page, root = complete
    relative = [link for link in page.links if not link.startswith("#")]
    assert "samples/gate.html" in relative and "products/farmland/2022-07-05/" in relative
    assert all((root / link).exists() for link in relative)


def test_page_shows_every_section_of_a_complete_run(complete):
    _, page, _ = complete
    assert "did not run" not in page.text
    assert page.tags.count("svg") == 1 + 2 + 2 + 1 + 1 + 2  # logo, gain, training, scatter, map, acquisitions
    assert page.tags.count("img") == 2 + 6 * 4 + 2 + 2  # viewer, gallery, fields, products
    assert "Simulated farmland; no satellite data" in page.text and "Copernicus" not in page.text


def test_gain_is_said_as_measured(complete):
    metrics, page, _ = complete
    psnr = metrics["evaluation"]["test"]["psnr"]
    gain = psnr["sr"] - psnr["bicubic"]
    assert f"On 72 held-out test samples the super-resolved image is {gain:.1f} dB closer to the truth" in page.text


def test_a_loss_is_said_as_plainly_as_a_gain(tmp_path):
    config = configuration()
    folders = fabricate(tmp_path, config)
    path = folders["evaluate"] / "metrics.json"
    scores = json.loads(path.read_text())
    scores["test"]["psnr"] = {"bicubic": 31.0, "temporal_mean": 31.02, "sr": 30.6}
    scores["test"]["win_rate_vs_bicubic"] = 0.31
    path.write_text(json.dumps(scores))
    run = read_run(config, folders)
    first, second, *_ = verdict(run, metrics_json(run))
    assert first == (
        "On 72 held-out test samples the super-resolved image is 0.4 dB further from the truth than bicubic;"
        " it is better on only 31 % of them."
    )
    assert second == "It is 0.4 dB further from the truth than the temporal mean of the same frames."


def test_failed_gate_is_shown_with_what_was_expected_and_nothing_behind_it(tmp_path):
    config = configuration()
    folders = fabricate(tmp_path, config, ["download", "cloud_shadow_filter", "normalize", "quality_gate"])
    fail_gate(folders["quality_gate"])
    metrics, page = report(tmp_path, config, folders)
    assert metrics.keys() == {"gate", "timings_s"}
    assert "The samples failed the quality gate, so no model was trained: 1 of 3 critical expectations" in page.text
    assert "gate" in page.ids and "Kept test samples" in page.text
    assert "Training did not run: the samples failed the quality gate." in page.text


def test_report_of_nothing_but_a_download(tmp_path):
    config = configuration()
    metrics, page = report(tmp_path, config, fabricate(tmp_path, config, ["download"]))
    assert metrics.keys() == {"timings_s"} and metrics["timings_s"].keys() == {"download"}
    assert "Nothing has been measured yet." in page.text
    assert "Clouds and shadows did not run." in page.text
    assert not page.open


def test_report_without_any_stage(tmp_path):
    metrics, page = report(tmp_path, configuration(), {})
    assert metrics == {"timings_s": {}} and not page.open


def test_skipped_delineation_is_absent_and_says_why(tmp_path):
    config = configuration()
    folders = fabricate(tmp_path, config)
    write_record(folders["delineate"], config, "delineate", skipped="the source has no reference parcels")
    metrics, page = report(tmp_path, config, folders)
    assert "delineation" not in metrics and "delineate" not in metrics["timings_s"]
    assert "Field delineation was skipped: the source has no reference parcels." in page.text


def test_results_of_earlier_settings_are_not_shown(tmp_path):
    folders = fabricate(tmp_path, configuration())
    metrics, page = report(tmp_path, configuration(train_hrn={"steps": 500}), folders)
    assert "evaluation" not in metrics and "gate" in metrics
    assert "Training is not shown: an earlier run made it with other settings (train_hrn)." in page.text
    assert "Evaluation is not shown: an earlier run made it, and Training has changed since." in page.text


def test_results_made_from_other_inputs_are_not_shown(tmp_path):
    config = configuration()
    folders = fabricate(tmp_path, config)
    write_record(folders["quality_gate"], config, "quality_gate", key="another")
    metrics, _ = report(tmp_path, config, folders)
    assert metrics.keys() == {"gate", "timings_s"}
    assert metrics["timings_s"].keys() == {"download", "cloud_shadow_filter", "normalize", "quality_gate"}


def test_values_that_are_not_finite_are_absent(tmp_path):
    config = configuration()
    folders = fabricate(tmp_path, config)
    for stage, keys in (("evaluate", ("test", "ssim", "sr")), ("delineate", ("raster", "sr", "distance_mcc"))):
        path = folders[stage] / "metrics.json"
        content = json.loads(path.read_text())
        content[keys[0]][keys[1]][keys[2]] = math.nan
        path.write_text(json.dumps(content))
    metrics, page = report(tmp_path, config, folders)
    assert metrics["evaluation"]["test"]["ssim"].keys() == {"bicubic", "temporal_mean"}
    assert "distance_mcc" not in metrics["delineation"]["raster"]["sr"]
    assert "nan" not in re.sub(r"[^\w ]", " ", page.text.lower()).split()


def test_text_of_artifacts_cannot_become_markup(tmp_path):
    config = configuration()
    folders = fabricate(tmp_path, config)
    evil = "<script>alert(1)</script>"
    fail_gate(folders["quality_gate"], evil)
    write_record(folders["delineate"], config, "delineate", skipped=evil)
    listing = folders["evaluate"] / "gallery" / "gallery.json"
    items = json.loads(listing.read_text())
    items[0] |= {"region": f'"><img src=x>{evil}', "sample_id": evil}
    listing.write_text(json.dumps(items))
    table = folders["cloud_shadow_filter"] / "acquisitions.parquet"
    rows = pd.read_parquet(table)
    rows.loc[rows["sensor"] == "vhr", "sensor"] = evil
    rows.to_parquet(table)
    _, page = report(tmp_path, config, folders)
    assert page.tags.count("script") == 1 and not page.open
    assert all(uri.startswith("data:") for uri in page.fetched)
    assert evil in page.text


def test_attribution_names_the_years_of_the_images(tmp_path):
    config = configuration(source={"kind": "files", "path": str(tmp_path / "okavango")}, area=None, period=None)
    _, page = report(tmp_path, config, fabricate(tmp_path, config))
    assert "Contains modified Copernicus Sentinel data 2022" in page.text
    assert "Sentinel-2 series okavango, no VHR" in page.text


def test_damaged_artifact_is_named(tmp_path):
    config = configuration()
    folders = fabricate(tmp_path, config)
    (folders["evaluate"] / "metrics.json").write_text('{"test": ')
    with pytest.raises(ArtifactError, match=r"evaluation.metrics\.json: expected JSON"):
        report(tmp_path, config, folders)
    assert not (tmp_path / "report.html").exists()


def test_shared_ground_is_not_hidden(tmp_path):
    config = configuration()
    folders = fabricate(tmp_path, config)
    path = folders["quality_gate"] / "samples.parquet"
    table = gpd.read_parquet(path)
    table.loc[table.index[0:9:3], "split"] = "test"  # one date of three chips; the others stay in training
    table.to_parquet(path)
    _, page = report(tmp_path, config, folders)
    assert re.search(r"Splits are not separate: training and test share 0\.\d+ km² of ground", page.text)


def test_pictures_stay_within_their_budget_and_small_ones_stay_exact(tmp_path):
    rng = np.random.default_rng(3)
    flat, noisy = tmp_path / "flat.png", tmp_path / "noisy.png"
    farmland_views(rng, 64)["bicubic"].save(flat)
    farmland_views(rng, 512)["truth"].save(noisy)
    [exact] = embed([flat], 200_000, 512)
    assert (exact.width, exact.height) == (64, 64)
    pictures = embed([noisy] * 4, 80_000, 512)
    assert sum(len(picture.uri) for picture in pictures) < 90_000


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, ["0", "2", "4", "6", "8", "10"]), (-0.5, 0.4, ["−0.4", "−0.2", "0.0", "0.2", "0.4"])],
)
def test_ticks_are_round_and_say_what_they_are(low, high, expected):
    axis = charts.Axis.over([low, high], "x", margin=0.0)
    assert [text for _, text in axis.ticks] == expected
    assert all(float(text.replace("−", "-")) == pytest.approx(value) for value, text in axis.ticks)


def test_thousands_of_points_stay_light():
    rng = np.random.default_rng(5)
    values = rng.uniform(0, 1, (50_000, 2))
    axis = charts.Axis.over([0, 1], "x")
    svg = charts.Plot(axis, axis, "many").dots(values[:, 0], values[:, 1], "c-kept").svg()
    assert len(svg) < 700_000


def test_histogram_counts_every_value_and_never_mixes_gains_with_losses():
    gains = np.array([-0.31, -0.02, 0.0, 0.01, 0.4, 0.4, 1.2])
    svg = charts.histogram(gains, "dB", "summary")
    bars = re.findall(r'class="bar (c-\w+)"[^>]*><title>[^:]*: (\d+)</title>', svg)
    assert sum(int(n) for css, n in bars if css == "c-loss") == 2
    assert sum(int(n) for css, n in bars if css == "c-sr") == 5


def test_map_has_north_up():
    west_south, east_north = (500_000.0, 0.0, 500_100.0, 100.0), (500_900.0, 900.0, 501_000.0, 1000.0)
    svg = charts.ground_map([west_south, east_north], {"c-test": [west_south], "c-train": [east_north]}, "map")
    places = {css: (float(x), float(y)) for css, x, y in re.findall(r'ground (c-\w+)" d="M([\d.]+) ([\d.]+)', svg)}
    assert places["c-train"][0] > places["c-test"][0], "east is to the right"
    assert places["c-train"][1] < places["c-test"][1], "north is up"


def test_numbers_read_as_people_write_them():
    assert [duration(seconds) for seconds in (0.42, 38, 245, 7800)] == ["0.4 s", "38 s", "4 min 05 s", "2 h 10 min"]
    assert [percent(share) for share in (0, 0.001, 0.99, 0.999, 1)] == ["0 %", "1 %", "99 %", "99 %", "100 %"]
    assert [signed(value, 2) for value in (2.094, -0.3, 0.001)] == ["+2.09", "−0.30", "0.00"]
