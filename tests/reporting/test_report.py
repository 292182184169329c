"""The report from synthetic studies: what a reader must find in it, and what must never get into it."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from PIL import Image
from rich.console import Console
from synthetic import Shape, make_study
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpt_ablate import report
from gpt_ablate.reporting import figure_style, pages, report_writer, study_figures, tensorboard
from gpt_ablate.reporting.analysis import analyse
from gpt_ablate.studies.run_directory import RunDirectory, find
from gpt_ablate.studies.study import read

LOUD = "<script>alert('x')</script> | **loud** `code` [link](http://x.y)"
BREAKING = "```\n````\n# no heading\n<b>no tag</b>\n~~~\n\n---\n"
FILES = {"report.json", "report.md", "report.html", "results.csv"}


def write(path: Path, target: Path | None = None, **options: Any) -> str:
    """Write the report; what the terminal shows."""
    console = Console(width=400, record=True, file=io.StringIO())
    report_writer.write(path, target or path, console, **options)
    return console.export_text()


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of one pixel, for tests that are not about figures: to draw takes seconds."""
    pixel = io.BytesIO()
    Image.new("L", (1, 1)).save(pixel, "png")
    nothing = b"<svg xmlns='http://www.w3.org/2000/svg'/>"
    monkeypatch.setattr(report_writer, "render", lambda _: figure_style.Drawing(nothing, nothing, pixel.getvalue()))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cells and three seeds, of which one run failed, one diverged and one is missing; hostile prompt and error."""
    path = make_study(
        tmp_path_factory.mktemp("outputs") / "norm_placement-micro",
        {"norm": ["post", "pre"]},
        seeds=range(6),
        loss=lambda levels, seed: 5.9 + 0.01 * seed if levels["norm"] == "post" else 0.9 + 0.02 * (seed % 3),
        statuses={
            "pre-fresh-parallel/seed_3": "failed",
            "pre-fresh-parallel/seed_4": "diverged",
            "post-fresh-parallel/seed_5": "missing",
        },
        report={"question": f"Does {LOUD} matter?", "baseline": {"norm": "post"}},
        config={"sampling.prompt": LOUD},
    )
    failed = RunDirectory(path / "pre-fresh-parallel/seed_3")
    failed.update(error=f"Traceback\nValueError: {BREAKING}{LOUD}")
    with (path / "pre-fresh-parallel/seed_0/samples.jsonl").open("a") as file:
        last = RunDirectory(path / "pre-fresh-parallel/seed_0").samples()[-1]
        file.write(json.dumps(last | {"text": f"{BREAKING}{LOUD}"}) + "\n")
    write(path, allow_missing=True)
    return path


def test_the_answer_comes_first_everywhere(study: Path, tmp_path: Path, undrawn: None) -> None:
    found = json.loads((study / "report.json").read_text())
    answer = found["answer"][0]
    assert "norm=pre reaches a final training loss 4.99 lower" in answer
    page = (study / "report.html").read_text()
    assert page.index(html.escape(answer)) < page.index("<table")
    markdown = (study / "report.md").read_text()
    assert markdown.index(answer[:60]) < markdown.index("|---")
    told = write(study, tmp_path, allow_missing=True)
    assert told.strip().startswith(answer)
    assert "report.html" in told


def test_every_cell_and_run_is_named_whatever_became_of_it(study: Path) -> None:
    found = json.loads((study / "report.json").read_text())
    pages_of_it = [(study / name).read_text() for name in ("report.html", "report.md")]
    names = [f"{norm}-fresh-parallel/seed_{seed}" for norm in ("pre", "post") for seed in range(6)]
    for page in pages_of_it:
        for name in [*names, *(cell["label"] for cell in found["cells"])]:
            assert name in page, name
        for status in ("1 run missing: post-fresh-parallel/seed_5", "1 run failed: pre-fresh-parallel/seed_3"):
            assert status in page
        assert "1 run diverged: pre-fresh-parallel/seed_4" in page
        assert "4 done, 1 failed, 1 diverged" in page
    with (study / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["run"] for row in rows) == sorted(names)
    assert {row["run"]: row["status"] for row in rows}["post-fresh-parallel/seed_5"] == "missing"


def test_html_has_no_tag_of_what_runs_say(study: Path) -> None:
    page = (study / "report.html").read_text()
    assert "<script" not in page
    assert "<b>no tag" not in page
    assert page.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;") >= 4  # question, prompts, sample, traceback
    assert "http" not in page.replace("http://x.y", "")


def test_markdown_cannot_be_broken_out_of(study: Path) -> None:
    markdown = (study / "report.md").read_text()
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(markdown)
    every = [token for block in tokens for token in [block, *(block.children or [])]]
    assert not [token for token in every if token.type in ("html_block", "html_inline", "link_open", "code_inline")]
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings[0] == "norm\\_placement-micro" or headings[0] == "norm_placement-micro"
    assert "no heading" not in " ".join(headings)
    fences = [token.content for token in tokens if token.type == "fence"]
    assert f"{LOUD}{BREAKING}{LOUD}\n" in fences
    assert f"Traceback\nValueError: {BREAKING}{LOUD}\n" in fences
    strong = [token for token in every if token.type == "strong_open"]
    assert len(strong) == 1, "only the answer is bold"


@pytest.mark.parametrize(
    "text", [LOUD, "a_b _c_ __d__", "1. one", "12) two", "- one", "+", "# h", "$x$ ~~y~~", "www.x.y", "a\n\nb", "\\"]
)
def test_escaped_text_is_shown_as_it_is(text: str) -> None:
    rendered = MarkdownIt("gfm-like", {"linkify": False}).render(str(pages.escape_markdown(text)))
    shown = "".join(ElementTree.fromstring(rendered.strip()).itertext())
    assert rendered.startswith("<p>")
    assert "<" not in rendered.strip().removeprefix("<p>").removesuffix("</p>")
    assert shown == " ".join(text.split())


def test_report_json_comes_back_as_it_went(study: Path) -> None:
    found = json.loads((study / "report.json").read_text())
    assert found["schema_version"] == 1
    (comparison,) = found["comparisons"]
    assert (comparison["verdict"], comparison["seeds"]) == ("better", [0, 1, 2])
    losses = {run["run"]: run for run in csv.DictReader((study / "results.csv").open(newline=""))}
    differences = [
        float(losses[f"pre-fresh-parallel/seed_{seed}"]["eval_train_loss"])
        - float(losses[f"post-fresh-parallel/seed_{seed}"]["eval_train_loss"])
        for seed in comparison["seeds"]
    ]
    assert comparison["differences"] == pytest.approx(differences)
    assert comparison["difference"] == pytest.approx(sum(differences) / 3)


def test_a_recoloured_figure_is_the_one_drawn_in_the_dark(study: Path) -> None:
    runs = read(study)
    for plate in study_figures.plates(analyse(runs, allow_missing=True), runs):
        light, dark = (
            figure_style._files(plate.draw, theme, png=False)[0] for theme in (figure_style.LIGHT, figure_style.DARK)
        )
        assert light != dark
        assert _without_ids(figure_style.recoloured(light)) == _without_ids(dark), plate.name


def _without_ids(svg: bytes) -> bytes:
    """Ids are hashes of styles too, and of nothing that a reader sees."""
    return re.sub(rb'(id="|#)[a-z][0-9a-f]{10}', b"", svg)


@pytest.mark.parametrize(
    ("cells", "asked", "figures"),
    [
        ({"norm": ["pre", "post"], "layers": ["fresh", "clone"]}, {}, {"factorial", "interactions"}),
        ({"norm": ["pre", "post"], "optimizer.lr": [1e-3, 1e-2]}, {"tune": ["optimizer.lr"]}, {"learning_rates"}),
    ],
)
@pytest.mark.fast_cases(1)
def test_each_kind_of_study_gets_its_figures_and_keeps_none_of_another(
    tmp_path: Path, cells: dict[str, Any], asked: dict[str, Any], figures: set[str]
) -> None:
    path = make_study(
        tmp_path / "study",
        cells,
        loss=lambda levels, seed: 2.0 + len(str(levels)) / 9 + seed / 50,
        report={"metrics": {"eval/train_loss": None}, **asked},
    )
    (path / "figures").mkdir()
    for name in study_figures.NAMES:
        (path / "figures" / f"{name}.svg").write_text("of another study in this place")
    write(path)
    page = (path / "report.html").read_text()
    found = {file.stem for file in (path / "figures").iterdir()}
    assert figures <= found
    for name in found:
        assert "of another" not in (path / "figures" / f"{name}.svg").read_text()
        assert f"Figure: {name.replace('_', ' ')}" in page


@pytest.mark.parametrize("beside", [{}, {"model.dropout": [i / 64 for i in range(41)]}])
def test_no_figure_has_more_lines_and_ticks_than_can_be_read(tmp_path: Path, beside: dict[str, Any]) -> None:
    most = figure_style.MOST_LINES
    rates = {"optimizer.lr": [round(1e-4 * (i + 1), 6) for i in range(2 if beside else most + 1)]}
    runs = read(make_study(tmp_path / "many", beside | rates, seeds=[0, 1], shape=Shape(steps=4, steps_per_epoch=2)))
    drawn = {plate.name: plate.draw(figure_style.LIGHT) for plate in study_figures.plates(analyse(runs), runs)}
    assert {"effects", "loss_curves", "equal_budgets"} <= drawn.keys()
    for name, figure in drawn.items():
        legends = [*figure.legends, *(axis.get_legend() for axis in figure.axes if axis.get_legend())]
        assert all(len(legend.get_texts()) <= most + 1 for legend in legends), name
        assert all(len(axis.get_xticks()) <= most for axis in figure.axes), name


def test_one_run_alone_has_a_report(tmp_path: Path, undrawn: None) -> None:
    alone = make_study(tmp_path / "alone", {"norm": ["pre"]}, seeds=[7], loss=1.25, plan=False)
    assert "1.250" in write(alone)
    page = (alone / "report.html").read_text()
    assert "nothing to compare" in page
    assert "Comparisons" not in page


def test_a_failure_on_the_way_leaves_the_old_report(
    study: Path, tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(study, tmp_path, allow_missing=True)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    def fail(_: object) -> figure_style.Drawing:
        raise MemoryError

    monkeypatch.setattr(report_writer, "render", fail)
    with pytest.raises(MemoryError):
        write(study, tmp_path, allow_missing=True)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_every_file_appears_whole(study: Path, tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop between any two renames leaves each file as it was or as it shall be, and never a part of it."""
    (tmp_path / "report.json").write_text("old")
    replace = Path.replace

    def stop(self: Path, target: Path) -> Path:
        if target.name == "report.json":
            assert json.loads(self.read_text())["answer"], "whole before it is renamed"
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write(study, tmp_path, allow_missing=True)
    assert (tmp_path / "report.json").read_text() == "old"
    assert (tmp_path / "report.html").read_text().rstrip().endswith("</html>")
    assert not list(tmp_path.rglob("*.tmp"))


