"""Sets of pCPUs, and their text at the borders."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cpuset import EMPTY, LIMIT, CpuSet, CpuSetError, union

IDS: Final = st.one_of(st.integers(0, 70), st.integers(0, LIMIT - 1))
SETS: Final = st.frozensets(IDS, max_size=12)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        pytest.param("", [], id="an empty text is the empty set"),
        pytest.param(" \n", [], id="so is white space, as the kernel writes it"),
        pytest.param("7", [7], id="a pCPU"),
        pytest.param("0-3,8", [0, 1, 2, 3, 8], id="the kernel's list"),
        pytest.param("8,0-3", [0, 1, 2, 3, 8], id="order does not matter"),
        pytest.param("0-2,1-3", [0, 1, 2, 3], id="ranges may overlap"),
        pytest.param("0-7,^5", [0, 1, 2, 3, 4, 6, 7], id="libvirt excludes a pCPU"),
        pytest.param("0-7,^2-5", [0, 1, 6, 7], id="libvirt excludes a range"),
        pytest.param("0-7,^5,5", [0, 1, 2, 3, 4, 5, 6, 7], id="what follows an exclusion counts"),
        pytest.param("^5,4-6", [4, 5, 6], id="an exclusion of what was not there is nothing"),
        pytest.param(" 1 , 2-3 ", [1, 2, 3], id="spaces around items"),
        pytest.param("5-5", [5], id="a range of one"),
        pytest.param(str(LIMIT - 1), [LIMIT - 1], id="the highest id"),
    ],
)
def test_parse(text: str, ids: list[int]) -> None:
    assert list(CpuSet.parse(text)) == ids


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        pytest.param("a", "'a'", id="letters"),
        pytest.param("1,,2", "''", id="nothing between commas"),
        pytest.param("1,", "''", id="a comma at the end"),
        pytest.param("3-1", "'3-1'", id="a backward range"),
        pytest.param("-1", "'-1'", id="a negative id"),
        pytest.param("1-", "'1-'", id="an open range"),
        pytest.param("^", "'^'", id="an exclusion of nothing"),
        pytest.param("^^1", "'^^1'", id="a double exclusion"),
        pytest.param("0x1", "'0x1'", id="hexadecimal"),
        pytest.param("1 2", "'1 2'", id="a space inside an item"),
        pytest.param("٣", "'٣'", id="digits of another script"),
        pytest.param(str(LIMIT), str(LIMIT), id="one above the highest id"),
        pytest.param("0," * 100_000 + "0", "200001 characters", id="a list without end"),
        pytest.param("0-999999999", "999999999", id="a range that would fill the memory"),
        pytest.param("9" * 5000, "'" + "9" * 40 + "'", id="a number without end is cut"),
        pytest.param("1\n2", "'1\\n2'", id="a line break is shown as such"),
    ],
)
def test_parse_refuses_and_quotes_the_item(text: str, quoted: str) -> None:
    with pytest.raises(CpuSetError) as error:
        CpuSet.parse(text)
    assert quoted in str(error.value)
    assert len(str(error.value)) < 120


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("f", "0-3", id="a word"),
        pytest.param("00000000,0000000f\n", "0-3", id="words of 32 bits"),
        pytest.param("1,00000000", "32", id="the first word is the highest"),
        pytest.param("80000001,00000002,00000000", "33,64,95", id="bits across words"),
        pytest.param("0", "", id="nobody"),
    ],
)
def test_parse_mask(text: str, expected: str) -> None:
    assert str(CpuSet.parse_mask(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("xyz", id="no hexadecimal"),
        pytest.param("123456789", id="a word of more than 32 bits"),
        pytest.param("ff,,ff", id="a word missing"),
        pytest.param("-f", id="a sign"),
        pytest.param(",".join(["ffffffff"] * 2049), id="more words than pCPUs may have"),
    ],
)
def test_parse_mask_refuses(text: str) -> None:
    with pytest.raises(CpuSetError):
        CpuSet.parse_mask(text)


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        pytest.param([], "", id="empty"),
        pytest.param([3], "3", id="one"),
        pytest.param([0, 1], "0-1", id="a pair is a range, as the kernel has it"),
        pytest.param([0, 2, 4], "0,2,4", id="no neighbours"),
        pytest.param([0, 1, 2, 5, 6, 9], "0-2,5-6,9", id="runs"),
        pytest.param([63, 64, 65], "63-65", id="over a word's end"),
    ],
)
def test_str_is_the_canonical_list(ids: list[int], text: str) -> None:
    assert str(CpuSet(ids)) == text


def test_ids_out_of_range_are_refused() -> None:
    for cpu in (-1, LIMIT):
        with pytest.raises(CpuSetError):
            CpuSet.of(cpu)


@given(SETS)
def test_text_and_set_agree(ids: frozenset[int]) -> None:
    cpus = CpuSet(ids)
    assert CpuSet.parse(str(cpus)) == cpus
    assert list(cpus) == sorted(ids)
    assert CpuSet.from_bits(cpus.bits) == cpus
    assert CpuSet.parse_mask(_mask(cpus)) == cpus


def _mask(cpus: CpuSet) -> str:
    digits = f"{cpus.bits:x}"
    digits = digits.zfill(-(-len(digits) // 8) * 8)
    return ",".join(digits[at : at + 8] for at in range(0, len(digits), 8))


@given(SETS, SETS)
def test_it_is_a_set(left: frozenset[int], right: frozenset[int]) -> None:
    a, b = CpuSet(left), CpuSet(right)
    assert set(a | b) == left | right
    assert set(a & b) == left & right
    assert set(a - b) == left - right
    assert (a <= b, a < b, a == b) == (left <= right, left < right, left == right)
    assert a.isdisjoint(b) == left.isdisjoint(right)
    assert len(a) == len(left)
    assert bool(a) == bool(left)
    assert set(union([a, b])) == left | right
    assert all((cpu in a) == (cpu in left) for cpu in left | right)
    assert (hash(a) == hash(b)) >= (a == b)


@given(SETS)
def test_only_and_first(ids: frozenset[int]) -> None:
    cpus = CpuSet(ids)
    assert cpus.only() == (next(iter(ids)) if len(ids) == 1 else None)
    if ids:
        assert cpus.first() == min(ids)


def test_the_empty_set_has_no_first() -> None:
    with pytest.raises(CpuSetError):
        EMPTY.first()
    assert union([]) == EMPTY


def test_what_is_no_pcpu_is_not_in_it() -> None:
    assert "1" not in CpuSet.of(1)
    assert -1 not in CpuSet.of(1)
    assert CpuSet.of(1) != 2
    assert repr(CpuSet.of(1, 2)) == "CpuSet('1-2')"
