"""Writes src/core/drift/golden.json: what SciPy says of samples, tables and vectors made here. Run it by hand.

The core's own tests read the file; test_drift_golden.py holds that it is what this program writes.
"""

import json
import warnings
from pathlib import Path

import numpy as np
from scipy import stats
from scipy.spatial.distance import cosine, jensenshannon

PATH = Path(__file__).resolve().parents[1] / "src" / "core" / "drift" / "golden.json"
SEED = 20


def golden() -> dict:
    source = np.random.default_rng(SEED)
    return {
        "kolmogorov": kolmogorov(source),
        "samples": [samples(*pair) for pair in pairs(source)],
        "tables": [table(source) for _ in range(60)],
        "vectors": [vectors(source) for _ in range(20)],
    }


def kolmogorov(source: np.random.Generator) -> list:
    found = []
    for n in (1, 5, 50, 99, 140, 141, 200, 333, 1000, 5000):
        for z in source.uniform(0.15, 5.6, 25):
            d = round(float(z / np.sqrt(n)), 12)
            if d < 1:
                found.append([n, d, float(stats.kstwo.sf(d, n))])
    return found


def pairs(source: np.random.Generator):
    """Samples of many shapes: equal and shifted, ties, constants, tiny and huge."""
    for size_a, size_b in ((100, 100), (137, 260), (40, 300), (5, 7), (1, 3)):
        yield source.normal(size=size_a), source.normal(size=size_b)
        yield source.normal(size=size_a), source.normal(0.5, 1.3, size_b)
        yield source.exponential(2, size_a), source.exponential(2.5, size_b)
        yield source.poisson(2, size_a).astype(float), source.poisson(2.4, size_b).astype(float)
        yield source.normal(size=size_a) * 1e-200, source.normal(0.2, 1, size_b) * 1e-200
        yield source.normal(size=size_a) * 1e150, source.normal(0.2, 1, size_b) * 1e150
        yield 1e9 + source.uniform(size=size_a), 1e9 + source.uniform(0.1, 1, size_b)
        yield np.full(size_a, 3.0), np.full(size_b, 3.0)
        yield np.full(size_a, 3.0), source.integers(2, 5, size_b).astype(float)


def samples(a: np.ndarray, b: np.ndarray) -> dict:
    a, b = np.sort(a), np.sort(b)
    exponent = int(np.frexp(np.max(np.abs(b)))[1])
    edges = np.unique(np.quantile(a, np.arange(1, 10) / 10))
    expected, actual = (np.bincount(np.searchsorted(edges, x), minlength=len(edges) + 1) for x in (a, b))
    e, o = (np.maximum(counts / counts.sum(), 1e-6) for counts in (expected, actual))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ks = stats.ks_2samp(a, b, method="asymp")
    return {
        "a": a.tolist(),
        "b": b.tolist(),
        "mean": float(np.mean(b)),
        # numpy squares as it is: tiny values would be nothing and huge ones infinite.
        "deviation": float(np.ldexp(np.std(np.ldexp(b, -exponent)), exponent)),
        "ks": [float(ks.statistic), float(ks.pvalue)],
        "wasserstein": float(stats.wasserstein_distance(a, b)),
        "edges": edges.tolist(),
        "counts": [expected.tolist(), actual.tolist()],
        "psi": float(np.sum((o - e) * np.log(o / e))),
        "jensen_shannon": float(np.nan_to_num(jensenshannon(expected, actual, base=2))),
    }


def table(source: np.random.Generator) -> dict:
    categories = int(source.integers(2, 30))
    shares = source.dirichlet(np.ones(categories))
    other = shares if source.random() < 0.5 else source.dirichlet(np.ones(categories))
    a, b = (source.multinomial(int(source.integers(100, 20_000)), p) for p in (shares, other))
    there = a + b > 0
    found = stats.chi2_contingency([a[there], b[there]], correction=False)
    return {
        "a": a.tolist(),
        "b": b.tolist(),
        "statistic": float(found.statistic),
        "p_value": float(found.pvalue),
        "cramers_v": float(stats.contingency.association(np.array([a[there], b[there]]), method="cramer")),
    }


def vectors(source: np.random.Generator) -> list:
    a, b = source.normal(size=(2, int(source.integers(2, 40))))
    return [a.tolist(), b.tolist(), float(cosine(a, b))]


if __name__ == "__main__":
    PATH.write_text(json.dumps(golden()) + "\n")
