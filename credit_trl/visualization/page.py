"""Provide what all HTML pictures share: colors of both themes, text made safe and visible, a page in one file.

A value is drawn in one of a few levels, so that the contrast of the text on every background can be checked. Signed
values run from orange over the page's color to blue, weights from the page's color to purple: both differ in
lightness and are told apart with any common color blindness.
"""

import html
import math
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

LEVELS = 10  # colors of each sign, besides zero

# The ends of the scales, and what else has text on it. `masked` and `stripe` alternate behind masked tokens.
THEMES = {
    "light": {
        "page": "#ffffff",
        "text": "#16181d",
        "note": "#565b66",
        "line": "#8a909c",
        "masked": "#eceef1",
        "stripe": "#dfe2e7",
        "negative": "#f2913d",
        "positive": "#5aa5ee",
        "weight": "#b18ae6",
    },
    "dark": {
        "page": "#14161a",
        "text": "#f3f4f6",
        "note": "#b3b9c4",
        "line": "#727987",
        "masked": "#2b2f36",
        "stripe": "#363b44",
        "negative": "#a35200",
        "positive": "#1f65ad",
        "weight": "#7443b5",
    },
}
_GLYPHS = {"\n": "↵", " ": "·", "\t": "⇥"}
_AFTER_LINE_BREAKS = re.compile(r"(?<=\n)(?=[^\n])")
_BREAKS = {" ": "<wbr>", "\t": "<wbr>"}
_SCALES = {"n": "negative", "p": "positive", "w": "weight"}


def palette(theme: str) -> dict[str, str]:
    """Return the theme's colors by name, as `#rrggbb`; `n1` to `n10`, `p1` .. and `w1` .. are its scales' levels."""
    colors = dict(THEMES[theme])
    for short, end in _SCALES.items():
        for level in range(1, LEVELS + 1):
            colors[f"{short}{level}"] = _mix(colors["page"], colors[end], level / LEVELS)
    return colors


def level(value: float, limit: float, *, signed: bool) -> str:
    """Return the palette's name for the background of `value`: `page` at zero, the full color from `limit` on."""
    if not math.isfinite(value):
        return "not-finite"
    number = round(LEVELS * min(abs(value) / limit, 1.0)) if limit else 0
    if number == 0:
        return "page"
    return f"{'w' if not signed else 'p' if value > 0 else 'n'}{number}"


def visible(text: str, *, spaces: bool = True) -> str:
    """Return `text` as HTML that shows line breaks, tabs, control characters and, with `spaces`, a dot for a space.

    Lines break after the last of several `\\n` in a row, but not at the end of the text.
    """
    lines = _AFTER_LINE_BREAKS.split(text)
    return "<br>".join(
        "".join(
            character if character == " " and not spaces else html.escape(glyph(character)) + _BREAKS.get(character, "")
            for character in line
        )
        for line in lines
    )


def glyph(character: str) -> str:
    """Return the character, or a visible sign for one that could not be seen."""
    if character in _GLYPHS:
        return _GLYPHS[character]
    # Control and format characters, among them those that turn the direction of the text, and other spaces.
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp", "Zs"):
        return character.encode("unicode_escape").decode()
    return character


