"""The report as one self-contained HTML page: no network, and one short script for the theme button."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from gptailor.report.facts import clip, count_text, visible
from gptailor.report.view import view


def render_page(report: Mapping[str, Any], details: Mapping[str, Any]) -> str:
    """`report.html` from `report.json` and the run's details.

    Every key of `details` may be missing, and a section without data is left out. All text that
    came from a person is escaped, and characters that could hide or turn text around are spelled
    out. The page's policy allows its own style and script by their hashes and nothing else.
    """
    return render("page.html.jinja", view(report, details))


def render(template: str, values: Mapping[str, Any]) -> str:
    """One of our pages from its template and what it shows, with the style, script and policy of all."""
    environment = _environment()
    style = environment.get_template("page.css.jinja").render()
    script = environment.get_template("page.js").render()
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    # Our own files, so they stand as they are; a person's text never gets this mark.
    own = {"style": Markup(style), "script": Markup(script), "policy": Markup(policy)}
    return environment.get_template(template).render(**values, **own) + "\n"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("gptailor", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: visible(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"clip": clip, "number": count_text, "breakable": _breakable}
    return environment


def _breakable(text: str) -> Markup:
    """The text, escaped, with places to break a line after the signs that join words in names."""
    return Markup(re.sub(r"(?<=[_/.:])(?=[^\W\d])", "<wbr>", str(escape(visible(text)))))


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
