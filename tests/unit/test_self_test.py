"""Every image holds what its program can import, and `--self-test` says so, or what is missing."""

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from components.documentation import COMPONENTS
from components.self_test import distributions, imports_of
from components.stage import STAGES
from tests.conftest import REPOSITORY

INSTALLS = re.compile(r"^\s*python3 /tools/install\.py (?:--torch \S+ )?(.+)$", re.MULTILINE)


def self_test(component: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", f"components.{component}", "--self-test"]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY, **options)


@pytest.mark.parametrize("component", COMPONENTS)
def test_the_self_test_of_a_component_passes_where_all_is_installed(component):
    done = self_test(component)
    assert done.returncode == 0, done.stderr
    assert "self-test passed" in done.stderr
    assert "numpy 2." in done.stdout or component == "publish"


@pytest.mark.parametrize(
    ("component", "lazily"),
    [
        ("download", {"h5py", "odc.stac", "pystac_client"}),
        ("cloud_shadow_filter", {"s2cloudless"}),
        ("quality_gate", {"great_expectations", "pyarrow"}),
        ("train_hrn", {"wandb"}),
        ("super_resolve", {"rio_cogeo"}),
        ("package", {"model_archiver"}),
    ],
)
def test_it_knows_what_is_imported_only_once_it_is_needed(component, lazily):
    found = imports_of(f"components.{component}.main")
    assert all(any(name == module or name.startswith(f"{module}.") for name in found) for module in lazily)
    assert "ray" not in found, "Ray is for those who have it"


def test_what_is_missing_is_named_with_who_imports_it(tmp_path):
    (tmp_path / "h5py.py").write_text("raise ImportError('libhdf5.so is missing')")
    done = self_test("download", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1
    assert "h5py, which sr_core.sources.netcdf imports" in done.stderr and "libhdf5.so is missing" in done.stderr


# --- what the Dockerfiles install ----------------------------------------------------------------------------------


def extras_of(stage: str) -> set[str]:
    """Extras that a stage's Dockerfile installs, with those of the image that it stands on."""
    common = (REPOSITORY / "components" / "Dockerfile").read_text(encoding="utf-8")
    parts = re.split(r"^FROM (\S+) AS (\S+)$", common, flags=re.MULTILINE)[1:]
    built = {name: (parent, text) for parent, name, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True)}
    own = (REPOSITORY / "components" / stage / "Dockerfile").read_text(encoding="utf-8")
    found = set(" ".join(INSTALLS.findall(own)).split())
    (base,) = re.findall(r"^ARG BASE_IMAGE=subpixel-(\S+):", own, re.MULTILINE)
    while base in built:
        base, text = built[base]
        found |= set(re.sub(r'"[^"]*"', "", " ".join(INSTALLS.findall(text))).split()) - {"--torch"}
    return found


def installed_with(extras: set[str]) -> set[str]:
    """Distributions that pip installs for extras of the project, theirs included; as they are required here."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"core": project["dependencies"], "project": ["subpixel"], **project["optional-dependencies"]}
    waiting = [(Requirement(line), "") for extra in extras for line in groups[extra]]
    found: set[tuple[str, str]] = set()
    while waiting:
        requirement, wanted_for = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": wanted_for}):
            continue
        for extra in ("", *requirement.extras):
            name = canonicalize_name(requirement.name)
            if (name, extra) not in found:
                found.add((name, extra))
                if name != "subpixel":
                    waiting += [(Requirement(line), extra) for line in metadata.requires(name) or ()]
    return {name for name, _ in found}


@pytest.mark.parametrize("component", COMPONENTS)
def test_the_dockerfile_of_a_stage_installs_what_its_program_can_import(component):
    image = component if component in STAGES else "download"
    needed = {
        module.partition(".")[0]
        for module in imports_of(f"components.{component}.main")
        if module.partition(".")[0] not in sys.stdlib_module_names
    }
    have = installed_with(extras_of(image))
    missing = {module for module in needed if not {canonicalize_name(name) for name in distributions([module])} & have}
    assert missing == set(), f"components/{image}/Dockerfile installs {sorted(extras_of(image))}"
