"""Tasks: solvable from the inputs alone, at chance without them, the same everywhere; what fits none is refused."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy import stats
from task_corpora import CPU, Row, make, rows, small

from gpt_ablate.config.paths import CONF
from gpt_ablate.data.corpus import IGNORED, sources
from gpt_ablate.data.tasks import task as shared
from gpt_ablate.utils.errors import UsageError

NAMES = ["copy", "dyck", "induction", "modular", "recall", "selective_copy"]


def forget() -> None:
    shared._block.cache_clear()
    shared._whole.cache_clear()


# Solvers: the answer after each prefix that has one


def recalled(prefix: Row, vocab_size: int, **_: Any) -> int | None:
    values: dict[int, int] = {}
    for key, value in zip(prefix[::2], prefix[1::2], strict=False):
        if key in values or not 0 < key < vocab_size // 2 <= value:
            break
        values[key] = value
    return values.get(prefix[-1]) if len(prefix) > 2 * len(values) else None


def induced(prefix: Row, **_: Any) -> int | None:
    return prefix[prefix.index(0) + 1] if prefix.count(0) == 2 else None


def copied(prefix: Row, vocab_size: int, **_: Any) -> int | None:
    asked = prefix.count(vocab_size - 1)
    return [token for token in prefix if 0 < token < vocab_size - 1][asked - 1] if asked else None


def calculated(prefix: Row, p: int, operation: str = "add", **_: Any) -> int | None:
    if len(prefix) != 4:
        return None
    a, o, b, equals = prefix
    assert (o, equals) == (p, p + 1)
    error = {"add": lambda c: a + b - c, "subtract": lambda c: a - b - c, "divide": lambda c: c * b - a}[operation]
    return next(c for c in range(p) if error(c) % p == 0)


def closed(prefix: Row, kinds: int, **_: Any) -> int | None:
    unclosed: list[int] = []
    for token in prefix[1:]:
        if token <= kinds:
            unclosed.append(token)
        else:
            assert token == unclosed.pop() + kinds
    return unclosed[-1] + kinds if unclosed else None


CASES: list[tuple[str, Callable[..., int | None], int, int, dict[str, Any]]] = [
    ("recall", recalled, 4, 64, {"vocab_size": 8192}),
    ("recall", recalled, 8, 33, {"vocab_size": 18, "pairs": 8}),
    ("recall", recalled, 4, 48, {"vocab_size": 65, "filler": True, "power": 1.0}),
    ("induction", induced, 1, 30, {"vocab_size": 20}),
    ("induction", induced, 1, 4, {"vocab_size": 300}),
    ("copy", copied, 10, 32, {"vocab_size": 10}),
    ("copy", copied, 5, 10, {"vocab_size": 9, "symbols": 5}),
    ("selective_copy", copied, 16, 48, {"vocab_size": 16}),
    ("modular", calculated, 1, 4, {"p": 31}),
    ("modular", calculated, 1, 6, {"p": 30, "operation": "subtract", "train_fraction": 0.3}),
    ("modular", calculated, 1, 4, {"p": 31, "operation": "divide"}),
    ("dyck", closed, 16, 32, {"kinds": 8, "depth": 4}),
    ("dyck", closed, 10, 21, {"kinds": 3, "depth": 1}),
    ("dyck", closed, 25, 50, {"kinds": 2, "depth": 10}),
]
each_case = pytest.mark.parametrize(
    ("name", "solve", "counted", "length", "parameters"), CASES, ids=[f"{it[0]}-{it[3]}" for it in CASES]
)


@each_case
def test_a_solver_that_reads_only_inputs_is_always_right(
    name: str, solve: Callable[..., int | None], counted: int, length: int, parameters: dict[str, Any]
) -> None:
    corpus = small(name, length, **parameters)
    for split in (corpus.train, corpus.val):
        for inputs, targets in list(zip(*rows(split), strict=True))[:200]:
            asked = {place: target for place, target in enumerate(targets) if target != IGNORED}
            assert (len(inputs), len(targets), len(asked)) == (length, length, counted)
            assert {place: solve(inputs[: place + 1], **parameters) for place in asked} == asked
            assert 0 <= min(inputs) <= max(inputs + list(asked.values())) < corpus.tokenizer.vocab_size


@each_case
def test_a_model_that_does_not_read_is_at_chance(
    name: str, solve: object, counted: int, length: int, parameters: dict[str, Any]
) -> None:
    corpus = small(name, length, **parameters)
    targets = np.array(rows(corpus.train)[1])
    found = np.unique(targets[targets != IGNORED], return_counts=True)[1]
    if name == "modular":
        assert corpus.train.unigram_entropy() == pytest.approx(stats.entropy(found))
        return
    answers = round(math.exp(corpus.train.unigram_entropy()))
    counts = np.append(found, np.zeros(answers - len(found)))  # a model that always says the same hits one of these
    assert stats.chisquare(counts).pvalue > 1e-3
    assert corpus.val.unigram_entropy() == pytest.approx(math.log(answers))


GOLDEN = {
    "copy": "566db822a0bc",
    "dyck": "c1dffe976881",
    "induction": "d32d7980d856",
    "modular": "a939ff007590",
    "recall": "30020e901068",
    "selective_copy": "47cff47578db",
}


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_the_same_in_every_process(name: str) -> None:
    corpus = small(name, 64)
    tensors = [it for split in (corpus.train, corpus.val) for it in split.batch(torch.tensor([2, 299]), CPU)]
    assert hashlib.sha256(torch.stack(tensors).numpy().tobytes()).hexdigest()[:12] == GOLDEN[name]


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("name", [it for it in NAMES if it != "modular"])
def test_an_example_depends_on_its_number_alone(name: str, fresh: bool) -> None:
    corpus = small(name, 40, fresh=fresh)
    numbers = corpus.train.order("0", 1)[0:1500][[1499, 3, 1024, 3, 1023, 700]]
    together = torch.stack(corpus.train.batch(numbers, CPU))
    assert together.dtype == torch.int64
    assert not torch.equal(together[:, 0], together[:, 1])
    for i in (4, 2, 0):
        forget()
        alone = torch.stack(small(name, 40, fresh=fresh).train.batch(numbers[i : i + 1], CPU))
        assert torch.equal(alone[:, 0], together[:, i])
    other = torch.stack(small(name, 40, fresh=fresh, seed=1).train.batch(numbers, CPU))
    assert not torch.equal(other, together)


def test_a_fixed_set_is_shuffled_in_each_epoch() -> None:
    train = small("copy", 20).train
    orders = [train.order(root, epoch)[0:1500].tolist() for root, epoch in (("0", 1), ("0", 2), ("1", 1))]
    assert all(sorted(order) == list(range(1500)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert train.order("0", 2)[10:20].tolist() == orders[1][10:20]
    assert train.for_evaluation().n_windows == train.n_windows == 1500
    assert train.n_tokens == 30_000


def test_fresh_examples_never_come_again() -> None:
    train = small("copy", 20, fresh=True).train
    orders = [train.order(root, epoch)[0:1500] for root, epoch in (("0", 1), ("0", 2), ("0", 3), ("1", 1))]
    numbers = torch.cat(orders).tolist()
    assert len(set(numbers)) == len(numbers) == 6000
    examples = [tuple(row) for order in orders for row in train.batch(order, CPU)[0].tolist()]
    assert len(set(examples)) == 6000  # of 8^10
    assert train.order("0", 2)[10:20].tolist() == orders[1][10:20].tolist()
    assert all(order[0] % shared.BLOCK == 0 for order in orders)
    assert max(numbers) < 2**63
    evaluated = train.for_evaluation()
    assert evaluated.n_windows == 300
    assert not {tuple(row) for row in rows(evaluated)[0]} & set(examples)


REFUSED: list[tuple[str, int, dict[str, Any], str, str]] = [
    ("recall", 15, {}, "model.context_length", "at least 16 .*data=recall"),
    ("recall", 64, {"vocab_size": 9}, "data.vocab_size", "at least 10 "),
    ("recall", 64, {"power": 0.0}, "data.power", "greater than 0"),
    ("recall", 64, {"power": 1.5}, "data.power", "less than or equal to 1"),
    ("recall", 64, {"pairs": 0}, "data.pairs", "greater than or equal to 1"),
    ("recall", 64, {"pairs": "4"}, "data.pairs", "valid integer"),
    ("recall", 64, {"fresh": 1}, "data.fresh", "valid boolean"),
    ("recall", 64, {"train_examples": 0}, "data.train_examples", "greater than or equal to 1"),
    ("recall", 64, {"train_examples": 10**8}, "data.train_examples", "at most 16777216 .*data.fresh=true"),
    ("recall", 64, {"val_examples": 10**8, "fresh": True}, "data.val_examples", "at most 16777216 "),
    ("recall", 64, {"seed": -1}, "data.seed", "greater than or equal to 0"),
    ("recall", 64, {"pair": 4}, "data.pair", "no such parameter.*Did you mean 'pairs'"),
    ("recall", 64, {"stride": 32}, "data.stride", "null"),
    ("modular", 4, {"replacement": True}, "data.replacement", "false"),
    ("induction", 2, {}, "model.context_length", "at least 3 "),
    ("induction", 30, {"vocab_size": 2}, "data.vocab_size", "greater than or equal to 3"),
    ("copy", 19, {}, "model.context_length", "at least 20 "),
    ("copy", 64, {"vocab_size": 4, "symbols": 1}, "data.symbols", "more: .* too few different examples"),
    ("selective_copy", 31, {}, "model.context_length", "at least 32 "),
    ("selective_copy", 64, {"vocab_size": 3}, "data.vocab_size", "greater than or equal to 4"),
    ("modular", 3, {}, "model.context_length", "at least 4 "),
    ("modular", 4, {"p": 9, "operation": "divide"}, "data.p", "a prime"),
    ("modular", 4, {"operation": "power"}, "data.operation", "'add', 'subtract' or 'divide'"),
    ("modular", 4, {"train_fraction": 1.0}, "data.train_fraction", "less than 1"),
    ("modular", 4, {"p": 3, "train_fraction": 0.95}, "data.train_fraction", "9 of 9 pairs"),
    ("modular", 4, {"p": 3, "train_fraction": 0.05}, "data.train_fraction", "0 of 9 pairs"),
    ("dyck", 1, {}, "model.context_length", "at least 2 "),
    ("dyck", 3, {"kinds": 20}, "data.kinds", "more: .* too few different examples"),
    ("dyck", 64, {"kinds": 1}, "data.kinds", "greater than or equal to 2"),
    ("dyck", 64, {"depth": 65}, "data.depth", "less than or equal to 64"),
]


@pytest.mark.parametrize(("name", "length", "parameters", "key", "told"), REFUSED)
def test_what_makes_no_examples_is_refused(
    name: str, length: int, parameters: dict[str, Any], key: str, told: str
) -> None:
    with pytest.raises(UsageError, match=told) as error:
        make(name, length, **parameters)
    assert [problem.key for problem in error.value.problems] == [key]


@pytest.mark.parametrize(
    ("name", "length", "parameters"),
    [
        ("recall", 16, {"vocab_size": 10}),
        ("recall", 64, {"train_examples": 10**8, "fresh": True}),
        ("induction", 3, {"vocab_size": 200}),
        ("copy", 20, {}),
        ("selective_copy", 32, {}),
        ("modular", 4, {"p": 3, "train_fraction": 0.9}),
        ("dyck", 2, {"kinds": 200}),
    ],
)
def test_the_least_that_a_task_needs_is_taken(name: str, length: int, parameters: dict[str, Any]) -> None:
    described = make(name, length, **parameters).describe()
    json.dumps(described, allow_nan=False)
    assert described["val_bytes_per_token"] is None


@pytest.mark.parametrize("name", NAMES)
def test_the_option_has_what_the_builder_takes(name: str) -> None:
    option = yaml.safe_load((CONF / "data" / f"{name}.yaml").read_text("utf-8"))
    defaults = {key: it.default for key, it in inspect.signature(sources.builders[name]).parameters.items()}
    option.pop("defaults", None)  # what is of Hydra: the tokenizer that goes with it
    assert option.pop("name") == name
    assert option.pop("batch_size") > 0
    assert option.pop("stride") is None
    assert {"context": inspect.Parameter.empty, **option} == defaults
    declared = {metric.key: metric for metric in sources.builders[name].metrics}  # type: ignore[attr-defined]
    assert set(declared) == {"eval/accuracy", "eval/train_accuracy"}
    assert all(not metric.lower_is_better and metric.curve == key for key, metric in declared.items())


@pytest.mark.parametrize("name", NAMES)
def test_the_hash_is_of_all_that_decides_the_examples(name: str) -> None:
    options = {"p": 11} if name == "modular" else {"train_examples": 2000, "seed": 3, "fresh": True}
    corpora = [make(name, 64), make(name, 66), *(make(name, 64, **{key: value}) for key, value in options.items())]
    assert len({corpus.sha256 for corpus in corpora}) == len(corpora)
    assert make(name, 64).sha256 == corpora[0].sha256
    assert corpora[0].tokenizer.sha256 == corpora[1].tokenizer.sha256  # a model can be tried on another length
    assert corpora[0].is_task
