"""A rater's page: one HTML file with all that the rater is shown, the same for `study rate` and for a page from disk.

Text from a corpus or from a rater may be anything. The JSON is in letters that begin no tag, the script makes text of
it, never markup, and a content security policy lets no other script run and nothing be loaded.
"""

from importlib import resources

from markupsafe import Markup

from sae_bench.leaderboard.html.page import OWN_SERVER, embedded, page
from sae_bench.study.schema import MOST_TEXT, Assignment

TEMPLATES = resources.files("sae_bench.study") / "templates"
SCRIPTS = ("answers", "page")
"""Parts of the page's script, in their order."""


def rater_page(assignment: Assignment, *, served: bool) -> str:
    """The page of one rater; `served`: a server takes the answers, else the page saves a file of them."""
    read = {name: TEMPLATES.joinpath(name).read_text(encoding="utf-8") for name in ("study.html", "study.css")}
    script = "\n".join(TEMPLATES.joinpath(f"{part}.js").read_text(encoding="utf-8") for part in SCRIPTS)
    return page(
        read["study.html"],
        read["study.css"],
        script,
        OWN_SERVER if served else "",
        rater=assignment.rater,
        served=served,
        detection=any(showing.mixed for showing in assignment.showings),
        most_text=MOST_TEXT,
        data=Markup(embedded({"assignment": assignment.model_dump(mode="json"), "served": served})),
    )
