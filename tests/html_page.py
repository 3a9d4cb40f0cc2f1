"""An HTML page as a browser, a screen reader and a reader with a keyboard need it."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from urllib.parse import unquote

VOID = {"meta", "br", "hr", "img", "input", "link", "path", "use", "rect", "circle", "line"}
HEADINGS = ("h1", "h2", "h3", "h4")
ENDED_BY = {"td": ("td", "th"), "th": ("td", "th"), "tr": ("td", "th", "tr")}
"""the open elements that the start of another one ends (HTML 13.1.2.4)"""


class Page(HTMLParser):
    """Check that elements are nested correctly, and collect ids, links and everything that a browser would load.

    `problems` lists what keeps readers out: images without a text, heads without a scope, inputs without a label, a
    skipped level of headings, regions that scroll but cannot be reached by keyboard.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.open: list[str] = []
        self.ids: Counter[str] = Counter()
        self.targets: set[str] = set()
        self.loads: list[str] = []
        self.links: set[str] = set()
        self.elements: Counter[str] = Counter()
        self.problems: list[str] = []
        self.text = ""
        self._level = 0
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        while self.open and self.open[-1] in ENDED_BY.get(tag, ()):
            self.open.pop()
        if tag not in VOID:
            self.open.append(tag)
        self._look(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        while tag in ("tbody", "table") and self.open[-1] in ENDED_BY:
            self.open.pop()
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def _look(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self._judge(tag, {name: value or "" for name, value in attrs})
        for name, value in attrs:
            value = value or ""
            if name == "id":
                self.ids[value] += 1
            elif name.endswith("href") and value.startswith("#"):
                self.targets.add(unquote(value[1:]))
            elif tag == "a" and name == "href":
                self.links.add(unquote(value))
            elif name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                self.loads.append(value)

    def _judge(self, tag: str, attrs: dict[str, str]) -> None:
        named = attrs.get("aria-label") or attrs.get("alt")
        if (tag in ("img", "table") or attrs.get("role") in ("img", "region")) and not named:
            self.problems.append(f"{tag} {attrs} has no text")
        if tag == "th" and attrs.get("scope") not in ("col", "row", "colgroup"):
            self.problems.append(f"th {attrs} has no scope")
        if tag == "input" and "label" not in self.open and not named:
            self.problems.append(f"input {attrs} has no label")
        if tag == "html" and not attrs.get("lang"):
            self.problems.append("html has no language")
        if "scroll" in attrs.get("class", "").split() and attrs.get("tabindex") != "0":
            self.problems.append(f"{tag} {attrs} scrolls, but not by keyboard")
        if tag in HEADINGS:
            level = HEADINGS.index(tag) + 1
            if level > self._level + 1 or (level == 1 and self.elements["h1"] > 1):
                self.problems.append(f"{tag} follows a heading of level {self._level}")
            self._level = level

    def check_that_it_is_self_contained(self) -> None:
        """Nothing is loaded, ids are unique, anchors exist."""
        assert self.loads == []
        assert "@import" not in self.source
        assert "url(http" not in self.source
        assert [name for name, times in self.ids.items() if times > 1] == []
        assert self.targets <= set(self.ids)


def themes(style: str) -> dict[str, dict[str, str]]:
    """Return the colour variables of the page's light and dark theme, from its style sheet."""
    light = dict(re.findall(r"--(\w+): (#[0-9a-f]+)", re.findall(r":root \{(.*?)\}", style, re.DOTALL)[0]))
    dark = re.findall(r":root\[data-theme=dark\] \{(.*?)\}", style, re.DOTALL)[0]
    return {"light": light, "dark": light | dict(re.findall(r"--(\w+): (#[0-9a-f]+)", dark))}


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours, 1 to 21 (WCAG 2.2, "relative luminance")."""
    brighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[index : index + 2], 16) / 255 for index in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
