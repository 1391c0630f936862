"""Hit ratios and cost of the cache's two eviction policies on six traces.

    python benchmarks/bench_cache_policies.py [--quick]

Four traces are generated with fixed seeds. The last two are real sequences that are available on every machine with Python: the names
in the source of the standard library in reading order, and the same with each file read twice, like a program that works file by file.
No production trace of a cache was available; expect other figures there.

Every trace runs through `Lines`, like in a node: a key without a line is installed (a miss), a key with a line is used (a hit).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sysconfig
import time
import tokenize
from collections.abc import Iterator
from itertools import accumulate, cycle, islice
from pathlib import Path

from dss_cache.core.lines import Lines
from dss_cache.core.policy import make_policy

RESULTS = Path(__file__).parent / "results" / "bench_cache_policies.json"
POLICIES = ("lru", "w-tinylfu")
CAPACITIES = (1000, 10_000)
VALUE = b'{"name":"Ada"}'
LENGTH = 1_000_000


def zipf(length: int, keys: int = 100_000, exponent: float = 0.9, seed: int = 1) -> Iterator[str]:
    """A few keys are used often, many rarely, independently of each other."""
    rng = random.Random(seed)
    weights = list(accumulate(1 / rank**exponent for rank in range(1, keys + 1)))
    for number in rng.choices(range(keys), cum_weights=weights, k=length):
        yield f"user/{number}"


def zipf_with_scans(length: int) -> Iterator[str]:
    """The same, but one use in five belongs to a report that reads every key once."""
    rng, scanned = random.Random(2), 0
    for key in zipf(length):
        if rng.random() < 0.2:
            scanned += 1
            yield f"report/{scanned}"
        else:
            yield key


def loop(length: int, keys: int) -> Iterator[str]:
    """The same keys in the same order, repeatedly: twice as many as the capacity."""
    return islice(cycle([f"row/{number}" for number in range(keys)]), length)


def shifting(length: int) -> Iterator[str]:
    """Popularity shifts: mostly the latest keys are used."""
    rng = random.Random(3)
    for number in range(length):
        yield f"news/{max(0, number // 20 - int(rng.expovariate(1 / 2000)))}"


def names_in_source(length: int, times: int = 1) -> Iterator[str]:
    """Names in the source of the standard library."""
    return islice(_names(times), length)


def _names(times: int) -> Iterator[str]:
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" in path.parts:
            continue
        try:
            with tokenize.open(path) as file:
                names = [token.string for token in tokenize.generate_tokens(file.readline) if token.type == tokenize.NAME]
        except (SyntaxError, UnicodeDecodeError, tokenize.TokenError):
            continue  # test data that is invalid on purpose
        for _ in range(times):
            yield from names


def run(trace: list[str], policy: str, capacity: int) -> dict[str, float]:
    """The hit ratio and the time for each use."""
    lines = Lines(capacity, 1 << 40, lambda *_: None, make_policy(policy, capacity))
    hits = 0
    began = time.perf_counter()
    for key in trace:
        if key in lines.by_key:
            lines.used(key)
            hits += 1
        else:
            lines.install(key, "S", 1, VALUE, {}, True, 0.0, "bench")
    spent = time.perf_counter() - began
    return {"hit_ratio": round(hits / len(trace), 4), "ns_a_use": round(spent / len(trace) * 1e9)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="use shorter traces and write no results")
    arguments = parser.parse_args()
    length = LENGTH // 10 if arguments.quick else LENGTH
    rows = []
    print(f"{'trace':24}{'lines':>8}{'uses':>11}   {'hit % LRU':>10}{'W-TinyLFU':>11}   {'ns a use LRU':>13}{'W-TinyLFU':>11}")
    for capacity in CAPACITIES:
        traces = {
            "Zipf 0.9": zipf(length),
            "Zipf 0.9, 20 % scans": zipf_with_scans(length),
            "loop": loop(length, 2 * capacity),
            "shifting": shifting(length),
            "names in source": names_in_source(length),
            "names, file twice": names_in_source(length, 2),
        }
        for name, keys in traces.items():
            trace = list(keys)
            figures = {policy: run(trace, policy, capacity) for policy in POLICIES}
            rows.append({"trace": name, "lines": capacity, "uses": len(trace), "keys": len(set(trace)), **figures})
            lru, tiny = figures.values()
            ratios = f"{lru['hit_ratio'] * 100:>10.1f}{tiny['hit_ratio'] * 100:>11.1f}"
            print(f"{name:24}{capacity:>8}{len(trace):>11}   {ratios}   {lru['ns_a_use']:>13}{tiny['ns_a_use']:>11}")
    if not arguments.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(
            json.dumps({"python": platform.python_version(), "cpus": os.cpu_count(), "rows": rows}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
