"""What must hold between keys: each rule gives the key to blame and what would be right.

A rule speaks up in the table that wrote one of its keys, and is silent where one was refused:
what `[pool.cell.N]` merely inherits was already said of `[pool]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent.pool import Placement, PoolSource

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from agent.config.settings import HttpSettings
    from agent.pool import CellSettings


@dataclass(frozen=True, slots=True)
class Clash:
    """A rule over `keys`; the first of them that stands in the table is blamed."""

    keys: tuple[str, str]
    broken: Callable[[CellSettings], bool]
    remedy: Callable[[CellSettings], str]


_CELL_CLASHES: Final = (
    Clash(
        ("cpus", "reserved_cpus"),
        lambda pool: not pool.cpus.isdisjoint(pool.reserved_cpus),
        lambda pool: (
            f"cpus and reserved_cpus both have {pool.cpus & pool.reserved_cpus}: "
            "take that out of one of them"
        ),
    ),
    Clash(
        ("source", "cpus"),
        lambda pool: pool.source is PoolSource.SET and not pool.cpus,
        lambda _: 'source "set" needs cpus: the set, such as cpus = "2,34"',
    ),
    Clash(
        ("min_cpus", "max_cpus"),
        lambda pool: 0 < pool.max_cpus < pool.min_cpus,
        lambda pool: (
            f"min_cpus ({pool.min_cpus}) is over max_cpus ({pool.max_cpus}): lower the one or "
            "raise the other; max_cpus = 0 is no limit"
        ),
    ),
    Clash(
        ("placement", "emulator_overcommit_ratio"),
        lambda pool: pool.placement is Placement.SINGLE and pool.ratio < 1,
        lambda pool: (
            f'a ratio below 1 ({float(pool.ratio)}) with placement "single" would leave pCPUs of '
            'the pool unused: placement "shared" or "auto", or a ratio of 1 or more'
        ),
    ),
)


def cell_clashes(
    pool: CellSettings, written: Collection[str], refused: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Yield (key, remedy) of each rule that one cell's settings break."""
    for clash in _CELL_CLASHES:
        blamed = next((key for key in clash.keys if key in written), None)
        if blamed and not set(clash.keys) & set(refused) and clash.broken(pool):
            yield blamed, clash.remedy(pool)


def tls_clashes(http: HttpSettings, refused: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield (key, remedy) of each file that has no use without another."""
    if {"tls_cert", "tls_key", "client_ca"} & set(refused):
        return
    if http.tls_cert and not http.tls_key:
        yield "tls_cert", "needs http.tls_key beside it: the key of this certificate"
    if http.tls_key and not http.tls_cert:
        yield "tls_key", "needs http.tls_cert beside it: the certificate of this key"
    if http.client_ca and not (http.tls_cert and http.tls_key):
        yield "client_ca", "needs http.tls_cert and http.tls_key: clients are asked under TLS only"


def rule_flaws(written: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield (empty key, remedy) for a rule that matches nobody or says nothing."""
    if not {"name", "uuid", "flavor"} & set(written):
        yield "", "a rule needs one of name, uuid, flavor: which guests it is for"
    if not {"policy", "weight"} & set(written):
        yield "", "a rule needs policy, weight or both: what it says of them"
