"""The status page: pools, pCPUs and guests of one host as plain HTML.

No script and nothing from elsewhere; the browser asks again by itself. Each pCPU shows its use as
a word and a colour. All text is escaped: names are a tenant's.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any, Final

from agent.cpuset import CpuSet

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

REFRESH: Final = 5
"""Seconds until the browser asks again."""

_STYLE: Final = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { margin: 1.5rem; max-width: 75rem; }
table { border-collapse: collapse; margin: .6rem 0 1.6rem; width: 100%; }
th, td { border-bottom: 1px solid #8886; padding: .25rem .6rem; text-align: left; }
.cpus { display: flex; flex-wrap: wrap; gap: .3rem; list-style: none; padding: 0; }
.cpus li { border: 1px solid #8888; border-radius: .3rem; padding: .15rem .4rem; }
.pool { background: #0b7dda44; } .claimed { background: #d9820044; } .free { background: none; }
.wrong { border-left: .3rem solid #c00; padding-left: .6rem; }
"""


def page(document: Mapping[str, Any]) -> str:
    """Return the page for a `status` document."""
    host = document["topology"]
    body = [_head(document)]
    body += [_cell(cell, host) for cell in document["cells"]]
    body.append(_guests(document["guests"]))
    body.append(_warnings(document["warnings"]))
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f"<meta http-equiv='refresh' content='{REFRESH}'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>emupool</title><style>{_STYLE}</style></head><body>{''.join(body)}</body></html>"
    )


def _head(document: Mapping[str, Any]) -> str:
    libvirt = document["libvirt"]
    away = "" if libvirt["connected"] else "<p class='wrong'>libvirt is away; pins stay.</p>"
    dry = "<p class='wrong'>Dry run: nothing is pinned.</p>" if document["dry_run"] else ""
    about = f"emupool {escape(document['version'])} on {escape(libvirt['uri'])}"
    return f"<h1>Emulator pools</h1><p>{about}</p>{away}{dry}"


def _cell(cell: Mapping[str, Any], host: Mapping[str, Any] | None) -> str:
    short = ""
    if cell["shortage"]:
        short = f"<p class='wrong'>Short of {cell['shortage']} pCPUs at this ratio.</p>"
    facts = (
        f"{cell['guests']} guests of weight {escape(cell['weight'])} at ratio "
        f"{escape(cell['ratio'])}: needs {cell['need']} pCPUs, "
        f"has {escape(cell['pool_now'] or 'none')}"
    )
    return f"<h2>NUMA cell {cell['id']}</h2><p>{facts}</p>{short}{_cpus(cell, host)}"


def _cpus(cell: Mapping[str, Any], host: Mapping[str, Any] | None) -> str:
    cells = host["cells"] if host else []
    own = next((row["cpus"] for row in cells if row["id"] == cell["id"]), "")
    uses = [(name, CpuSet.parse(cell[key])) for name, key in _USES]
    items = []
    for cpu in CpuSet.parse(own):
        use = next((name for name, cpus in uses if cpu in cpus), "other")
        items.append(f"<li class='{use}'>{cpu} {use}</li>")
    return f"<ul class='cpus'>{''.join(items)}</ul>"


_USES: Final = (("claimed", "claimed"), ("pool", "pool_now"), ("free", "candidates"))


def _guests(guests: Iterable[Mapping[str, Any]]) -> str:
    heads = ("guest", "policy", "from", "cell", "emulator pCPUs", "threads on", "state", "why")
    rows = (
        (
            guest["name"] or guest["uuid"],
            guest["policy"],
            guest["source"],
            guest["cell"],
            guest["emulator_pcpus"],
            guest["kernel"],
            guest["state"] or "unmanaged",
            guest["reason"],
        )
        for guest in guests
    )
    body = "".join(f"<tr>{''.join(map(_td, row))}</tr>" for row in rows)
    head = "".join(f"<th scope='col'>{name}</th>" for name in heads)
    return f"<h2>Guests</h2><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _td(value: object) -> str:
    return f"<td>{'' if value is None else escape(str(value))}</td>"


def _warnings(warnings: Iterable[Mapping[str, Any]]) -> str:
    items = "".join(
        f"<li>{escape(': '.join(filter(None, (w['guest'], w['field'], w['text']))))}</li>"
        for w in warnings
    )
    return f"<h2>Warnings</h2><ul>{items}</ul>" if items else ""