def test_tensorboard_gets_curves_charts_figures_and_answer(study: Path, tmp_path: Path, undrawn: None) -> None:
    study = Path(shutil.copytree(study, tmp_path / study.name))
    runs = [run.path for run in find(study)]
    write(study, allow_missing=True)  # again: the file of the first time goes
    assert [run.path for run in find(study)] == runs
    folder = study / tensorboard.FOLDER
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1
    shown = EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0}).Reload()
    assert {"report/effects", "report/loss_curves"} <= set(shown.Tags()["images"])
    answer = shown.Tensors("answer")[0].tensor_proto.string_val[0].decode()
    assert answer.startswith("norm=pre reaches a final training loss")
    level = EventAccumulator(str(folder / "norm=pre"), size_guidance={"scalars": 0}).Reload()
    done = [RunDirectory(study / f"pre-fresh-parallel/seed_{seed}") for seed in (0, 1, 2, 5)]
    lines = zip(*([line for line in run.metrics() if "train/loss" in line] for run in done), strict=True)
    means = [sum(line["train/loss"] for line in of_step) / 4 for of_step in lines]
    assert [event.value for event in level.Scalars("variants/by_norm/train_loss")] == pytest.approx(means)


def test_the_command_needs_no_torch_and_draws_the_same_figures_again(study: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from gpt_ablate import report\n"
        f"sys.argv[1:] = [{str(study)!r}, '--to', {str(tmp_path)!r}, '--allow-missing']\n"
        "report.main()\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {file.name for file in tmp_path.iterdir()} == {*FILES, "figures"}, "TensorBoard's view is the study's own"
    names = sorted(file.name for file in (study / "figures").iterdir())
    assert {"effects.svg", "effects.png", "loss_curves.svg", "equal_budgets.svg"} <= set(names)
    for name in names:
        file = study / "figures" / name
        assert file.read_bytes() == (tmp_path / "figures" / name).read_bytes(), name
        if name.endswith("svg"):
            assert ElementTree.parse(file).getroot().tag.endswith("svg")
        else:
            with Image.open(file) as image:
                assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
                assert image.convert("L").getextrema()[0] < 60, "something is drawn"


def test_incomplete_pairs_are_refused_unless_allowed(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["report", str(study)])
    with pytest.raises(SystemExit) as stop:
        report.main()
    assert stop.value.code == 2
    told = capsys.readouterr()
    assert "--allow-missing" in told.err
    assert "post-fresh-parallel/seed_5" in told.err
    assert "Traceback" not in told.err
