"""What the activation buffer does on a CUDA device, tested without one.

Twice: on a fake device, where whatever would wait for the GPU or mix devices fails; and on the CPU with two pretended
streams, where an access to the buffer that is not ordered behind the one it depends on is caught.
"""

from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from fake_cuda import FakeCuda, fake_language_model
from tiny import save_tiny, tiny_gemma2, tiny_tokenizer
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sae_bench.device import SideStream
from sae_bench.lm import passes
from sae_bench.lm.model import LanguageModel
from sae_bench.lm.sites import find_site
from sae_bench.lm.tokens import TokenStream
from sae_bench.progress import Progress
from sae_bench.training import buffer as buffers
from sae_bench.training import capture, serving
from sae_bench.training.buffer import ActivationBuffer
from sae_bench.training.serving import Serving

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module", params=["gemma2", "gemma3", "gpt_neox", "gpt2"])
def folder(request, tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("fake") / request.param, request.param)


@pytest.fixture
def cuda():
    with FakeCuda() as mode:
        yield mode


@pytest.fixture
def reads(monkeypatch, cuda):
    """A count of what the buffer asks the device; it may also send it tensors, and nothing else crosses the border."""
    reads = Counter()
    send = capture.send

    def announced(x, device):
        with cuda.border(closed=False):
            return send(x, device)

    def scale_and_mean(squares, total, n):
        reads["scale"] += 1
        return 2.0, (total / n).float()

    def check_finite(site, finite, dtype):
        assert (finite.device.type, finite.shape, finite.dtype) == ("cuda", (), torch.bool)
        reads["finite"] += 1

    for module in (buffers, capture, passes):
        monkeypatch.setattr(module, "send", announced)
    monkeypatch.setattr(serving, "scale_and_mean", scale_and_mean)
    monkeypatch.setattr(capture, "check_finite", check_finite)
    monkeypatch.setitem(capture.CAPTURE_TOKENS, "cuda", 64)
    return reads


def make(lm, corpus, **options):
    sites = [find_site(lm.model, "resid_post", 1), find_site(lm.model, "attn_out", 2)]
    tokens = TokenStream(str(corpus), lm.tokenizer, split="train", context_size=16, n_tokens=400, order_seed=0)
    given = {"batch_size": 30, "buffer_tokens": 200, "reuse": 3, "seeds": [0, 5]}
    return ActivationBuffer(lm, tokens, sites, Serving(**given | options), QUIET)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_whole_stream_on_a_fake_device(folder, corpus, at_work, cuda, reads, overlap):
    lm = fake_language_model(folder)
    with cuda.border(closed=True):
        stream = make(lm, corpus, overlap=overlap)
        batches = list(stream.batches())
    assert len(batches) == stream.n_steps == 40
    for batch in batches:
        assert set(batch) == {(site, seed) for site in stream.sites for seed in (0, 5)}
        for (site, _), x in batch.items():
            assert isinstance(x, FakeTensor)
            assert (x.device.type, x.dtype, x.shape) == ("cuda", torch.float32, (30, site.d_in))
    assert stream.n_captured == 400
    # Per site: the scale once; whether all is finite after the first of 7 passes, and after each of 4 fillings.
    assert reads == {"scale": 2, "finite": 2 * (1 + 4)}
    for site in stream.sites:
        assert (stream.mean[site].device.type, stream.mean[site].dtype) == ("cuda", torch.float32)
        assert stream.sample(site, 20).shape == (20, site.d_in)
        assert stream._buffer[site].shape == ((3 if overlap else 2) * 100, site.d_in)
        assert stream._buffer[site].dtype == torch.bfloat16


class PretendedStreams(TorchDispatchMode):
    """Two streams with a clock each; an access to the buffer must come after all that it depends on.

    `seen[a][b]` is how much of stream b's work is certain to be done before what stream a is given next. The rows of
    the buffer remember when each stream last read and wrote them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current, self.seen = "main", {a: {"main": 0, "side": 0} for a in ("main", "side")}
        self.last: dict[tuple[int, str, str], torch.Tensor] = {}
        self.watched: list[torch.Tensor] = []
        self.n_accesses = {"main": 0, "side": 0}

    def follow(self, later: str, earlier: str) -> None:
        self.seen[later] = {stream: max(self.seen[later][stream], self.seen[earlier][stream]) for stream in self.seen}

    def access(self, kind: str, x: torch.Tensor, rows: torch.Tensor | slice) -> None:
        for buffer in self.watched:
            if x.untyped_storage().data_ptr() != buffer.untyped_storage().data_ptr():
                continue
            here = self.current
            (other,) = {"main", "side"} - {here}
            self.n_accesses[here] += 1
            self.seen[here][here] += 1
            for before in ("write",) if kind == "read" else ("read", "write"):
                when = self.times(buffer, other, before)[rows]
                assert (when <= self.seen[here][other]).all(), f"{here} {kind}s rows that {other} may still {before}"
            self.times(buffer, here, kind)[rows] = self.seen[here][here]

    def times(self, buffer: torch.Tensor, stream: str, kind: str) -> torch.Tensor:
        return self.last.setdefault((buffer.data_ptr(), stream, kind), torch.zeros(len(buffer)))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not func.is_view:
            for x in tree_leaves(args):
                if isinstance(x, torch.Tensor):
                    picked = func is torch.ops.aten.index_select.default
                    self.access("read", x, args[2] if picked and x is args[0] else rows_of(x))
            if "out" in kwargs:
                self.access("write", kwargs["out"], rows_of(kwargs["out"]))
        return func(*args, **kwargs)


def rows_of(x: torch.Tensor) -> slice:
    """The rows of a buffer that a view of it stands for."""
    if x.ndim != 2 or not len(x):
        return slice(0, 0)
    first, step = x.storage_offset() // x.shape[1], x.stride(0) // x.shape[1]
    return slice(first, first + step * len(x), step)


@pytest.fixture
def streams(monkeypatch):
    """Pretended streams in the place of CUDA's."""
    streams = PretendedStreams()

    class PretendedSide(SideStream):
        def __init__(self, device):
            pass

        @contextmanager
        def work(self):
            assert streams.current == "main"
            streams.current = "side"
            yield
            streams.current = "main"

        def wait(self):
            streams.follow("side", "main")

        def join(self):
            streams.follow("main", "side")

        def uses(self, x):
            streams.watched.append(x)

    monkeypatch.setattr(buffers, "SideStream", PretendedSide)
    monkeypatch.setitem(capture.CAPTURE_TOKENS, "cpu", 64)
    with streams:
        yield streams


@pytest.mark.parametrize(("batch", "reuse"), [(30, 3), (7, 1), (250, 2)])
@pytest.mark.parametrize("overlap", [False, True])
def test_the_two_streams_never_meet_in_the_buffer(corpus, at_work, streams, overlap, batch, reuse):
    lm = LanguageModel(tiny_gemma2(), tiny_tokenizer(), "tiny")
    stream = make(lm, corpus, overlap=overlap, batch_size=batch, reuse=reuse)
    assert len(streams.watched) == len(stream.sites), "memory of the buffer may be reused while the side writes to it"
    for site in stream.sites:
        stream.sample(site, 20)
    for _ in stream.batches():
        assert streams.current == "main", "the trainer would work on the side"
    assert min(streams.n_accesses.values()) > 10, "nothing was watched"
