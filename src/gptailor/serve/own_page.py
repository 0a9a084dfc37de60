"""Pages of ours as one file each, with a policy that lets nothing but themselves run."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import re


def load_page(name: str) -> tuple[str, str]:
    """A page of this folder with its styles and scripts in it, and a policy that lets exactly these run and
    nothing be loaded.
    """
    folder = importlib.resources.files("gptailor.serve")
    digests: dict[str, list[str]] = {"script": [], "style": []}

    def inline(found: re.Match[str]) -> str:
        tag, text = found[1], "\n" + folder.joinpath(found[2]).read_text("utf-8")
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        digests[tag].append(f"'sha256-{digest}'")
        return f"<{tag}>{text}</{tag}>"

    html = folder.joinpath(name).read_text("utf-8")
    html = re.sub(r"<(script|style)>([a-z.]+)</\1>", inline, html)
    policy = (
        f"default-src 'none'; script-src {' '.join(digests['script'])}; "
        f"style-src {' '.join(digests['style'])}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, policy
