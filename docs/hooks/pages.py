"""Hooks of MkDocs: every group, option and key of conf/ in the pages that ask for them; the figures of experiments/."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PROJECT = Path(__file__).parents[2]
CONF = PROJECT / "conf"
PLACE = "<!-- every group, option and key -->"
NOT_GROUPS = ("experiment", "hydra")
_LINE = re.compile(r"^( *)([\w.]+):(?: ([^#]*?))?(?:  # (.*))?$")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Called by MkDocs with what the site is made from."""
    for figure in (PROJECT / "experiments").glob("*/figures/*.png"):
        place = figure.relative_to(PROJECT).as_posix()
        if f"../{place}" in (PROJECT / "docs" / "index.md").read_text(encoding="utf-8"):
            files.append(File.generated(config, place, abs_src_path=str(figure)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by MkDocs for each page."""
    markdown = markdown.replace("](../experiments/", "](experiments/")  # as on_files has put them
    return markdown.replace(PLACE, listing()) if PLACE in markdown else markdown


def listing() -> str:
    """The groups with a table for each option, the keys of config.yaml, and the studies, as Markdown."""
    defaults = [
        entry for entry in yaml.safe_load((CONF / "config.yaml").read_text())["defaults"] if type(entry) is dict
    ]
    chosen = {str(key): str(value) for entry in defaults for key, value in entry.items()}
    parts = ["## Keys outside the groups", _table((CONF / "config.yaml").read_text(), without=("defaults", "hydra"))]
    for folder in sorted(path for path in CONF.iterdir() if path.is_dir() and path.name not in NOT_GROUPS):
        module, variants = _docstrings(folder.name)
        parts += [f"## {folder.name}", module]
        for file in sorted(folder.glob("*.yaml")):
            default = " (default)" if chosen.get(folder.name) == file.stem else ""
            text = file.read_text(encoding="utf-8")
            parts += [f"### {folder.name}={file.stem}{default}", _comment(text) or variants.get(file.stem, "")]
            parts.append(_table(text, without=("name",), prefix=f"{folder.name}."))
    parts += ["## Studies", "`experiment=<name>` chooses one of these. Each works with any `model`."]
    for file in sorted((CONF / "experiment").glob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        parts += [f"### experiment={file.stem}", f"```yaml\n{text.strip()}\n```"]
    parts.append("## Launchers")
    for file in sorted((CONF / "hydra" / "launcher").glob("*.yaml")):
        parts += [f"### hydra/launcher={file.stem}", f"```yaml\n{file.read_text(encoding='utf-8').strip()}\n```"]
    return "\n\n".join(part for part in parts if part)


def _comment(text: str) -> str:
    """The comment at the head of a file."""
    lines = [line[2:] for line in text.splitlines() if line.startswith("# ") and "@package" not in line]
    return " ".join(lines)


def _docstrings(group: str) -> tuple[str, dict[str, str]]:
    """What an axis is, and what each of its variants is, from its module; nothing for a group that is no axis."""
    file = PROJECT / "src" / "gpt_ablate" / "axes" / f"{group}.py"
    if not file.exists():
        return "", {}
    tree = ast.parse(file.read_text(encoding="utf-8"))
    variants = {}
    for node in tree.body:
        for decorator in getattr(node, "decorator_list", []):
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith(".register"):
                variants[ast.literal_eval(decorator.args[0])] = (ast.get_docstring(node) or "").split("\n\n")[0]
    return ast.get_docstring(tree) or "", variants


def _table(text: str, without: tuple[str, ...], prefix: str = "") -> str:
    """The keys of a YAML file, nested ones with dots, as a table with their defaults and comments."""
    rows, above = [], []
    for line in text.splitlines():
        found = _LINE.match(line)
        if found is None:
            continue
        depth = len(found[1]) // 2
        above[depth:] = [found[2]]
        if above[0] in without:
            continue
        value = (found[3] or "").strip()
        shown = f"`{value}`" if value else ""
        meaning = re.sub(r"[|{}<>*_]", lambda sign: f"&#{ord(sign[0])};", found[4] or "")
        rows.append(f"| `{prefix}{'.'.join(above)}` | {shown} | {meaning} |")
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows]) if rows else ""
