"""A page as one file: text escaped, data in letters that begin no tag, and a policy that runs its own script alone."""

import base64
import hashlib
import json
from typing import Any

import jinja2
from markupsafe import Markup

OWN_SERVER = "; connect-src 'self'"
"""What a page has to be allowed that asks the server which it came from."""


def embedded(content: Any) -> str:
    """JSON that may stand in a script element: no tag, comment or entity begins in it."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def page(template: str, style: str, script: str, policy: str = "", **values: Any) -> str:
    """A page, of a template's text, with a policy that lets its own script run; `policy` allows more."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(template).render(
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'{policy}",
        style=Markup(style),
        script=Markup(script),
        **values,
    )
