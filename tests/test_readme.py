"""What README.md shows, works."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rich.console import Console

from gpt_ablate import execution
from gpt_ablate.axes.norm import norms
from gpt_ablate.composing import CONF
from gpt_ablate.config import Config
from gpt_ablate.model import GPT

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SMALL = ["model.d_model=16", "model.context_length=16", "data.batch_size=2", "trainer.max_steps=1"]


@pytest.fixture
def sandwich(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The README's plugin as a module one can import."""
    code = re.search(r"```python\n# sandwich\.py\n(.*?)```", README, re.DOTALL)
    assert code is not None
    assert len(code[1].strip().splitlines()) < 15
    (tmp_path / "sandwich.py").write_text(code[1], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "sandwich"
    norms.builders.pop("sandwich", None)
    sys.modules.pop("sandwich", None)


def test_the_example_variant_trains_and_differs(
    sandwich: str, configure: Callable[..., Config], tmp_path: Path
) -> None:
    config = configure(f"plugins=[{sandwich}]", "norm.name=sandwich", "norm.eps=1e-6", *SMALL)
    result = execution.run(config, tmp_path / "run", [], Console(quiet=True))
    assert result["status"] == "done"
    tokens = torch.arange(16)[None]
    plain = GPT(configure(*SMALL))
    mine = GPT(config)
    assert mine.layers[0].after1.eps == 1e-6
    assert torch.equal(mine.head.weight, plain.head.weight)
    assert not torch.allclose(mine(tokens), plain(tokens))


def test_every_option_of_conf_is_in_the_readme() -> None:
    for option in CONF.glob("*/*.yaml"):
        if option.parent.name in ("trainer", "experiment", "optimizer"):
            continue
        assert f"`{option.stem}`" in README, option


def test_every_path_of_the_project_that_it_names_exists() -> None:
    for path in re.findall(r"\]\(([^)#]+)\)", README):
        assert (Path(__file__).parents[1] / path).exists(), path


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
    listed = dict(re.findall(r"^\| ([\w.-]+)[^|]* \| ([^|]+) \|$", README.partition("| licence |")[2], re.MULTILINE))
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
