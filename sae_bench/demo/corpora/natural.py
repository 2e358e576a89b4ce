"""Natural text: what people wrote, out of the sets that come with SAE-Probes (Kantamneni et al., arXiv 2502.16681).

News, reviews, questions, encyclopaedic sentences, medical abstracts and more, for a run that is to learn from more than
docstrings without a network. The sets that `--probe-sets small` asks about are left out, so that no probe is tested on
text that an SAE was trained on, and so are those of source code. Each source has terms of its own (docs/probing.md).
"""

from collections.abc import Sequence
from importlib.metadata import version

from sae_bench.lm.corpus import Corpus, cached_texts
from sae_bench.probing.sets import NATURAL, SMALL, package_sets
from sae_bench.registry import register_corpus

MIN_CHARACTERS = 200  # as of the embedded corpus: shorter texts are names and single sentences of templates
CODE = ("158_code_C", "159_code_Python", "160_code_HTML")


@register_corpus("natural")
class NaturalText(Corpus):
    """Distinct texts of at least 200 characters of all sets but the small ones, in the package's order.

    UserError if the package is not installed.
    """

    def describe(self) -> str:
        """`texts of sae-probes 0.4.2, without code and the sets of --probe-sets small`."""
        return f"{NATURAL} {_version()}, without code and the sets of --probe-sets small"

    def documents(self) -> Sequence[str]:
        return cached_texts(f"natural-{self.version}-{_version()}", _read)


def _version() -> str:
    package_sets(())  # says how to install the package if it is not there
    return version("sae-probes")


def _read() -> list[str]:
    asked = {text for one in package_sets(["small"]) for text in one.texts}
    found: dict[str, None] = {}  # a dict, because a set would lose the order
    for one in package_sets(["all"]):
        if one.name not in (*SMALL, *CODE):
            found |= dict.fromkeys(text for text in one.texts if len(text) >= MIN_CHARACTERS and text not in asked)
    return list(found)
