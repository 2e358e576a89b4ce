"""More faults for `faults`: files of a user's beside a run's, links out of its folder, and damaged caches."""

from sae_bench.records.names import cache_folder

USERS = ("figures/plot.svg", "records/patients.csv", "saes/notes.txt", "report.html", "thesis.tex", "wandb/log")

CACHES = ("datasets/**/*.arrow", "*.parquet", "datasets/**/dataset_info.json", "rates.json", ".*.kept.json")


def users_files(lab, n):
    """--overwrite, which deletes a run, in a folder that holds files of its user, and one that holds nothing else."""
    names, survived = [], 0
    for _ in range(n):
        names.append(name := lab.new())
        assert lab.finish(name)
        mine = _put(lab.folder / name)
        outside = lab.folder / f"{name}-outside"
        outside.mkdir()
        (outside / ".precious.tmp").write_text("mine")
        (lab.folder / name / "figures" / "link").symlink_to(outside)
        paper = _put(lab.folder / f"{name}-paper")
        done = _overwrite(lab, name) == 0 and _overwrite(lab, f"{name}-paper") == 2
        survived += done and all(path.read_text() == "mine" for path in [*mine, *paper, outside / ".precious.tmp"])
    return lab.judge("--overwrite beside a user's files and links", 2 * n, names, 2 * survived)


def _put(folder):
    paths = [folder / name for name in USERS]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    return paths


def _overwrite(lab, name):
    return lab.run(name, "--overwrite").end()[0]


def damaged_caches(lab, each, kinds=CACHES):
    """A flipped bit in what the cache folder keeps: what was read of a corpus, its repeated texts, rates, seals."""
    names, injected = [], 0
    for kind in kinds:
        for _ in range(each):
            path = lab.draw.choice(sorted(cache_folder().glob(kind)))
            content = bytearray(path.read_bytes())
            content[lab.draw.randrange(len(content))] ^= 1 << lab.draw.randrange(8)
            path.write_bytes(content)
            names.append(name := lab.new())
            injected += lab.finish(name)
    return lab.judge("one flipped bit in a cache, every kind of cache", len(names), names, injected)
