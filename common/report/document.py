"""What a report is made of, and how it becomes one HTML page that needs nothing else, or Markdown for an appendix."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image, UnidentifiedImageError

from common.files import git_commit, write_atomically
from common.plotting import png_bytes
from common.report.folders import Folder
from common.tables import Table


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure drawn for the report, or the file of one that a run drew."""

    title: str
    source: Path | Figure

    @property
    def name(self) -> str:
        """What to call it where it cannot be shown: the file, if it is one."""
        return self.source.name if isinstance(self.source, Path) else self.title


@dataclasses.dataclass(frozen=True)
class Details:
    """Blocks that a reader opens: a run, its figures and settings. `link` names it for links within the page."""

    title: str
    blocks: Sequence[Block]
    link: str = ""


Block = str | Table | Picture | Details  # a str is a paragraph, with "# " a heading, with "! " a warning


@dataclasses.dataclass(frozen=True)
class Section:
    """One experiment's part of the report."""

    title: str
    blocks: Sequence[Block]


def details_in(blocks: Sequence[Block]) -> Iterator[Details]:
    """Yields every block that a reader opens."""
    for block in blocks:
        if isinstance(block, Details):
            yield block
            yield from details_in(block.blocks)


def run_details(folder: Folder, captions: Mapping[str, str], shown: Sequence[Path] = ()) -> Details:
    """Returns a run's figures, those in `shown` left out, and the settings that it ran with."""
    pictures = [captioned(path, captions) for path in folder.figures if path not in shown]
    settings = Table(["setting", "value"], [[str(name), repr(value)] for name, value in folder.settings.items()])
    return Details(folder.name, [*pictures, Details("settings", [settings])], run_link(folder))


def captioned(figure: Path, captions: Mapping[str, str]) -> Picture:
    """Returns a run's figure under what `captions` say of it, file name → text, else under its name."""
    return Picture(captions.get(figure.stem, figure.stem.replace("_", " ")), figure)


def stand_in_warning(folder: Folder) -> list[Block]:
    """Returns a warning where the run used the digits that stand in for its own data set."""
    return [f"! STAND-IN data: {folder.dataset} in place of {folder.stand_in_for}."] if folder.stand_in_for else []


def run_link(folder: Folder) -> str:
    """Returns the name by which links find a run's details."""
    return f"run-{anchor(folder.name)}-{zlib.crc32(folder.name.encode(errors='replace')):08x}"


# -- HTML -------------------------------------------------------------------------------------------------------------


def as_html(sections: Sequence[Section]) -> str:
    """Returns the page; it loads nothing from anywhere."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(Path(__file__).with_name("page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        sections=[(anchor(s.title), s.title, Markup(_blocks_html(s.blocks))) for s in sections],
        commit=(git_commit() or "")[:8],
    )


def anchor(title: str) -> str:
    """Returns a title as a name for links and files."""
    return re.sub(r"\W+", "-", title.lower()).strip("-")


def _blocks_html(blocks: Sequence[Block]) -> str:
    """Returns a section's blocks; the details of a lone run are open, for they are all there is to see of it."""
    lone = sum(isinstance(block, Details) for block in blocks) == 1
    return "\n".join(_block_html(block, opened=lone) for block in blocks)


def _block_html(block: Block, *, opened: bool = False) -> str:
    if isinstance(block, str):
        for mark, tag in (("# ", "h3"), ("! ", 'p class="warning"')):
            if block.startswith(mark):
                return f"<{tag}>{_inline(block.removeprefix(mark))}</{tag.split()[0]}>"
        return f"<p>{_inline(block)}</p>"
    if isinstance(block, Table):
        return _table_html(block)
    if isinstance(block, Details):
        inside = "\n".join(map(_block_html, block.blocks))
        title, link = html.escape(block.title), f' id="{block.link}"' if block.link else ""
        return f"<details{link}{' open' * opened}><summary>{title}</summary>\n{inside}\n</details>"
    return _picture_html(block)


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
    kind = ' class="number"' if re.match(r"\**[+−]?\d", cell) else ""  # a number stays on one line
    return f"<td{kind}>{_inline(cell)}</td>"


def _picture_html(picture: Picture) -> str:
    try:
        image = Image.open(io.BytesIO(_png(picture)))
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", lossless=True, method=2)  # two thirds of the PNG, pixel for pixel
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        return f'<p class="warning">{html.escape(f"{picture.name}: the figure cannot be read ({error})")}</p>'
    source = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    title = html.escape(picture.title)
    width, height = (round(0.6 * pixels) for pixels in image.size)  # 160 dots an inch shown at 96
    picture_html = f'<img src="{source}" alt="{title}" width="{width}" height="{height}">'
    return f"<figure>{picture_html}<figcaption>{title}</figcaption></figure>"


def _png(picture: Picture) -> bytes:
    return picture.source.read_bytes() if isinstance(picture.source, Path) else png_bytes(picture.source)


# -- Markdown ---------------------------------------------------------------------------------------------------------


def as_markdown(sections: Sequence[Section], output: Path) -> str:
    """Returns the report as Markdown, after writing its figures to a folder named like `output`, beside it."""
    folder = output.with_name(f"{output.stem}_figures")
    lines = ["# Report", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for index, block in enumerate(section.blocks):
            lines += _block_markdown(block, folder, f"{anchor(section.title)}-{index}", "###")
    return "\n".join(lines)


def _block_markdown(block: Block, folder: Path, name: str, heading: str) -> Iterator[str]:
    """Yields the lines of a block; `heading` are the marks of the headings at its depth."""
    if isinstance(block, str):
        yield f"{heading} {block[2:]}" if block.startswith("# ") else block.removeprefix("! ")
    elif isinstance(block, Table):
        yield block.markdown().rstrip()
    elif isinstance(block, Picture):
        file = folder / f"{name}-{anchor(block.name.removesuffix('.png'))[:40].rstrip('-')}.png"
        try:
            content = _png(block)
            Image.open(io.BytesIO(content)).verify()
        except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
            yield f"{block.name}: the figure cannot be read"
        else:
            write_atomically(file, content)
            yield f"![{block.title}]({folder.name}/{file.name})"
    else:
        yield f'{heading}# <a id="{block.link}"></a>{block.title}' if block.link else f"{heading}# {block.title}"
        for index, inner in enumerate(block.blocks):
            yield from ("", *_block_markdown(inner, folder, f"{name}-{index}", f"{heading}#"))
    yield ""
