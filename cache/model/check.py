"""Check the model of the coherence protocol with Spin: no configuration has a violation, and every mistake causes one.

    python check.py            everything: several minutes on one core, within MEMORY_MB_MAX
    python check.py --quick    the small configurations and the mistakes

The searches are exhaustive, and that is verified: a search that was cut short by its depth, its memory or a signal is an error,
and so is a statement that no configuration reaches.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

MODEL = Path(__file__).with_name("coherence.pml")
INSTALL = "apt-get install spin gcc"

MEMORY_MB_MAX = 7500
DEPTH_MAX = 1_000_000

INVARIANTS = ("no_stale_read", "monotone_reads", "single_version", "exclusive", "data_value", "bounded_wait")

#: with a client of a node
CLIENT = ("CLIENTS=1", "PUTS=1", "ALL_STAYS_DIRTY")
SMALL_CLIENT = (*CLIENT, "WINDOW=1")

#: Searched completely. Values stay dirty where write-back would make the search several times as long.
CONFIGURATIONS: dict[str, tuple[str, ...]] = {
    "two puts": (),
    "two puts, another leader": ("LEADS=1", "ALL_STAYS_DIRTY"),
    "two puts, a restart": ("RESTARTS=1", "ALL_STAYS_DIRTY"),
    "two puts, snapshots": ("RESTORES=1", "ALL_STAYS_DIRTY"),
    "no value at first, deletions": ("ABSENT",),
    "one put, three entries behind": ("PUTS=1", "WINDOW=3"),
    "a client, one put": ("CLIENTS=1", "PUTS=1"),
    "a client, a restart, one entry behind": (*SMALL_CLIENT, "RESTARTS=1"),
    "a client, snapshots, one entry behind": (*SMALL_CLIENT, "RESTORES=1"),
    "a client, another leader, one entry behind": (*SMALL_CLIENT, "LEADS=1"),
}
#: Small configurations whose statements are counted: each statement must be reached in one of them.
COVERAGE: dict[str, tuple[str, ...]] = {
    "one put": ("PUTS=1", "RESTARTS=1", "RESTORES=1"),
    "one put, another leader": ("PUTS=1", "LEADS=1", "WINDOW=1"),
    "deletions, one entry behind": ("ABSENT", "WINDOW=1"),
    "a client, a restart, one entry behind": (*SMALL_CLIENT, "RESTARTS=1"),
}
QUICK: dict[str, tuple[str, ...]] = {"one put": ("PUTS=1",), "a client, one put, one entry behind": SMALL_CLIENT}

#: Each mistake, the invariant that it must violate, and the configuration it needs.
MUTANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "NO_LEASE": ("no_stale_read", ()),
    "FROM_RECEIPT": ("no_stale_read", ()),
    "REVOKES_EARLY": ("no_stale_read", ()),
    "NEW_LEADER_DOES_NOT_WAIT": ("no_stale_read", ("LEADS=1",)),
    "DEPOSED_LEADER_GRANTS": ("no_stale_read", ("LEADS=1",)),
    "GRANT_IGNORES_INDEX": ("no_stale_read", ()),
    "INDEX_OF_CONFIRMATION": ("no_stale_read", ()),
    "GRANT_WHILE_REVOKING": ("no_stale_read", ()),
    "REVOKED_KEEPS_LINES": ("no_stale_read", ()),
    "ANY_VOIDING_ENDS_REVOKING": ("no_stale_read", ("RESTARTS=1", "ALL_STAYS_DIRTY")),
    "SNAPSHOT_KEEPS_LINES": ("no_stale_read", ("RESTORES=1",)),
    "OLD_PROCESS_IS_OWN": ("no_stale_read", ("RESTARTS=1",)),
    "ANSWER_EARLY": ("no_stale_read", ()),
    "SHOW_EARLY": ("single_version", ()),
    "WRITER_NOT_PENDING": ("monotone_reads", ()),
    "INSTALLS_OVERTAKEN": ("no_stale_read", ()),
    "JOIN_WITHOUT_LEASE": ("no_stale_read", ()),
    "ABSENCE_SERVES_ALL": ("no_stale_read", ("ABSENT",)),
    "DELETION_REPORTED_EARLY": ("no_stale_read", ("ABSENT",)),
    "STAYS_EXCLUSIVE": ("exclusive", ()),
    "STORE_TAKES_OLDER": ("data_value", ()),
    "CLIENT_WITHOUT_LEASE": ("no_stale_read", SMALL_CLIENT),
    "CLIENT_FROM_RECEIPT": ("no_stale_read", SMALL_CLIENT),
    "CLIENT_NOT_CAPPED": ("no_stale_read", CLIENT),
    "ACKNOWLEDGES_BEFORE_CLIENT": ("no_stale_read", SMALL_CLIENT),
    "SHOWS_BEFORE_CLIENT": ("monotone_reads", SMALL_CLIENT),
    "CLIENT_NOT_RECORDED": ("no_stale_read", SMALL_CLIENT),
    "CLIENT_INSTALLS_OVERTAKEN": ("no_stale_read", SMALL_CLIENT),
    "GRANT_OVERTAKES": ("no_stale_read", SMALL_CLIENT),
    "DEADLINE_IGNORED": ("no_stale_read", SMALL_CLIENT),
    "LATER_GRANT_EXTENDS": ("bounded_wait", SMALL_CLIENT),
    "CUT_FORGETS_CLIENT": ("no_stale_read", SMALL_CLIENT),
    "EVICTED_DURING_FETCH": ("no_stale_read", SMALL_CLIENT),
    "CONNECTED_KEEPS_LINES": ("no_stale_read", SMALL_CLIENT),
    "VOIDING_KEEPS_CLIENT": ("no_stale_read", ("CLIENTS=1", "ALL_STAYS_DIRTY", "WINDOW=1")),
    "SNAPSHOT_KEEPS_CLIENT": ("no_stale_read", (*SMALL_CLIENT, "RESTORES=1")),
    "SNAPSHOT_ACKNOWLEDGES_SKIPPED": ("no_stale_read", ("CLIENTS=1", "ALL_STAYS_DIRTY", "RESTORES=1")),
    "RESTART_DOES_NOT_WAIT": ("no_stale_read", (*SMALL_CLIENT, "RESTARTS=1")),
    "RESTARTED_ACKNOWLEDGES": ("no_stale_read", (*SMALL_CLIENT, "RESTARTS=1")),
}
#: A breadth-first search finds the shortest way to a mistake. It takes too long for these: a random depth-first search finds them earlier.
DEEP_MISTAKES = {
    "ANY_VOIDING_ENDS_REVOKING": "-RS1",
    "CLIENT_NOT_CAPPED": "-RS1",
    "SNAPSHOT_ACKNOWLEDGES_SKIPPED": "-RS3",
    "VOIDING_KEEPS_CLIENT": "-RS1",
}
RANDOM = ("-DP_RAND", "-DT_RAND")
#: Of a search of some 100,000 states: clearing a larger hash table would take longer than it saves.
SMALL_TABLE = ("-w20",)


class Search(NamedTuple):
    """The result of one run of Spin's verifier."""

    states: int
    depth: int
    seconds: float
    #: the violated invariant; "": none
    violated: str
    #: why the search is incomplete; "": it is complete
    cut_short: str
    #: (line of the model, state of Spin) of statements that were not reached; a line of an inline has a state for each use
    unreached: frozenset[tuple[int, int]]
    #: lines of which at least one statement was reached; known only if they are counted
    reached_lines: frozenset[int] = frozenset()

    @property
    def result(self) -> str:
        if self.violated:
            return f"VIOLATED: {self.violated}"
        return f"CUT SHORT: {self.cut_short}" if self.cut_short else "no violation"


