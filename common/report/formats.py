"""The report page's two forms: one self-contained HTML page, and Markdown for an appendix."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import jinja2
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from PIL import Image, UnidentifiedImageError

from common.files import git_commit, short, write_atomically
from common.plotting import png_bytes
from common.report.document import Block, Details, Heading, Picture, Section, Widget, anchor, nested
from common.report.pictures import FIGURE_FORMATS, FigureFile
from common.tables import Table

# -- HTML -------------------------------------------------------------------------------------------------------------


LONG = 12  # a table of more rows is folded


def as_html(sections: Sequence[Section]) -> str:
    """Returns the page. It is one file: it loads nothing from elsewhere."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8"))
    widgets = [block for s in sections for block in nested(s.blocks) if isinstance(block, Widget)]
    return template.render(
        sections=[(anchor(s.title), s.title, Markup(_blocks_html(s.blocks))) for s in sections],
        styles=[Markup(style) for style in dict.fromkeys(widget.style for widget in widgets)],
        scripts=[Markup(script) for script in dict.fromkeys(widget.script for widget in widgets)],
        commit=short(git_commit()),
    )


def _blocks_html(blocks: Sequence[Block], folded: bool = True) -> str:
    """Returns the blocks. Long tables are folded, but those within details are not."""
    return "\n".join(_block_html(block, folded) for block in blocks)


def _block_html(block: Block, folded: bool) -> str:
    if isinstance(block, str):
        for mark, tag in (("# ", "h3"), ("! ", 'p class="warning"')):
            if block.startswith(mark):
                return f"<{tag}>{_inline(block.removeprefix(mark))}</{tag.split()[0]}>"
        return f"<p>{_inline(block)}</p>"
    if isinstance(block, Heading):
        return f'<h3 id="{block.link}">{_inline(block.title)}</h3>'
    if isinstance(block, Table):
        title = f"Table of {len(block.rows)} rows"
        return _folded_html(title, _table_html(block)) if folded and len(block.rows) > LONG else _table_html(block)
    if isinstance(block, Details):
        return _folded_html(block.title, _blocks_html(block.blocks, folded=False), block.link, block.opened)
    if isinstance(block, Widget):
        data = f'<script type="application/json">{htmlsafe_json_dumps(block.data)}</script>'
        instead = _folded_html("As a picture", _blocks_html(block.instead), opened=True) if block.instead else ""
        return f'<div class="{block.kind}">{data}\n{instead}</div>'
    return _picture_html(block)


def _folded_html(title: str, inside: str, link: str = "", opened: bool = False) -> str:
    identity = f' id="{link}"' if link else ""
    return f"<details{identity}{' open' * opened}><summary>{html.escape(title)}</summary>\n{inside}\n</details>"


def _inline(text: str) -> str:
    """Returns text with `**bold**`, `` `code` `` and links within the page as HTML, and everything else escaped."""
    marks = (
        (r"\*\*(.+?)\*\*", r"<strong>\1</strong>"),
        (r"`(.+?)`", r"<code>\1</code>"),
        (r"\[([^]]+)\]\((#[\w-]+)\)", r'<a href="\2">\1</a>'),
    )
    text = html.escape(text)
    for pattern, replacement in marks:
        text = re.sub(pattern, replacement, text)
    return text


def _table_html(table: Table) -> str:
    caption = f"<caption>{_inline(table.caption)}</caption>" if table.caption else ""
    head = "".join(f'<th scope="col"><button>{_inline(cell)}</button></th>' for cell in table.head)
    body = "".join("<tr>" + "".join(map(_cell_html, row)) + "</tr>\n" for row in table.rows)
    return f'<div class="table"><table>{caption}<thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _cell_html(cell: str) -> str:
    kind = ' class="number"' if re.match(r"\**[+−]?\d", cell) and len(cell) < 32 else ""  # a number stays on one line
    return f"<td{kind}>{_inline(cell)}</td>"


def _picture_html(picture: Picture) -> str:
    try:
        image = Image.open(io.BytesIO(_png(picture)), formats=FIGURE_FORMATS)
        buffer, film = io.BytesIO(), getattr(image, "is_animated", False)
        moving = {"save_all": True, "duration": image.info.get("duration", 40), "loop": 0} if film else {}
        image.save(buffer, "WEBP", lossless=True, method=2, **moving)  # two thirds of the PNG, pixel for pixel
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        return f'<p class="warning">{html.escape(f"{picture.name}: the figure cannot be read ({error})")}</p>'
    source = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    title = html.escape(picture.title)
    scale = 1.0 if film else 0.6  # 160 dots an inch shown at 96
    width, height = (round(scale * pixels) for pixels in image.size)
    picture_html = f'<img src="{source}" alt="{title}" width="{width}" height="{height}">'
    return f"<figure>{picture_html}<figcaption>{title}</figcaption></figure>"


def _png(picture: Picture) -> bytes:
    return picture.source.png() if isinstance(picture.source, FigureFile) else png_bytes(picture.source)


# -- Markdown ---------------------------------------------------------------------------------------------------------


def as_markdown(sections: Sequence[Section], output: Path) -> str:
    """Returns the report as Markdown, and writes its figures to a folder beside `output` that is named after it."""
    folder = output.with_name(f"{output.stem}_figures")
    lines = ["# Report", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for index, block in enumerate(section.blocks):
            lines += _block_markdown(block, folder, f"{anchor(section.title)}-{index}", "###")
    return "\n".join(lines)


def _block_markdown(block: Block, folder: Path, name: str, heading: str) -> Iterator[str]:
    """Yields the lines of a block; `heading` holds as many # as a heading at its depth has."""
    if isinstance(block, str):
        yield f"{heading} {block[2:]}" if block.startswith("# ") else block.removeprefix("! ")
    elif isinstance(block, Heading):
        yield f'{heading} {block.title} <a id="{block.link}"></a>'
    elif isinstance(block, Table):
        yield block.markdown().rstrip()
    elif isinstance(block, Picture):
        try:
            content = _png(block)
            ending = "gif" if content.startswith(b"GIF8") else "png"
            file = folder / f"{name}-{anchor(block.name)[:40].rstrip('-')}.{ending}"
            Image.open(io.BytesIO(content), formats=FIGURE_FORMATS).verify()
        except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
            yield f"{block.name}: the figure cannot be read"
        else:
            write_atomically(file, content)
            yield f"![{block.title}]({folder.name}/{file.name})"
    elif isinstance(block, Widget):
        for index, inner in enumerate(block.instead):
            yield from _block_markdown(inner, folder, f"{name}-{index}", heading)
        return  # each of them ends in an empty line
    else:
        yield f'{heading}# <a id="{block.link}"></a>{block.title}' if block.link else f"{heading}# {block.title}"
        for index, inner in enumerate(block.blocks):
            yield from ("", *_block_markdown(inner, folder, f"{name}-{index}", f"{heading}#"))
    yield ""
