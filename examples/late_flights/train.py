"""Trains the model on what the store would have answered at the time, and writes it to a file.

    python train.py valkey://127.0.0.1:6379 late_flights.joblib

The year is played hour by hour: what became known is published, then the features of the flights that are asked for
are read as of then. So no feature knows more than a traveller could, and what computes windows in training is what
computes them in serving. The store must not have these views yet; afterwards it stands where the year was at NOW.
"""

import sys
from dataclasses import dataclass

import joblib
import numpy as np
import pandas as pd
import valkey
from features import define, go_live
from history import events, flights
from replay import Replay
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

# A Monday noon in New York. What comes after it the store does not know.
NOW = pd.Timestamp("2013-12-30 17:00", tz="UTC")
TRAINING_MONTHS_MAX = 9
# One flight number in so many is played, so that it takes seconds; 1 is all of them.
EVERY = 3


@dataclass(frozen=True)
class Training:
    """The model, and what it was made of: the flights that were asked for, and a row of `matrix` for each."""

    replay: Replay
    asked: pd.DataFrame
    matrix: np.ndarray
    classifier: HistGradientBoostingClassifier

    def save(self, path: str) -> None:
        """The names of the columns go with the model: what serves it compares them with those of its service."""
        joblib.dump({"classifier": self.classifier, "columns": self.replay.names}, path)


def main(url: str, path: str, every: int = EVERY) -> None:
    client = valkey.Valkey.from_url(url, protocol=3, decode_responses=True)
    training = train(client, flights(every))
    training.save(path)
    print(f"{len(training.asked):,} flights were asked for, {len(training.replay.names)} features each")
    for period, auc in scores(training).items():
        print(f"  {period:20} AUC {auc:.3f}")


def train(client: valkey.Valkey, year: pd.DataFrame) -> Training:
    define(client)
    replay = Replay(client, events(year), int(NOW.timestamp()))
    asked, matrix = play(replay, year)
    go_live(client)
    return Training(replay, asked, matrix, fit(asked, matrix, replay.names))


def play(replay: Replay, flights: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """Plays everything up to now. Returns the flights that arrived and were asked for by then, and their features."""
    asked = flights[(flights["asked_s"] < replay.now_s) & flights["late"].notna()]
    matrices = []
    # The flights are in order of departure, so they are in that of being asked for too.
    for asked_s, together in asked.groupby("asked_s"):
        replay.play(asked_s)
        at_ms = (asked_s + replay.moved_s) * 1000
        matrices.append(replay.matrix(at_ms, together["origin"], together["flight"]))
    replay.play(replay.now_s)
    return asked, np.concatenate(matrices)


def fit(asked: pd.DataFrame, matrix: np.ndarray, columns: list[str]) -> HistGradientBoostingClassifier:
    """Learns from the months of training which flights are late."""
    training = (asked["month"] <= TRAINING_MONTHS_MAX).to_numpy()
    carrier = [columns.index("schedule:carrier")]
    classifier = HistGradientBoostingClassifier(
        max_leaf_nodes=15, categorical_features=carrier, random_state=0
    )
    # One thread takes half a second. Several wait for each other, ten times as long where the machine is busy.
    with threadpool_limits(1):
        return classifier.fit(matrix[training], asked["late"][training].astype(bool))


def scores(training: Training) -> dict[str, float]:
    """The area under the ROC curve, for the months of training and for those that the model has not seen."""
    month, late = training.asked["month"], training.asked["late"].astype(bool)
    with threadpool_limits(1):
        probability = training.classifier.predict_proba(training.matrix)[:, 1]
    periods = {
        "January to September": month <= TRAINING_MONTHS_MAX,
        "October to December": month > TRAINING_MONTHS_MAX,
        "October": month == 10,
        "November": month == 11,
        "December": month == 12,
    }
    return {name: roc_auc_score(late[among], probability[among]) for name, among in periods.items()}


if __name__ == "__main__":
    main(*sys.argv[1:3])
