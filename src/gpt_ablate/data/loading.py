"""From a config to its corpus."""

from __future__ import annotations

import functools
import json
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
    corpus = _corpus(*(json.dumps(node, sort_keys=True) for node in (own, config.tokenizer.node())), context)
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
def _corpus(data: str, tokenizer: str, context_length: int) -> Corpus:
    """The corpus of these two nodes of a config, as JSON; kept, since a sweep's runs share it."""
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


def _tokenizer(node: dict[str, Any], texts: Texts) -> Tokenizer:
    made: Tokenizer = tokenizers.build(node, texts)
    return made
