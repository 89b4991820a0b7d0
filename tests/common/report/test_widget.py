"""A block that a script builds in the page: what is escaped, what stands there once, and what Markdown has of it."""

import json
import re
from pathlib import Path

from common.report.document import Details, Section, Widget
from common.report.formats import as_html, as_markdown

SCRIPT, STYLE = 'document.title = "<a & b>";', ".toy > p { color: red; }"


def toy(data: str, *instead: str) -> Widget:
    return Widget("toy", {"text": data}, SCRIPT, STYLE, instead)


def test_the_data_cannot_leave_its_element() -> None:
    text = "</script><script>alert('1 & 2')</script><!-- \u2028"
    (found,) = re.findall(r'<div class="toy"><script type="application/json">(.*?)</script>', page(toy(text)))
    assert not set("<>&'") & set(found)
    assert json.loads(found) == {"text": text}


def page(*blocks: Widget | Details) -> str:
    return as_html([Section("Toys", blocks)])


def test_the_script_and_the_style_stand_there_once_and_as_they_are() -> None:
    text = page(toy("a"), Details("more", [toy("b"), toy("c")]))
    assert text.count('<div class="toy">') == 3
    assert text.count(SCRIPT) == text.count(STYLE) == 1
    assert SCRIPT not in page()


def test_what_stands_there_without_the_script_is_folded_out() -> None:
    text = page(toy("a", "the <same> in words"))
    assert "<details open>" in text
    assert "<p>the &lt;same&gt; in words</p>" in text
    assert "<details" not in page(toy("a"))


def test_markdown_has_only_what_stands_there_instead(tmp_path: Path) -> None:
    blocks = ["before", toy("data", "in words"), "after"]
    text = as_markdown([Section("Toys", blocks)], tmp_path / "report.md")
    assert text == "# Report\n\n## Toys\n\nbefore\n\nin words\n\nafter\n"
