"""A domain's definition without its secrets, fit to be shown to others.

What goes: graphics passwords, `secret` elements, cookies, launch keys, QEMU's own command line, the
names of Nova's owner and user, and all metadata but Nova's and emupool's own. What decides about
emulator threads stays: a plan from what is left is the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

from agent.domainxml import NOVA_NAMESPACES, OWN_NAMESPACE, read
from agent.errors import GuestFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

_SECRET_ATTRIBUTES: Final = frozenset({"passwd", "password"})
_SECRET_ELEMENTS: Final = frozenset(
    {"secret", "auth", "cookies", "launchSecurity", "sysinfo", "commandline", "owner"}
)
_KNOWN_METADATA: Final = (OWN_NAMESPACE, *NOVA_NAMESPACES)


def redact(text: str) -> str:
    """Return the definition without secrets; GuestFailed if it is no XML."""
    root = read(text)
    for element in _all(root):
        for child in list(element):
            if _local(child) in _SECRET_ELEMENTS or _is_foreign(element, child):
                element.remove(child)
        for name in _SECRET_ATTRIBUTES & element.attrib.keys():
            del element.attrib[name]
    try:
        return ET.tostring(root, encoding="unicode")
    except RecursionError:
        raise GuestFailed("domain XML: nested too deeply") from None


def _all(root: ET.Element) -> Iterator[ET.Element]:
    """Yield each element before its children, which may be removed meanwhile."""
    waiting = [root]
    while waiting:
        element = waiting.pop()
        yield element
        waiting += element


def _is_foreign(parent: ET.Element, child: ET.Element) -> bool:
    """Tell whether `child` is metadata of an application that plans know nothing of."""
    namespace = child.tag[1:].partition("}")[0] if child.tag.startswith("{") else ""
    return parent.tag == "metadata" and namespace not in _KNOWN_METADATA


def _local(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]
