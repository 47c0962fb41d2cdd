"""What FS.DRIFT must say: docs/DRIFT.md once more, by numpy and SciPy and with nothing of the product's.

A `Baseline` is what training saw, a `Window` what came since; `verdicts` tells of both, one `Verdict` a method that
fits. A verdict accepts the right reply and names what is wrong with another: statistics to 1e-9 of themselves, p-values
above 1e-12 to 1e-6. Beyond that a statistic may be off by what it moves when each value moves by a few of its own last
bits, which is how exact the values are.
"""

import math
import re
import warnings
from collections import Counter
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.spatial.distance import cosine, jensenshannon

THRESHOLDS = {
    "MEAN": 0.2,
    "STDDEV": 0.3,
    "KS": 0.1,
    "PSI": 0.2,
    "WASSERSTEIN": 0.1,
    "JS": 0.1,
    "CHI2": 0.1,
    "MISSING": 0.05,
    "NEW_CATEGORIES": 0.05,
    "CENTROID": 0.1,
}
METHODS = tuple(THRESHOLDS)
MEMBERS = (
    "feature",
    "method",
    "baseline",
    "current",
    "statistic",
    "p_value",
    "effect",
    "threshold",
    "alert",
    "baseline_n",
    "current_n",
    "status",
)
LEVEL, VALUES_LEAST, SMALLEST_SHARE = 0.05, 100, 1e-6
NUMBERS = ("INT", "FLOAT", "BOOL", "TIMESTAMP")
ROUNDING, P_ROUNDING, P_LEAST = 1e-9, 1e-6, 1e-12
# A few of the last bits of a double, as a share of it.
LAST_BITS = 16 * 2.0**-52
SHARE = re.compile(rb"[01]\.[0-9]{3}")


# One sample


def scale_of(*samples: np.ndarray) -> float:
    """A power of two near the largest magnitude: values over it can be squared and summed up."""
    largest = max((float(np.max(np.abs(x))) for x in samples if len(x)), default=0.0)
    return math.ldexp(1.0, math.frexp(largest)[1]) if largest > 0 else 1.0


