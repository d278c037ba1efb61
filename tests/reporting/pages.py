"""A page as a reader's program takes it apart."""

import html.parser
import re

# Attributes by which a page asks for something else.
_ASKING = {"src", "href", "srcset", "poster", "data", "action", "background"}
_VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(html.parser.HTMLParser):
    """What stands in a page.

    Attributes:
        ids: of all elements, in their order.
        asked: addresses that it names.
        references: ids that it names.
        tags: of all elements, in their order.
        tables: rows of cells, table by table.
        text: all that is shown, by the id of the section.
        unlabelled: pictures without a word for who cannot see them.
    """

    def __init__(self, source: str):
        super().__init__()
        self.ids: list[str] = []
        self.asked: list[str] = []
        self.references: list[str] = re.findall(r"url\(#([^)]+)\)", source)
        self.tags: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.text: dict[str, str] = {}
        self.unlabelled: list[str] = []
        self._open: list[str] = []
        self._section = ""
        self.feed(source)
        self.close()
        assert self._open == [], f"never closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        self.ids += [found["id"]] if "id" in found else []
        for name in _ASKING & found.keys():
            address = found[name]
            if address.startswith("#"):
                self.references.append(address[1:])
            else:
                self.asked.append(address)
        if tag in ("svg", "img") and not found.get("aria-label", found.get("alt")):
            self.unlabelled.append(str(attrs))
        if tag == "section" or (tag == "div" and "id" in found):
            self._section = found["id"]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" in self._open:
            return
        self.text[self._section] = self.text.get(self._section, "") + data
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data
