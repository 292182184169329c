"""Data and tokenizers that are refused: the files, the arguments of `train`, what is named and what is said of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

SHEEP = " ".join(f"The {i}th of {i * i} sheep said {'baa' if i % 3 else 'no'}." for i in range(200))
SMALL = ("model=micro", "model.context_length=16", "data.batch_size=2")


def furnish(folder: Path) -> None:
    """Texts, records, tokens and tokenizers, most of them with a fault."""
    lines = [json.dumps({"text": line, "n": 1}) for line in SHEEP.split(". ")]
    contents = {
        "sheep.txt": SHEEP.encode(),
        "again.txt": SHEEP.replace(" ", "\n").encode(),
        "part.txt": SHEEP[300:900].encode(),
        "umlaut.txt": "zwölf".encode(),
        "books/one.txt": SHEEP.encode(),
        "books/two.txt": b"Another text about other things. " * 30,
        "hidden/.kept.txt": SHEEP.encode(),
        "broken.jsonl": "\n".join([*lines[:3], "{oops", *lines[3:5], '"text"', lines[5]]).encode(),
        "column.jsonl": "\n".join(lines).encode(),
        "number.jsonl": b'{"text": 3}\n{"text": "four"}\n',
        "null.jsonl": b'{"text": null}\n',
        "latin.jsonl": b'{"text": "caf\xe9"}\n',
        "empty.jsonl": b"\n\n",
        "nul.jsonl": b'{"text": "a\\u0000b"}\n',
        "not.parquet": b"PAR1 and no more",
        "small.bin/train.bin": np.arange(3, 60, dtype="<u2").tobytes(),
        "small.bin/val.bin": np.arange(3, 60, dtype="<u2").tobytes(),
        "one.bin/train.bin": np.arange(3, 60, dtype="<u2").tobytes(),
        "list.json": b"[1, 2]",
        "object.json": b'{"version": "1.0"}',
        "vocab.json": b'{"a": 0, "b": 1}',
        "tokenizer_config.json": b'{"tokenizer_class": "LlamaTokenizer"}',
        "torn.json": b'{"model": {',
        "dict/dataset_dict.json": b'{"splits": ["train", "test"]}',
        "dict/train/state.json": b"{}",
    }
    for name, content in contents.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(content)


def _torn(folder: Path) -> None:
    shard = folder / "train_00000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])


def _changed(folder: Path) -> None:
    shard = folder / "train_00000.bin"
    content = bytearray(shard.read_bytes())
    content[5] ^= 1
    shard.write_bytes(content)


def _index(change: Callable[[str], str]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        index = folder / "index.json"
        index.write_text(change(index.read_text()))

    return damage


def _another_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"name": "gpt2"}')


SHARDS: dict[str, Callable[[Path], None]] = {
    "torn": _torn,
    "changed": _changed,
    "gone": lambda folder: (folder / "val_00000.bin").unlink(),
    "unfinished": lambda folder: (folder / "index.json").rename(folder / "unfinished.json"),
    "half_an_index": _index(lambda text: text[:100]),
    "index_of_others": _index(lambda text: '{"format": "mosaic"}'),
    "index_edited": _index(lambda text: text.replace('"documents": 1', '"documents": 2')),
    "no_tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "tokenizer_of_others": _another_tokenizer,
    "whole": lambda folder: None,
}
"""Folders of shards, and what happened to each after it was prepared with `bytes`."""

TEXT, TOKENS = ("data=text", "data.path=sheep.txt"), ("data=tokens", "tokenizer=own")
CASES: list[tuple[tuple[str, ...], str, str]] = [
    # texts and records
    (("data=text", "data.path=hidden"), "data.path = 'hidden'", "not hidden"),
    (("data=text", "data.path='*.csv'"), "data.path = '*.csv'", ""),
    (("data=text", "data.path=[books,books/one.txt]"), "data.path = 'books/one.txt'", "given twice"),
    (("data=text", "data.path=broken.jsonl"), "broken.jsonl", "line 4"),
    (("data=text", "data.path=broken.jsonl"), "broken.jsonl", "7"),
    (("data=text", "data.path=column.jsonl", "data.column=body"), "column.jsonl", "body"),
    (("data=text", "data.path=number.jsonl"), "number.jsonl", "1"),
    (("data=text", "data.path=null.jsonl"), "null.jsonl", "1"),
    (("data=text", "data.path=latin.jsonl"), "latin.jsonl", "UTF-8"),
    (("data=text", "data.path=empty.jsonl"), "empty.jsonl", ""),
    (("data=text", "data.path=nul.jsonl"), "nul.jsonl", "NUL"),
    (("data=text", "data.path=not.parquet"), "not.parquet", ""),
    (("data=text", "data.path=dict"), "dict", "train"),
    ((*TEXT, "data.column=text"), "data.column = 'text'", "no columns"),
    ((*TEXT, "data.train_fraction=1"), "data.train_fraction = 1", "less than 1"),
    ((*TEXT, "data.train_fraction=0.999"), "model.context_length = 16", "the validation split has"),
    ((*TEXT, "data.stride=0"), "data.stride = 0", "greater than or equal to 1"),
    ((*TEXT, "data.replacement=maybe"), "data.replacement = 'maybe'", "boolean"),
    (("data=verdict", "data.dir=books"), "data = 'verdict'", "data.dir=FOLDER"),
    (("data=wharton", "data.dir=books"), "The Age of Innocence", "data.dir=FOLDER"),
    (("data=shakespear",), "data = 'shakespear'", "Did you mean 'shakespeare'?"),
    # held-out texts
    ((*TEXT, "data.val=sheep.txt"), "data.val = 'sheep.txt'", "none is left to train on"),
    ((*TEXT, "data.val=again.txt"), "data.val = 'again.txt'", "is the same text as"),
    ((*TEXT, "data.val=part.txt"), "data.val = 'part.txt'", "is a part of"),
    ((*TEXT, "data.val=nowhere.txt"), "data.val = 'nowhere.txt'", "a file, folder or pattern"),
    ((*TEXT, "data.val=[]"), "data.val = []", "at least one text"),
    ((*TEXT, "data.val=[books/two.txt,books/two.txt]"), "data.val = 'books/two.txt'", "no other entry"),
    ((*TEXT, "data.val=3"), "data.val", "string"),
    (("data=sample", "data.val=sample"), "data.val = 'sample'", "none is left to train on"),
    (("data=sample", "data.val=whartons"), "data.val = 'whartons'", "Did you mean 'wharton'?"),
    # tokenizers
    ((*TEXT, "tokenizer=byte"), "tokenizer = 'byte'", "Did you mean 'bytes'?"),
    ((*TEXT, "tokenizer.name=nope"), "tokenizer.name = 'nope'", "one of"),
    ((*TEXT, "tokenizer=own"), "tokenizer.name = 'own'", "has no tokenizer of its own"),
    ((*TEXT, "+tokenizer.vocab_size=512"), "tokenizer.vocab_size = 512", "a parameter of tokenizer=bpe"),
    ((*TEXT, "tokenizer=bpe", "tokenizer.vocab_size=256"), "tokenizer.vocab_size = 256", "257"),
    ((*TEXT, "tokenizer=bpe", "tokenizer.vocab_size=1e3"), "tokenizer.vocab_size = 1000.0", "integer"),
    ((*TEXT, "tokenizer=bpe", "tokenizer.vocab_size=40000"), "tokenizer.vocab_size = 40000", "at most"),
    ((*TEXT, "tokenizer=chars", "data.val=umlaut.txt"), "tokenizer", "ö"),
    ((*TEXT, "tokenizer=chars", "data.val=umlaut.txt"), "tokenizer", "tokenizer.unknown=true"),
    ((*TEXT, "tokenizer=chars", "sampling.prompt='Über'"), "sampling.prompt", "trainer.sample_every=0"),
    ((*TEXT, "tokenizer=file"), "tokenizer.path", ""),
    ((*TEXT, "tokenizer=file", "tokenizer.path=nowhere.json"), "tokenizer.path = 'nowhere.json'", "No such file"),
    ((*TEXT, "tokenizer=file", "tokenizer.path=books"), "tokenizer.path = 'books'", ""),
    ((*TEXT, "tokenizer=file", "tokenizer.path=sheep.txt"), "tokenizer.path = 'sheep.txt'", "JSON"),
    ((*TEXT, "tokenizer=file", "tokenizer.path=torn.json"), "tokenizer.path = 'torn.json'", "JSON"),
    ((*TEXT, "tokenizer=file", "tokenizer.path=list.json"), "tokenizer.path = 'list.json'", ""),
    ((*TEXT, "tokenizer=file", "tokenizer.path=object.json"), "tokenizer.path = 'object.json'", ""),
    ((*TEXT, "tokenizer=file", "tokenizer.path=vocab.json"), "tokenizer.path = 'vocab.json'", "tokenizer.json"),
    ((*TEXT, "tokenizer=file", "tokenizer.path=tokenizer_config.json"), "tokenizer_config.json", "tokenizer.json"),
    (("--multirun", *TEXT, "tokenizer=bytes,gpt2"), "report.metrics = 'eval/train_loss'", "val_bits_per_byte"),
    (("--multirun", *TEXT, "tokenizer=bytes,gpt2", "report.metrics={eval/val_loss:1}"), "report.metrics", "within"),
    # token files and shards
    ((*TOKENS, "data.dir=one.bin", "data.vocab_size=60"), "val.bin", "No such file"),
    ((*TOKENS, "data.dir=small.bin"), "data.vocab_size = None", "the size of the vocabulary"),
    ((*TOKENS, "data.dir=small.bin", "data.vocab_size=50"), "train.bin", "59"),
    (("data=tokens", "data.dir=small.bin", "data.vocab_size=60"), "data.vocab_size = 60", "50257"),
    ((*TOKENS, "data.dir=small.bin", "data.vocab_size=60", "data.verify=full"), "data.verify = 'full'", "index.json"),
    (("data=tokens", "data.dir=small.bin", "tokenizer=bpe"), "tokenizer.name = 'bpe'", "own"),
    ((*TOKENS, "data.dir=torn"), "train_00000.bin", ""),
    ((*TOKENS, "data.dir=changed", "data.verify=full"), "train_00000.bin", ""),
    ((*TOKENS, "data.dir=gone"), "val_00000.bin", ""),
    ((*TOKENS, "data.dir=unfinished"), "unfinished", "prepare"),
    ((*TOKENS, "data.dir=half_an_index"), "half_an_index", "index.json"),
    ((*TOKENS, "data.dir=index_of_others"), "index_of_others", "index.json"),
    ((*TOKENS, "data.dir=index_edited"), "index_edited", "index.json"),
    ((*TOKENS, "data.dir=no_tokenizer"), "tokenizer.json", ""),
    ((*TOKENS, "data.dir=tokenizer_of_others"), "tokenizer.json", ""),
    (("data=tokens", "data.dir=whole"), "tokenizer.name = 'gpt2'", "own"),
    ((*TOKENS, "data.dir=whole", "data.vocab_size=300"), "data.vocab_size = 300", "256"),
    ((*TOKENS, "data.dir=whole", "data.verify=half"), "data.verify = 'half'", "full"),
    # tasks
    (("data=recall", "tokenizer=bytes"), "tokenizer.name = 'bytes'", "own"),
    (("data=recall", "data.pairs=5"), "model.context_length = 16", "4 * data.pairs"),
    (("data=recall", "data.vocab_size=2"), "data.vocab_size", ""),
    (("data=recall", "data.power=-1"), "data.power = -1", ""),
    (("data=recall", "data.stride=3"), "data.stride = 3", "no windows of a text"),
    (("data=recall", "+data.replacement=true"), "data.replacement", ""),
    (("data=recall", "data.train_examples=0"), "data.train_examples = 0", ""),
    (("data=recall", "data.val_examples=1.5"), "data.val_examples = 1.5", "integer"),
    (("data=copy", "data.symbols=16"), "data.symbols", ""),
    (("data=selective_copy", "data.vocab_size=2"), "data.vocab_size", ""),
    (("data=modular", "data.p=1"), "data.p = 1", ""),
    (("data=modular", "data.operation=power"), "data.operation = 'power'", "'add'"),
    (("data=modular", "model.context_length=3"), "model.context_length = 3", "4"),
    (("data=modular", "data.p=8", "data.operation=divide"), "data.p = 8", "prime"),
    (("data=dyck", "data.kinds=0"), "data.kinds = 0", ""),
    (("data=dyck", "data.depth=0"), "data.depth = 0", ""),
    (("data=induction", "data.vocab_size=1"), "data.vocab_size = 1", ""),
]
