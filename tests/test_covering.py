from itertools import combinations, product

from covering import covering


def pairs_of(rows):
    return {pair for row in rows for pair in combinations(sorted(row.items()), 2)}


def test_all_pairs_in_as_few_rows_as_can_be():
    for sizes, least in (((20, 4, 2, 2), 80), ((2, 2, 2), 4), ((5, 10, 2), 50), ((6,), 6), ((3, 4), 12)):
        rows = [dict(zip("abcd", values, strict=False)) for values in product(*map(range, sizes))]
        kept = [rows[i] for i in covering(rows)]
        assert pairs_of(kept) == pairs_of(rows)
        assert len(kept) == least


def test_only_pairs_that_occur():
    rows = [{"a": a, "b": b, "c": c} for a, b, c in product(range(4), range(3), range(2)) if a != b]
    assert pairs_of(rows[i] for i in covering(rows)) == pairs_of(rows)
    assert covering([]) == []
