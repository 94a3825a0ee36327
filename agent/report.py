"""Plans as the stable JSON of the command line and of `/api/v1/status`.

CPU sets are strings in the kernel's notation, exact numbers strings of the reduced fraction.
"""

from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

from agent.transition import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent.accounting import Bill
    from agent.advice import Advice
    from agent.candidates import Warned
    from agent.cpuset import CpuSet
    from agent.load import Method
    from agent.planner import InstanceNUMACell, NUMACell, Plan
    from agent.simulation import Outcome
    from agent.transition import Step

SCHEMA: Final = 1

Json = dict[str, Any]


def plan(decided: Plan, steps: Iterable[Step]) -> Json:
    """Return the `plan` document: cells, guests, steps in order, warnings."""
    return {
        "schema": SCHEMA,
        "cells": [_cell(cell) for cell in decided.cells],
        "guests": [guest(planned) for planned in decided.guests],
        "steps": [step(one) for one in steps],
        "warnings": [warning(one) for one in decided.warnings],
    }


def as_text(document: Json) -> str:
    """Return a document as it is printed and kept."""
    return json.dumps(document, indent=2)


def _cell(cell: NUMACell) -> Json:
    return {
        "id": cell.id,
        "guests": cell.guests,
        "weight": str(cell.weight),
        "ratio": str(cell.ratio),
        "need": cell.need,
        "pool": str(cell.emulator_cpus),
        "pool_now": str(cell.pool_now),
        "candidates": str(cell.candidates),
        "claimed": str(cell.claimed),
        "realtime": str(cell.realtime),
        "reserved": str(cell.reserved),
        "shortage": cell.shortage,
    }


def guest(planned: InstanceNUMACell) -> Json:
    """Return one row of `guests`."""
    return {
        "uuid": planned.uuid,
        "name": planned.name,
        "policy": planned.policy,
        "source": planned.source,
        "managed": planned.managed,
        "weight": str(planned.weight),
        "cell": planned.cell,
        "original": cpus(planned.original.emulator),
        "emulator_pcpus": cpus(planned.emulator_pcpus),
        "placement": planned.placement,
        "state": planned.state,
        "reason": planned.reason,
    }


def step(one: Step) -> Json:
    """Return one row of `steps`."""
    return {
        "uuid": one.uuid,
        "kind": one.kind,
        "iothread": one.iothread,
        "from": cpus(one.was),
        "to": str(one.to),
        "reason": one.reason,
    }


def warning(one: Warned) -> Json:
    """Return one row of `warnings`; a guest of None is the host."""
    return {"guest": one.guest, "field": one.field, "text": one.text}


def comparison(answers: Mapping[Fraction, tuple[Plan, tuple[Step, ...]]]) -> Json:
    """Return what each ratio would come to; `cpus_freed` is against one pCPU for each guest."""
    return {
        "schema": SCHEMA,
        "ratios": [
            _answer(ratio, decided, steps) for ratio, (decided, steps) in sorted(answers.items())
        ],
    }


def _answer(ratio: Fraction, decided: Plan, steps: Iterable[Step]) -> Json:
    cells = decided.cells
    guests = sum(cell.guests for cell in cells)
    pooled = sum(len(cell.emulator_cpus) for cell in cells)
    return {
        "ratio": str(ratio),
        "cells": [_cell(cell) for cell in cells],
        "guests": guests,
        "guests_moved": len({step.uuid for step in steps}),
        "pool_cpus": pooled,
        "cpus_freed": guests - pooled,
        "shortage": sum(cell.shortage for cell in cells),
    }


def simulation(outcomes: Iterable[Outcome], cpus_online: int) -> Json:
    """Return what a trace came to at each ratio; a series has the largest of each stretch."""
    rows = sorted(outcomes, key=lambda outcome: outcome.ratio)
    seconds = max((row.last - (row.first or 0.0) for row in rows), default=0.0)
    return {
        "schema": SCHEMA,
        "cpus": cpus_online,
        "seconds": seconds,
        "events": max((row.events for row in rows), default=0),
        "ratios": [_outcome(row, seconds or 1.0) for row in rows],
    }


