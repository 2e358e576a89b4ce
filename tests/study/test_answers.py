"""Files of answers that no page wrote: each is refused in one line that names the file, and changes none."""

import json
import os
import signal
import threading
import urllib.request

import pytest
from command import bench, files
from studies import answer, write_study

from sae_bench.study.answers import RESULTS
from sae_bench.study.schema import StudyFolder


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path, _ = write_study(tmp_path_factory.mktemp("study"))
    return StudyFolder(path)


def event(study, **changed):
    showing = study.assignment(1).showings[0]
    return answer(showing, detection=[True, False] * 5).model_dump(mode="json") | changed


ILL_TYPED = {
    "seconds": ["12", True, -1, 86_401, 1e300, None],
    "showing": ["0", 2, True, 0.5],
    "detection": [[1] * 10, ["yes"] * 10, [True] * 9, "yes"],
    "confidence": ["2", 4, True],
    "interpretable": ["perhaps", True, 1],
    "meaning": [3, "x" * 2001],
    "id": [7, "UPPER000", ""],
    "item": [7, "../../../etc"],
    "time": [7, "today", "2026-11-27T12:00:00"],
    "event": ["vote", 1],
    "extra": [0],
}
CASES = [(field, value) for field, values in ILL_TYPED.items() for value in values]


@pytest.mark.parametrize(("field", "value"), CASES)
def test_an_answer_is_of_the_types_that_it_says(study, tmp_path, capsys, field, value):
    content = event(study, **{field: value})
    path = study.answers_path(1)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content) + "\n")
    try:
        line = refused(capsys, "results", study.path, "--no-records")
        assert line.startswith(f"{path}, line 1: ")
        assert field in line
    finally:
        path.unlink()
    of = study.assignment(1)
    results = tmp_path / "rater-01.json"
    about = {"kind": RESULTS, "format": 1, "study": of.study, "rater": 1, "events": [content]}
    results.write_text(json.dumps(about))
    assert str(results) in refused(capsys, "import", study.path, results)
    assert not path.exists()


def refused(capsys, *arguments):
    assert bench("study", *arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in line
    return line.removeprefix("error: ")


def test_an_answer_may_take_a_day_and_no_longer(study):
    path = study.answers_path(1)
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(event(study, seconds=seconds)) + "\n" for seconds in (0, 12, 86_400)))
    assert len(study.answers(1)) == 1
    path.unlink()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"event": "answer", "id": "event\n', "line 1: Invalid JSON"),
        (b"\n", "line 1: Invalid JSON"),
        (b"[]\n", "line 1: "),
        (b"null\n", "line 1: "),
        (b"[" * 10_000 + b"\n", "line 1: "),
        (b"\xff\xfe\n", "line 1: "),
        (None, "cannot read"),
    ],
)
def test_lines_that_are_no_answer_are_named(study, capsys, content, told):
    path = study.answers_path(1)
    path.parent.mkdir(exist_ok=True)
    path.mkdir() if content is None else path.write_bytes(content)
    try:
        for verb in (("results", study.path, "--no-records"), ("power", study.path)):
            line = refused(capsys, *verb)
            assert str(path) in line
            assert told in line
            assert ": : " not in line
    finally:
        path.rmdir() if content is None else path.unlink()


def test_a_file_without_a_line_is_one_without_answers(study, capsys):
    path = study.answers_path(1)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    assert bench("study", "results", study.path, "--no-records") == 0
    assert capsys.readouterr().out.startswith("PARTIAL: 0 of ")
    path.unlink()


@pytest.mark.parametrize("content", [b"", b"{", b'{"kind": "sae-arch', b"\xff", b"[]", b"null", b"[" * 10_000])
def test_result_files_that_are_none_are_named(study, tmp_path, capsys, content):
    file = tmp_path / "rater-01.json"
    file.write_bytes(content)
    before = files(study.path)
    line = refused(capsys, "import", study.path, file)
    assert line.startswith(f"{file}: ")
    assert ": : " not in line
    assert files(study.path) == before
    assert "cannot read" in refused(capsys, "import", study.path, tmp_path)


def test_a_result_file_of_a_rater_who_is_none_is_named_and_no_flag(study, tmp_path, capsys):
    file = tmp_path / "rater-09.json"
    about = {"kind": RESULTS, "format": 1, "study": study.assignment(1).study, "rater": 9, "events": []}
    file.write_text(json.dumps(about))
    line = refused(capsys, "import", study.path, file)
    assert line.startswith(f"{file} is of rater 9: {study.path} has no rater 9, but 1 to 3")
    assert "--" not in line


def test_a_raters_page_stops_at_ctrl_c_and_says_how_far_it_is(study, capsys, monkeypatch):
    seen = []

    def browse(url):
        def look():
            with urllib.request.urlopen(url, timeout=30) as page:
                seen.append(page.read().decode())
            os.kill(os.getpid(), signal.SIGINT)

        seen.append(url)
        threading.Thread(target=look).start()

    monkeypatch.setattr("webbrowser.open", browse)
    assert bench("study", "rate", study.path, "--rater", 2, "--browser") == 0
    out, err = capsys.readouterr()
    address, about, _, last = out.splitlines()
    assert address == seen[0]
    assert about == "for rater 2 on this machine alone; Ctrl-C stops it"
    assert last == f"stopped; 0 of {len(study.assignment(2).showings)} are answered"
    assert "<title>" in seen[1]
    assert "Traceback" not in err
