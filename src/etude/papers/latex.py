"""Text to LaTeX and back, as far as BibTeX files need it."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["plain", "tex"]

ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\textbraceleft{}", "}": r"\textbraceright{}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{mark: f"\\{mark}" for mark in "&%$#_"},
}  # fmt: skip
SPECIAL = re.compile(r"[\\{}~^&%$#_]|-(?=-)|`(?=`)|'(?=')")
SYMBOLS = {
    "textbackslash": "\\", "textbraceleft": "{", "textbraceright": "}", "textasciitilde": "~",
    "textasciicircum": "^", "textless": "<", "textgreater": ">", "textbar": "|",
    "textunderscore": "_", "textquotedblleft": "“", "textquotedblright": "”",
    "textendash": "–", "textemdash": "—", "ldots": "…", "dots": "…", "textellipsis": "…",
    "ss": "ß", "o": "ø", "O": "Ø", "l": "ł", "L": "Ł", "ae": "æ", "AE": "Æ", "oe": "œ",
    "OE": "Œ", "aa": "å", "AA": "Å", "i": "i", "j": "j", "S": "§", "copyright": "©",
}  # fmt: skip
MARKS = {
    "'": "\u0301", "`": "\u0300", "^": "\u0302", '"': "\u0308", "~": "\u0303", "=": "\u0304",
    ".": "\u0307", "c": "\u0327", "v": "\u030c", "u": "\u0306", "H": "\u030b", "k": "\u0328",
    "r": "\u030a", "d": "\u0323", "b": "\u0331",
}  # fmt: skip
STYLES = {
    "emph", "textbf", "textit", "textsc", "textrm", "texttt", "textsf", "textup", "it", "bf", "em",
    "sc", "rm", "tt", "url", "uppercase", "lowercase", "mbox", "text",
}  # fmt: skip
TOKEN = re.compile(
    r"""
    (?P<math>\$(?:[^$\\]|\\.)*\$)
    | \\(?:(?P<mark>["'`^~=.])\s*|(?P<name>[cvuHkrdb])(?:\s+|(?=\{)))
      (?:\{\s*\\?(?P<braced>[A-Za-z])\s*\}|\\(?P<dotless>[ij])(?![A-Za-z])|(?P<letter>[A-Za-z]))
    | \\(?P<word>[A-Za-z]+)(?P<end>\{\}|\s*)
    | \\(?P<sign>.)
    | (?P<dash>---?)
    | (?P<quote>``|'')
    | (?P<space>~)
    | [{}]
    """,
    re.VERBOSE | re.DOTALL,
)
SIGNS = {"\\": " ", ",": " ", ";": " ", ":": " ", "-": "", "/": "", " ": " ", "\n": " ", "!": ""}


def tex(text: str) -> str:
    """`text` so that LaTeX prints it and does nothing else; braces are balanced."""
    return SPECIAL.sub(lambda m: ESCAPES.get(m[0]) or m[0] + "{}", text)


def plain(text: str) -> str:
    """The characters that LaTeX prints for `text`; mathematics and unknown commands stay."""
    return TOKEN.sub(_printed, text)


def _printed(m: re.Match[str]) -> str:
    if m["math"]:
        return m["math"]
    letter = m["braced"] or m["dotless"] or m["letter"]
    if letter:
        return unicodedata.normalize("NFC", letter + MARKS[m["mark"] or m["name"]])
    if m["word"]:
        if m["word"] in SYMBOLS:
            return SYMBOLS[m["word"]]
        return "" if m["word"] in STYLES else m[0]
    if m["sign"]:
        return SIGNS.get(m["sign"], m["sign"])
    if m["dash"]:
        return "—" if len(m["dash"]) == 3 else "–"
    if m["quote"]:
        return "“" if m["quote"] == "``" else "”"
    return " " if m["space"] else ""
