"""Suites, recipes, worlds, prices, corpora and labelled texts, whole and changed."""

import shutil
from pathlib import Path
from typing import Any

from fuzzed.target import Make, Target, Wrong, command


def _settings(text: str, name: str = "suite.toml") -> Make:
    def make(folder: Path) -> list[Path]:
        folder.mkdir(parents=True)
        (folder / name).write_text(text)
        return [folder / name]

    return make


SUITE = """# A suite with a setting of every kind.
arch = ["topk", "jumprelu:l0_coeff=0.1", "batchtopk"]
model = "gemma-2-2b"
dataset = "someone/text:english"
layer = [3, 12]
site = ["resid_post", "mlp_out"]
width = [2048, 4096]
l0 = "16,32"
seed = [0, 1]
tokens = "2M"
reuse = 2
batch_size = 1024
buffer_tokens = 65536
eval_tokens = 8192
context_size = 128
preset = "short"
dtype = "float32"
checkpoint_every = "10m"
tasks = ["reconstruction", "delta_lm_loss"]
"""


def _read_suite(folder: Path) -> None:
    from sae_bench.runs.suite import configure

    configure(str(folder / "suite.toml"), {})


def _recipe(folder: Path) -> list[Path]:
    """With its trials, of which the last file is the check's."""
    from recipes import write_recipe

    from sae_bench.registry import ARCHITECTURES
    from sae_bench.runs.tuned import TunedArch

    settings = {"topk": {"lr": 0.004, "aux_coeff": 0.03}, "jumprelu": {"lr": 0.002, "bandwidth": 0.1}}
    found = {name: TunedArch(version=ARCHITECTURES[name].version, settings=of) for name, of in settings.items()}
    folder.mkdir(parents=True)
    write_recipe(folder / "recipe.toml", found, l0s=[5.0], split="near-duplicates 1")
    return [folder / "recipe.toml", *sorted((folder / "recipe").iterdir())]


def _read_recipe(folder: Path) -> None:
    """As far as a run's plan, which makes an SAE and a trainer's recipe of it."""
    from sae_bench.runs.plan import plan_saes  # noqa: F401

    command("--recipe", folder / "recipe.toml", "--model", "synthetic", "--arch", "topk", "jumprelu", "--dry-run")


WORLD = """like = "small"
n_features = 64
d_in = 16
n_roots = 4
n_children = 3
depth = 2
exclusive = true
max_probability = 0.4
min_probability = 0.001
exponent = 0.5
correlation_rank = 5
first_magnitude = 5.0
last_magnitude = 4.0
bias_norm = 0.5
orthogonal_steps = 3
orthogonal_lr = 3e-4
seed = 1
"""


def _read_world(folder: Path) -> None:
    import torch

    command("--model", f"synthetic:{folder / 'world.toml'}", "--arch", "topk", "--l0", 3, "--dry-run")
    from sae_bench.synthetic.settings import world_settings
    from sae_bench.synthetic.world import World

    name, settings = world_settings(f"synthetic:{folder / 'world.toml'}")
    world = World(settings, name, torch.device("cpu"))
    if world.n_bytes > 1 << 24 or settings.orthogonal_steps > 1000:
        return  # it can be made, and is too large for a test
    (x,) = world.capture(torch.arange(2 * 257).reshape(2, 257), world.find_sites(["synthetic"], [])).values()
    if not torch.isfinite(x).all():
        raise Wrong("a world whose activations are not finite")


PRICES = '["a judge"]\ninput = 1.5\noutput = 6\n["another"]\ninput = 0.1\noutput = 0.4\n'


def _read_prices(folder: Path) -> None:
    from sae_bench.autointerp.budget import load_prices

    load_prices(str(folder / "prices.toml"))


# Text


def _corpus(name: str) -> Make:
    def make(folder: Path) -> list[Path]:
        import pandas as pd
        import pyarrow

        folder.mkdir(parents=True)
        texts = [
            f"The river came down from hill {i} in spring,\nand carried \u201estones\u201c past \U0001f600."
            for i in range(40)
        ]
        table, path = pd.DataFrame({"text": texts, "n": range(40)}), folder / name
        plain = path.with_suffix("") if path.suffix in (".gz", ".zst", ".xz", ".bz2") else path
        if plain.suffix == ".txt":
            plain.write_text("\n\n".join(texts))
        elif plain.suffix == ".parquet":
            table.to_parquet(plain)
        elif plain.suffix == ".csv":
            table.to_csv(plain, index=False)
        else:
            table.to_json(plain, orient="records", lines=True)
        if plain != path:
            content = plain.read_bytes()
            plain.unlink()
            if path.suffix == ".xz":
                import lzma

                path.write_bytes(lzma.compress(content))
            else:
                codec = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}[path.suffix]
                with pyarrow.output_stream(str(path), compression=codec) as stream:
                    stream.write(content)
        return [path]

    return make


def _read_corpus(folder: Path) -> None:
    from sae_bench.lm import corpus
    from sae_bench.lm.tokens import TokenStream
    from sae_bench.records.names import cache_folder

    (path,) = folder.iterdir()
    try:
        corpus.check_source(str(path))
        for text in TokenStream._readable(_of(str(path)), corpus.documents(str(path), order_seed=0)):
            if not isinstance(text, str):
                raise Wrong(f"a document that is {type(text).__name__}")
    finally:
        for below in (cache_folder() / "datasets").glob("*"):
            shutil.rmtree(below, ignore_errors=True)
        for below in cache_folder().glob("unpacked*"):
            below.unlink()


def _of(source: str) -> Any:
    """As much of a token stream as its reading of texts asks for."""
    from types import SimpleNamespace

    return SimpleNamespace(source=source)


def _probe_set(name: str) -> Make:
    def make(folder: Path) -> list[Path]:
        import pandas as pd

        folder.mkdir(parents=True)
        table = pd.DataFrame({"text": [f"text {i}" for i in range(60)], "label": ["a", "b"] * 30})
        path = folder / name
        if path.suffix == ".csv":
            table.to_csv(path, index=False)
        elif path.suffix == ".parquet":
            table.to_parquet(path)
        else:
            table.to_json(path, orient="records", lines=True)
        return [path]

    return make


def _read_probe_set(folder: Path) -> None:
    from sae_bench.probing.sets import own_set

    (path,) = folder.iterdir()
    own_set(str(path))


CORPORA = ("text.jsonl", "text.parquet", "text.txt", "text.csv", "text.jsonl.gz", "text.jsonl.zst", "text.txt.xz")
PROBES = ("texts.csv", "texts.jsonl", "texts.parquet")

SETTINGS = {
    "suite": Target(_settings(SUITE), _read_suite),
    "recipe": Target(_recipe, _read_recipe, 200),
    "world": Target(_settings(WORLD, "world.toml"), _read_world, 200),
    "prices": Target(_settings(PRICES, "prices.toml"), _read_prices),
}
TEXTS = {
    **{f"corpus {name}": Target(_corpus(name), _read_corpus, 200) for name in CORPORA},
    **{f"probes {name}": Target(_probe_set(name), _read_probe_set) for name in PROBES},
}