class ToolMissing(Exception):
    """Spin or a C compiler is not installed."""


def find_compiler() -> str:
    """The C compiler.

    Raises:
        ToolMissing: the compiler or Spin is not installed.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if shutil.which("spin") is None or compiler is None:
        missing = "Spin" if compiler else "a C compiler"
        raise ToolMissing(f"{missing} is not installed; install both with: {INSTALL}")
    return compiler


def quick_compiler() -> list[str]:
    """What compiles fastest: the Tiny C Compiler if it is installed. It needs a tenth of GCC's time, and does not optimize.

    Raises:
        ToolMissing: see `find_compiler`.
    """
    compiler, tiny = find_compiler(), shutil.which("tcc")
    return [compiler, "-O0"] if tiny is None else [tiny]


def search(
    defines: Iterable[str],
    *,
    compiler: list[str],
    spin: tuple[str, ...] = (),
    flags: tuple[str, ...] = (),
    pan: tuple[str, ...] = ("-w26",),
) -> Search:
    """Build the model's verifier with these definitions and run it.

    Args:
        defines: of the model.
        compiler: a command, with its options.
        spin: further options of Spin.
        flags: of the verifier, such as `-DBFS`.
        pan: further options of the verifier when it runs.
    """
    with tempfile.TemporaryDirectory(prefix="coherence-model-") as directory:
        _run(["spin", *spin, "-a", *(f"-D{define}" for define in defines), str(MODEL)], directory)
        common = ("-DSAFETY", "-DCOLLAPSE", f"-DMEMLIM={MEMORY_MB_MAX}")
        _run([*compiler, "-w", *common, *flags, "-o", "pan", "pan.c"], directory)
        # -E: a state without a next step is not an error in this model
        run = subprocess.run(["./pan", "-E", f"-m{DEPTH_MAX}", *pan], cwd=directory, capture_output=True, text=True)
        found = read_report(run.stdout + run.stderr, run.returncode)
        if "-o3" in spin:
            listing = subprocess.run(["./pan", "-d"], cwd=directory, capture_output=True, text=True).stdout.partition(
                "proctype :init:"
            )[0]
            states = re.findall(r"state +(\d+) -\(tr.*?coherence\.pml:(\d+) =>", listing)
            reached = {int(line) for state, line in states if (int(line), int(state)) not in found.unreached}
            found = found._replace(reached_lines=frozenset(reached))
        return found


def _run(command: list[str], directory: str) -> None:
    run = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)}\n{run.stdout}{run.stderr}")


def read_report(report: str, return_code: int) -> Search:
    """Parse the verifier's report. Missing information counts as a failure."""
    found = re.search(r"assertion violated (.+?) \(at depth", report)
    violated = "" if found is None else found[1].strip("() ")
    errors = re.search(r"errors: (\d+)", report)
    trouble = re.search(
        r"(max search depth too small|out of memory|reached -DMEMLIM|VECTORSZ|not completed|aborted|.*truncated)", report
    )
    cut_short = ""
    if trouble is not None:
        cut_short = trouble[1]
    elif return_code or errors is None or "Full statespace search" not in report:
        cut_short = f"pan ended with {return_code} and: {report.strip().splitlines()[-1] if report.strip() else 'nothing'}"
    elif not violated and errors[1] != "0":
        violated = "something else"
    return Search(
        states=int(float(_number(r"([\d.e+]+) states, stored", report))),
        depth=int(_number(r"depth reached (\d+)", report)),
        seconds=float(_number(r"elapsed time ([\d.e+]+) seconds", report)),
        violated=violated,
        cut_short=cut_short,
        unreached=frozenset(
            (int(line), int(state)) for line, state in re.findall(r"coherence\.pml:(\d+), state (\d+)", _of_node(report))
        ),
    )


