"""Install extras of the project into an image, from inside its build: `python3 install.py patches sources`.

Runs with the system's Python and the pip of the tools image, mounted at /tools; what it installs goes into
/opt/subpixel. `core` means what every part needs, `project` the project itself.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

TOOLS = Path("/tools")
TARGET = Path("/opt/subpixel")
UNNEEDED = {"tests", "include"}
"""Folders of packages that only their developers need; a quarter of some."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", choices=["cpu", "cuda"], default="cpu", help="which build of PyTorch")
    parser.add_argument("extras", nargs="+")
    arguments = parser.parse_args()
    project = tomllib.loads((TOOLS / "pyproject.toml").read_text())["project"]
    groups = {"core": project["dependencies"], **project["optional-dependencies"]}
    constraints = TOOLS / "constraints.txt"
    for extra in arguments.extras:
        if extra == "project":
            install("--no-deps", *map(str, TOOLS.glob("wheel/*.whl")))
            continue
        # the builds for CPUs alone carry a local version
        pinned = next(line for line in constraints.read_text().splitlines() if line.startswith("torch=="))
        exact = [f"{pinned}+cpu"] if extra == "learning" and arguments.torch == "cpu" else []
        install("--constraint", str(constraints), *groups[extra], *exact)
    for folder in sorted(found for found in TARGET.rglob("*") if found.name in UNNEEDED and found.is_dir()):
        shutil.rmtree(folder, ignore_errors=True)  # it may have lain in another


def install(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--python", str(TARGET / "bin/python"), "install", "--no-cache-dir"]
    environment = {**os.environ, "PYTHONPATH": str(TOOLS / "pip")}
    subprocess.run([*command, "--no-compile", *arguments], check=True, env=environment)


if __name__ == "__main__":
    main()
