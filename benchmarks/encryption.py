"""Encrypted data: how fast a core decrypts, and what it costs a reader. `make bench-encryption`.

All on one thread, in seconds of its processor. `decrypt` is data.sealed.unseal of blocks in memory, `seal` the way
back, with the block's key derived each time; AESGCM is the library's call alone, on one chunk. The reader takes a data
set from files in the page cache: once as it is, once encrypted, each block once, as numbers of words (Corpus) and as
records (JSON lines); the goal is for these. `bytes` is a reader that does nothing but check UTF-8, for comparison:
there decryption is most of the work. Sides take turns; a ratio is the median of the ratios within the rounds.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from benchmarks.others import Others, quiet, words
from mms_workloads import store as stores
from mms_workloads.contract import Data, DataFile, Store, WordEmbedding
from mms_workloads.data import encrypting, sealed
from mms_workloads.data.corpus import ByteCorpus, Corpus
from mms_workloads.data.keyring import Keyring
from mms_workloads.data.records import RecordCorpus
from mms_workloads.data.schema import Schema
from mms_workloads.data.vocabulary import Vocabulary
from mms_workloads.sync.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = int(os.environ.get("MMS_BENCH_ROUNDS", "7"))
MIB = int(os.environ.get("MMS_BENCH_MIB", "64"))
BLOCK_BYTES = 256 << 10  # the default of data.blockSize
KEY, DATASET = b"k" * 32, b"d" * 16
GOAL_BYTES, GOAL_OVERHEAD = 1e9, 0.05


def main() -> int:
    samples: dict[str, Any] = {"cores": os.cpu_count(), "mib": MIB}
    samples["cipher"] = cipher()
    with tempfile.TemporaryDirectory() as folder:
        samples["readers"] = {kind: reader(kind, Path(folder)) for kind in ("bytes", "words", "records")}
    file = Path(os.environ.get("MMS_RESULTS", "benchmarks/results")) / "encryption.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(samples))
    return report(samples)


def cipher() -> list[dict[str, Any]]:
    """Rounds: bytes per second, by side."""
    plain = os.urandom(BLOCK_BYTES)
    stored, salt = sealed.seal(KEY, DATASET, 0, plain)
    alone, nonce = AESGCM(KEY), b"n" * 12
    chunk = alone.encrypt(nonce, plain[: sealed.CHUNK_BYTES], b"")
    sides: dict[str, tuple[Callable[[], object], int]] = {
        "decrypt": (
            lambda: sealed.unseal(sealed.block_key(KEY, DATASET, 0, salt), DATASET, 0, stored, ""), BLOCK_BYTES
        ),
        "seal": (lambda: sealed.seal(KEY, DATASET, 0, plain), BLOCK_BYTES),
        "AESGCM": (lambda: alone.decrypt(nonce, chunk, b""), sealed.CHUNK_BYTES),
    }  # fmt: skip
    rounds = []
    for work, _ in sides.values():
        work()  # memory that is used for the first time costs more than what is measured
    for _ in range(ROUNDS):
        others, figures = Others(), {}
        for name, (work, size) in sides.items():
            times = (MIB << 20) // size
            began = time.thread_time()
            for _ in range(times):
                work()
            figures[name] = times * size / (time.thread_time() - began)
        rounds.append({**figures, "others": others.cores()})
    return rounds


def reader(kind: str, folder: Path) -> list[dict[str, Any]]:
    """Rounds: seconds for the data set, by side."""
    if kind != "records":
        line = b"All the words of this line are read, and checked to be UTF-8, before a model sees them.\n"
    else:
        line = (
            json.dumps({"text": "What a film, and what a long evening it was. " * 8, "label": "good"}).encode() + b"\n"
        )
    (folder / kind).mkdir()
    path = folder / kind / ("a.jsonl" if kind == "records" else "a.txt")
    path.write_bytes(line * ((MIB << 20) // len(line)))
    source, target = Store(uri=f"file://{path}"), Store(uri=f"file://{folder}/{kind}-sealed")
    manifest = encrypting.encrypt(source, target, KEY, block_bytes=BLOCK_BYTES)
    keys = Keyring()
    for block in range(len(manifest.blocks)):
        keys.put(block, manifest.sealed.key(KEY, block))
    schema = Schema("JSONLines", "text", "string", {"good": 1}, 1) if kind == "records" else None
    known = Vocabulary(tuple(dict.fromkeys(line.decode().lower().replace(",", "").replace(".", "").split())), ())
    files = (DataFile(uri=source.uri, size=path.stat().st_size),)
    sealed_files = tuple(DataFile(uri=b.uri, size=b.size) for b in manifest.blocks)
    plans = {
        "plain": (source, Plan(files, BLOCK_BYTES, known, schema)),
        "encrypted": (target, Plan(sealed_files, BLOCK_BYTES, known, schema, sealed=manifest.sealed)),
    }
    rounds = []
    for turn in range(ROUNDS):
        others, figures = Others(), {}
        for name, (store, plan) in plans.items():
            place = folder / f"{kind}-{name}-{turn}" / "blocks"
            began = time.thread_time()
            # What is encoded is not kept on the disk, which the encrypted side may not either.
            if kind == "records":
                records = RecordCorpus(store, plan, Data(store=store), place, keys)
                read: Callable[[int], object] = records.records
            elif kind == "words":
                read = Corpus(store, plan, WordEmbedding(), place, keys)._encode  # noqa: SLF001
            else:
                read = ByteCorpus(store, plan, place, keys)._encode  # noqa: SLF001
            for block in range(len(plan.blocks())):
                read(block)
            figures[name] = time.thread_time() - began
        rounds.append({**figures, "others": others.cores()})
    stores.remove_folder(target)
    return rounds


def report(samples: dict[str, Any]) -> int:
    print(words(samples["cipher"] + [one for rounds in samples["readers"].values() for one in rounds]))
    rounds = quiet(samples["cipher"])
    rates = {name: statistics.median(one[name] for one in rounds) for name in ("decrypt", "seal", "AESGCM")}
    print(", ".join(f"{name} {rate / 1e9:.2f} GB/s" for name, rate in rates.items()), "a core, median")
    over = {}
    for kind, all_rounds in samples["readers"].items():
        rounds = quiet(all_rounds)
        over[kind] = statistics.median(one["encrypted"] / one["plain"] for one in rounds) - 1
        speed = (samples["mib"] << 20) / statistics.median(one["encrypted"] for one in rounds) / 1e6
        print(f"reading {kind}: {speed:.0f} MB/s encrypted, {over[kind]:+.1%} time against plain")
    most = max(over["words"], over["records"])
    good = rates["decrypt"] >= GOAL_BYTES and most <= GOAL_OVERHEAD
    print(
        f"RESULT encryption {rates['decrypt'] / 1e9:.2f} GB/s a core, reader "
        f"{most:+.1%}: goal {'reached' if good else 'missed'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
