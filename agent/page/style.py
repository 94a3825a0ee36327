"""How the status page looks; the tiles of its pictures bring their own style.

Where the screen is narrow each row of a wide table becomes a paragraph: a name, and then what the
columns say, each after the name of its column.
"""

from __future__ import annotations

from typing import Final

from agent.page import tables, tiles

_ALWAYS: Final = """\
:root{color-scheme:light dark;font:15px/1.5 system-ui,sans-serif}
*{box-sizing:border-box}
body{margin:0 auto;padding:0 1rem 2rem;max-width:120rem;background:var(--paper);color:var(--ink)}
h1{font-size:1.5rem;margin:1rem 0 .25rem}
h2{font-size:1.2rem;margin:1.5rem 0 .25rem}
h3{font-size:1rem;margin:.75rem 0 .25rem}
p{margin:.25rem 0}
a{color:inherit}
.soft{color:var(--soft)}
.wrong{border-left:.3rem solid var(--wrong);padding-left:.6rem;font-weight:bold}
ul.legend{display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;list-style:none;margin:.75rem 0;padding:0}
ul.legend li{display:flex;align-items:center;gap:.4rem}
.cells{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,34rem),1fr))}
.cells section{border:1px solid var(--faint);border-radius:.5rem;padding:.75rem;min-width:0}
.caches,.cache{display:flex;flex-wrap:wrap;gap:.4rem}
.caches{margin:.5rem 0}
.cache.told{border:1px solid var(--faint);border-radius:.5rem;padding:.3rem}
.cache span{flex-basis:100%;font-size:.75rem;line-height:1;color:var(--soft)}
.cache svg{display:block}
dl{display:grid;grid-template-columns:max-content 1fr;gap:0 .75rem;margin:.5rem 0}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
dd.strong{font-weight:bold}
dd.odd,dd.wrong{font-weight:bold}
dd.wrong{color:var(--wrong);border:0;padding:0}
.whole{white-space:nowrap}
section h2{margin-top:0}
table{border-collapse:collapse;width:100%}
.drawn{display:flex;flex-wrap:wrap;gap:.5rem 2rem;align-items:flex-start}
.drawn table{flex:1 1 18rem;width:auto;max-width:44rem}
caption{text-align:left;color:var(--soft)}
th,td{border-bottom:1px solid var(--faint);padding:.2rem .75rem .2rem 0;text-align:left;\
vertical-align:top}
th{font-weight:normal}
thead th{color:var(--soft);white-space:nowrap}
.wide{overflow-x:auto;max-width:100%}
.wide td{white-space:nowrap}
.wide th[scope=row]{min-width:8rem;max-width:20rem;overflow-wrap:anywhere}
.wide td:last-child{white-space:normal;overflow-wrap:anywhere;min-width:14rem}
.amiss td:first-of-type{font-weight:bold}
"""

_NARROW: Final = """\
.wide thead{position:absolute;clip-path:inset(50%);width:1px;height:1px;overflow:hidden}
.wide tr{display:flex;flex-wrap:wrap;gap:0 .75rem;padding:.35rem 0;\
border-bottom:1px solid var(--faint)}
.wide td,.wide th{border:0;padding:0}
.wide th[scope=row]{flex-basis:100%;max-width:none;font-weight:bold}
.wide td:empty{display:none}
.wide td::before{color:var(--soft);font-weight:normal}
"""


def _named(table: str) -> str:
    """Return the rules that put the name of its column before each value."""
    return "".join(
        f".{table} td:nth-of-type({place})::before{{content:'{column} '}}\n"
        for place, column in enumerate(tables.COLUMNS[table][1:], 1)
    )


STYLE: Final = (
    f"{tiles.STYLE}{_ALWAYS}@media (max-width:45rem){{\n{_NARROW}"
    f"{''.join(map(_named, tables.COLUMNS))}}}\n"
)
