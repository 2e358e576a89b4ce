"""Before anything begins: addresses that do not answer, a folder that another driver has, and no Ray at all."""

import socket
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from command import bench, files

from sae_bench.records.run_folder import RunFolder


def command(out: object, address: str) -> list[object]:
    return ["--arch", "topk", "--l0", 6, "--out", out, "--on", address]


def test_a_second_driver_on_a_folder_is_refused(tmp_path, capsys):
    with RunFolder(tmp_path / "run").locked():
        assert bench(*command(tmp_path / "run", "127.0.0.1:1")) == 2
    assert "is in use by process" in capsys.readouterr().err


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of somebody who listens and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def listen() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=listen, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        for one in held:
            one.close()


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_that_does_not_answer_is_an_error_within_30_seconds(tmp_path, capsys, silent, scheme):
    for address, reason in ((silent, "as Ray does"), ("127.0.0.1:9", "Connection refused"), ("nobody", "no address")):
        start = time.monotonic()
        assert bench(*command(tmp_path / "run", scheme + address)) == 2
        assert time.monotonic() - start < 30
        assert reason in capsys.readouterr().err
    assert files(tmp_path) == {}


def test_without_ray_the_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "sae_bench.distributed.crew")
    monkeypatch.delitem(sys.modules, "sae_bench.distributed.cluster")
    assert bench(*command(tmp_path / "run", "ray")) == 2
    assert "pip install 'sae-arch-bench[ray]'" in capsys.readouterr().err
