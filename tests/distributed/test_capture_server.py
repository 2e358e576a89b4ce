"""The server of a shared capture, without Ray: bounded, in step with its slowest reader, the same whoever is lost."""

import time

import pytest
import torch
from toy_capture import N_STEPS, SEEDS, in_thread, keys_of, opener, toy_buffer, toy_model, toy_sites

from sae_bench.distributed.capture_messages import as_rows
from sae_bench.distributed.capture_server import CaptureServer, NotConnectedError
from sae_bench.errors import UserError

CPU = torch.device("cpu")
SITES = toy_sites(toy_model())
FIRST, SECOND = SITES
WINDOW = 3


class Store:
    """What was put, so that a test may ask how much of it is still held."""

    def __init__(self):
        self.held = self.most = 0

    def put(self, array):
        store = self

        class Held:
            def __init__(self):
                self.array = array.copy()
                store.held += self.array.nbytes
                store.most = max(store.most, store.held)

            def __del__(self):
                store.held -= self.array.nbytes

        return Held()


@pytest.fixture(scope="module")
def expected(corpus, at_work):
    """Every batch of one process, not scaled, and the facts at the end."""
    buffer = toy_buffer(str(corpus))
    return list(buffer.unscaled()), buffer.facts()


@pytest.fixture
def serve(corpus):
    def serve(readers, store=None, patience_s=60.0, open_buffer=None):
        store = store or Store()
        return CaptureServer(
            open_buffer or opener(str(corpus)), readers, store.put, window=WINDOW, patience_s=patience_s
        )

    return serve


def rows(served, key):
    return as_rows(served.rows[key].array, torch.float32, CPU)


def same(served, batch, keys):
    assert list(served.rows) == list(keys)
    return all(torch.equal(rows(served, key), batch[key]) for key in keys)


class Reader:
    """A reader that keeps what `SharedSource` keeps."""

    def __init__(self, server, name, keys, n_done=0, state=None):
        self.server, self.name, self.keys, self.n_done, self.state = server, name, keys, n_done, state
        self.facts = None
        self.connect(server)

    def connect(self, server):
        self.server = server
        state = self.state and {**self.state, "n_done": self.n_done}
        server.connect(self.name, self.n_done, state)

    def next(self):
        served = self.server.batch(self.name, self.n_done, self.state and self.state["n_before"])
        if served.cycle is not None:
            self.state, self.facts = served.cycle.state, served.cycle.facts
        self.n_done += 1
        return served

    def checkpoint(self):
        return {"n_done": self.n_done, "state": {**self.state, "n_done": self.n_done}}


def two(server):
    return Reader(server, "a", keys_of([FIRST], SEEDS)), Reader(server, "b", keys_of([SECOND], [1]))


READERS = {"a": keys_of([FIRST], SEEDS), "b": keys_of([SECOND], [1])}


def test_every_reader_is_served_the_batches_of_one_process(serve, expected):
    batches, facts = expected
    assert len(batches) == N_STEPS > 20
    server = serve(READERS)
    a, b = two(server)
    for batch in batches:
        assert same(a.next(), batch, a.keys)
        assert same(b.next(), batch, b.keys)
    assert server.end("a", N_STEPS) == server.end("b", N_STEPS) == facts


def test_a_reader_is_told_nothing_of_sites_that_are_not_its_own(serve):
    a, b = two(serve(READERS))
    first = a.next()
    assert set(first.opening.samples) == set(first.opening.scaling.scale) == {FIRST}
    assert {key.rpartition(" ")[0] for key in a.state["carried"]} == {FIRST.name}
    b.next()
    assert {key.rpartition(" ")[0] for key in b.state["carried"]} == {SECOND.name}


def test_a_fast_reader_waits_for_the_slow_one_and_no_more_is_held_than_the_window(serve, expected):
    batches, _ = expected
    store = Store()
    a, b = two(serve(READERS, store))
    for _ in range(WINDOW):
        a.next()
    waiting, result = in_thread(a.next)
    waiting.join(0.5)
    assert waiting.is_alive(), "the window is full, and b had nothing"
    b.next(), b.next()  # that it asks for the second says that it has done with the first
    waiting.join(20)
    assert same(result[0], batches[WINDOW], a.keys)
    del result
    for _ in range(WINDOW + 1, N_STEPS):
        b.next(), a.next()
    # Two keys of the one and one of the other, rows and sample; the sample is dropped with the first batch.
    n_bytes = sum(batches[0][key].nbytes for keys in READERS.values() for key in keys)
    opening = 2 * 300 * FIRST.d_in * 4
    assert store.most <= (WINDOW + 1) * n_bytes + opening


