"""From a config to its corpus."""

from __future__ import annotations

import functools
import glob
import json
import os
from collections.abc import Iterator
from typing import Any

from gpt_ablate.config.schema import Config
from gpt_ablate.data.corpus import Corpus, DataContext, sources
from gpt_ablate.data.ids import Ids
from gpt_ablate.data.tokenizers import OWN, Texts, Tokenizer, tokenizers
from gpt_ablate.utils.errors import Problem, UsageError


def load(config: Config) -> Corpus:
    """The corpus that `config.data` and `config.tokenizer` name, cut to `config.model.context_length`.

    Raises UsageError for data that is missing, unreadable or too short to train and evaluate on.
    """
    data, context = config.data, config.model.context_length
    assert data.stride is not None, "resolve() fills the stride"
    own = {key: value for key, value in data.node().items() if key != "batch_size"}
    nodes = own, config.tokenizer.node()
    corpus = _corpus(*(json.dumps(node, sort_keys=True) for node in nodes), context, _state(*nodes))
    problems = []
    if corpus.val.n_windows < 1:
        allowed = f"the validation split has {corpus.val.n_tokens} tokens, one window needs {context + 1}"
        problems.append(Problem("model.context_length", context, allowed))
    if (windows := corpus.train.n_windows) < data.batch_size:
        allowed = f"the training split has {corpus.train.n_tokens} tokens, {windows} windows of {context + 1}"
        problems.append(Problem("data.batch_size", data.batch_size, allowed))
    if problems:
        raise UsageError(problems)
    return corpus


@functools.lru_cache(maxsize=8)
def _corpus(data: str, tokenizer: str, context_length: int, state: tuple[object, ...]) -> Corpus:
    """The corpus of these two nodes of a config, as JSON; kept, since a sweep's runs share it.

    `state` is that of the files it is made from, so that a kept corpus is not taken for files that have changed.
    """
    node, chosen = json.loads(data), json.loads(tokenizer)
    context = DataContext(
        context_length=context_length,
        stride=node["stride"],
        replacement=node["replacement"],
        make_tokenizer=lambda texts: _tokenizer(chosen, texts),
        tokenizer_name=chosen["name"],
    )
    corpus: Corpus = sources.build(node, context)
    if isinstance(corpus.tokenizer, Ids) and chosen["name"] != OWN:
        allowed = f"{OWN}: data={node['name']} has a vocabulary of its own"
        raise UsageError([Problem("tokenizer.name", chosen["name"], allowed)])
    return corpus


def _state(*nodes: dict[str, Any]) -> tuple[object, ...]:
    """Place, size and time of change of all files that the values of config nodes name."""
    given = [value for node in nodes for key, value in node.items() if key != "name"]
    entries = [entry for value in given for entry in (value if isinstance(value, list) else [value])]
    paths = [os.path.expanduser(entry) for entry in entries if isinstance(entry, str) and "\0" not in entry]
    return tuple(state for path in paths for file in _files(path) if (state := _state_of(file)))


def _files(path: str) -> Iterator[str]:
    """The file that a path names, or those of a pattern, or all below a folder but for hidden folders."""
    seen: set[str] = set()
    for found in [path] if os.path.lexists(path) else glob.iglob(path, recursive=True):
        yield found
        for folder, folders, names in os.walk(found, followlinks=True):
            if (real := os.path.realpath(folder)) in seen:  # a link may lead back
                folders.clear()
                continue
            seen.add(real)
            folders[:] = [name for name in folders if name[0] != "."]
            yield from (os.path.join(folder, name) for name in names)


def _state_of(file: str) -> tuple[object, ...] | None:
    """None for a file that is not there or cannot be looked at: the data set says so."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return os.path.realpath(file), found.st_ino, found.st_size, found.st_mtime_ns


def _tokenizer(node: dict[str, Any], texts: Texts) -> Tokenizer:
    made: Tokenizer = tokenizers.build(node, texts)
    return made
