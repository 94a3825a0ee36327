"""The choice of pCPUs against a brute-force oracle that reads like the rule."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.choice import Request, choose
from agent.cpuset import EMPTY, CpuSet
from agent.groups import CellGroups, beside, group
from tests.builders import cpus, host
from tests.effort import examples
from tests.oracles import least

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hypothesis.strategies import DrawFn


def slices(count: int, size: int) -> tuple[CpuSet, ...]:
    """Return `count` pCPUs in groups of `size` neighbours."""
    return tuple(CpuSet(range(n, min(n + size, count))) for n in range(0, count, size))


@st.composite
def requests(draw: DrawFn) -> Request:
    smt = draw(st.sampled_from([1, 2, 4]))
    count = draw(st.integers(1, 12 // smt)) * smt
    l3 = draw(st.sampled_from([0, 1, smt, 2 * smt, 3 * smt, count] + [2] * (smt == 4)))
    subsets = st.integers(0, (1 << count) - 1).map(CpuSet.from_bits)
    claimed = draw(subsets)
    candidates = draw(subsets) - claimed
    carried = draw(st.dictionaries(st.integers(0, count - 1), st.integers(1, 3), max_size=4))
    return Request(
        size=draw(st.integers(0, count)),
        candidates=candidates,
        groups=CellGroups(slices(count, smt), slices(count, l3) if l3 else ()),
        claimed=claimed,
        realtime=claimed & draw(subsets),
        reserved=draw(subsets) - candidates,
        present=draw(subsets),
        carried=draw(st.sampled_from([None, carried])),
        mind_siblings=draw(st.booleans()),
    )


@pytest.mark.soak
@settings(max_examples=examples(2000, 20_000))
@given(requests())
def test_the_choice_is_the_least_of_all_sets(request: Request) -> None:
    assert choose(request) == least(request)


def tiny_hosts() -> Iterator[Request]:
    """Yield every state of four pCPUs in every shape that a host may give them."""
    states = "candidate", "present", "claimed", "realtime", "reserved", "lost"
    shapes = [
        CellGroups(slices(4, smt), slices(4, l3) if l3 else ())
        for smt, l3 in ((1, 0), (1, 2), (2, 4), (2, 2), (2, 1), (4, 4), (4, 2))
    ]
    for state in product(states, repeat=4):
        are = {name: CpuSet(n for n in range(4) if state[n] == name) for name in states}
        candidates = are["candidate"] | are["present"]
        sizes = range(1, len(candidates))
        for size, groups, minded in product(sizes, shapes, (True, False)):
            yield Request(
                size=size,
                candidates=candidates,
                groups=groups,
                claimed=are["claimed"] | are["realtime"],
                realtime=are["realtime"],
                reserved=are["reserved"],
                present=are["present"] | are["lost"],
                mind_siblings=minded,
            )


def test_every_state_of_a_tiny_host() -> None:
    wrong = [request for request in tiny_hosts() if choose(request) != least(request)]
    assert not wrong[:1]


def test_every_state_of_three_cores() -> None:
    """Two criteria that count groups need three of them to disagree."""
    states = "candidate", "present", "reserved"
    for state, l3, size in product(product(states, repeat=6), (2, 4), (1, 2, 3)):
        are = {name: CpuSet(n for n in range(6) if state[n] == name) for name in states}
        asked = Request(
            size=size,
            candidates=are["candidate"] | are["present"],
            groups=CellGroups(slices(6, 2), slices(6, l3)),
            reserved=are["reserved"],
            present=are["present"],
        )
        assert choose(asked) == least(asked)


SMT: Final = CellGroups(slices(8, 2), slices(8, 8))


def request(
    size: int,
    *,
    candidates: str = "0-7",
    claimed: str = "",
    realtime: str = "",
    reserved: str = "",
    present: str = "",
    carried: dict[int, int] | None = None,
    mind_siblings: bool = True,
) -> Request:
    """Return a choice on four cores of two threads."""
    return Request(
        size=size,
        candidates=cpus(candidates),
        groups=SMT,
        claimed=cpus(claimed),
        realtime=cpus(realtime),
        reserved=cpus(reserved),
        present=cpus(present),
        carried=carried,
        mind_siblings=mind_siblings,
    )


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        pytest.param(request(1), "0", id="the lowest id"),
        pytest.param(request(2), "0-1", id="two threads of a core break into one core only"),
        pytest.param(request(3), "0-2", id="ids decide what cores leave open"),
        pytest.param(request(9), "0-7", id="all candidates if there are too few"),
        pytest.param(request(0), "", id="nothing is asked"),
        pytest.param(
            request(1, claimed="0", candidates="1-7"),
            "2",
            id="not beside a claim if it can be helped",
        ),
        pytest.param(
            request(1, claimed="0", candidates="1-7", mind_siblings=False),
            "1",
            id="smt any: beside a claim no core is broken into",
        ),
        pytest.param(
            request(1, claimed="0,2", realtime="0", candidates="1,3"),
            "3",
            id="beside a claim rather than beside a real-time claim",
        ),
        pytest.param(
            request(2, claimed="0,2,4,6", realtime="0,2", candidates="1,3,5,7"),
            "5,7",
            id="real-time neighbours count before all",
        ),
        pytest.param(request(1, present="6"), "6", id="stay where we are"),
        pytest.param(request(2, present="6"), "6-7", id="grow in the core that is broken into"),
        pytest.param(
            request(1, present="1", claimed="0", candidates="1-7"),
            "2",
            id="but do not stay beside a claim",
        ),
        pytest.param(
            request(1, reserved="4", candidates="0-3,5-7"),
            "5",
            id="a core with a reserved thread is not wholly free",
        ),
        pytest.param(
            replace(
                request(2, candidates="0-1,2,4", reserved="3,5"),
                groups=CellGroups(slices(8, 2), slices(8, 2)),
            ),
            "2,4",
            id="cores count before L3 domains",
        ),
        pytest.param(
            request(2, candidates="0,2,4-5", carried={0: 1, 2: 2}),
            "4-5",
            id="cores count before guests",
        ),
        pytest.param(
            request(1, candidates="0,2,4", carried={2: 1, 4: 2}),
            "4",
            id="the pCPU that most guests are on",
        ),
        pytest.param(
            replace(
                request(4, candidates="0-1,3-7"),
                groups=CellGroups(slices(8, 1), slices(8, 4)),
            ),
            "4-7",
            id="L3 domains count before ids",
        ),
        pytest.param(
            replace(
                request(2, candidates="0,2,4,6", present="0,2,4,6"),
                groups=CellGroups(slices(8, 1), (cpus("0,4"), cpus("2,6"))),
            ),
            "0,4",
            id="a shrinking pool stays in one L3 domain",
        ),
    ],
)
def test_one_criterion_at_a_time(asked: Request, chosen: str) -> None:
    assert str(choose(asked)) == chosen
    assert least(asked) == cpus(chosen), "the oracle reads the rules as the author does"


def test_a_large_cell_is_chosen_from_in_time_that_does_not_explode() -> None:
    groups = CellGroups(slices(512, 2), slices(512, 16))
    asked = Request(size=100, candidates=CpuSet(range(1, 512)), groups=groups)
    chosen = choose(asked)
    assert len(chosen) == 100
    assert str(chosen) == "2-101"


def test_beside() -> None:
    cores = slices(8, 2)
    assert beside(cores, cpus("0,5")) == cpus("0-1,4-5")
    assert beside(cores, EMPTY) == EMPTY


def test_groups_of_a_host_are_those_of_online_pcpus_by_cell() -> None:
    found = group(host(cells=2, cores=2, smt=2, l3_cores=1, offline="1,4-5"))
    assert found == {
        0: CellGroups((cpus("0"), cpus("2-3")), (cpus("0"), cpus("2-3"))),
        1: CellGroups((cpus("6-7"),), (cpus("6-7"),)),
    }


def test_a_pcpu_of_unknown_siblings_is_a_core_by_itself_and_no_l3_is_no_domain() -> None:
    mute = host(cores=1, smt=2, l3_cores=0)
    mute = replace(mute, cpus=tuple(replace(pcpu, siblings=None) for pcpu in mute.cpus))
    assert group(mute) == {0: CellGroups((cpus("0"), cpus("1")), ())}
