"""Studies that the last commit with a flat package made (c4d5964): still read, compared, extended and resumed.

`older_studies.tar.xz` holds their records, less the views made of them: `cells`, every combination of three axes;
`sweep`, which names a key in its folders; `interrupted`, a run that Ctrl-C stopped, with its checkpoint.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.nn import functional as F

import gpt_ablate
from gpt_ablate.config.schema import Config
from gpt_ablate.launching import environment, execution
from gpt_ablate.studies import study
from gpt_ablate.studies.run_directory import RunDirectory

ARCHIVE = Path(__file__).with_name("older_studies.tar.xz")
CELLS = [(n, la, a) for n in ("pre", "post") for la in ("fresh", "clone") for a in ("looped", "parallel", "sdpa")]
ALWAYS = [("pre", "fresh", "parallel"), ("post", "clone", "looped")]
OF_CELLS = [
    *("model=micro", "model.n_layer=2", "model.d_model=16", "model.n_head=4", "model.context_length=16"),
    *("data=sample", "data.batch_size=4", "trainer.device=cpu", "trainer.threads=1", "optimizer.lr=3e-3"),
    *("trainer.max_epochs=null", "trainer.max_steps=20", "trainer.eval_every=0", "trainer.sample_every=0"),
    *("trainer.checkpoint_every=0", "model.dropout=0.1", "study=cells"),
]
OF_INTERRUPTED = [
    *("model=micro", "model.n_layer=1", "model.d_model=2", "model.n_head=1", "model.context_length=8"),
    *("model.tie_weights=true", "data=sample", "data.batch_size=4", "trainer.device=cpu", "trainer.threads=1"),
    *("trainer.max_epochs=null", "trainer.max_steps=60", "trainer.eval_every=20", "trainer.sample_every=0"),
    *("model.dropout=0.1", "study=interrupted", "seed=3"),
]
PROBE = 1840874131
"""What `probe` gives on the machine that made the records."""
TIMES = ("wall_time", "tokens_per_second", "flop_utilisation")


@pytest.fixture
def older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `outputs` with the studies, in the working directory."""
    shutil.unpack_archive(ARCHIVE, tmp_path / "outputs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "outputs"


def lines(run: Path) -> list[dict[str, Any]]:
    recorded = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in TIMES} for line in recorded]


def same_arithmetic(run: Path) -> bool:
    """Whether this machine is one on which the bits of a run can be expected to be those of the record."""
    record = json.loads((run / "run.json").read_text())
    here = environment.hardware()["processor"], torch.__version__
    return here == (record["hardware"]["processor"], record["versions"]["torch"]) and probe() == PROBE


def probe() -> int:
    """A checksum of products and functions as a step has them: one name of a processor stands for several kinds."""
    draws = torch.Generator().manual_seed(0)
    x, head = torch.randn(64, 16, generator=draws), torch.randn(50257, 16, generator=draws)
    found = torch.cat([(F.gelu(x, approximate="tanh") @ head.T).log_softmax(-1).flatten(), (x.T @ x).flatten()])
    return zlib.crc32(found.numpy().tobytes())


@pytest.mark.parametrize(
    "cell",
    [pytest.param(cell, marks=[] if cell in ALWAYS else [pytest.mark.slow], id="-".join(cell)) for cell in CELLS],
)
def test_losses_are_those_from_before(
    cell: tuple[str, str, str], older: Path, configure: Callable[..., Config]
) -> None:
    norm, layers, attention = cell
    before = older / f"cells/{'-'.join(cell)}/seed_7"
    config = configure(f"norm={norm}", f"layers={layers}", f"attention={attention}", "seed=7", *OF_CELLS)
    execution.run(config, older / "now", [], Console(quiet=True))
    assert RunDirectory(older / "now").record()["fingerprint"] == RunDirectory(before).record()["fingerprint"]
    now, then = lines(older / "now"), lines(before)
    assert len(then) == 21
    if same_arithmetic(before):
        assert now == then
    for line, other in zip(now, then, strict=True):
        assert line == pytest.approx(other, rel=1e-2)


def test_they_are_read_and_reported(older: Path) -> None:
    cells = study.read(older / "cells")
    assert cells.factors == {
        "norm": ["pre", "post"],
        "layers": ["fresh", "clone"],
        "attention": ["parallel", "looped", "sdpa"],
    }
    assert cells.missing == []
    assert len(cells.runs) == len(CELLS)
    sweep = study.read(older / "sweep")
    assert sweep.factors == {"norm": ["post", "pre"], "schedule.warmup_steps": ["0", "4"]}
    assert [len(runs) for runs in sweep.cells().values()] == [2, 2, 2, 2]
    assert gpt_ablate.load_study(older / "sweep").report("written").is_file()
    assert gpt_ablate.load_run(older / "interrupted/pre-fresh-parallel/seed_3").status == "interrupted"


@pytest.mark.slow
def test_a_study_is_extended_in_its_own_folders(older: Path) -> None:
    before = (older / "cells/pre-fresh-parallel/seed_7/metrics.jsonl").read_bytes()
    arguments = [*OF_CELLS, "norm=pre", "layers=fresh,clone", "attention=parallel"]
    found = gpt_ablate.train([*arguments, "seed=7,8"], multirun=True, quiet=True)
    assert len(found.runs) == 14
    for layers in ("fresh", "clone"):
        folder = older / f"cells/pre-{layers}-parallel"
        assert sorted(path.name for path in folder.glob("seed_*")) == ["seed_7", "seed_8"]
    assert {path.name for path in (older / "cells").glob("*-*")} == {"-".join(cell) for cell in CELLS}
    assert (older / "cells/pre-fresh-parallel/seed_7/metrics.jsonl").read_bytes() == before
    read = study.read(older / "cells")
    assert sorted(len(runs) for runs in read.cells().values()) == [1] * 10 + [2, 2]


def test_an_interrupted_run_goes_on(older: Path, configure: Callable[..., Config]) -> None:
    place = older / "interrupted/pre-fresh-parallel/seed_3"
    start = lines(place)
    assert start[-1]["step"] < 60
    gpt_ablate.train(OF_INTERRUPTED, multirun=True, quiet=True)
    assert [path.name for path in (older / "interrupted").glob("*/seed_3")] == ["seed_3"]
    gone_on = lines(place)
    assert gone_on[: len(start)] == start
    config = configure(*OF_INTERRUPTED)
    execution.run(config, older / "whole", [], Console(quiet=True))
    whole = lines(older / "whole")
    if same_arithmetic(place):
        assert gone_on == whole
    for line, other in zip(gone_on, whole, strict=True):
        assert line == pytest.approx(other, rel=1e-2)
