"""`subpixel publish` into a folder and S3: what lies there, what stays, who comes at the same time, what breaks."""

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import rasterio

from sr_core.config import StorageSettings
from sr_core.errors import ArtifactError, StorageError
from sr_core.storage import Storage, storage_for
from subpixel.publish import publish
from subpixel.site import build_catalog
from tests.browsed_run import ATTRIBUTION, write_report, write_run
from tests.seaweed import BUCKET, S3Server, seaweed
from tests.servers.s3_proxy import Fault, S3Proxy, s3_proxy

SITE = f"s3://{BUCKET}/site"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with seaweed(tmp_path_factory.mktemp("seaweed")) as running:
        yield running


@pytest.fixture
def proxy(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    server.empty()
    with s3_proxy(server) as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs: two dates, one date, and one with a report and polygons."""
    root = tmp_path_factory.mktemp("runs")
    write_run(root / "delta", ["2022-05-01", "2022-06-10"], region="delta")
    write_run(root / "polder", ["2022-07-01"], region="polder")
    write_run(root / "trained", ["2022-08-01"])
    write_report(root / "trained")
    return root


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "runs"))


def local(path: Path) -> Storage:
    return storage_for(str(path))


def names(site: Storage) -> set[str]:
    return set(site.names())


@pytest.mark.parametrize("where", ["folder", "s3"])
def test_runs_become_a_site(where: str, proxy: S3Proxy, runs: Path, tmp_path: Path) -> None:
    site = storage_for(SITE if where == "s3" else str(tmp_path / "site"))
    (runs / "delta" / "products" / "delta" / ".20220701T100031").mkdir()  # a date in work
    (runs / "delta" / "products" / "delta" / ".20220701T100031" / "piece.npy").write_bytes(b"1")

    catalog = publish([local(runs / "delta"), local(runs / "trained")], site, title="Fields")

    assert json.loads(site.read("catalog.json") or b"") == catalog
    assert catalog["title"] == "Fields"
    delta, trained = catalog["runs"]
    assert (delta["name"], delta["path"], delta["kind"], delta["products"]) == ("delta", "runs/delta", "products", 2)
    assert (delta["start"], delta["end"]) == ("2022-05-01T10:00:31Z", "2022-06-10T10:00:31Z")
    assert delta["attribution"] == [ATTRIBUTION] and delta["simulated"] is True
    assert delta["report"] is delta["metrics"] is delta["polygons"] is None
    assert (trained["kind"], trained["report"], trained["metrics"]) == ("run", "report.html", "metrics.json")
    assert trained["polygons"] == "delineation/sr.parquet"
    west, south, east, north = delta["bbox"]
    assert 20 < west < east < 30 and 50 < south < north < 60

    there = names(site)
    assert {"index.html", "runs/delta/products/collection.json", "runs/trained/delineation/sr.parquet"} <= there
    assert not any("/." in name or name.endswith("run.json") for name in there)
    for entry in json.loads(site.read("runs/delta/products/products.json") or b"")["products"]:
        for layer in ("sr", "s2", "consistency", "uncertainty"):
            name = f"products/{entry['path']}/{layer}.tif"
            site.fetch(f"runs/delta/{name}", tmp_path / "fetched.tif")
            with rasterio.open(tmp_path / "fetched.tif") as found, rasterio.open(runs / "delta" / name) as expected:
                assert (found.read() == expected.read()).all()


def test_only_what_is_new_goes_up_and_runs_of_others_stay(proxy: S3Proxy, runs: Path) -> None:
    site = storage_for(SITE)
    publish([local(runs / "delta")], site, title="Fields")
    proxy.requests.clear()
    catalog = publish([local(runs / "delta")], site)
    assert proxy.calls("PUT") == ["site/catalog.json"] and proxy.calls("DELETE") == []
    assert catalog["title"] == "Fields"

    proxy.requests.clear()
    catalog = publish([local(runs / "polder")], site)
    assert [run["name"] for run in catalog["runs"]] == ["delta", "polder"]
    assert not [key for key in proxy.calls("PUT") if "delta" in key or key.endswith(".js")]

    # a date that has gone, in a new version of the run
    index = json.loads((runs / "delta" / "products" / "products.json").read_text())
    gone = index["products"].pop(0)
    (runs / "delta" / "products" / "products.json").write_text(json.dumps(index))
    catalog = publish([local(runs / "delta")], site)
    assert [run["products"] for run in catalog["runs"]] == [1, 1]
    assert not [name for name in names(site) if gone["path"] in name]


def test_a_run_in_s3_is_published_from_there(proxy: S3Proxy, runs: Path, tmp_path: Path) -> None:
    run = storage_for(f"s3://{BUCKET}/elsewhere/delta")
    run.upload(runs / "delta", "")
    site, other = storage_for(SITE), storage_for(f"s3://{BUCKET}/other", StorageSettings(transfers=2))
    proxy.requests.clear()
    publish([run], site)
    assert not [key for key in proxy.calls("GET") if key.endswith(".tif")]  # the server copies
    proxy.requests.clear()
    publish([run], site)
    assert proxy.calls("PUT") == ["site/catalog.json"]  # and knows what it has
    publish([run], other)
    publish([run], local(tmp_path / "site"))
    publish([local(runs / "delta")], storage_for(f"s3://{BUCKET}/sent"))
    sent = storage_for(f"s3://{BUCKET}/sent")
    for found in (site, other, local(tmp_path / "site")):
        assert names(found) == names(sent)
        for name in names(sent) - {"catalog.json"}:
            assert found.read(name) == sent.read(name), name


def test_the_index_of_a_run_comes_after_its_files_and_the_catalogue_last(proxy: S3Proxy, runs: Path) -> None:
    publish([local(runs / "delta")], storage_for(SITE))
    order = proxy.calls("PUT")
    assert order[-1] == "site/catalog.json"
    index = order.index("site/runs/delta/products/products.json")
    assert all("runs/delta" not in key for key in order[index + 1 :])
    assert {key.rpartition("/")[2] for key in order[:index]} >= {"sr.tif", "item.json", "quicklook.png"}


@pytest.mark.parametrize("broken", ["sr.tif", "products.json", "index.html", "catalog.json"])
def test_what_breaks_is_not_shown_half_and_is_continued(broken: str, proxy: S3Proxy, runs: Path) -> None:
    hasty = StorageSettings(max_attempts=1)
    site, direct = storage_for(SITE, hasty), StorageSettings(endpoint=proxy.upstream.endpoint)
    publish([local(runs / "polder")], site)
    before = storage_for(SITE, direct).read("catalog.json")
    proxy.faults.append(Fault("500", "PUT", broken, times=1000))
    page = Path(shutil.copytree(Path("subpixel/browser/static").resolve(), runs / "page"))
    (page / "index.html").write_text("another version")
    with pytest.raises(StorageError, match="InternalError"):
        publish([local(runs / "delta")], site, page=page)
    assert storage_for(SITE, direct).read("catalog.json") == before

    # who looks without the catalogue finds the run whole or not at all
    seen = {run["name"]: run for run in build_catalog(storage_for(SITE, direct))["runs"]}
    there = names(storage_for(SITE, direct))
    if "delta" in seen:
        paths = [entry["path"] for entry in json.loads((runs / "delta/products/products.json").read_text())["products"]]
        assert all(f"runs/delta/products/{path}/{file}" in there for path in paths for file in ("sr.tif", "item.json"))
    assert ("delta" in seen) == (broken in ("index.html", "catalog.json"))

    proxy.faults.clear()
    catalog = publish([local(runs / "delta")], site, page=page)
    assert [run["name"] for run in catalog["runs"]] == ["delta", "polder"]


def test_publishing_survives_a_storm(proxy: S3Proxy, runs: Path, tmp_path: Path) -> None:
    publish([local(runs / "delta")], local(tmp_path / "calm"))
    proxy.storm = 1 / 10
    publish([local(runs / "delta")], storage_for(SITE, StorageSettings(timeout_s=1, max_attempts=10)))
    assert len(proxy.thrown) >= 3
    storage_for(SITE, StorageSettings(endpoint=proxy.upstream.endpoint)).download("", tmp_path / "back")
    found, expected = local(tmp_path / "back"), local(tmp_path / "calm")
    assert names(found) == names(expected)
    for name in names(found) - {"catalog.json"}:
        assert found.read(name) == expected.read(name), name


def test_those_who_publish_at_the_same_time_do_not_lose_each_other_s_runs(proxy: S3Proxy, runs: Path) -> None:
    publish([local(runs / "trained")], storage_for(SITE))
    every = [f"run-{number}" for number in range(6)]
    problems: list[BaseException] = []

    def one(name: str) -> None:
        try:
            publish([local(runs / "polder")], storage_for(SITE), name=name)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=one, args=(name,)) for name in every]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    catalog = json.loads(storage_for(SITE).read("catalog.json") or b"")
    assert [run["name"] for run in catalog["runs"]] == [*every, "trained"]


def test_what_cannot_be_published_is_said(runs: Path, tmp_path: Path) -> None:
    site = local(tmp_path / "site")
    with pytest.raises(ArtifactError, match=r"found neither products/products\.json nor report\.html"):
        publish([local(tmp_path / "nothing")], site)
    with pytest.raises(ArtifactError, match=r"several runs of one name \(delta, delta\)"):
        publish([local(runs / "delta"), local(runs / "delta")], site)
    with pytest.raises(ArtifactError, match=r"found the name '\.\./x', expected letters"):
        publish([local(runs / "delta")], site, name="../x")
    publish([local(runs / "delta")], site, name="mine")
    with pytest.raises(ArtifactError, match=r"holds another run \(collection delta-sr, this one is polder-sr\)"):
        publish([local(runs / "polder")], site, name="mine")
    with pytest.raises(ArtifactError, match=r"index\.html: missing; build the page"):
        publish([local(runs / "delta")], site, page=tmp_path)
    next((runs / "polder").rglob("sr.tif")).unlink()
    with pytest.raises(ArtifactError, match=r"sr\.tif: missing, though products/products\.json names it"):
        publish([local(runs / "polder")], site)
    (runs / "delta" / "products" / "products.json").write_text('{"products": [{}]}')
    with pytest.raises(ArtifactError, match=r"expected an index of products, found a damaged one \(KeyError"):
        publish([local(runs / "delta")], site)
    assert [run["name"] for run in build_catalog(site)["runs"]] == ["mine"]


def test_a_catalogue_of_what_was_not_published(proxy: S3Proxy, runs: Path) -> None:
    """`subpixel browse` shows a run, a folder of runs, or nothing at all."""
    (one,) = build_catalog(local(runs / "delta"))["runs"]
    assert (one["name"], one["path"], one["products"]) == ("delta", "", 2)
    (runs / "half").mkdir()
    assert [run["path"] for run in build_catalog(local(runs))["runs"]] == ["delta", "polder", "trained"]
    storage_for(f"s3://{BUCKET}/work").upload(runs, "")
    found = build_catalog(storage_for(f"s3://{BUCKET}/work"))
    assert [run["path"] for run in found["runs"]] == ["delta", "polder", "trained"]
    assert found["title"] == "work"
    assert build_catalog(storage_for(f"s3://{BUCKET}/empty"))["runs"] == []
