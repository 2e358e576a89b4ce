"""More than a reader thought of, for `faults`: texts of hundreds of megabytes, small files that hold them, deep JSON.

Each is a corpus that a run is given. The run ends well, or with one line; and it takes memory in proportion to one
document, whatever the file claims.
"""

import gzip
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from command import write_corpus
from lab import Lab, Outcome
from warm import Command

MB = 10**6


def attacks(folder: Path, share: float) -> dict[str, tuple[Path, int, str | None]]:
    """By what it is: the file, how many MB its longest document has, and what the one line says, if it is refused."""
    import pandas as pd

    folder.mkdir()
    words = "the river came down from the hills in spring and carried grey stones past the old mill where nobody had"
    short = write_corpus(folder / "short.jsonl").read_text().splitlines(keepends=True)

    def lines(name: str, *more: str) -> Path:
        with (open if not name.endswith(".gz") else gzip.open)(folder / name, "wt") as file:
            file.writelines(short)
            file.writelines(f'{{"text": "{text}"}}\n' for text in more)
        return folder / name

    def long(megabytes: int) -> str:
        return f"{words} " * (megabytes * MB // (len(words) + 1))

    huge, large, medium, many = int(300 * share), int(100 * share), max(1, int(20 * share)), int(60 * share) + 2
    (folder / "deep.jsonl").write_text("".join(short) + '{"text": "a", "b": ' + "[" * MB + "]" * MB + "}\n")
    texts = [json.loads(line)["text"] for line in short]
    for name, of in (("packed", [long(huge)]), ("beside", [*texts, "a" * (huge * MB)])):
        table = pd.DataFrame({"text": of})
        table.to_parquet(folder / f"{name}.parquet", compression="brotli", use_dictionary=False)
    packed = (folder / "packed.parquet").stat().st_size
    return {
        "JSON, a million lists in one another": (folder / "deep.jsonl", 2, "more than 200 deep"),
        f"parquet, {packed:,} bytes of {huge} MB text": (folder / "packed.parquet", huge, "holds 0 evaluation tokens"),
        f"parquet, a word of {huge} MB": (folder / "beside.parquet", huge, None),
        f"JSON lines, a document of {large} MB": (lines("long.jsonl", long(large)), large, None),
        f"JSON lines, 3 documents of {medium} MB": (lines("three.jsonl", *[long(medium)] * 3), medium, None),
        f"packed JSON lines, {many} documents of 1 MB": (lines("many.jsonl.gz", *[long(1)] * many), 1, None),
    }


MOST_FOR_A_BYTE, MOST_BESIDE = 8, 600 * MB
"""Memory that a run may take for each byte of its longest document, and besides, beyond that of a small corpus."""


def resident(process: Command) -> Iterator[int]:
    """The most bytes of memory that were resident, as long as a process lives."""
    while process.exitcode is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            yield next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))
        except (OSError, StopIteration):
            break
        time.sleep(0.02)


def run_of(lab: Lab, corpus: Path) -> tuple[int, str, int, float]:
    """A run on a corpus: exit code, what it said, its peak of memory, seconds."""
    command = lab.command(lab.new())
    command[command.index("--dataset") + 1] = str(corpus)
    started = time.monotonic()
    process = Command(command)
    peak = max(resident(process), default=0)
    code, said = process.end()
    return code, said, peak, time.monotonic() - started


def loads(lab: Lab, share: float = 1.0) -> Outcome:
    """Every attack, or such a share of its size; one that ends as it should not, or takes too much, did not survive."""
    code, _, usual, _ = run_of(lab, lab.settings["--dataset"])
    assert code == 0
    found = attacks(lab.folder / "loads", share)
    survived = 0
    for what, (path, megabytes, refusal) in found.items():
        code, said, peak, seconds = run_of(lab, path)
        more, most = peak - usual, MOST_FOR_A_BYTE * megabytes * MB + MOST_BESIDE
        if refusal is None:
            well = code == 0
        else:
            well = code == 2 and refusal in said and said.count("error: ") == 1 and "Traceback" not in said
        survived += well and more < most
        print(f"{what}: exit {code} after {seconds:.0f} s, {more / MB:,.0f} MB of {most / MB:,.0f}", flush=True)
        if not well:
            print(said[-2000:], flush=True)
        path.unlink()
    return Outcome("corpora that ask for memory: deep, packed, of huge documents", len(found), survived)


def soak(lab: Lab, tokens: int) -> Outcome:
    """A long run: resident memory at the end is that of its first quarter."""
    name = lab.new()
    command = [*lab.command(name)]
    command[command.index("--tokens") + 1] = str(tokens)
    process = Command(command)
    sizes = []
    while process.exitcode is None:
        try:
            status = Path(f"/proc/{process.pid}/statm").read_text().split()
            sizes.append(int(status[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
        except (OSError, IndexError):
            break
        time.sleep(0.5)
    code, _ = process.end()
    early, late = max(sizes[len(sizes) // 8 : len(sizes) // 4]), max(sizes[-len(sizes) // 4 :])
    flat = code == 0 and late < 1.05 * early + 10
    print(f"soak: {tokens:,} tokens, {len(sizes) / 2:.0f} s, {early:.0f} MiB early, {late:.0f} MiB late", flush=True)
    return Outcome(f"soak: {tokens:,} tokens, memory stays flat", 1, int(flat))
