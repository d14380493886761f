"""Fewer rows than a full product of parameters, and all pairs of values among them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations

import pytest

# A test that fails for a combination of parameters nearly always fails for a pair of values in it, whatever the others
# are. So a decorated test runs with rows that hold every pair there is; `pytest --full` runs all rows.
pairs = pytest.mark.covering


def covering(rows: Sequence[Mapping[str, Hashable]]) -> list[int]:
    """Indices of rows that together hold every pair of values of two parameters that occurs in some row.

    Greedy, for one value after the other of the parameter that has most: the row with most new pairs; among equals the
    one whose other values have come together least so far, so that triples are spread evenly too.
    """
    if not rows or len(rows[0]) < 2:
        return list(range(len(rows)))
    largest = max(rows[0], key=lambda name: len({row[name] for row in rows}))
    held = [set(combinations(sorted(row.items(), key=lambda item: item[0]), 2)) for row in rows]
    others = [tuple(value for name, value in row.items() if name != largest) for row in rows]
    used: Counter[tuple[Hashable, ...]] = Counter()
    missing = set().union(*held)
    kept = []

    def keep(candidates: list[int], wanted: set[tuple[tuple[str, Hashable], ...]]) -> None:
        while wanted & missing:
            best = max(candidates, key=lambda i: (len(held[i] & missing), -used[others[i]], -i))
            kept.append(best)
            used[others[best]] += 1
            missing.difference_update(held[best])

    groups: dict[Hashable, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        groups[row[largest]].append(i)
    for value, group in groups.items():
        keep(group, {pair for i in group for pair in held[i] if (largest, value) in pair})
    keep(list(range(len(rows))), set(missing))
    return sorted(kept)