def unscaled(x: np.ndarray, scale: float) -> np.ndarray:
    # In two steps: the inverse of a tiny scale is no double.
    exponent = math.frexp(scale)[1] - 1
    return np.ldexp(np.ldexp(x, -(exponent // 2)), -(exponent - exponent // 2))


def mean_of(x: np.ndarray) -> float:
    """The mean, rounded once or twice, whatever the scale."""
    if np.ptp(x) == 0:
        return float(x[0])
    scale = scale_of(x)
    return math.fsum(unscaled(x, scale)) / len(x) * scale


def deviation_of(x: np.ndarray) -> float:
    """The deviation of the population, whatever the scale."""
    if np.ptp(x) == 0:
        return 0.0
    scale = scale_of(x)
    small = unscaled(x, scale)
    mean = math.fsum(small) / len(small)
    return math.sqrt(math.fsum((small - mean) ** 2) / len(small)) * scale


def edges_of(baseline: np.ndarray) -> np.ndarray:
    """Upper edges of all bins but the last, which has none."""
    return np.unique(np.quantile(baseline, np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])))


def binned(x: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.bincount(np.searchsorted(edges, x, side="left"), minlength=len(edges) + 1)


def population_stability(expected, actual) -> float:
    e, a = (np.maximum(np.asarray(shares, dtype=float), SMALLEST_SHARE) for shares in (expected, actual))
    return float(np.sum((a - e) * np.log(a / e)))


# Two sides


@dataclass(frozen=True)
class Window:
    """The current window: the values that came, and how many arrivals had none.

    Values are floats of a number, bytes of a STRING, ints and bools where they are categories, rows of float32.
    """

    values: object
    absent: int = 0

    @property
    def arrivals(self) -> int:
        return len(self.values) + self.absent

    @property
    def numbers(self) -> np.ndarray:
        return np.asarray([float(v) for v in self.values], dtype=float)


@dataclass(frozen=True)
class Baseline:
    """What training saw, in one of the forms that FS.BASELINE knows; `EXPECTED` is the member of a document."""

    form: str
    numbers: np.ndarray | None = None
    counts: Counter | None = None
    shares: dict | None = None
    vectors: np.ndarray | None = None
    mean: float | None = None
    deviation: float | None = None
    missing: float = 0.0
    # How many arrivals `missing` is a share of, where that is known; else it is said of the values.
    arrivals: int | None = None

    @property
    def n(self) -> int | None:
        """How many values; None: it does not say."""
        if self.numbers is not None:
            return len(self.numbers)
        if self.counts is not None:
            return sum(self.counts.values())
        return None if self.vectors is None else len(self.vectors)

    @property
    def methods(self) -> list[str]:
        fit = set()
        if self.mean is not None or self.numbers is not None:
            fit |= {"MEAN"}
        if self.deviation is not None or self.numbers is not None:
            fit |= {"STDDEV"}
        if self.numbers is not None:
            fit |= {"KS", "PSI", "WASSERSTEIN", "JS"}
        if self.counts is not None:
            fit |= {"PSI", "CHI2", "NEW_CATEGORIES"}
        if self.shares is not None:
            fit |= {"PSI", "NEW_CATEGORIES"}
        if self.vectors is not None:
            fit |= {"CENTROID"}
        return [method for method in METHODS if method in fit | {"MISSING"}]

    def category_shares(self) -> dict:
        if self.shares is not None:
            return self.shares
        return {value: count / self.n for value, count in self.counts.items()}


@dataclass(frozen=True)
class Finding:
    """A method's figures. `slack`: how far off the statistic may be, beyond a share of itself."""

    statistic: float
    baseline: object
    current: object
    p_value: float | None = None
    effect: float | None = None
    slack: float = 0.0


@dataclass(frozen=True)
class Categories:
    """A text such as `WN 0.310`: one of these values, the ones that changed most, with its share."""

    shares: dict

    def accepts(self, told) -> bool:
        value, _, share = told.rpartition(b" ") if isinstance(told, bytes) else (None, b"", b"")
        if value not in self.shares or not SHARE.fullmatch(share):
            return False
        # A share in the middle between two texts may be told as either.
        return abs(float(share) - self.shares[value]) <= 0.0005 + 1e-12


@dataclass(frozen=True)
class Verdict:
    """What FS.DRIFT must tell of one feature and method."""

    feature: str
    method: str
    finding: Finding
    threshold: float
    alert: bool
    status: str
    baseline_n: int | None
    current_n: int
    magnitude: float = 0.0

    def fault(self, told: dict) -> str | None:
        """What is wrong with a reply; None: nothing. Members as RESP3 gives them."""
        if tuple(told) != MEMBERS:
            return f"has the members {list(told)}"
        exactly = {
            "feature": self.feature.encode(),
            "method": self.method.encode(),
            "threshold": self.threshold,
            "alert": self.alert,
            "status": self.status.encode(),
            "baseline_n": self.baseline_n,
            "current_n": self.current_n,
        }
        faults = [f"{name} is not {value!r}" for name, value in exactly.items() if told[name] != value]
        for name in ("baseline", "current"):
            if not self._is_side(getattr(self.finding, name), told[name]):
                faults.append(f"{name} is not {getattr(self.finding, name)!r}")
        wanted = self.finding
        for name, value, allowed in (
            ("statistic", wanted.statistic, wanted.slack),
            ("effect", wanted.statistic if wanted.effect is None else wanted.effect, wanted.slack),
        ):
            value = None if self.status == "INSUFFICIENT" else value
            if not is_near(value, told[name], ROUNDING, allowed):
                faults.append(f"{name} is not {value!r} (within {allowed:g} more)")
        p_value = None if self.status == "INSUFFICIENT" else wanted.p_value
        if p_value is not None and p_value <= P_LEAST:
            if type(told["p_value"]) is not float or not 0 <= told["p_value"] <= 2 * P_LEAST:
                faults.append(f"p_value is not {p_value!r}")
        elif not is_near(p_value, told["p_value"], P_ROUNDING, 0.0):
            faults.append(f"p_value is not {p_value!r}")
        return "; ".join(faults) or None

    def _is_side(self, wanted, told) -> bool:
        if isinstance(wanted, Categories):
            return wanted.accepts(told)
        return is_near(wanted, told, ROUNDING, LAST_BITS * self.magnitude)


def is_near(wanted: float | None, told, relative: float, absolute: float) -> bool:
    if wanted is None or told is None:
        return wanted is told
    if type(told) is not float or not math.isfinite(wanted):
        return type(told) is float and told == wanted
    return abs(told - wanted) <= relative * abs(wanted) + absolute


def verdicts(
    feature: str, baseline: Baseline, window: Window, thresholds: dict | None = None
) -> list[Verdict]:
    """What FS.DRIFT says of a feature, in the order of its methods.

    `thresholds`: those of the methods that are asked for; None: all that fit, with their defaults.
    """
    asked = THRESHOLDS if thresholds is None else thresholds
    return [
        verdict(feature, method, baseline, window, asked[method])
        for method in baseline.methods
        if method in asked
    ]


def verdict(feature: str, method: str, baseline: Baseline, window: Window, threshold: float) -> Verdict:
    finding = (with_values if len(window.values) or method == "MISSING" else without_values)(
        method, baseline, window
    )
    baseline_n = baseline.arrivals if method == "MISSING" and baseline.arrivals else baseline.n
    current_n = window.arrivals if method == "MISSING" else len(window.values)
    sizes = [n for n in (baseline_n, current_n) if n is not None]
    effect = finding.statistic if finding.effect is None else finding.effect
    if min(sizes) < VALUES_LEAST:
        alert, status = False, "INSUFFICIENT"
    else:
        alert = effect > threshold and (finding.p_value is None or finding.p_value < LEVEL)
        status = "ALERT" if alert else "OK"
    magnitude = max((abs(x).max() for x in sides(baseline, window) if len(x)), default=0.0)
    return Verdict(
        feature, method, finding, threshold, alert, status, baseline_n, current_n, float(magnitude)
    )


def sides(baseline: Baseline, window: Window) -> list[np.ndarray]:
    """The numbers of both sides, where they are numbers."""
    if baseline.counts is not None or baseline.shares is not None:
        return []
    if baseline.vectors is not None:
        return [baseline.vectors, np.asarray(window.values, dtype=float)]
    if baseline.numbers is not None:
        return [baseline.numbers, window.numbers]
    figures = [baseline.mean or 0.0, baseline.deviation or 0.0]
    return [np.asarray(figures), window.numbers] if baseline.mean is not None else []


def without_values(method: str, baseline: Baseline, window: Window) -> Finding:
    """An empty window: there is something on the baseline's side at most."""
    if baseline.vectors is not None:
        return Finding(math.nan, float(np.linalg.norm(baseline.vectors.mean(axis=0))), None)
    if method == "STDDEV":
        return Finding(math.nan, baseline_moments(baseline)[1], None)
    if baseline.counts is not None or baseline.shares is not None:
        # No share has changed.
        return Finding(math.nan, None, None)
    return Finding(math.nan, baseline_moments(baseline)[0], None)


def baseline_moments(baseline: Baseline) -> tuple:
    if baseline.numbers is None:
        return baseline.mean, baseline.deviation
    return mean_of(baseline.numbers), deviation_of(baseline.numbers)


def over(difference: float, size: float) -> float:
    """A difference in terms of a size; of a size of 0: nothing changed, or infinitely much."""
    if size > 0:
        return difference / size
    return 0.0 if difference == 0 else math.inf


def share(bits: float, size: float) -> float:
    """What may be off by `bits`, in terms of a size; nothing where that says nothing."""
    slack = bits / size if size > 0 else 0.0
    return slack if slack < 1 else 0.0


def with_values(method: str, baseline: Baseline, window: Window) -> Finding:
    match method:
        case "MISSING":
            now = window.absent / window.arrivals if window.arrivals else None
            return Finding(
                math.nan if now is None else now - baseline.missing, baseline.missing, now, slack=1e-15
            )
        case "CENTROID":
            return centroid(baseline.vectors, np.asarray(window.values, dtype=float))
    if baseline.counts is not None or baseline.shares is not None:
        return of_categories(method, baseline, Counter(window.values))
    return of_numbers(method, baseline, window.numbers)


def of_numbers(method: str, baseline: Baseline, current: np.ndarray) -> Finding:
    mean, deviation = baseline_moments(baseline)
    mean_now, deviation_now = mean_of(current), deviation_of(current)
    bits = LAST_BITS * max(float(np.max(np.abs(x))) for x in sides(baseline, Window(current)))
    old = baseline.numbers
    match method:
        case "MEAN":
            size = max(abs(mean), (deviation or 0.0) / 2)
            return Finding(over(abs(mean_now - mean), size), mean, mean_now, slack=share(bits, size))
        case "STDDEV":
            change = over(abs(deviation_now - deviation), deviation)
            return Finding(change, deviation, deviation_now, slack=share(bits, deviation))
        case "WASSERSTEIN":
            # The distance in terms of a power of two, since it may be below or above all doubles in its own.
            scale = scale_of(old, current)
            distance = float(stats.wasserstein_distance(unscaled(old, scale), unscaled(current, scale)))
            change = over(distance, deviation / scale)
            return Finding(change, mean, mean_now, slack=share(bits, deviation))
        case "KS":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                test = stats.ks_2samp(old, current, method="asymp")
            return Finding(float(test.statistic), mean, mean_now, float(test.pvalue), slack=1e-15)
    edges = edges_of(old)
    expected, actual = binned(old, edges), binned(current, edges)
    if method == "PSI":
        index = population_stability(expected / len(old), actual / len(current))
        return Finding(index, mean, mean_now, slack=1e-15)
    # Its square is a difference of numbers near 1.
    distance = float(np.nan_to_num(jensenshannon(expected, actual, base=2)))
    return Finding(distance, mean, mean_now, slack=1e-15 / max(distance, 3e-8))


def centroid(old: np.ndarray, current: np.ndarray) -> Finding:
    means = [np.array([math.fsum(column) / len(x) for column in x.T]) for x in (old, current)]
    lengths = [float(np.linalg.norm(mean)) for mean in means]
    is_nothing = [length == 0 for length in lengths]
    distance = float(is_nothing[0] != is_nothing[1]) if any(is_nothing) else float(cosine(*means))
    # Of two directions that are almost the same, the cosine is almost 1.
    return Finding(distance, *lengths, slack=1e-15)


def of_categories(method: str, baseline: Baseline, now: Counter) -> Finding:
    n = sum(now.values())
    before = baseline.category_shares()
    shares = {value: count / n for value, count in now.items()}
    texts = changed_most(before, shares)
    unseen = {value: share for value, share in shares.items() if value not in before}
    left_open = 0.0 if baseline.shares is None else max(1.0 - math.fsum(before.values()), 0.0)
    share_unseen = sum(now[value] for value in unseen) / n
    match method:
        case "NEW_CATEGORIES":
            most = {shown(value): share for value, share in unseen.items() if share == max(unseen.values())}
            newest = Categories(most) if most else None
            # Good and Turing: as much is unmet as came once.
            once = sum(count == 1 for count in (baseline.counts or {}).values())
            unmet = left_open if baseline.shares is not None else once / sum(baseline.counts.values())
            return Finding(share_unseen - unmet, None, newest, slack=1e-15)
        case "PSI":
            # All that the baseline does not name is one more bin.
            expected = [*before.values(), left_open]
            actual = [*(shares.get(value, 0.0) for value in before), share_unseen]
            return Finding(population_stability(expected, actual), *texts, slack=1e-15)
    values = list(baseline.counts | now)
    table = np.array([[counts.get(value, 0) for value in values] for counts in (baseline.counts, now)])
    if len(values) == 1:
        return Finding(0.0, *texts, 1.0, 0.0)
    test = stats.chi2_contingency(table, correction=False)
    v = float(stats.contingency.association(table, method="cramer"))
    return Finding(float(test.statistic), *texts, float(test.pvalue), v, slack=1e-12)


def changed_most(before: dict, now: dict) -> tuple[Categories, Categories]:
    changes = {value: abs(now.get(value, 0.0) - before.get(value, 0.0)) for value in {**before, **now}}
    most = max(changes.values())
    values = [value for value, change in changes.items() if change >= most - 1e-12]
    return tuple(
        Categories({shown(value): shares.get(value, 0.0) for value in values}) for shares in (before, now)
    )


def shown(value) -> bytes:
    return value if isinstance(value, bytes) else str(int(value)).encode()
