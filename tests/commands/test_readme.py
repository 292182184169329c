"""What README.md names exists, and the licences are those of the packages."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gpt_ablate.config.paths import CONF
from gpt_ablate.config.registry import axis_names

PROJECT = Path(__file__).parents[2]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
LICENCES = (PROJECT / "docs" / "reference" / "licences.md").read_text(encoding="utf-8")


def test_every_variant_and_every_group_is_in_the_readme() -> None:
    for axis in axis_names():
        (row,) = re.findall(rf"^\| `{axis}` \|([^|]*)\|", README, re.MULTILINE)
        assert sorted(re.findall(r"`(\w+)`", row)) == sorted(file.stem for file in (CONF / axis).glob("*.yaml"))
    for group in CONF.iterdir():
        if group.is_dir() and group.name not in ("experiment", "hydra"):
            assert f"`{group.name}`" in README, group


def test_the_readme_stays_short() -> None:
    assert len(README) < 8000, "what is longer belongs to docs/"


def test_every_path_of_the_project_that_it_names_exists() -> None:
    for path in re.findall(r"\]\(([^)#]+)\)", README):
        assert (PROJECT / path).exists(), path


def closure(name: str, extras: tuple[str, ...] = ()) -> set[str]:
    """The installed packages that `name` needs, in the spelling of package indexes."""
    found: set[str] = set()
    waiting = [(name, extras)]
    while waiting:
        package, wanted = waiting.pop()
        for text in metadata.requires(package) or []:
            needed = Requirement(text)
            if needed.marker and not any(needed.marker.evaluate({"extra": extra}) for extra in ("", *wanted)):
                continue
            spelling = canonicalize_name(needed.name)
            if spelling not in found and any(True for _ in metadata.distributions(name=needed.name)):
                found.add(spelling)
                waiting.append((needed.name, tuple(needed.extras)))
    return found


def test_the_licence_of_every_package_is_listed_as_it_is_declared() -> None:
    listed = dict(re.findall(r"^\| ([\w.-]+)[^|]* \| ([^|]+) \|$", LICENCES, re.MULTILINE))
    families = {package: family for family, names in listed.items() for package in names.split(", ")}
    needed = closure("gpt_ablate", ("hf", "joblib", "submitit", "ray")) - {"gpt-ablate"}
    assert needed <= families.keys(), needed - families.keys()
    for package in needed:
        about = metadata.metadata(package)
        declared = " ".join([about.get("License-Expression") or "", about.get("License") or ""])
        declared += " ".join(about.get_all("Classifier") or [])
        alike = {"PSF": "PSF|Python Software Foundation", "Apache-2.0": "Apache", "MPL-2.0": "MPL"}
        alike |= {"BSD": "BSD|Redistribution and use in source"}
        assert re.search(alike.get(families[package], families[package]), declared), package
