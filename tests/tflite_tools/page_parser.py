"""Reads an HTML page: what it would load, its ids, and whether its tags close."""

import html.parser


class Page(html.parser.HTMLParser):
    """Collects what a page would load, its ids, and whether its tags close."""

    def __init__(self, text):
        super().__init__()
        self.references, self.ids, self.tags, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in ("meta", "br", "link", "img", "use", "path", "rect", "circle"):
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "data", "action"):
                self.references.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag, f"</{tag}> closes something else"
