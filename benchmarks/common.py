"""What the benchmarks share: workers that wait for their turn, the activations they all get, tables and their setting.

Not run by itself. Everything that can be made again - environments, activations, logs - lies in `.benchmarks/`.
"""

import datetime
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, Self

import torch
from cyclopts import App, Parameter
from safetensors import safe_open
from safetensors.torch import save_file
from tabulate import tabulate
from workers.protocol import Spec, as_message

from sae_bench.cli.main import quieten_libraries
from sae_bench.lm.corpus import describe
from sae_bench.lm.load import load_language_model
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.sites import Site, find_site
from sae_bench.lm.tokens import TokenStream
from sae_bench.progress import Progress
from sae_bench.runs.provenance import own_version
from sae_bench.training.buffer import ActivationBuffer
from sae_bench.training.serving import Serving

HERE = Path(__file__).parent
RESULTS = HERE / "results"
SCRATCH = HERE.parent / ".benchmarks"

LAYER = 9
D_IN = 640
CONTEXT_SIZE = 128
N_ACTIVATIONS = 16_384

# Which environment a worker runs in; the others run in ours.
ENVIRONMENTS = {
    "sae_lens": "sae_lens",
    "dictionary_learning": "dictionary_learning",
    "sparsify": "dictionary_learning",
    "sae_bench": "sae_bench",
    "sae_bench_absorption": "sae_bench",
    "sae_lens_files": "sae_bench",  # which has SAELens in it
    "dictionary_learning_files": "dictionary_learning",
    "llamascopium_files": "llamascopium",
}


def application(about: str | None) -> App:
    """The command line of a benchmark, described by its module's docstring."""
    return App(help=about, help_format="plaintext", default_parameter=Parameter(negative=(), consume_multiple=True))


def scratch() -> Path:
    """The folder for what can be made again, made if need be; it tells git itself to leave it alone."""
    SCRATCH.mkdir(exist_ok=True)
    (SCRATCH / ".gitignore").write_text("*\n")
    return SCRATCH


# --- workers ---------------------------------------------------------------------------------------------------------


def peer_python(name: str, folder: Path = SCRATCH) -> Path:
    """The Python of a peer's environment."""
    return folder / name / "bin" / "python"


