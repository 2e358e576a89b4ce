"""The raters' page in a browser: whatever is killed or pressed twice, nothing is lost and nothing counted twice."""

import json
import threading
import time
from contextlib import contextmanager
from functools import partial

import pytest
from chromium import EXECUTABLE, chromium
from command import bench
from studies import write_study
from synthetic import HOSTILE

from sae_bench.api.local_server import LocalServer
from sae_bench.study.answers import keep
from sae_bench.study.page import rater_page
from sae_bench.study.schema import StudyFolder, read_events

pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium is installed")


@contextmanager
def served(folder: StudyFolder, port: int = 0):
    """A rater's server, until it is stopped."""
    assignment = folder.assignment(1)
    page = rater_page(assignment, served=True)
    with LocalServer(page, partial(keep, folder, assignment), port, path="events") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(10)


def opened(page, url: str) -> None:
    page.open(url)
    page.wait("document.documentElement.dataset.ready === 'yes'")


def settle(page) -> None:
    """Long enough for a page to take an answer."""
    time.sleep(0.45)


def answer(page, key: str = "3", text: str = "") -> None:
    """Answer what is shown, by keyboard alone, and wait until the next is."""
    before = page("place")
    settle(page)
    page.press(key)
    if text:
        page.command("Input.insertText", text=text)
    page.press("Enter")
    if page("!$('q3').hidden && place !== null"):
        settle(page)
        page.press("b")
        page.press("Enter")
    page.wait(f"place !== {before}")


def test_nothing_is_lost_or_counted_twice(tmp_path):
    path, _ = write_study(tmp_path, extra=HOSTILE, n_latents=2, n_raters=2, repeats=0, detection=False)
    folder, profile = StudyFolder(path), tmp_path / "profile"
    with served(folder) as server, chromium(profile) as page:
        opened(page, server.url)
        page("$('begin').click()")
        answer(page, "1", HOSTILE)
        page.wait("!local.length")
        (first,) = folder.answers(1).values()
        assert (first.interpretable, first.meaning.split("\u2028")[0]) == ("yes", HOSTILE.split("\u2028")[0])
        settle(page)
        page.press("3")
        page("$('save').click(); $('save').click()")
        page.wait("answers.size === 2 && !local.length")
        assert page("place") == 2, "a double click answers one"
        page.press("2")
        page.command("Input.insertText", text="half a th")
        opened(page, server.url)
        page.press("Enter")
        assert page("[place, $('meaning').value, draft.interpretable]") == [2, "half a th", "maybe"], "after a reload"
        answer(page, "1", "ought")
        page("history.back()")
        page.wait("place === 2")
        assert page("$('meaning').value") == "half a thought", "back leads to what was answered"
        answer(page, "3")
        page.wait("answers.size === 3 && !local.length && place === 3")
        page("$('h-ask').focus()")
        page.press("u")
        page.wait("place === 2 && answers.size === 2 && !local.length")
        assert len(folder.answers(1)) == 2, "undone"
        answer(page, "3")
        page.wait("!local.length")
        port = server.server_port
        page.command(
            "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )
        answer(page, "2", "said to nobody")
        page.wait("failing !== ''")
        assert page("[local.length, $('save').disabled, $('trouble').hidden]") == [1, True, False]
        assert len(folder.answers(1)) == 3
        assert page("document.querySelectorAll('img').length") == 0
        assert all("ERR_INTERNET_DISCONNECTED" in line for line in page.console), page.console
    with served(folder, port) as server, chromium(profile) as page:  # both were ended, and begin again
        opened(page, server.url)
        page.wait("!local.length")
        assert [one.meaning for one in folder.answers(1).values()][-1] == "said to nobody"
        page.press("Enter")
        while page("place !== null"):
            answer(page)
        page.wait("!$('done').hidden && !local.length")
        assert {request.split("/")[2] for request in page.requests} == {f"127.0.0.1:{port}"}
        assert page.console == []
    assignment, answers = folder.assignment(1), folder.answers(1)
    assert set(answers) == {(one.item, one.showing) for one in assignment.showings}
    events = read_events(folder.answers_path(1))
    assert len({event.id for event in events}) == len(events) == len(answers) + 3, "changed once, and undone once"
    assert all(0 < one.seconds < 60 for one in answers.values())


def test_a_page_from_disk_saves_what_import_takes(tmp_path, capsys):
    path, study = write_study(tmp_path, extra=HOSTILE, n_latents=1, n_raters=2, repeats=0)
    assert bench("study", "export-pages", path, "--rater", "2") == 0
    html = StudyFolder(path).page_path(2)
    with chromium(tmp_path / "profile") as page:
        page.command("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        page.size(390, 844)
        opened(page, html.as_uri())
        page("$('begin').click()")
        assert page("document.documentElement.scrollWidth") <= 390
        assert page("$('excerpts').textContent").count("</script><img") >= 8
        assert page("document.querySelectorAll('#excerpts img, #excerpts script').length") == 0
        assert page("$('excerpts').textContent.includes('\\u202e')") is False
        answer(page, "1", "rivers")
        opened(page, html.as_uri())
        assert page("answers.size") == 1, "after a reload"
        page.press("Enter")
        while page("place !== null"):
            answer(page)
        page("document.querySelector('#done .save').click()")
        file, deadline = tmp_path / "rater-02.answers.json", time.monotonic() + 30
        while not file.exists():
            assert time.monotonic() < deadline, "no file was saved"
            time.sleep(0.05)
        assert page.console == []
        assert {request.partition(":")[0] for request in page.requests} <= {"file", "blob"}
    capsys.readouterr()
    assert bench("study", "import", path, file) == 0
    assert capsys.readouterr().out == "rater 2: 3 of 3 are answered; 3 events are new\n"
    given = StudyFolder(path).answers(2).values()
    assert [one.meaning for one in given] == ["rivers", "", ""]
    assert all(one.detection == [False, True, *[False] * 8] for one in given)
    assert json.loads(file.read_text())["study"] == study.id
