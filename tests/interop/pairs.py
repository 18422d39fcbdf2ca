# SPDX-License-Identifier: MIT
"""Rows that cover all pairs: for any two factors, every pair of values that may stand together stands
together in some row. Greedy with random restarts; the same seed gives the same rows."""
import itertools
import random


def covering_array(factors, is_valid, seed):
    """factors: {name: [value]}; is_valid(row) with a whole row or a part of one. A list of rows."""
    rng = random.Random(seed)
    names = list(factors)

    def complete(part):
        """a valid row that has `part`, or None"""
        rest = [n for n in names if n not in part]
        for _ in range(200):
            row = dict(part)
            for name in rng.sample(rest, len(rest)):
                for value in rng.sample(factors[name], len(factors[name])):
                    row[name] = value
                    if is_valid(row):
                        break
                else:
                    break
            else:
                return {name: row[name] for name in names}
        return None

    wanted = set()
    for a, b in itertools.combinations(names, 2):
        for va, vb in itertools.product(factors[a], factors[b]):
            if is_valid({a: va, b: vb}):
                wanted.add(((a, va), (b, vb)))

    def covers(row):
        return {((a, row[a]), (b, row[b])) for a, b in itertools.combinations(names, 2)} & wanted

    rows = []
    while wanted:
        best, best_new = None, set()
        target = rng.choice(sorted(wanted, key=repr))
        for _ in range(25):
            row = complete(dict(target))
            if row is None:
                break
            new = covers(row)
            if len(new) > len(best_new):
                best, best_new = row, new
        if best is None:  # no row can have it: the two exclude each other through a third
            wanted.discard(target)
            continue
        wanted -= best_new
        rows.append(best)
    return rows


def uncovered(factors, is_valid, rows):
    """the pairs that is_valid allows and no row has, for the self-test"""
    names = list(factors)
    have = {((a, r[a]), (b, r[b])) for r in rows for a, b in itertools.combinations(names, 2)}
    for a, b in itertools.combinations(names, 2):
        for va, vb in itertools.product(factors[a], factors[b]):
            if is_valid({a: va, b: vb}) and ((a, va), (b, vb)) not in have:
                yield (a, va), (b, vb)
