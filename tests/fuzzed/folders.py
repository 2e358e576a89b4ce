"""What this program writes and reads again - runs, studies, tunings, caches, checkpoints - and what judges answer.

After accidents, and sealed again by others.
"""

import contextlib
import json
from functools import partial
from pathlib import Path
from typing import Any

from fuzzed.target import Target, Wrong, command, each
from fuzzed.texts import WORLD


def _run(folder: Path) -> list[Path]:
    from synthetic import records, write_run

    few = records(("topk", "jumprelu"), targets=(16.0, 32.0), seeds=(0,))
    write_run(folder / "run", few, n_latents=2)
    return [path for path in folder.rglob("*") if path.is_file()]


def _read_run(folder: Path) -> None:
    run = folder / "run"
    (sae,) = sorted((run / "latents").iterdir())[:1]
    (latent,) = sorted(sae.glob("*.json"))[:1]
    each(*(partial(command, *arguments) for arguments in (
        ("table", run), ("table", run, "--columns", "all"), ("table", run, "--over-seeds", "--format", "csv"),
        ("compare", run), ("claims", run), ("power", run), ("report", run),
        ("explain", run, sae.name, "--latent", latent.stem),
    )))  # fmt: skip


def _study(folder: Path) -> list[Path]:
    from study.made_study import answer, make
    from synthetic import records, write_run

    labels = ("topk", "jumprelu")
    write_run(folder / "run", records(labels, targets=(16.0,), seeds=(0,)))
    of = make(folder / "study", dict.fromkeys(labels, Path("run")), n_latents=4, n_raters=3, overlap=2, repeats=1)
    answer(of, lambda rater, label, latent: ("yes" if latent % 3 else "no", None))
    events = [json.loads(line) for line in of.answers_path(1).read_text().splitlines()]
    about = {"kind": "sae-arch-bench study answers", "format": 1, "study": "study0000000", "rater": 1}
    (folder / "results-1.json").write_text(json.dumps(about | {"events": events}))
    return [path for path in folder.rglob("*") if path.is_file() and "run" not in path.parts]


def _read_study(folder: Path) -> None:
    from sae_bench.study.answers import add_events
    from sae_bench.study.schema import StudyFolder

    study, run, of = folder / "study", folder / "run", StudyFolder(folder / "study")
    each(
        lambda: add_events(of, of.assignment(1), []),
        partial(command, "study", "import", study, folder / "results-1.json"),
        partial(command, "study", "export-pages", study),
        partial(command, "study", "results", study, run),
        partial(command, "study", "power", study),
        partial(command, "table", run),
    )


def _tuning(folder: Path) -> list[Path]:
    """A finished search on a world of a few features."""
    (folder.parent / "world.toml").write_text(WORLD)  # beside the copies: all are tunings on it
    command("tune", *_search(folder.parent / "world.toml"), "--out", folder / "tuned", "--quiet")
    return [*(folder / "tuned").glob("*.json"), folder / "tuned" / "rung_1" / "run.json"]


SEARCH = {"trials": 2, "rungs": 1, "factor": 2, "check_seeds": 2}


def _search(world: Path) -> list[object]:
    given = {"--model": f"synthetic:{world}", "--arch": "topk", "--width": 32, "--tokens": 1024, "--eval-tokens": 1024,
             "--batch-size": 256, **{f"--{name.replace('_', '-')}": n for name, n in SEARCH.items()}}  # fmt: skip
    return [*(part for pair in given.items() for part in pair), "--l0", 2, 4]


def _read_tuning(folder: Path) -> None:
    """Go on with it, where training would begin, and delete it."""
    from sae_bench.errors import UserError
    from sae_bench.progress import Progress
    from sae_bench.runs.suite import configure
    from sae_bench.tuning.trials import TuneSettings
    from sae_bench.tuning.tune import clear, tune

    config = configure(None, {
        "model": f"synthetic:{folder.parent / 'world.toml'}", "archs": ["topk"], "widths": [32], "tokens": 1024,
        "eval_tokens": 1024, "batch_size": 256, "l0s": [2, 4],
    })  # fmt: skip

    def work(*_: object) -> Any:
        raise UserError("here it would train")

    out = folder / "tuned"
    each(lambda: tune(config, TuneSettings(**SEARCH), out, Progress(quiet=True), work), lambda: clear(out))


def _cache(folder: Path) -> list[Path]:
    import torch

    from sae_bench.activations_cache.identity import write_manifest

    store, batches, sites = _store(folder)
    for batch in batches:
        store.add(batch, 4, {site: torch.ones(*batch.tokens.shape, site.d_in) for site in sites})
        store.flush()
    write_manifest(folder, IDENTITY, "a" * 64, "b" * 64)
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix in (".json", ".safetensors")]


IDENTITY = {"format": 1, "model": "tiny", "dataset": "text.jsonl", "dtype": "float32", "context_size": 6}


