"""Few cases that hold every pair: covering arrays of strength two, by a greedy choice without random numbers.

Faults of software that takes several settings nearly always show with one setting or with two together (Kuhn et al.,
Software Fault Interactions and Implications for Software Testing, 2004, section 4), so the pairs are what is covered.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import combinations

Row = Mapping[str, Hashable]


def pairs_of(row: Row, apart: Iterable[str] = ()) -> set[Hashable]:
    """Returns all single entries of a row and all pairs of two of them.

    Args:
        row: value of each factor.
        apart: factors whose values are counted alone and not in pairs.
    """
    paired = [entry for entry in sorted(row.items()) if entry[0] not in set(apart)]
    return {*row.items(), *combinations(paired, 2)}


def covering(rows: Sequence[Row], apart: Iterable[str] = ()) -> list[int]:
    """Returns places of rows that hold together every pair that any row holds, each row the one that adds most.

    Args:
        rows: the legal combinations; the first among equals is taken.
        apart: as for `pairs_of`.
    """
    apart = tuple(apart)
    number: dict[Hashable, int] = {}
    masks = []
    for row in rows:
        # Pairs as bits of one integer: what a row adds is then one `and` and a count.
        masks.append(sum(1 << number.setdefault(pair, len(number)) for pair in pairs_of(row, apart)))
    missing, chosen = (1 << len(number)) - 1, []
    while missing:
        place = max(range(len(masks)), key=lambda index: (masks[index] & missing).bit_count())
        missing &= ~masks[place]
        chosen.append(place)
    return sorted(chosen)
