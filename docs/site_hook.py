"""Brings the pages of the repository together for the site: those of the navigation, and every file that they link to.

The site's files lie as the repository's do, so that a link between pages is the same in both. What a page links to and
the site does not hold, a folder for one, stays as text.
"""

import re
from pathlib import Path
from posixpath import dirname, join, normpath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"!?\[((?:[^\[\]]|\[[^\]]*\])*)\]\(\s*([^)\s]+)\s*\)")
TARGET = re.compile(r"\]\(\s*([^)\s]+)\s*\)")  # of a picture within a link, too
CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.M | re.S)


def target_of(page: str, link: str) -> str | None:
    """The path, from the repository's root, of what a page links to; None for what is not in the repository."""
    path = link.partition("#")[0]
    if not path or re.match(r"[a-z]+:", path):
        return None
    return normpath(join(dirname(page), path))


def linked(page: str) -> set[str]:
    """The files of the repository that a page links to."""
    text = CODE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    found = {target_of(page, link) for link in TARGET.findall(text)}
    return {path for path in found if path and not path.startswith("..") and (ROOT / path).is_file()}


def on_files(files: Files, config: Any) -> Files:
    """The pages of the navigation and what can be reached from them, at their paths; the theme's own files stay."""
    waiting, reached = [*pages_of(config["nav"])], set()
    while waiting:
        if (page := waiting.pop()) not in reached:
            reached.add(page)
            waiting += linked(page) if page.endswith(".md") else ()
    own = [file for file in files if not file.is_documentation_page() and file.src_dir != config["docs_dir"]]
    made = [File.generated(config, path, abs_src_path=str(ROOT / path)) for path in sorted(reached)]
    return Files([*own, *made])


def pages_of(nav: Any) -> list[str]:
    """The pages that a navigation names."""
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in pages_of(part)]


def on_page_markdown(markdown: str, *, page: Any, files: Files, **_: Any) -> str:
    """A page without the links that lead out of the site."""

    def kept(match: re.Match[str]) -> str:
        target = target_of(page.file.src_uri, match[2])
        return match[0] if target is None or files.get_file_from_path(target) else match[1]

    parts = CODE.split(markdown)
    return "".join(part if place % 2 else LINK.sub(kept, part) for place, part in enumerate(parts))