@dataclass(frozen=True)
class Picture:
    """Hold HTML that needs no other file, script or address. It shows itself in a notebook; `save` writes a page.

    Args:
        body: content of the page, already escaped.
        title: title of the page, plain text.
    """

    body: str
    title: str

    @classmethod
    def joined(cls, pictures: Iterable["Picture"], title: str, *, beside: bool = False) -> "Picture":
        """Join several pictures, one below the other, or `beside` each other as far as there is room."""
        body = "".join(picture.body for picture in pictures)
        return cls(f'<div class="credit-pictures">{body}</div>' if beside else body, title)

    @property
    def html(self) -> str:
        """Return the whole page."""
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            '<meta name="color-scheme" content="light dark">'
            f"<title>{html.escape(self.title)}</title><style>{_page_colors()}</style></head>\n"
            f"<body>{self._repr_html_()}</body></html>\n"
        )

    def _repr_html_(self) -> str:
        return f"<style>{_style()}</style>{self.body}"

    def save(self, path: str | Path) -> Path:
        """Write the page to `path`, whose folders are made on the way, and return it."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.html, encoding="utf-8")
        return path


def section(title: str, note: str, content: str) -> str:
    """Frame a picture. `title` and `note` are plain text, `content` is HTML."""
    heading = f"<h3>{visible(title, spaces=False)}</h3>" if title else ""
    below = f'<p class="note">{visible(note, spaces=False)}</p>' if note else ""
    return f'<section class="credit-picture">{heading}{below}{content}</section>\n'


def mark(label: str) -> str:
    """Return a label that stands in the text."""
    return f'<b class="mark">{visible(label, spaces=False)}</b>'


def _mix(start: str, end: str, share: float) -> str:
    channels = [(int(start[i : i + 2], 16), int(end[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(first + share * (last - first)):02x}" for first, last in channels)


def _page_colors() -> str:
    light, dark = (f"html{{background:{THEMES[theme]['page']}}}" for theme in ("light", "dark"))
    return f"body{{margin:0}}{light}@media (prefers-color-scheme:dark){{{dark}}}"


def _style() -> str:
    variables = {
        theme: "".join(f"--{name}:{color};" for name, color in palette(theme).items()) for theme in ("light", "dark")
    }
    levels = "".join(
        f".credit-picture .{name}{{background:var(--{name})}}" for name in palette("light") if name[1:].isdigit()
    )
    return (
        f".credit-picture{{{variables['light']}}}"
        f"@media (prefers-color-scheme:dark){{.credit-picture{{{variables['dark']}}}}}{levels}{_RULES}"
    )


_RULES = """
.credit-pictures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(460px,100%),1fr))}
.credit-picture{background:var(--page);color:var(--text);font:14px/1.45 system-ui,sans-serif;padding:14px 18px}
.credit-picture *{box-sizing:border-box}
.credit-picture h3{font-size:16px;margin:0 0 4px;color:var(--text)}
.credit-picture .note{color:var(--note);margin:0 0 10px;overflow-wrap:anywhere}
.credit-picture .methods{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(300px,100%),1fr));gap:0 24px}
.credit-picture .narrow{grid-template-columns:repeat(auto-fit,minmax(min(160px,100%),1fr));gap:0 12px}
.credit-picture figure{margin:0 0 12px;min-width:0;display:grid;grid-template-columns:minmax(0,1fr);
grid-row:span 3;grid-template-rows:subgrid}
.credit-picture figcaption{grid-row:1;font-weight:600;margin-bottom:4px}
.credit-picture figure .legend{grid-row:2}
.credit-picture figure .text{grid-row:3}
.credit-picture .legend{display:flex;flex-wrap:wrap;align-items:center;gap:2px 14px;margin-bottom:8px;font-size:12px;
color:var(--note)}
.credit-picture .scale{display:inline-flex;align-items:center;gap:6px;max-width:100%}
.credit-picture .ramp{display:inline-flex;border:1px solid var(--line)}
.credit-picture .ramp i{width:9px;height:12px}
.credit-picture .narrow .ramp i{width:5px}
.credit-picture .ramp .page{background:var(--page)}
.credit-picture .swatch{display:inline-block;width:20px;height:12px;border:1px solid var(--line)}
.credit-picture .text{font:13px/1.75 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;
overflow-wrap:anywhere}
.credit-picture .token{padding:2px 0;border-radius:2px;box-decoration-break:clone;-webkit-box-decoration-break:clone;
box-shadow:inset 1px 0 var(--page)}
.credit-picture .numbered{line-height:1.25}
.credit-picture .numbered .token{display:inline-flex;flex-direction:column;align-items:center;vertical-align:top;
min-width:17px;padding:2px 1px 1px;margin:1px 1px 3px 0}
.credit-picture .numbered .mark{padding:1px 3px;margin:0 2px;vertical-align:top}
.credit-picture .number{font:10px/12px system-ui,sans-serif;min-height:12px}
.credit-picture .outlined{outline:2px solid var(--text);position:relative;z-index:1}
.credit-picture .token:hover{outline:2px dashed var(--text)}
.credit-picture .masked{background:repeating-linear-gradient(135deg,var(--masked) 0 4px,var(--stripe) 4px 8px)}
.credit-picture .token.masked,.credit-picture .box.masked{color:var(--note)}
.credit-picture .not-finite{background:var(--page);outline:2px dashed var(--text);outline-offset:-2px}
.credit-picture .mark{font:600 11px/1.3 system-ui,sans-serif;background:var(--text);color:var(--page);
border-radius:3px;padding:1px 5px;margin:0 3px;display:inline-block;max-width:100%}
.credit-picture .tree{display:flex;align-items:flex-start}
.credit-picture .root{flex:0 1 38%;min-width:0;padding-top:5px}
.credit-picture .stem{flex:0 0 20px;margin-top:18px;border-top:2px solid var(--line)}
.credit-picture .branches{flex:1 1 62%;min-width:0}
.credit-picture .branch{position:relative;padding:5px 0 5px 22px}
.credit-picture .branch::before{content:"";position:absolute;left:0;top:0;bottom:0;border-left:2px solid var(--line)}
.credit-picture .branch:first-child::before{top:18px}
.credit-picture .branch:last-child::before{bottom:auto;height:20px}
.credit-picture .branch::after{content:"";position:absolute;left:0;top:18px;width:22px;border-top:2px solid var(--line)}
.credit-picture .box{border:1px solid var(--line);border-radius:6px;overflow:hidden}
.credit-picture .box .head{padding:4px 10px;font-weight:600;font-size:12px;border-bottom:1px solid var(--line)}
.credit-picture .box .text{padding:6px 10px}
.credit-picture .dropped{border-style:dashed}
.credit-picture .step{display:block}
@media (max-width:600px){
.credit-picture{padding:12px}
.credit-picture .tree{display:block}
.credit-picture .stem{height:14px;margin:0;border-top:0;border-left:2px solid var(--line)}
.credit-picture .branch,.credit-picture .branch:last-child{padding-left:14px}
.credit-picture .branch::after{width:14px}
.credit-picture .branch:first-child::before{top:0}}
"""
