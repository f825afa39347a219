"""Turns a page's parts into one HTML file that asks no host and opens without a network.

Vega is inlined once. The page's content security policy allows the scripts of this file, known by their digests, and no
request at all: a text of the data that were ever taken for markup could neither run nor call home.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import altair
import vl_convert
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from components.pages.parts import Figure, Figures, Page, Part, Spec, visible

FOLDER = Path(__file__).parent


def render_page(page: Page) -> str:
    """The page as HTML. Everything in it is text, and escaped."""
    parts = (page.top, *(section.parts for section in page.sections))
    figures = [figure for one in parts for figure in _figures_of(one)]
    number_of = {id(figure): number for number, figure in enumerate(figures)}
    scripts = [Markup(vega_script()), Markup(_inline((FOLDER / "draw.js").read_text(encoding="utf-8")))]  # noqa: S704
    environment = Environment(
        autoescape=True, loader=FileSystemLoader(FOLDER), finalize=_clean, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        page=page,
        kind=lambda part: type(part).__name__,
        number=lambda figure: number_of[id(figure)],
        specs=json_script([figure.spec for figure in figures]),
        scripts=scripts,
        policy=f"default-src 'none'; script-src {' '.join(map(_script_digest, scripts))}; "
        "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'",
    )


def _figures_of(parts: Iterable[Part]) -> Iterator[Figure]:
    for part in parts:
        if isinstance(part, Figures):
            yield from part.figures


@cache
def vega_script() -> str:
    """Vega, Vega-Lite and Vega-Embed in the versions that Altair writes charts for, as one script."""
    version = ".".join(altair.VEGALITE_VERSION.split(".")[:2])
    return _inline(str(vl_convert.javascript_bundle(vl_version=version)))  # type: ignore[call-arg]


def _inline(script: str) -> str:
    """The script so that nothing in it ends the element that holds it."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def json_script(specs: list[Spec]) -> Markup:
    """JSON for a script element: no `<` of it can begin a tag, no character of the data controls anything."""
    text = json.dumps(_cleaned(specs), ensure_ascii=True, allow_nan=False, sort_keys=True, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704


def _cleaned(value: object) -> object:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {_cleaned(key): _cleaned(one) for key, one in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None  # Vega leaves a gap
    return [_cleaned(one) for one in value] if isinstance(value, list) else value


def _clean(value: object) -> object:
    """What a template prints: text without control characters; Jinja escapes it afterwards."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _script_digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
