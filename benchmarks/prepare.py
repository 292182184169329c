"""Tokens per second and peak memory of `gpt_ablate.prepare`: `python -m benchmarks.prepare`, from the project's folder.

The books of the set `classics`, cut into documents of 20 paragraphs and repeated to `--megabytes`, in GPT-2's tokens.
Beside it, where it is installed, `map` of Hugging Face's datasets with the same tokenizer (tiktoken), as nanoGPT's
script for OpenWebText calls it, and that script itself: `--nanogpt FOLDER`, your checkout, whose
data/openwebtext/prepare.py runs with the documents in the place of the download. All write uint16 to the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from . import common

FROM_JSON = """
import datasets, sys
folder, workers = sys.argv[1], int(sys.argv[2])
"""
NANOGPT = f"""{FROM_JSON}
import runpy, tiktoken
from gpt_ablate.data.gpt2_encoding import gpt2
own = datasets.load_dataset
datasets.load_dataset = lambda *_, **__: datasets.DatasetDict(
    train=own("json", data_files=folder + "/texts.jsonl", split="train", cache_dir=folder + "/cache")
)
tiktoken.get_encoding = lambda _: gpt2()  # without its download
code = open(sys.argv[3]).read().replace("num_proc = 8", f"num_proc = {{workers}}")
code = code.replace("total_batches = 1024", "total_batches = min(1024, len(dset))")  # it expects more
open(folder + "/script.py", "w").write(code)
runpy.run_path(folder + "/script.py", run_name="__main__")
"""
DATASETS = f"""{FROM_JSON}
import numpy
from gpt_ablate.data.gpt2_encoding import gpt2
encoding = gpt2()  # tiktoken's, without its download

def encode(row):
    ids = encoding.encode_ordinary(row["text"]) + [encoding.eot_token]
    return {{"ids": ids, "len": len(ids)}}

texts = datasets.load_dataset("json", data_files=folder + "/texts.jsonl", split="train", cache_dir=folder + "/cache")
tokens = texts.map(encode, remove_columns=["text"], num_proc=workers)
file = numpy.memmap(folder + "/train.bin", "<u2", "w+", shape=(sum(tokens["len"]),))
at = 0
for number in range(64):
    part = tokens.shard(64, number, contiguous=True).with_format("numpy")
    ids = numpy.concatenate(part["ids"]) if len(part) else numpy.empty(0, "<u2")
    file[at : at + len(ids)] = ids
    at += len(ids)
file.flush()
"""


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="outputs") as folder:
        size = _write_texts(Path(folder) / "texts.jsonl", args.megabytes * 1e6)
        names = ["gpt_ablate", *(["datasets"] if find_spec("datasets") else [])]
        names += ["nanogpt"] if args.nanogpt else []
        found = common.in_turn(args.rounds, names, lambda name: _measure(name, Path(folder), args))
    rows = [
        {
            "tool": name,
            "megabytes": round(size / 1e6),
            "workers": args.workers,
            "tokens_per_second": round(max(one["tokens_per_second"] for one in runs)),
            "peak_memory_mb": round(max(one["peak_memory_mb"] for one in runs)),
            "machine": common.machine(["tiktoken", "datasets"]),
        }
        for name, runs in found.items()
    ]
    common.record("prepare", rows, ["tool"], {"tokens_per_second": "more", "peak_memory_mb": "less"})


def _write_texts(path: Path, size: float) -> int:
    """Documents of 20 paragraphs, as JSON lines; the bytes of their text."""
    documents = list(_documents())
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            for text in documents:
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                written += len(text.encode())
                if written >= size:
                    break
    return written


def _documents() -> Iterator[str]:
    from gpt_ablate.data.documents import Documents
    from gpt_ablate.data.named_sets import located, text_sets

    for text in Documents(located(text_sets()["classics"], None, takes_dir=False)).texts():
        paragraphs = text.split("\n\n")
        yield from ("\n\n".join(paragraphs[i : i + 20]) for i in range(0, len(paragraphs), 20))


def _measure(name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=folder) as own:
        (Path(own) / "texts.jsonl").symlink_to((folder / "texts.jsonl").resolve())
        command = {
            "gpt_ablate": [
                *("-m", "gpt_ablate.prepare", f"{own}/texts.jsonl", "--to", f"{own}/shards"),
                *("--workers", str(args.workers), "--train-fraction", "0.9995"),
            ],
            "datasets": ["-c", DATASETS, own, str(args.workers)],
            "nanogpt": ["-c", NANOGPT, own, str(args.workers), f"{args.nanogpt}/data/openwebtext/prepare.py"],
        }[name]
        began = time.perf_counter()
        peak = _run([sys.executable, *command])
        seconds = time.perf_counter() - began
        tokens = sum(path.stat().st_size for path in Path(own).rglob("*.bin")) // 2
    return {"seconds": round(seconds, 2), "tokens_per_second": tokens / seconds, "peak_memory_mb": peak / 1e6}


def _run(command: list[str]) -> int:
    """Run to the end; the peak of the resident memory of the process and its children together, in bytes.

    Pages that processes share count once for each (Pss, where Linux tells it, shares them out).
    """
    peak = 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.1):
            peak = max(peak, sum(map(_memory, _family(process.pid))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    ended.set()
    watcher.join()
    if code:
        raise subprocess.CalledProcessError(code, command[:3])
    return peak


def _family(process: int) -> list[int]:
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []
    return [process, *(each for child in children for each in _family(int(child)))]


def _memory(process: int) -> int:
    """Private memory, and what is shared by the number that share it; pages of files are not counted."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


if __name__ == "__main__":
    main()
