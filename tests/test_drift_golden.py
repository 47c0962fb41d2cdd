"""The golden values of the core's drift statistics are what SciPy says today."""

import json

import drift_golden


def test_the_golden_values_are_what_scipy_says():
    kept = json.loads(drift_golden.PATH.read_text())
    assert kept.keys() == (made := drift_golden.golden()).keys()
    for part in kept:
        assert len(kept[part]) >= 20 and kept[part] == json.loads(json.dumps(made[part])), part
