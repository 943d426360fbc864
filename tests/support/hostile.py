"""Texts that must never be taken for an id or name: over two hundred, by what they try."""

from __future__ import annotations

TELLTALE = "ZQX"
"""In every payload that is long enough to show it, so that a message which repeats one is found."""

_PATHS = ("../{}", "..\\{}", "../../etc/{}", "/{}", "/etc/passwd/{}", "a/../{}", "a/..", "{}/..", "..", "./{}", "~/{}")
_MORE_PATHS = (
    "~root/{}",
    "C:\\{}",
    "\\\\host\\{}",
    "//{}",
    "a//{}",
    "a/./../{}",
    "....//{}",
    "..;/{}",
    ".{}",
    "-rf {}",
)
_ADDRESSES = ("file:///{}", "file://localhost/{}", "http://{}", "https://a/{}", "ftp://{}", "s3://bucket/{}", "gs://{}")
_MORE_ADDRESSES = ("javascript://{}", "data://{}", "jar:file:///{}!/", "smb://{}", "ldap://{}", "gopher://{}", "//a/{}")
_ENCODED = (
    "%2e%2e/{}",
    "%2e%2e%2f{}",
    "..%2f{}",
    "%252e%252e/{}",
    "%c0%ae%c0%ae/{}",
    "{}%00",
    "%00{}",
    "{}%0a",
    "{}%0d",
)
_FORMULAS = ("={}", "=1+1+{}", "=cmd|' /C {}'!A0", "=HYPERLINK({})", "+{}", "+1+{}", "-{}", "-1+{}", "@{}", "@SUM({})")
_MORE_FORMULAS = ("\t={}", "\r={}", "\n={}", " ={}", ";={}", "|{}", "%{}", "!{}", '"={}"', "'={}", "{}\t", "{}\t=1")
_PAGES = (
    "<script>{}</script>",
    "<img src=x onerror={}>",
    "<svg/onload={}>",
    "</td>{}",
    "<!--{}-->",
    "&lt;{}",
    "{}<br>",
)
_MORE_PAGES = (
    '"onclick={}',
    "'onclick={}",
    "`{}`",
    "<{}",
    "{}>",
    "<a href=javascript:{}>",
    "<style>{}",
    "]]>{}",
    "<?{}?>",
)
_TEMPLATES = ("{{{{{}}}}}", "{{%{}%}}", "${{{}}}", "#{{{}}}", "<%={}%>", "[[{}]]", "{{{}}}", "$({})", "${}", "@{{{}}}")
_SHELL = (
    ";{}",
    "a;{}",
    "a|{}",
    "a&{}",
    "a&&{}",
    "a>{}",
    "a<{}",
    "a`{}`",
    "a$({})",
    "a\\{}",
    "*{}",
    "a*{}",
    "a?{}",
    "a!{}",
)
_QUERIES = (
    "'{}",
    '"{}',
    "a' OR '1'='1{}",
    'a" OR ""="{}',
    "a'; DROP TABLE {};--",
    "a/*{}*/",
    "a'||{}",
    "a\\'{}",
    "a,{}",
)
_MORE_QUERIES = ("a) UNION {}", "a#{}", "a={}", "a~{}", "a^{}", "a[{}]", "a({})", "(a|b)*{}", "{}$", "^{}")
_CONTROLS = tuple(
    "a" + chr(code) + "{}" for code in (0, 1, 7, 8, 9, 10, 11, 12, 13, 27, 28, 29, 30, 31, 127, 128, 133, 159)
)
_ENDS = tuple("{}" + chr(code) for code in (0, 10, 13, 9, 32, 160, 8232, 8233))
_STARTS = tuple(chr(code) + "{}" for code in (32, 160, 9, 65279, 8203))
_UNSEEN = tuple(
    "a" + chr(code) + "{}" for code in (173, 8203, 8204, 8205, 8206, 8207, 8234, 8237, 8238, 8288, 8294, 8297)
)
_MORE_UNSEEN = tuple(
    "a" + chr(code) + "{}" for code in (847, 1564, 6158, 12288, 65279, 65529, 917505, 57344, 65535, 1114111)
)
_ALIKE = ("us\u0435r-{}", "\u0430dmin-{}", "\uff55ser-{}", "u\u0455er-{}", "\u0131d-{}", "\u017fet-{}", "\u212aey-{}")
_MORE_ALIKE = ("caf\u00e9-{}", "cafe\u0301-{}", "\u2160-{}", "\u0661-{}", "\u09e7-{}", "\u00b2-{}", "\u2024\u2024/{}")
_STILL_ALIKE = (
    "\uff0e\uff0e/{}",
    "\u2215{}",
    "\u2044{}",
    "a\uff0f{}",
    "a\u2028{}",
    "\u05d0{}",
    "\u0627{}",
    "\U0001d7d8{}",
)
_LOGS = (
    "a\nerror: {}",
    "a\r\nERROR {}",
    "\x1b[2J{}",
    "\x1b[31m{}\x1b[0m",
    "\x9b31m{}",
    "a\x1b]0;{}\x07",
    "a\x08\x08{}",
)
_LONG = (
    "{}" + "x" * 300,
    "x" * 10_000 + "{}",
    "{}" + "../" * 500,
    "{}" + "\u0301" * 400,
    "=" * 400 + "{}",
    "{}" + " " * 300,
)
_SPACES = (
    " {}",
    "{} ",
    "  {}",
    "\u3000{}",
    "{}\u3000",
    "\u2003{}",
    "a\u00a0{}",
    "a\u2009{}",
    "\ufeff{}",
    "_{}",
    ".{}.",
)

PAYLOADS: dict[str, tuple[str, ...]] = {
    "traversal": _PATHS + _MORE_PATHS,
    "address": _ADDRESSES + _MORE_ADDRESSES,
    "encoded": _ENCODED,
    "formula": _FORMULAS + _MORE_FORMULAS,
    "HTML": _PAGES + _MORE_PAGES,
    "template": _TEMPLATES,
    "shell": _SHELL,
    "query": _QUERIES + _MORE_QUERIES,
    "control": _CONTROLS + _ENDS + _STARTS,
    "unseen": _UNSEEN + _MORE_UNSEEN,
    "look-alike": _ALIKE + _MORE_ALIKE + _STILL_ALIKE,
    "log": _LOGS,
    "bomb": _LONG,
    "space": _SPACES,
}


def payloads() -> list[tuple[str, str]]:
    """Family and text of each, none twice."""
    found: dict[str, str] = {}
    for family, texts in PAYLOADS.items():
        for text in texts:
            found.setdefault(text.format(TELLTALE), family)
    return [(family, text) for text, family in found.items()]
