"""`python -m lab`: boot the machines, run the scenarios, exit with the truth."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lab import run
from lab.image import LAB, LabError
from lab.machine import MACHINES, Machine
from lab.scenarios import SCENARIOS


def main() -> int:
    """Return 0 if all went well."""
    parser = argparse.ArgumentParser(prog="make lab ARGS=...", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="NAME", help="scenarios, all by default")
    parser.add_argument("--machine", choices=[machine.name for machine in MACHINES])
    parser.add_argument("--smoke", action="store_true", help="the most telling, on one machine")
    parser.add_argument("--list", action="store_true", help="list machines and scenarios")
    parser.add_argument("--shell", action="store_true", help="boot with the console in here")
    parser.add_argument("--out", type=Path, default=LAB / "out", help="where results are kept")
    parser.add_argument("--deb", type=Path, help="install this package instead of the wheel")
    options = parser.parse_args()
    try:
        if options.list:
            return _list()
        chosen = [m for m in MACHINES if options.machine in (None, m.name)]
        if options.shell:
            run.shell(chosen[0], options.out / chosen[0].name, options.deb)
            return 0
        if options.smoke and options.machine is None:
            chosen = chosen[:1]
        return _carry_out(chosen, options)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1


def _carry_out(chosen: list[Machine], options: argparse.Namespace) -> int:
    passed = failed = 0
    for machine in chosen:
        here = run.names_of(machine.name, smoke=options.smoke)
        asked = [name for name in here if _is_asked(name, options.scenarios)]
        if not asked:
            continue
        out = options.out / machine.name
        outcome = run.carry_out(machine, asked, out, full=not options.smoke, package=options.deb)
        passed += len(outcome.passed)
        failed += len(outcome.failed) + bool(outcome.silent)
        if outcome.failed or outcome.silent:
            print(f"lab: {machine.name}: see {out}")
    if not passed + failed:
        raise LabError("no such scenario: see make lab ARGS=--list")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


def _is_asked(name: str, asked: list[str]) -> bool:
    """Tell whether a scenario is asked for: by its name, or by its module's."""
    return not asked or name in asked or name.partition(".")[0] in asked


def _list() -> int:
    for machine in MACHINES:
        print(f"{machine.name}: {machine.about}, kernel {machine.kernel}")
    for scenario in SCENARIOS:
        smoke = "smoke" if scenario.smoke else ""
        print(f"  {scenario.name:28} {','.join(scenario.machines):12} {smoke}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