def test_a_reader_from_an_earlier_checkpoint_is_served_the_same_and_the_others_wait(serve, expected):
    batches, facts = expected
    server = serve(READERS)
    a, b = two(server)
    kept = []
    for step in range(20):
        a.next(), b.next()
        if step == 6:
            kept.append(b.checkpoint())
    again = Reader(server, "b", b.keys, **kept[0])
    waiting, result = in_thread(a.next)
    for step in range(7, N_STEPS):
        assert same(again.next(), batches[step], again.keys), step
        if step > 20:
            assert same(a.next(), batches[step], a.keys), step
        if step == 20:
            waiting.join(20)
            assert same(result[0], batches[20], a.keys)
    assert server.end("a", N_STEPS) == server.end("b", N_STEPS) == facts


@pytest.mark.parametrize("at", [1, 11, 30])
def test_a_server_that_starts_anew_goes_on_from_what_its_readers_bring(serve, expected, at):
    batches, facts = expected
    a, b = two(serve(READERS))
    for _ in range(at):
        a.next()
        b.next()
    assert same(a.next(), batches[at], a.keys)
    server = a.server = serve(READERS)
    with pytest.raises(NotConnectedError):
        a.next()
    a.connect(server)
    b.connect(server)
    for step in range(at, N_STEPS):
        if step > at:
            assert same(a.next(), batches[step], a.keys), step
        assert same(b.next(), batches[step], b.keys), step
    assert server.end("b", N_STEPS) == facts


def test_a_state_without_a_seed_of_the_others_is_made_up_for_from_the_beginning(serve, expected, corpus):
    """A cell that captured by itself, and whose checkpoint goes on with others."""
    batches, _ = expected
    own = toy_buffer(str(corpus), [SECOND], [1])
    stream = own.batches()
    for _ in range(9):
        next(stream)
    server = serve(READERS)
    server.leave("a")
    b = Reader(server, "b", READERS["b"], 9, own.state_dict(9))
    assert [same(b.next(), batch, b.keys) for batch in batches[9:12]] == [True] * 3


def test_a_silent_reader_is_given_up_and_may_come_back(serve, expected):
    batches, _ = expected
    server = serve(READERS, patience_s=0.2)
    a, b = two(server)
    b.next()
    for step in range(12):
        assert same(a.next(), batches[step], a.keys), "b says nothing, and is given up"
    with pytest.raises(NotConnectedError):
        b.next()
    b.connect(server)
    for step in range(1, 8):
        assert same(b.next(), batches[step], b.keys), step


def test_a_reader_that_nobody_waits_for_is_not_given_up(serve):
    server = serve(READERS, patience_s=0.1)
    a, b = two(server)
    a.next(), b.next()
    time.sleep(0.5)
    a.next(), b.next()


def test_what_keeps_the_buffer_from_going_on_is_told_to_all_and_tried_again(serve, corpus):
    broken = [True]

    def open_buffer(**how):
        if broken.pop() if broken else False:
            raise UserError("the corpus cannot be read any further")
        return toy_buffer(str(corpus), **how)

    server = serve(READERS, open_buffer=open_buffer)
    a, b = two(server)
    for reader in (a, b):
        with pytest.raises(UserError, match="cannot be read"):
            reader.next()
    a.connect(server)
    b.connect(server)
    a.next(), b.next()


def test_a_reader_that_is_only_slow_is_not_given_up_for_ever(serve, corpus):
    """Each time would cost a capture of the whole buffer; here the others always wait for it."""
    opened = []

    def open_buffer(**how):
        opened.append(how)
        return toy_buffer(str(corpus), **how)

    server = serve(READERS, patience_s=0.5, open_buffer=open_buffer)
    a, b = two(server)
    in_thread(lambda: [(time.sleep(0.2), a.next()) for _ in range(N_STEPS)])
    for _ in range(9):
        time.sleep(0.8)
        try:
            b.next()
        except NotConnectedError:
            b.connect(server)
            b.next()
    assert 1 < len(opened) < 5
