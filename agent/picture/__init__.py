"""What is to be drawn of a host by use, as values: the one source of every picture.

    documents -> of_plan, of_topology -> Picture -> draw (terminal), page (HTML and SVG)

A `Picture` has the cells of a host; a cell its facts, its pCPUs as they are built (packages, L3
caches, cores, threads), the `Use` of each and how many guests a pool pCPU carries. A use is a
letter, so that nothing needs colour to be understood.

The JSON documents tell all of it: the picture of a daemon elsewhere is the same as one of this
host. What is in a document and not the program's own (names, reasons) is in no picture.
"""

from agent.picture.cells import CellPicture, Fact, Picture, Tone, of_plan, of_topology
from agent.picture.cores import Block, Cache, Core
from agent.picture.guests import urgency
from agent.picture.steps import Move, moves
from agent.picture.uses import IN_PLAN, IN_TOPOLOGY, Use

__all__ = [
    "IN_PLAN",
    "IN_TOPOLOGY",
    "Block",
    "Cache",
    "CellPicture",
    "Core",
    "Fact",
    "Move",
    "Picture",
    "Tone",
    "Use",
    "moves",
    "of_plan",
    "of_topology",
    "urgency",
]