def _outcome(row: Outcome, seconds: float) -> Json:
    start = row.first or 0.0
    return {
        "ratio": str(row.ratio),
        "wakes": row.wakes,
        "guests": row.fitted,
        "guests_refused": row.refused,
        "guests_isolated": row.fitted_isolated,
        "more_guests": row.fitted - row.fitted_isolated,
        "pool_cpus": {"mean": round(row.pool_seconds / seconds, 3), "peak": row.peak_pool},
        "isolated_cpus": {"mean": round(row.burnt_seconds / seconds, 3), "peak": row.peak_burnt},
        "occupancy": round(row.weight_seconds / (row.capacity_seconds or 1.0), 3),
        "repins": {reason.value: row.repins[reason.value] for reason in Reason},
        "growths": row.growths,
        "shrinks": row.shrinks,
        "shortage": {
            "cell_seconds": round(row.shortage_seconds, 3),
            "peak": row.peak_shortage,
        },
        "series": [
            {
                "time": round(point.time - start, 3),
                "guests": point.guests,
                "pool_cpus": point.pool,
                "isolated_cpus": point.burnt,
                "shortage": point.shortage,
            }
            for point in row.series
        ],
    }


def cpus(value: CpuSet | None) -> str | None:
    """Return the kernel's notation, or None for no pin."""
    return None if value is None else str(value)


def account(bills: Iterable[Bill], decided: Plan) -> Json:
    """Return the `account` document: what each guest is billed in each cell, and the sums."""
    rows = tuple(bills)
    names = {guest.uuid: guest.name for guest in decided.guests}
    cells = sorted({bill.cell for bill in rows}, key=lambda cell: -1 if cell is None else cell)
    return {
        "schema": SCHEMA,
        "guests": [
            {
                "uuid": bill.uuid,
                "name": names.get(bill.uuid, ""),
                "cell": bill.cell,
                **_sums([bill]),
            }
            for bill in rows
        ],
        "cells": [
            {"id": cell, **_sums(bill for bill in rows if bill.cell == cell)} for cell in cells
        ],
    }


def advice(rows: Iterable[tuple[NUMACell, Advice]], method: Method) -> Json:
    """Return what ratio each cell bears, with the evidence; see docs/advise.md."""
    return {
        "method": {
            "slot_seconds": method.slot,
            "slots": method.slots,
            "slots_needed": method.least,
            "guests_needed": method.guests,
            "target": method.target,
            "patience": round(method.patience, 3),
            "quantile": method.quantile,
            "stretch": method.stretch,
        },
        "cells": [_advised(cell, advised) for cell, advised in rows],
    }


def _advised(cell: NUMACell, advised: Advice) -> Json:
    evidence = advised.evidence
    return {
        "id": cell.id,
        "ratio": str(cell.ratio),
        "suggested": None if advised.ratio is None else str(advised.ratio),
        "verdict": advised.verdict,
        "because": advised.because,
        "load_bears": _number(advised.load_bears),
        "waiting_bears": _number(advised.waiting_bears),
        "evidence": {
            "slots": evidence.slots,
            "hours": _number(evidence.hours),
            "guests": _number(evidence.guests),
            "weight_per_cpu": _number(evidence.density),
            "weight_per_cpu_lasting": _number(evidence.dense),
            "used_per_weight": _number(evidence.used),
            "used_per_weight_high": _number(evidence.used_high),
            "pool_used_high": _number(evidence.busy_high),
            "waited_per_run_high": _number(evidence.delay_high),
            "busiest_guest": _number(evidence.peak),
            "others": _number(evidence.others),
        },
    }


def _number(value: float | None) -> float | None:
    """Return a measurement with as many digits as it is worth; JSON has no infinity."""
    return None if value is None or math.isinf(value) else round(value, 6)


def _sums(bills: Iterable[Bill]) -> Json:
    """Return the exact sums by kind, and in all."""
    rows = tuple(bills)
    zero = Fraction(0)
    return {
        "dedicated": str(sum((bill.dedicated for bill in rows), zero)),
        "shared": str(sum((bill.shared for bill in rows), zero)),
        "emulator": str(sum((bill.emulator for bill in rows), zero)),
        "total": str(sum((bill.total for bill in rows), zero)),
    }
