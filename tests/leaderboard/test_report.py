"""The report: one file, the same bytes, nobody's text comes to life, and it works in a browser."""

import json
import re

import pytest
from chromium import EXECUTABLE, chromium
from synthetic import HOSTILE, latent, records, seal, write_run

from sae_bench.leaderboard.board import Board
from sae_bench.leaderboard.html.report import embedded, report
from sae_bench.leaderboard.html.report_data import MOST_EXAMPLES, board_data, visible

LARGEST = 20_000_000


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
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


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
    assert "<img" not in page
    assert "\u202e" not in page
    assert "{{ 7*7 }}" in page, "no template computes it"


def test_tokens_keep_their_spaces_and_show_their_line_breaks():
    assert visible(" a\nb\u202e\t") == " a↵b\N{REPLACEMENT CHARACTER}⇥"


def test_every_link_within_the_page_leads_to_something(plain):
    page = report(Board.read([plain]))
    keys = {sae["key"] for sae in data_of(page)["saes"]}
    links = set(re.findall(r'href="(#[^"]*)"', page))
    assert links == {f"#/{view}" for view in ("board", "plots", "compare", "claims", "latents")} | {
        f"#/sae/{key}" for key in keys
    }
    assert len(keys) == 16


def test_a_latent_keeps_what_was_found_of_it(plain):
    sae = next(one for one in data_of(report(Board.read([plain])))["saes"])
    found, given = sae["latents"][1], latent(sae["id"], 5)
    assert (found["n"], found["fired"], found["explanation"]) == (5, given["n_fired"], given["explanation"])
    assert found["scores"]["fuzzing"]["note"] == "no answer could be read"
    words = data_of(report(Board.read([plain])))["words"]
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
    assert len({sae["key"] for sae in board_data(board)["saes"]}) == 32


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

browser = pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium is installed")


@browser
def test_the_page_works_in_a_browser(plain, tmp_path):
    """Every view and every link, at two widths, by keyboard; nothing on the console, nothing from the network."""
    path = tmp_path / "report.html"
    path.write_text(report(Board.read([plain])))
    with chromium(tmp_path / "profile") as page:
        page.size(390, 844)
        page.open(path.as_uri())
        key = page("data.saes[0].key")
        views = ("#/board", "#/plots", "#/compare", "#/claims", "#/latents", f"#/sae/{key}", f"#/latent/{key}/10")
        links = set(views)
        for width in (390, 1280):
            page.size(width, 844)
            for view in views:
                page.go(view)
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
        page.go("#/board")
        page("$('board-filter').value = 'jumprelu'; $('board-filter').dispatchEvent(new Event('input'))")
        assert page("$('board-count').textContent") == "4 of 16 SAEs"
        heads = page("[...document.querySelectorAll('#board thead th')].map((th) => th.textContent.trim())")
        (at,) = (i for i, head in enumerate(heads) if head.split()[0] == "l0")
        page(f"document.querySelectorAll('#board thead button')[{at}].focus()")
        page.press("Enter")
        assert page(f"document.querySelectorAll('#board thead th')[{at}].getAttribute('aria-sort')") == "ascending"
        rows = "[...document.querySelectorAll('#board tbody tr')]"
        l0 = page(f"{rows}.map((row) => parseFloat(row.children[{at}].textContent))")
        assert l0 == sorted(l0)
        page.go("#/plots")
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
        views = ("board", "plots", "compare", "claims", "sae/sae2", "latents", "latent/sae2/5", "latent/%00/<img>")
        for view in views:
            page.go(f"#/{view}")
        page.go("#/latent/sae2/5")
        assert page("document.querySelectorAll('img').length") == 0
        assert "<img src=x onerror=alert(1)>" in page("$('latent').textContent"), "it is shown"
        assert page.console == []
