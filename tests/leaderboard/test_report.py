"""The report: one file, the same bytes, nobody's text comes to life, and it works in a browser."""

import base64
import json
import re
import zlib
from pathlib import Path

import pytest
from chromium import EXECUTABLE, chromium
from synthetic import HOSTILE, latent, records, seal, typed, write_run

from sae_bench.leaderboard.board import SAE, Board
from sae_bench.leaderboard.html.packing import columns, packed
from sae_bench.leaderboard.html.page import embedded
from sae_bench.leaderboard.html.report import report
from sae_bench.leaderboard.html.report_data import MOST_EXAMPLES, board_data, visible

LARGEST = 10_000_000


def hostile_run(folder):
    of = records(("jumprelu", HOSTILE), (16.0, 32.0), (0,))
    for i, record in enumerate(of):
        label = record["sae"]["label"]
        record["sae"]["id"] = f"sae{i // 3}"
        record["sae"]["site"] = record["sae"]["site"] | {"name": HOSTILE}
        record["provenance"] |= {"model": HOSTILE, "dataset": HOSTILE}
        if label == HOSTILE and record["task"] == "reconstruction":
            record["metrics"][HOSTILE] = record["metrics"]["fve"]
            record["scores"][HOSTILE] = record["scores"]["fve"] | {"value": None, "note": HOSTILE}
    return write_run(folder, of, n_latents=4, text=HOSTILE)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("plain"), records(targets=(16.0, 32.0)), n_latents=5)


def data_of(page: str):
    text = re.search(r'<script type="text/plain" id="data">(.*?)</script>', page, re.S)[1]
    data = json.loads(zlib.decompress(base64.b64decode(text)))
    return data | {"saes": rows_of(data["saes"])}


def rows_of(of):
    """Rows from their columns, as the page's script makes them."""
    rows = [dict(of["all"]) for _ in range(of["n"])]
    for name, values in (*of["of"].items(), *((name, rows_of(part)) for name, part in of["parts"].items())):
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return [None if i in of["none"] else row for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"a": 1, "b": "x"}],
        [{"a": 1, "b": [0]}, {"a": 1, "b": [0]}],
        [{"a": 1}, {"a": True}, {"a": 1.0}],
        [{"a": None, "c": None}, {"a": "", "c": {"d": 2, "e": {"f": None}}}, {"a": 0, "c": {"d": 2, "e": None}}],
        [{"c": {"d": 1}}, {"c": {"d": 1}}],
    ],
)
def test_rows_come_out_of_their_columns_as_they_went_in(rows):
    """1 is not true, an empty text is not null, and a part that is not there is not one of nulls."""
    found = rows_of(json.loads(json.dumps(columns(rows))))
    assert json.dumps(found, sort_keys=True) == json.dumps(rows, sort_keys=True)


def test_the_same_records_give_the_same_page(plain):
    assert report(Board.read([plain])) == report(Board.read([plain]))


def test_the_page_names_no_address_and_lets_nothing_be_loaded(plain):
    page = report(Board.read([plain]))
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    assert "default-src &#39;none&#39;" in page
    assert not re.search(r"""\s(src|on\w+)=["']""", page)


def test_no_character_of_embedded_json_means_anything_to_html():
    text = embedded({"a": HOSTILE, "b": ["<!--", "]]>", "&lt;"]})
    assert not re.search(r"[<>&\u2028\u202e]", text)
    assert json.loads(text)["a"] == HOSTILE


