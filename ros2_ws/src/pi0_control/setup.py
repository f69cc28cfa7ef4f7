"""For colcon; pip builds the same package from pyproject.toml at the top of the repository."""

import re
from pathlib import Path

from setuptools import find_packages, setup

NAME = "pi0_control"
HERE = Path(__file__).parent

setup(
    name=NAME,
    version=re.search("<version>(.*)</version>", (HERE / "package.xml").read_text(encoding="utf-8"))[1],
    packages=find_packages(include=[NAME, f"{NAME}.*", "sims", "sims.*"]),
    package_data={NAME: ["robots/*.yaml", "policies/*/*"], "sims": ["*.j2"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", sorted(f"launch/{file.name}" for file in (HERE / "launch").glob("*.*"))),
    ],
    entry_points={"console_scripts": [f"{node} = {NAME}.cli:{node}" for node in ("policy_node", "sim_node")]},
)
