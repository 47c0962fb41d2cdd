"""Drift: which months have left January, by FS.DRIFT and by SciPy over the file.

January is what a model was trained on, so it is the baseline. Each later month is published twice. First into windows
that hold all of it: there the statistics must be SciPy's, and so must the verdicts. Then into windows of the default
size, against a sample of January as large: there D may be off by what sampling allows, and a verdict near its threshold
may fall the other way.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import feed
import numpy as np
import pandas as pd
import valkey
from comparison import Comparison
from dataset import View, present
from own_server import DemoError
from scipy import stats

# Values that a window holds: more than any month has, and what the store has by itself.
WHOLE, SAMPLED = 30_000, 10_000
# A window that is full lets an eighth of its values go by chance, and fills up again.
SAMPLED_MIN = SAMPLED * 0.85
SAMPLE_SEED = 2013
EFFECT_MAX = 0.1
THRESHOLDS = {"KS": EFFECT_MAX, "CHI2": EFFECT_MAX, "PSI": 0.2, "WASSERSTEIN": 0.1, "MISSING": 0.05}
P_VALUE_MAX, SHARE_MIN = 0.05, 1e-6
# The tests that have a p-value: one of them is the verdict on a feature. The others are shown beside it.
VERDICTS = ("KS", "CHI2")
# How far the store may be off SciPy over the same values. A p-value below the smallest only has to be so too.
STATISTIC_ERROR, STATISTIC_ROUNDING, P_VALUE_ERROR, P_VALUE_SMALLEST = 1e-9, 1e-12, 1e-6, 1e-12
# One pair of samples in so many is further off than `sampling_error` says.
SAMPLES_TRUSTED = 1e9


@dataclass(frozen=True)
class Outcome:
    """What a test says. `effect`: what its threshold is compared with. `baseline_n`, `current_n`: how many values.

    Of MISSING the latter counts arrivals; what the former counts is left open, since the baseline does not tell.
    """

    statistic: float
    p_value: float | None
    effect: float
    alert: bool
    baseline_n: int | None
    current_n: int


# By feature and method.
Outcomes = dict[tuple[str, str], Outcome]


class Drift:
    """Compares months with a baseline, in two views that differ in the size of their baselines."""

    def __init__(self, client: valkey.Valkey, months: dict[int, View], comparison: Comparison) -> None:
        self.client, self.comparison = client, comparison
        self.january, *self.later = months.items()
        # Tests that were compared, verdicts among them, those that a feature drifted, and those where samples differ.
        self.compared = self.verdicts = self.drifted = self.turned = 0
        # How far a D of samples was off, and might have been.
        self.furthest = self.allowed = 0.0

    def compare(self) -> None:
        """Prints a line for each month and feature, and counts what is not as it must be."""
        whole = self.january[1]
        sampled = replace(whole, name=f"{whole.name}_sampled")
        configured = self.client.config_get("fs.drift-samples")["fs.drift-samples"]
        self.comparison.check("the default of fs.drift-samples", SAMPLED, int(configured))
        for view, samples in ((whole, WHOLE), (sampled, SAMPLED)):
            self.client.config_set("fs.drift-samples", samples)
            self.client.execute_command(*view.register())
            for words in baselines(whole, samples):
                self.client.execute_command("FS.BASELINE", view.name, *words)
        print_line(heading for heading, _ in COLUMNS)
        for month, view in self.later:
            exact = self.store(view, WHOLE)
            near = self.store(replace(view, name=sampled.name), SAMPLED)
            expected = scipy_outcomes(whole, view)
            for outcome in expected.items():
                self.exactly(month, *outcome, exact)
            for feature in view.schema:
                self.nearly(month, feature, expected, near)
                where = (feature, verdict_method(feature, expected))
                if where in exact and where in near:
                    print_line(line(month, where, exact, expected, near))

    def store(self, view: View, samples: int) -> Outcomes:
        """What the store says of a month that is published into empty windows of a size."""
        self.client.config_set("fs.drift-samples", samples)
        taken = feed.publish_rows(self.client, view)
        self.comparison.check(f"flights published into {view.name}", len(view.updates), taken)
        answered = self.client.execute_command("FS.DRIFT", view.name)
        for feature in view.schema:
            self.client.execute_command("FS.BASELINE", view.name, feature, "CLEAR", "CURRENT")
        outcomes = {}
        for test in answered:
            where = (test["feature"], test["method"])
            if test["status"] != ("ALERT" if test["alert"] else "OK"):
                raise DemoError(f"FS.DRIFT {view.name} answered {test}")
            figures = (test[name] for name in ("statistic", "p_value", "effect", "alert"))
            outcomes[where] = Outcome(*figures, test["baseline_n"], test["current_n"])
        return outcomes

    def exactly(self, month: int, where: tuple[str, str], expected: Outcome, found: Outcomes) -> None:
        """The store's outcome over a whole month is SciPy's."""
        name = f"{' '.join(where)} of month {month}"
        if (got := found.get(where)) is None:
            self.comparison.difference(f"{name}: FS.DRIFT does not answer it")
            return
        self.compared += 1
        self.verdicts += where[1] in VERDICTS
        self.drifted += where[1] in VERDICTS and got.alert
        for figure in ("statistic", "effect"):
            one, other = getattr(expected, figure), getattr(got, figure)
            if not math.isclose(one, other, rel_tol=STATISTIC_ERROR, abs_tol=STATISTIC_ROUNDING):
                self.comparison.difference(f"{name}, {figure}: expected {one!r}, got {other!r}")
        if not same_p_value(expected.p_value, got.p_value):
            self.comparison.difference(f"{name}, p: expected {expected.p_value!r}, got {got.p_value!r}")
        for figure in ("alert", "baseline_n", "current_n"):
            if (wanted := getattr(expected, figure)) is not None:
                self.comparison.check(f"{name}, {figure}", wanted, getattr(got, figure))

    def nearly(self, month: int, feature: str, expected: Outcomes, found: Outcomes) -> None:
        """D of two samples is as near to that of all values as two samples must be."""
        method = verdict_method(feature, expected)
        name = f"{feature} {method} of month {month}, sampled"
        whole, got = expected[feature, method], found.get((feature, method))
        if got is None:
            self.comparison.difference(f"{name}: FS.DRIFT does not answer it")
            return
        self.turned += got.alert != whole.alert
        # Categories are counted without a sample of the baseline.
        baseline_n = min(whole.baseline_n, SAMPLED) if method == "KS" else whole.baseline_n
        self.comparison.check(f"{name}, baseline_n", baseline_n, got.baseline_n)
        self.comparison.check(f"{name}, a full window", True, SAMPLED_MIN <= got.current_n <= SAMPLED)
        if method != "KS":
            # No month comes near the threshold.
            self.comparison.check(f"{name}, alert", whole.alert, got.alert)
            return
        off, allowed = abs(got.statistic - whole.statistic), sampling_error(whole, got)
        self.furthest, self.allowed = max(self.furthest, off), max(self.allowed, allowed)
        if off > allowed:
            self.comparison.difference(f"{name}: expected about {whole.statistic!r}, got {got.statistic!r}")


def sampling_error(whole: Outcome, sampled: Outcome) -> float:
    """How far a D of samples may be off that of all values: by what the samples' distribution functions are off.

    The tail of Kolmogorov's distribution, with the variance of both samples; each is drawn without replacement.
    """
    counts = ((whole.baseline_n, sampled.baseline_n), (whole.current_n, sampled.current_n))
    variance = sum(1 / some - 1 / every for every, some in counts)
    return math.sqrt(variance * math.log(2 * SAMPLES_TRUSTED) / 2)


def baselines(january: View, samples: int) -> Iterator[list]:
    """The words of FS.BASELINE for each feature: a random sample of numbers, the counts of categories."""
    for feature, spec in january.schema.items():
        column = january.updates[feature]
        known = column.dropna()
        if spec[0] == "STRING":
            counts = known.value_counts()
            pairs = [word for pair in counts.items() for word in pair]
            words = ["CATEGORIES", len(counts), *pairs]
        else:
            values = known.sample(min(samples, len(known)), random_state=SAMPLE_SEED)
            words = ["SAMPLES", len(values), *present(values)]
        # All digits: a share that is rounded would move what is measured against it.
        yield [feature, *words, "MISSING", repr(float(column.isna().mean()))]


def scipy_outcomes(january: View, month: View) -> Outcomes:
    """What SciPy says of all values of the two months."""
    outcomes = {}
    for feature, spec in january.schema.items():
        before, now = january.updates[feature], month.updates[feature]
        tests = of_categories if spec[0] == "STRING" else of_numbers
        found = tests(before.dropna(), now.dropna())
        found["MISSING"] = (now.isna().mean() - before.isna().mean(), None, None)
        for method, (statistic, p_value, effect) in found.items():
            measured = float(statistic if effect is None else effect)
            significant = p_value is None or bool(p_value < P_VALUE_MAX)
            alert = significant and measured > THRESHOLDS[method]
            counts = (int(before.count()), int(now.count())) if method != "MISSING" else (None, len(now))
            outcomes[feature, method] = Outcome(float(statistic), p_value, measured, alert, *counts)
    return outcomes


def of_numbers(before: pd.Series, now: pd.Series) -> dict[str, tuple]:
    """Statistic, p-value if any, and effect if it is not the statistic, of each method."""
    ks = stats.ks_2samp(before, now, method="asymp")
    edges = np.unique(np.quantile(before, np.arange(1, 10) / 10))
    # A bin holds the values above its lower edge and up to its upper one.
    bins = (np.bincount(np.searchsorted(edges, side), minlength=len(edges) + 1) for side in (before, now))
    distance = stats.wasserstein_distance(before, now) / np.std(before)
    return {
        "KS": (ks.statistic, float(ks.pvalue), None),
        "PSI": (stability(*bins), None, None),
        "WASSERSTEIN": (distance, None, None),
    }


def of_categories(before: pd.Series, now: pd.Series) -> dict[str, tuple]:
    table = pd.DataFrame({"before": before.value_counts(), "now": now.value_counts()}).fillna(0).to_numpy().T
    chi = stats.chi2_contingency(table, correction=False)
    v = stats.contingency.association(table.astype(int), method="cramer")
    return {"CHI2": (chi.statistic, float(chi.pvalue), v), "PSI": (stability(*table), None, None)}


def stability(before: np.ndarray, now: np.ndarray) -> float:
    """The population stability index of counts in the same bins."""
    expected, actual = (np.maximum(counts / counts.sum(), SHARE_MIN) for counts in (before, now))
    return float(np.sum((actual - expected) * np.log(actual / expected)))


def same_p_value(expected: float | None, got: float | None) -> bool:
    if expected is None or got is None:
        return expected is got
    if expected <= P_VALUE_SMALLEST:
        return got <= P_VALUE_SMALLEST
    return math.isclose(expected, got, rel_tol=P_VALUE_ERROR)


COLUMNS = (
    ("month", ">5"),
    ("feature", "<13"),
    ("FS.DRIFT", ">8"),
    ("p", ">8"),
    ("verdict", ">7"),
    ("SciPy", ">8"),
    ("p", ">8"),
    ("verdict", ">7"),
    ("effect", ">6"),
    ("sampled", ">7"),
    ("PSI", ">6"),
    ("Wasserst.", ">9"),
    ("missing", ">7"),
)


def line(
    month: int, where: tuple[str, str], exact: Outcomes, expected: Outcomes, near: Outcomes
) -> list[str]:
    """A month and feature: what both say of all values, what the samples say, and the store's other figures."""
    feature = where[0]
    cells = [str(month), feature]
    for outcome in (exact[where], expected[where]):
        cells += [f"{outcome.statistic:.5g}", f"{outcome.p_value:.2g}", "drifted" if outcome.alert else "-"]
    cells += [f"{outcome.effect:.4f}" for outcome in (exact[where], near[where])]
    for method in ("PSI", "WASSERSTEIN", "MISSING"):
        beside = exact.get((feature, method))
        cells.append(f"{beside.effect:.3f}" if beside else "")
    return cells


def verdict_method(feature: str, outcomes: Outcomes) -> str:
    return next(method for method in VERDICTS if (feature, method) in outcomes)


def print_line(cells: Iterable[str]) -> None:
    print("  " + "  ".join(f"{cell:{width}}" for cell, (_, width) in zip(cells, COLUMNS, strict=True)))
