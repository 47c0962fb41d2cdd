"""What chance alone does raises no alert: small samples of the baseline's own distribution, and then of another."""

import numpy as np
import pytest
from drifting_view import await_checks, publish_rows, typed
from test_drift_alerts import QUICK, told
from windowed_view import fs

from server import await_until

FEATURES = 12
NAMES = [f"f{i}" for i in range(FEATURES)]
VIEW = "steady"
SHAPES = {
    "normal": lambda draw, n: draw.normal(14, 6, n),
    "standardized": lambda draw, n: draw.normal(0, 1, n),
    "heavy tails": lambda draw, n: draw.lognormal(1, 1, n),
    "many categories": lambda draw, n: np.minimum(draw.zipf(1.3, n), 2_000),
}


def rows(values: np.ndarray, is_text: bool) -> list[dict]:
    """A row a line of the table; categories are told as text."""
    return [
        {name: f"c{value}" if is_text else float(value) for name, value in zip(NAMES, line, strict=True)}
        for line in values
    ]


@pytest.mark.parametrize("count", [150, 600])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_baselines_own_distribution_starts_no_alert_and_another_does(fresh_server, shape, count):
    server = fresh_server(QUICK)
    client, draw = typed(server), np.random.default_rng(7)
    is_text = shape == "many categories"
    schema = " ".join(f"{name} {'STRING' if is_text else 'FLOAT'}" for name in NAMES)
    fs(client, f"FS.REGISTER {VIEW} ENTITY user LOG OFF SCHEMA {schema}")
    for name in NAMES:
        values = SHAPES[shape](draw, 2_000)
        fs(
            client,
            f"FS.BASELINE {VIEW} {name} SAMPLES 2000",
            *([f"c{v}" for v in values] if is_text else map(float, values)),
        )
    drawn = SHAPES[shape](draw, count * FEATURES).reshape(count, FEATURES)
    publish_rows(client, rows(drawn, is_text), view=VIEW)
    await_checks(server)
    # The thresholds alone would have raised some, which is what this is about.
    over = [f for f in client.execute_command("FS.DRIFT", VIEW) if f["alert"]]
    if count == 150:
        assert over
    assert told(client) == []

    for name in NAMES:
        fs(client, f"FS.BASELINE {VIEW} {name} CLEAR CURRENT")
    # Other categories come, or numbers from elsewhere.
    other = drawn + 5_000 if is_text else drawn * 3 + 40
    publish_rows(client, rows(other, is_text), view=VIEW)
    methods = ["CHI2", "PSI", "NEW_CATEGORIES"] if is_text else ["MEAN", "KS", "PSI", "WASSERSTEIN", "JS"]
    expected = {("start", name, method) for name in NAMES for method in methods}
    await_until(
        lambda: expected <= set(told(client)), 20, "an alert of each feature by each of these methods"
    )
