"""What an HTML page loads and runs, as a parser sees it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

LOADING = {"src", "href", "srcset", "data", "action", "poster", "background", "formaction"}


@dataclass
class Seen:
    """The elements of a page."""

    tags: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    """Values of attributes that load something, or lead somewhere; `#...` within the page is left out."""
    handlers: list[str] = field(default_factory=list)
    """Attributes that run a script: onerror and the like."""
    text: str = ""
    scripts: list[str] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)


def look_at(page: str) -> Seen:
    """Parse the page."""
    seen = Seen()

    class Parser(HTMLParser):
        inside = ""

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.tags.append(tag)
            self.inside = tag
            for name, value in attrs:
                if name in LOADING and not (value or "").startswith(("#", "data:,")):
                    seen.loads.append(f"{tag} {name}={value}")
                if name.startswith("on"):
                    seen.handlers.append(f"{tag} {name}")
                if name == "style":
                    seen.styles.append(value or "")

        def handle_endtag(self, tag: str) -> None:
            self.inside = ""

        def handle_data(self, data: str) -> None:
            if self.inside == "script":
                seen.scripts.append(data)
            elif self.inside == "style":
                seen.styles.append(data)
            else:
                seen.text += data

    Parser(convert_charrefs=True).feed(page)
    return seen


def assert_self_contained(page: str) -> Seen:
    """Nothing in the page asks for a file or a host, by markup or style."""
    seen = look_at(page)
    assert seen.loads == []
    assert seen.handlers == []
    assert not re.findall(r"@import|url\(", " ".join(seen.styles))
    assert not {"iframe", "object", "embed", "img", "base", "form"} & set(seen.tags)
    return seen
