"""What is written of products and their model is STAC, by its own schema and without a network.

pystac holds the schemas of STAC itself; those of extensions would come from the network, so that the extensions'
fields are read back through pystac instead.
"""

import json
from pathlib import Path
from typing import Any

import pystac
import pytest
from pystac.validation import RegisteredValidator

from sr_core.inference.dates import PatchDates, find_targets
from sr_core.inference.stac import write_collection, write_model
from sr_core.models.bundle import SHIPPED, load_bundle
from tests.unit.test_products import cell, make, series


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("products")
    two = [series(cell(0, column)) for column in range(2)]
    target = find_targets([PatchDates.of(each) for each in two], frames=8, max_age_days=60, max_cloud=0.1)[-1]
    write_collection(root, "farm-sr", "A farm.", [make(root, two, target)], real=True)
    write_model(root, "abc123", load_bundle(SHIPPED).description)
    return root


def valid(path: Path) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(path.read_text())
    kind = pystac.STACObjectType.COLLECTION if raw["type"] == "Collection" else pystac.STACObjectType.ITEM
    RegisteredValidator.get_validator().validate_core(raw, kind, raw["stac_version"], str(path))
    return raw


def test_collection_item_and_model_are_valid(products: Path) -> None:
    [item] = products.glob("farm/*/item.json")
    for path in (products / "collection.json", products / "model.json", item):
        assert valid(path)["links"]
    broken = json.loads(item.read_text())
    del broken["geometry"]
    (products / "broken.json").write_text(json.dumps(broken))
    with pytest.raises(pystac.STACValidationError):
        valid(products / "broken.json")


def test_an_item_says_how_to_read_each_file(products: Path) -> None:
    [path] = products.glob("farm/*/item.json")
    item = pystac.Item.from_file(str(path))
    assert list(item.assets) == ["sr", "s2", "consistency", "uncertainty", "quicklook"]
    assert {name: asset.ext.raster.bands[0].nodata for name, asset in item.assets.items() if name != "quicklook"} == {
        "sr": 0,
        "s2": 0,
        "consistency": 65535,
        "uncertainty": 65535,
    }
    for name, gsd in (("sr", 2.5), ("s2", 10.0), ("consistency", 10.0), ("uncertainty", 2.5)):
        asset = item.assets[name]
        assert asset.ext.proj.transform[0] == asset.ext.raster.bands[0].spatial_resolution == gsd
        assert asset.ext.file.size == (path.parent / f"{name}.tif").stat().st_size
    assert set(item.properties["processing:software"]) == {"subpixel"}


def test_an_item_leads_to_its_model(products: Path) -> None:
    [path] = products.glob("farm/*/item.json")
    [link] = pystac.Item.from_file(str(path)).get_links("ml-model")
    model = pystac.Item.from_file(link.get_absolute_href())
    assert model.ext.mlm.tasks == ["super-resolution"]
    assert model.ext.mlm.input[0].input.shape == [-1, 8, 4, -1, -1]
    assert model.properties["subpixel:architecture"]["fusion"] == "attention"