def test_hostile_text_is_text_everywhere_on_the_page(tmp_path):
    page = report(Board.read([hostile_run(tmp_path)]))
    assert page.count("<script") == page.count("</script>") == 2
    assert not re.search(r"[^A-Za-z0-9+/=]", re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    assert "<img" not in page
    assert "\u202e" not in page
    assert "{{ 7*7 }}" in page, "no template computes it"


def test_tokens_keep_their_spaces_and_show_their_line_breaks():
    assert visible(" a\nb\u202e\t") == " a↵b\N{REPLACEMENT CHARACTER}⇥"


def test_every_link_within_the_page_leads_to_something(plain):
    page = report(Board.read([plain]))
    keys = {sae["key"] for sae in data_of(page)["saes"]}
    links = set(re.findall(r'href="(#[^"]*)"', page))
    assert links == {f"#/{view}" for view in ("board", "compare", "pair", "latents", "claims", "made")}
    assert links == {f"#/{view}" for view in re.findall(r'<section id="view-(\w+)"', page)} - {"#/sae", "#/latent"}
    assert len(keys) == 16


def test_a_latent_keeps_what_was_found_of_it(plain):
    data = data_of(report(Board.read([plain])))
    found, given = data["latents"][0][1], latent(data["saes"][0]["id"], 5)
    assert (found["n"], found["fired"], found["explanation"]) == (5, given["n_fired"], given["explanation"])
    assert found["scores"]["fuzzing"]["note"] == "no answer could be read"
    words = data["words"]
    kind, _, places, active = found["examples"][0]
    assert kind == "top"
    assert [words[place] for place in places] == [visible(token) for token in given["examples"][0]["tokens"]]
    activations = given["examples"][0]["activations"]
    assert active == [[i, pytest.approx(a, rel=0.01)] for i, a in enumerate(activations) if a > 0]


def test_two_runs_with_an_sae_of_one_name_are_two_saes(plain, tmp_path):
    other = records(targets=(16.0, 32.0))
    for record in other:
        record["provenance"] |= {"config_hash": "d" * 64}
    board = Board.read([plain, write_run(tmp_path, other)])
    assert len({sae["key"] for sae in rows_of(board_data(board)["saes"])}) == 32


def test_of_ten_deciles_the_last_is_the_tenth(tmp_path):
    run = write_run(tmp_path, records(targets=(16.0, 32.0)))
    content = latent(name := "topk.layer_9.resid_post.w512.l0_16.seed0", 5)
    decile = next(one for one in content["examples"] if one["kind"] == "decile")
    decile["decile"] = 10
    seal(run / "latents" / name / "5.json", content)
    (found,) = (one for of in data_of(report(Board.read([run])))["latents"] for one in of)
    assert "decile 10 of 10" in {example[0] for example in found["examples"]}


def test_the_page_opens_on_the_answer_and_names_the_model(plain):
    page = report(Board.read([plain]))
    assert "<title>SAE architectures on Gemma 3 270M (demo)</title>" in page
    first = re.search(r"<h1[^>]*>(.*?)</h1>", page)[1]
    assert first.startswith("jumprelu adds the least loss to the language model over L0 ")
    assert "relu is worse" in first or "relu" in first.partition(";")[2]
    assert page.index("<h1") < page.index('id="plot"') < page.index('id="board"')


def test_an_empty_section_says_the_command_that_fills_it(tmp_path):
    page = report(Board.read([write_run(tmp_path, records(("topk",), (16.0,)))]))
    text = re.sub(r"<[^>]+>", "", page)
    assert "Only topk was measured: there is nothing to compare." in text
    asked = "--arch topk --layer 9 --site resid_post --width 512 --l0 16 --seed 0 1"
    tasks = "--tasks delta_lm_loss feature_density reconstruction"
    assert f"python bench.py --tokens 8192 {asked} {tasks} --latents 100 --out RUN" in text
    assert "python bench.py serve RUN" in text
    assert "2 SAEs: topk" in text


def test_the_data_of_many_records_are_small():
    """What a record takes of the page, so that 20,000 are below the limit; more of them take less each."""
    of = records(seeds=tuple(range(20)), sites=("layer_9.resid_post", "layer_3.mlp_out"))
    saes = [SAE(Path("nowhere"), tuple(typed(of[i : i + 3]))) for i in range(0, len(of), 3)]
    board = Board([record for sae in saes for record in sae.records], saes)
    rows = [
        {name: value for name, value in one.items() if name != "training"} for one in rows_of(board_data(board)["saes"])
    ]
    assert len(packed(columns(rows))) / len(of) < 250


def test_sixteen_saes_with_a_hundred_latents_each_are_small(tmp_path):
    """As many contexts as are shown, 64 tokens long, of a vocabulary as large as there are tokens to draw."""
    run = write_run(tmp_path, records(targets=(16.0, 32.0)))
    for sae in {path.parent.name for path in run.glob("saes/*/metrics.jsonl")}:
        for n in range(100):
            content = latent(sae, n, width=64)
            content["examples"] = (content["examples"] * 3)[: MOST_EXAMPLES + 5]
            for example in content["examples"]:
                example["tokens"] = [f" word{(n * 64 + i) * 7 % 30_000}" for i in range(64)]
            seal(run / "latents" / sae / f"{n}.json", content)
    page = report(Board.read([run]))
    assert len(data_of(page)["saes"]) == 16
    assert len(page.encode()) < LARGEST


# --- in a browser ----------------------------------------------------------------------------------------------------

READY = "document.documentElement.dataset.ready === 'yes'"
browser = pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium is installed")


@browser
def test_the_page_works_in_a_browser(plain, tmp_path):
    """Every view and every link, at two widths, by keyboard; nothing on the console, nothing from the network."""
    path = tmp_path / "report.html"
    path.write_text(report(Board.read([plain])))
    with chromium(tmp_path / "profile") as page:
        page.size(390, 844)
        page.open(path.as_uri())
        page.wait(READY)
        key, other = page("data.saes[0].key"), page("data.saes[5].key")
        views = ("#/board", "#/compare", f"#/pair/{key}/{other}", "#/claims", "#/made", "#/latents", f"#/sae/{key}",
                 f"#/latent/{key}/10")  # fmt: skip
        links = set(views)
        for width in (390, 1440):
            page.size(width, 844)
            for view in views:
                page.go(view)
                if view == "#/board":
                    assert page("$('board').offsetWidth <= $('board').parentNode.clientWidth"), "no column is hidden"
                shown = page("[...document.querySelectorAll('main > section:not([hidden])')].map((s) => s.id)")
                assert shown == [f"view-{view.split('/')[1]}"]
                assert page("document.documentElement.scrollWidth <= innerWidth"), (view, width)
                assert page("document.activeElement.tagName") == "H1", "who cannot see is told where they are"
                links |= set(page("[...document.querySelectorAll('main > section:not([hidden]) a')]"
                                  ".map((a) => a.getAttribute('href'))"))  # fmt: skip
        assert len(links) > 16 + 80
        for link in sorted(links):
            _, view, *rest = link.split("/")
            if view == "sae":
                assert page(f"byKey.has({json.dumps(rest[0])})"), link
            if view == "latent":
                assert page(f"byKey.get({json.dumps(rest[0])}).latents.some((one) => String(one.n) === '{rest[1]}')")
        page.go(f"#/latent/{key}/10")
        assert page("document.querySelectorAll('#latent mark').length") > 0
        assert "Latent 10" in page("document.title")
        page.go("#/latents")
        page("$('latent-search').value = 'number 10'; $('latent-search').dispatchEvent(new Event('input'))")
        assert page("$('latent-count').textContent") == "16 latents"
        page("$('latent-search').value = ''; $('latent-token').value = '\" spring\"'")
        page("$('latent-token').dispatchEvent(new Event('input'))")
        assert 0 < int(page("$('latent-count').textContent").split()[0]) <= 80
        fires = "[...document.querySelectorAll('#latent-list li')].every((li) => li.querySelector('mark') !== null)"
        assert page(fires), "a preview shows where it fires"
        page.go("#/board")
        page("$('board-filter').value = 'jumprelu'; $('board-filter').dispatchEvent(new Event('input'))")
        assert page("$('board-count').textContent").startswith("4 of 16 SAEs")
        page("$('board-filter').value = ''; $('board-filter').dispatchEvent(new Event('input'))")
        heads = page("[...document.querySelectorAll('#board thead th')].map((th) => th.textContent.trim())")
        (at,) = (i for i, head in enumerate(heads) if head.split()[0] == "l0")
        page(f"document.querySelectorAll('#board thead button')[{at}].focus()")
        assert page("$('tip').textContent").startswith("l0: How many latents"), "it comes with the focus"
        page.press("Enter")
        assert page(f"document.querySelectorAll('#board thead th')[{at}].getAttribute('aria-sort')") == "ascending"
        rows = "[...document.querySelectorAll('#board tbody tr')]"
        l0 = page(f"{rows}.map((row) => parseFloat(row.children[{at}].textContent))")
        assert l0 == sorted(l0)
        assert len(l0) == 16
        page("[...document.querySelectorAll('#columns label')].find((one) => one.textContent === 'gamma').click()")
        assert abs(page("document.querySelectorAll('#board thead th').length") - len(heads)) == 1
        for i in (0, 1):
            page(f"document.querySelectorAll('#board tbody input')[{i}].click()")
        page("$('pair-open').click()")
        page.wait("!$('view-pair').hidden && document.querySelectorAll('#pair tbody tr').length > 5")
        page.go("#/board")
        page("document.querySelector('#plot a').focus()")
        assert "delta_lm_loss" in page("$('plot-hint').textContent")
        page.press("Enter")
        assert page("location.hash").startswith("#/sae/")
        named = "e.textContent.trim() || e.getAttribute('aria-label') || e.closest('label')"
        unnamed = page(f"[...document.querySelectorAll('button, a, select, input')].filter((e) => !({named})).length")
        assert unnamed == 0, "every control has a name"
        assert page.console == []
        assert page.requests == [path.as_uri()]


@browser
def test_hostile_text_does_nothing_in_a_browser(tmp_path):
    path = tmp_path / "report.html"
    path.write_text(report(Board.read([hostile_run(tmp_path / "run")])))
    with chromium(tmp_path / "profile") as page:
        page.open(path.as_uri())
        page.wait(READY)
        views = ("board", "compare", "pair/sae2/sae3", "claims", "made", "sae/sae2", "latents", "latent/sae2/5",
                 "latent/%00/<img>")  # fmt: skip
        for view in views:
            page.go(f"#/{view}")
        page.go("#/latent/sae2/5")
        assert page("document.querySelectorAll('img').length") == 0
        assert "<img src=x onerror=alert(1)>" in page("$('latent').textContent"), "it is shown"
        assert page.console == []