def _store(folder: Path) -> Any:
    import torch

    from sae_bench.activations_cache.identity import folder_of
    from sae_bench.activations_cache.store import PassStore
    from sae_bench.lm.sites import Site
    from sae_bench.lm.tokens import TokenBatch

    sites = [Site(1, "resid_post", "model.layers.1", "output", 3), Site(2, "mlp_out", "model.layers.2", "output", 5)]
    draw = torch.Generator().manual_seed(0)
    tokens = [torch.randint(3, 100, (4, 6), generator=draw) for _ in range(2)]
    batches = [TokenBatch(of, torch.full_like(of, n)) for n, of in enumerate(tokens)]
    return PassStore(folder_of(folder, IDENTITY), "a", folder), batches, sites


def _read_cache(folder: Path) -> None:
    import torch

    from sae_bench.activations_cache.identity import known_hashes, nearest_other

    def serve() -> None:
        store, batches, sites = _store(folder)
        for batch in batches:
            for site in sites:
                x = store.find(site, batch.tokens, 4)
                if x is not None and not torch.equal(x, torch.ones(4, 6, site.d_in)):
                    raise Wrong(f"activations that nobody captured: {tuple(x.shape)}")
            store.add(batch, 4, {site: torch.ones(4, 6, site.d_in) for site in sites})
        store.flush()

    each(
        lambda: nearest_other(folder, IDENTITY | {"model": "another"}),
        lambda: known_hashes(folder, IDENTITY),
        serve,
    )


def _checkpoint(folder: Path) -> list[Path]:
    from toy_trainer import activations, started

    from sae_bench.training.checkpoint import Checkpoints

    trainer = started("jumprelu")
    checkpoints = Checkpoints(folder / "checkpoints", ["c" * 64])
    for step in range(6):
        trainer.step(activations(step), step, logged=step % 2 == 0)
        if step in (2, 5):
            checkpoints.save(step + 1, {"one": trainer.state_dict()}, {"seconds": 1.0})
    return [path for path in folder.rglob("*") if path.is_file()]


def _read_checkpoint(folder: Path) -> None:
    from toy_trainer import activations

    from sae_bench.records.files import of_our_form
    from sae_bench.training.checkpoint import Checkpoints, checkpointed

    checkpointed(folder / "checkpoints")
    found = Checkpoints(folder / "checkpoints", ["c" * 64]).load(["one"])
    if found is None:
        return
    with of_our_form(folder / "checkpoints", RuntimeError):
        trainer = _resumed(found.parts["one"])
    trainer.step(activations(6), 6, logged=True)


def _resumed(state: Any) -> Any:
    import torch
    from toy_trainer import SITE

    from sae_bench import ARCHITECTURES, SAEConfig
    from sae_bench.runs.arch_spec import ArchSpec
    from sae_bench.runs.plan import settle
    from sae_bench.training.trainer import SAETrainer, StepSettings

    options, recipe = settle(ArchSpec.parse("jumprelu"), "short")
    sae = ARCHITECTURES["jumprelu"](SAEConfig(d_in=6, d_sae=24, l0=3, seed=1, options=options))
    return SAETrainer("one", sae, (SITE, 0), recipe, StepSettings(50, 40, torch.device("cpu")), state)


def _judge(folder: Path) -> list[Path]:
    from hostile_judge import completion

    folder.mkdir(parents=True)
    tokens = [{"token": "7", "logprob": -0.1, "top_logprobs": [{"token": str(i), "logprob": -i / 2} for i in range(5)]}]
    for n, text in enumerate(('{"explanation": "rivers"}', '{"1": true, "2": false}', "yes\nbecause", '{"a": [1, 2]}')):
        answer = completion(text, logprobs={"content": tokens})
        (folder / f"answer{n}.json").write_text(json.dumps(answer))
    return [*folder.iterdir()]


def _read_judge(folder: Path) -> None:
    """As the client reads a body; an answer that is none is a failure with a name, and is counted."""
    from sae_bench.autointerp.completion import read_completion
    from sae_bench.autointerp.explainer import read_explanation
    from sae_bench.autointerp.parse import (
        Unreadable,
        booleans,
        read_boolean,
        read_cut_boolean,
        read_json,
        whole_sentence,
    )

    for path in sorted(folder.iterdir()):
        found = read_completion(path.read_bytes())
        if found is None:
            continue
        _ = found.refusal, found.cut, found.billed, found.tokens
        for read in (
            read_explanation, whole_sentence, lambda text: read_boolean(text, "1"),
            lambda text: read_cut_boolean(text, "1"), lambda text: read_json(text, booleans, ["1", "2"]),
        ):  # fmt: skip
            with contextlib.suppress(Unreadable):
                read(found.text)


FOLDERS = {
    "run": Target(_run, _read_run, 200),
    "study": Target(_study, _read_study, 200),
    "tuning": Target(_tuning, _read_tuning, 200),
    "activations": Target(_cache, _read_cache),
    "checkpoint": Target(_checkpoint, _read_checkpoint),
    "judge": Target(_judge, _read_judge),
}