def _number(pattern: str, report: str) -> str:
    found = re.search(pattern, report)
    return "0" if found is None else found[1]


def _of_node(report: str) -> str:
    """The list of unreached statements, without the end of the infinite loop."""
    return "\n".join(line for line in report.partition("unreached in proctype Node")[2].splitlines() if '"-end-"' not in line)


def check_configuration(defines: tuple[str, ...]) -> Search:
    """Search completely."""
    return search(defines, compiler=[find_compiler(), "-O2"])


def check_small(defines: tuple[str, ...]) -> Search:
    """Search completely. Compiling takes longer than the search."""
    return search(defines, compiler=quick_compiler(), pan=SMALL_TABLE)


def check_mutant(name: str) -> Search:
    """Search until the mistake violates its invariant; no other invariant is checked."""
    invariant, defines = MUTANTS[name]
    model = (f"BROKEN_{name}", f"ONLY={INVARIANTS.index(invariant) + 1}", *defines)
    if name in DEEP_MISTAKES:
        return search(model, compiler=quick_compiler(), flags=RANDOM, pan=(*SMALL_TABLE, "-m30", DEEP_MISTAKES[name]))
    return search(model, compiler=quick_compiler(), flags=("-DBFS",), pan=SMALL_TABLE)


def check_coverage(defines: tuple[str, ...]) -> Search:
    """Search completely and count the statements. Spin counts them only if it neither merges nor folds them."""
    return search(("STEP=atomic", *defines), compiler=[find_compiler(), "-O2"], spin=("-o3",))


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the model of the coherence protocol with Spin.")
    parser.add_argument("--quick", action="store_true", help="only the small configurations and the mistakes")
    quick = parser.parse_args().quick
    try:
        find_compiler()
    except ToolMissing as error:
        print(error, file=sys.stderr)
        return 2
    failures: list[str] = []
    rows = [("configuration", "states", "depth", "seconds", "result")]
    for name, defines in (QUICK if quick else CONFIGURATIONS).items():
        rows.append(_row(name, _shown(name, check_small if quick else check_configuration, defines), failures))
    if not quick:
        reached: set[int] = set()
        unreached: set[int] = set()
        for name, defines in COVERAGE.items():
            one = _shown(f"{name} (counted)", check_coverage, defines)
            rows.append(_row(f"{name} (counted)", one, failures))
            reached |= one.reached_lines
            unreached |= {line for line, _ in one.unreached}
        dead = sorted(unreached - reached)
        if dead:
            failures.append(f"never reached: lines {', '.join(map(str, dead))} of {MODEL.name}")
    mutants = [("mistake", "states", "depth", "seconds", "violates")]
    for name, (invariant, _) in MUTANTS.items():
        one = _shown(name, check_mutant, name)
        if one.violated != invariant:
            failures.append(f"{name} does not violate {invariant}")
        mutants.append((name, f"{one.states:,}", str(one.depth), f"{one.seconds:.1f}", one.violated or "NOT FOUND"))
    for table in (rows, mutants):
        _print_table(table)
    for failure in failures:
        print(f"FAILED: {failure}")
    return 1 if failures else 0


def _shown(name, check, argument) -> Search:
    print(f"{time.strftime('%H:%M:%S')} {name} …", end=" ", flush=True)
    one: Search = check(argument)
    print(f"{one.states:,} states, {one.result}", flush=True)
    return one


def _row(name: str, one: Search, failures: list[str]) -> tuple[str, ...]:
    if one.violated or one.cut_short:
        failures.append(f"{name}: {one.result}")
    return name, f"{one.states:,}", str(one.depth), f"{one.seconds:.1f}", one.result


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print()
    for row in rows:
        cells = [
            cell.ljust(width) if column in (0, 4) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


if __name__ == "__main__":
    sys.exit(main())
