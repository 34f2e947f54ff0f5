"""The correspondence predicate pair by pair, in numpy and float64, written apart from ours."""

import numpy as np


def _bit(words, view):
    view = int(view)
    return 0 <= view < 32 * len(words) and bool((int(words[view // 32]) >> (view % 32)) & 1)


def _inside(metric, offset):
    xx, yy, zz, xy, xz, yz = np.asarray(metric, np.float64)
    matrix = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    return float(offset @ matrix @ offset)


def corresponds(query, key, i, j, normal_cos, *, field="query"):
    """(allowed, margin): whether key j corresponds to query i, and how far from the border.

    query and key are dicts of numpy arrays [t, ...] of one sample.
    """
    if not (query["valid"][i] and key["valid"][j]):
        return False, np.inf
    if query["segment"][i] < 0 or query["segment"][i] != key["segment"][j]:
        return False, np.inf
    offset = key["position"][j].astype(np.float64) - query["position"][i].astype(np.float64)
    fields = {"query": query["metric"][i], "key": key["metric"][j]}
    deciding = fields.values() if field == "either" else [fields[field]]
    distance = min(_inside(metric, offset) for metric in deciding)
    a, b = (x.astype(np.float64) for x in (query["normal"][i], key["normal"][j]))
    unknown = not a.any() or not b.any()
    agrees = unknown or a @ b >= normal_cos
    margin = min(abs(distance - 1.0), np.inf if unknown else abs(a @ b - normal_cos))
    seen = _bit(key["visibility"][j], query["frame"][i]) and _bit(
        query["visibility"][i], key["frame"][j]
    )
    return bool(distance <= 1.0 and agrees and seen), margin


def sample(geometry, b):
    """One sample of a TokenGeometry as a dict of numpy arrays."""
    return {name: np.asarray(value)[b] for name, value in vars(geometry).items()}


def correspondence_table(query, key, normal_cos, *, field="query"):
    """Boolean [b, tq, tk], and which entries are far enough from the border to be compared."""
    allowed, clear = [], []
    for b in range(query.position.shape[0]):
        q, k = sample(query, b), sample(key, b)
        pairs = [
            [corresponds(q, k, i, j, normal_cos, field=field) for j in range(len(k["valid"]))]
            for i in range(len(q["valid"]))
        ]
        allowed.append([[pair[0] for pair in row] for row in pairs])
        clear.append([[pair[1] > 1e-4 for pair in row] for row in pairs])
    return np.array(allowed), np.array(clear)