class Worker:
    """A process that answers one message at a time and sleeps in between; see `workers/protocol.py`."""

    def __init__(
        self, name: str, setting: Mapping[str, Any], environment: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.name = name
        python = peer_python(ENVIRONMENTS[name]) if name in ENVIRONMENTS else Path(sys.executable)
        if not python.exists():
            sys.exit(f"no environment for {name}: run python benchmarks/setup_peers.py")
        self._log = scratch() / f"{name}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python, "-m", f"workers.{name}", json.dumps(setting)],
                cwd=HERE,
                env=_environment() | dict(environment),
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self.versions: dict[str, str] = self._answer()["versions"]

    def ask(self, **message: Any) -> dict[str, Any]:
        """Send a message and wait for the answer.

        Raises:
            RuntimeError: the worker died; its last lines are in the message.
        """
        assert self._process.stdin is not None
        try:
            print(json.dumps(message), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            self._fail()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answers = (line for line in self._process.stdout if line.startswith("{"))  # the rest is libraries talking
        if (line := next(answers, None)) is None:
            self._fail()
        return dict(json.loads(line))

    def _fail(self) -> NoReturn:
        tail = "".join(self._log.open().readlines()[-30:])
        raise RuntimeError(
            f"worker {self.name} ended with {self._process.wait()}; the last lines of {self._log}:\n{tail}"
        )

    def l0(self, spec: Spec) -> float:
        """The measured L0 of a subject, which is made if need be."""
        return float(self.ask(**as_message("l0", spec))["l0"])

    def step(self, spec: Spec) -> float:
        """Seconds of one training step."""
        return float(self.ask(**as_message("step", spec))["seconds"])

    def drop(self, spec: Spec) -> None:
        """Free a subject's memory."""
        self.ask(**as_message("drop", spec))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def _environment() -> dict[str, str]:
    """Ours, without what would lead a peer to our packages or to the network."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}


def turn(worker: Worker, spec: Spec) -> Callable[[], float]:
    """One step of a subject, when it is its turn."""
    return lambda: worker.step(spec)


def start_workers(stack: ExitStack, names: Iterable[str], threads: int) -> dict[str, Worker]:
    """Start workers for training steps; they end with the stack."""
    setting = {"activations": str(activations()), "threads": threads}
    return {name: stack.enter_context(Worker(name, setting)) for name in names}


# --- timing ----------------------------------------------------------------------------------------------------------

Seconds = dict[Any, list[float]]
"""What was timed -> its seconds, round by round."""


def interleave(turns: Mapping[Any, Callable[[], float]], rounds: int, discard: int) -> Seconds:
    """Time everything once a round, in an order drawn anew for each; the first rounds warm up and are left out."""
    seconds: Seconds = {key: [] for key in turns}
    order, keys = random.Random(0), list(turns)
    for number in Progress().track("rounds", range(discard + rounds), discard + rounds):
        order.shuffle(keys)
        for key in keys:
            taken = turns[key]()
            if number >= discard:
                seconds[key].append(taken)
    return seconds


def ms(seconds: Sequence[float]) -> str:
    """Median in milliseconds."""
    return f"{1000 * statistics.median(seconds):,.0f}"


def ratio(above: Sequence[float], below: Sequence[float]) -> str:
    """Median over the rounds of one time over another of the same round, with the quartiles."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    if len(ratios) < 2:
        return f"{ratios[0]:.2f}"
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


# --- what is worked on -----------------------------------------------------------------------------------------------


def load_demo() -> tuple[LanguageModel, Site]:
    """Gemma 3 270M in float32 and the residual stream after its layer 9."""
    quieten_libraries()
    lm = load_language_model("demo", device="cpu", dtype=torch.float32)
    return lm, find_site(lm.model, "resid_post", LAYER)


def training_buffer(
    lm: LanguageModel, site: Site, n_tokens: int, batch_size: int, progress: Progress
) -> ActivationBuffer:
    """Activations of the embedded corpus, each used once."""
    tokens = TokenStream(
        "embedded", lm.tokenizer, split="train", context_size=CONTEXT_SIZE, n_tokens=n_tokens, order_seed=0
    )
    serving = Serving(batch_size, buffer_tokens=2 * n_tokens, reuse=1, seeds=[0])
    return ActivationBuffer(lm, tokens, [site], serving, progress)


def activations() -> Path:
    """File with real activations in random order, scaled to E||x||^2 = 1 as in training; made once."""
    path = scratch() / f"activations-layer_{LAYER}-{N_ACTIVATIONS}.safetensors"
    if not path.exists():
        lm, site = load_demo()
        buffer = training_buffer(lm, site, N_ACTIVATIONS, N_ACTIVATIONS, Progress())
        x = next(buffer.batches())[site, 0]
        partial = path.with_suffix(".partial")
        save_file({"x": x}, partial, {"scale": str(buffer.scale[site]), "corpus": describe("embedded")})
        partial.rename(path)
    return path


def metadata() -> dict[str, str]:
    """The activations' scale and corpus."""
    with safe_open(activations(), "pt") as file:
        return dict(file.metadata())


# --- results ---------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Sequence[object]], headers: Sequence[str]) -> str:
    """A Markdown table: first column left, the others right."""
    return tabulate(
        rows, headers, tablefmt="pipe", disable_numparse=True, colalign=["left"] + ["right"] * (len(headers) - 1)
    )


def write_result(folder: Path, title: str, parts: Sequence[str], versions: Mapping[str, str], threads: int) -> None:
    """Write (and print) a result: its parts, then where, when, with what and by which command it was measured."""
    name = Path(sys.argv[0]).stem
    words = re.sub(r" --(out|folder)[= ]\S+", "", " ".join(["", *sys.argv[1:]]))  # where files lay is nobody's concern
    command = f"python benchmarks/{name}.py{words}"
    used = ", ".join(f"{package} {number}" for package, number in (own_version() | dict(versions)).items())
    setting = f"{machine()}; {threads} threads. {datetime.date.today()}. {used}.\n\n    {command}"
    text = "\n\n".join([f"# {title}", *parts, "## Setting", setting]) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text)
    print(text)


def machine() -> str:
    """Processor, cores, memory, system; no host name."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    processor = names[0] if names else platform.machine()
    system = f"{platform.system()}, Python {platform.python_version()}"
    return f"{processor}, {os.cpu_count()} cores, {memory:.0f} GiB, {system}"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
