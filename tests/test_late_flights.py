"""examples/late_flights: the model is served what it was trained on, and neither knows what was not known yet."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.error import HTTPError, URLError

import numpy as np
import pandas as pd
import pytest
import valkey

from server import Server, await_until, free_port

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples" / "late_flights"))
import app
import demo
import features
import history
import train
from dataset import CARRIERS, table
from fastapi.testclient import TestClient
from replay import Replay

EXAMPLE = Path(app.__file__).parent
HOUR_S, DAY_S = 3600, 86_400
SEED = 2013
QUESTION = {"origin": "JFK", "flights": ["B6-1"]}
DELAY = features.FEATURES.split().index("traffic:dep_delay_3h")
# The columns that are the airport's; the others are the flight's, and NaN where it is unknown.
OF_AIRPORT = [name.startswith(("weather:", "traffic:")) for name in features.FEATURES.split()]


@pytest.fixture(scope="module")
def year():
    return history.flights(train.EVERY)


@pytest.fixture(scope="module")
def played():
    """A server into which the year is played; tests change nothing in it."""
    shared = Server()
    yield shared
    shared.stop()


@pytest.fixture(scope="module")
def training(played, year):
    return train.train(decoding(played), year)


@pytest.fixture(scope="module")
def model(training, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("model") / "late_flights.joblib")
    training.save(path)
    return path


@pytest.fixture
def client(played, training):
    return decoding(played)


@pytest.fixture
def flights(year):
    """Flights from JFK that leave soon, in an order that is not the model's."""
    leaving = demo.board(year)["flight"].tolist()
    assert len(leaving) > 20
    return np.random.default_rng(SEED).permutation(leaving).tolist()


@pytest.fixture
def empty_store(fresh_server):
    """A client of a server that has the definitions and no rows."""
    client = decoding(fresh_server())
    features.define(client)
    return client


# The features


def test_features_are_what_pandas_computes_from_what_was_known(training):
    # All of it from the file and by the features' meaning, not by the example's code.
    flights = table("flights")
    flights = flights[flights["flight"] % train.EVERY == 0]
    scheduled_s = pd.to_datetime(flights["time_hour"]).map(pd.Timestamp.timestamp) + flights["minute"] * 60
    departed_s = scheduled_s + flights["dep_delay"] * 60
    flights = flights.assign(
        flight=flights["carrier"] + "-" + flights["flight"].astype(str),
        departed_s=departed_s,
        cancelled_or_departed_s=departed_s.fillna(scheduled_s),
        landed_s=departed_s + (flights["air_time"] + 4 * 60) * 60,
        cancelled=flights["dep_delay"].isna(),
        late=(flights["arr_delay"] > 15).where(flights["arr_delay"].notna()).astype(float),
    )
    weather = table("weather")
    observed = pd.to_datetime(weather["time_hour"]).map(pd.Timestamp.timestamp)
    weather = weather.assign(known_s=observed + HOUR_S).sort_values("known_s", kind="stable")
    # One hour claims a wind of 1048 mph, which cannot be: the flights asked for after it are among the sample.
    [impossible] = weather[weather["wind_speed"] > 250].itertuples()
    weather["wind_speed"] = weather["wind_speed"].mask(weather["wind_speed"] > 250)
    after = training.asked["asked_s"].between(impossible.known_s, impossible.known_s + 3 * HOUR_S)
    stormy = np.flatnonzero(after & (training.asked["origin"] == impossible.origin))
    assert len(stormy) > 0
    sample = [*stormy, *np.random.default_rng(SEED).choice(len(training.asked), 300, replace=False)]
    for place, (_, flight) in zip(sample, training.asked.iloc[sample].iterrows(), strict=True):
        at_s = pd.Timestamp(flight["time_hour"]).timestamp() - 2 * HOUR_S
        seen = weather[(weather["origin"] == flight["origin"]) & (weather["known_s"] < at_s)].ffill()
        there = flights[flights["origin"] == flight["origin"]]
        same = flights[flights["flight"] == flight["flight"]]
        expected = {
            "weather:temp_f": seen["temp"].iloc[-1],
            "weather:humidity": seen["humid"].iloc[-1],
            "weather:wind_mph": seen["wind_speed"].iloc[-1],
            "weather:rain_in": seen["precip"].iloc[-1],
            "weather:pressure_mbar": seen["pressure"].iloc[-1],
            "weather:visibility_mi": seen["visib"].iloc[-1],
            "traffic:dep_delay_3h": before(there, "departed_s", at_s, 3 * HOUR_S)["dep_delay"].mean(),
            "traffic:dep_delay_1d": before(there, "departed_s", at_s, DAY_S)["dep_delay"].mean(),
            "traffic:cancelled_1d": before(there, "cancelled_or_departed_s", at_s, DAY_S)["cancelled"].mean(),
            "record:arr_delay_7d": before(same, "landed_s", at_s, 7 * DAY_S)["arr_delay"].mean(),
            "record:late_30d": before(same, "landed_s", at_s, 30 * DAY_S)["late"].mean(),
            "schedule:carrier": CARRIERS.index(flight["carrier"]),
            "schedule:distance_mi": flight["distance"],
            "schedule:minute": flight["sched_dep_time"] // 100 * 60 + flight["sched_dep_time"] % 100,
            "schedule:weekday": pd.Timestamp(flight["year"], flight["month"], flight["day"]).day_of_week,
        }
        assert list(expected) == training.replay.names
        assert flight["late"] == (flight["arr_delay"] > 15)
        np.testing.assert_allclose(
            training.matrix[place], np.array([*expected.values()], "<f4"), rtol=1e-6, err_msg=str(flight)
        )


def before(events: pd.DataFrame, time: str, at_s: int, span_s: int) -> pd.DataFrame:
    return events[(at_s - span_s <= events[time]) & (events[time] < at_s)]


def test_what_becomes_of_flights_later_changes_no_feature_of_now(fresh_server, year):
    # The evening before a storm.
    moment_s, end_s = unix_s("2013-02-07 20:00"), unix_s("2013-02-09 12:00")
    weeks = year[year["scheduled_s"].between(moment_s - 14 * DAY_S, end_s)]
    leaves_later = weeks["scheduled_s"] + weeks["dep_delay"].fillna(0) * 60 >= moment_s
    other = weeks.assign(
        dep_delay=weeks["dep_delay"].mask(leaves_later, 300),
        arr_delay=weeks["arr_delay"].mask(leaves_later, 400),
        late=weeks["late"].mask(leaves_later & weeks["late"].notna(), True),
    )
    (asked, matrix), (_, otherwise) = (
        played_up_to(fresh_server(), flights, end_s) for flights in (weeks, other)
    )
    until_now = (asked["asked_s"] <= moment_s).to_numpy()
    assert until_now.sum() > 1000
    np.testing.assert_array_equal(matrix[until_now], otherwise[until_now])
    # An hour later the first of them has left.
    later = (asked["asked_s"] > moment_s + HOUR_S).to_numpy()
    assert (otherwise[later, DELAY] > matrix[later, DELAY]).any()


@pytest.mark.parametrize("moment", ["2013-10-10 15:00", "2013-11-27 18:00", "2013-12-14 12:00"])
def test_serving_answers_what_training_saw(fresh_server, training, year, moment):
    """What FS.RANK reads at the clock is what FS.GET .. AT read when the year passed that moment."""
    now_s = unix_s(moment)
    lately = year[year["scheduled_s"].between(now_s - 31 * DAY_S, now_s + DAY_S)]
    asked = (training.asked["asked_s"] == now_s).to_numpy()
    among = training.asked[asked]
    assert len(among) >= 5

    def serve() -> list[np.ndarray]:
        client = decoding(fresh_server())
        features.define(client)
        Replay(client, history.events(lately), now_s).play(now_s)
        features.go_live(client)
        return [
            app.features(client, origin, flights["flight"].tolist())
            for origin, flights in among.groupby("origin")
        ]

    served = np.concatenate(within_an_hour(serve))
    order = among.reset_index().groupby("origin")["index"].apply(list).sum()
    expected = pd.DataFrame(training.matrix[asked], index=among.index).loc[order]
    assert not np.isnan(served[:, DELAY]).all()
    np.testing.assert_array_equal(served, expected.to_numpy())


def test_the_matrix_is_what_single_reads_say(played, training, flights):
    candidates = [*flights, "ZZ-1"]
    ids = {"weather": ["JFK"], "traffic": ["JFK"], "record": candidates}
    ids["schedule"] = [f"JFK:{flight}" for flight in candidates]
    # In one transaction, so at one time.
    pipeline = played.client(protocol=3).pipeline(transaction=True)
    pipeline.execute_command("FS.RANK", "late_flights", "JFK", *candidates)
    for view, entity_ids in ids.items():
        for entity_id in entity_ids:
            pipeline.execute_command("FS.GET", f"fs:v1:{view}:{entity_id}")
    (shape, numbers), *rows = pipeline.execute()
    assert shape == [len(candidates), len(training.replay.names)]
    matrix = np.frombuffer(numbers, "<f4").reshape(shape)
    rest = iter(rows)
    found = {view: [next(rest) for _ in entity_ids] for view, entity_ids in ids.items()}
    for numbers, name in zip(matrix.T, training.replay.names, strict=True):
        view, feature = name.split(":")
        values = [row[feature.encode()] for row in found[view]]
        if feature == "carrier":
            values = [None if code is None else CARRIERS.index(code.decode()) for code in values]
        expected = np.array([np.nan if value is None else value for value in values], "<f4")
        assert not np.isnan(expected).all(), name
        np.testing.assert_array_equal(numbers, np.broadcast_to(expected, len(candidates)), err_msg=name)


def test_the_matrix_is_the_reply_itself_and_goes_into_the_model(client, training, flights):
    replies = []

    class Listening:
        def execute_command(self, *words, **options):
            replies.append(client.execute_command(*words, **options))
            return replies[-1]

    matrix = app.features(Listening(), "JFK", flights)
    [(shape, numbers)] = replies
    assert np.shares_memory(matrix, np.frombuffer(numbers, "u1")), "the numbers were copied"
    assert (matrix.dtype, matrix.shape, matrix.nbytes) == (np.dtype("<f4"), tuple(shape), len(numbers))
    late = training.classifier.predict_proba(matrix)[:, 1]
    assert len(np.unique(late)) > len(flights) / 2


# The model


def test_the_model_tells_late_flights_in_months_that_it_has_not_seen(training):
    unseen = training.asked[training.asked["month"] > 9]
    assert len(unseen) > 20_000 and set(unseen["month"]) == {10, 11, 12}
    scores = train.scores(training)
    assert scores["October to December"] > 0.7
    assert min(scores[month] for month in ("October", "November", "December")) > 0.65


def test_the_model_is_refused_with_other_columns_than_it_was_trained_on(empty_store, model):
    app.create_app(empty_store, model)
    set_service(empty_store, *reversed(features.FEATURES.split()))
    with pytest.raises(
        ValueError, match=r"trained on \['weather:temp_f', .* answers as tensor \['schedule:weekday', "
    ):
        app.create_app(empty_store, model)
    set_service(empty_store, *features.FEATURES.split(), format="ARRAY")
    with pytest.raises(ValueError, match="answers as array"):
        app.create_app(empty_store, model)
    empty_store.execute_command("FS.DROP", "record")
    with pytest.raises(ValueError, match="NOVIEW service 'late_flights'"):
        app.create_app(empty_store, model)
    empty_store.execute_command("FS.SERVICE", "DEL", "late_flights")
    with pytest.raises(valkey.ResponseError, match="NOSERVICE"):
        app.create_app(empty_store, model)


# The app


def test_the_answer_is_in_the_order_of_the_model(client, training, model, flights):
    def both() -> tuple[list, np.ndarray]:
        answers = ask(client, model, "JFK", flights).json()
        return answers, training.classifier.predict_proba(app.features(client, "JFK", flights))[:, 1]

    answers, late = within_an_hour(both)
    assert [answer["flight"] for answer in answers] == [flights[i] for i in np.argsort(late, kind="stable")]
    assert [answer["late"] for answer in answers] == sorted(late)
    assert all(answer["known"] for answer in answers)
    assert [answer["flight"] for answer in answers] != flights


def test_unknown_flights_are_ranked_by_what_is_known_of_the_airport(client, training, model, flights, year):
    last_s = year[year["origin"] == "JFK"].groupby("flight")["scheduled_s"].max()
    ended = last_s[last_s < train.NOW.timestamp() - 2 * DAY_S].index[0]
    assert client.exists(f"fs:v1:schedule:JFK:{ended}"), "its last schedule is there, and too old"
    unknown = ["ZZ-1", "ZZ-2"]
    matrix = app.features(client, "JFK", [*unknown, flights[0]])
    assert np.isnan(matrix).tolist()[:2] == 2 * [[not of_airport for of_airport in OF_AIRPORT]]
    assert not np.isnan(matrix[2]).any()
    answers = {a["flight"]: a for a in ask(client, model, "JFK", [*unknown, ended, *flights]).json()}
    assert {flight for flight, answer in answers.items() if not answer["known"]} == {*unknown, ended}
    assert answers["ZZ-1"]["late"] == answers["ZZ-2"]["late"]
    # An airport that no flight leaves: nothing is known at all, and the model answers all the same.
    assert np.isnan(app.features(client, "XXX", unknown)).all()
    assert [answer["flight"] for answer in ask(client, model, "XXX", unknown).json()] == unknown


@pytest.mark.parametrize(
    "question",
    [
        {"origin": "JFK"},
        {"origin": "JFK", "flights": []},
        {"origin": "JFK", "flights": ["B6-1"] * 501},
        {"origin": "J:K", "flights": ["B6-1"]},
        {"origin": "", "flights": ["B6-1"]},
        {"origin": "JFK", "flights": ["B6-1", "B6:1"]},
        {"origin": "JFK", "flights": ["B6-1", "B6-1:2"]},
        {"origin": "JFK\n", "flights": ["B6-1"]},
        {"origin": "JFK", "flights": "B6-1"},
    ],
)
def test_a_question_that_makes_no_sense_is_refused_before_the_store_is_asked(empty_store, model, question):
    with TestClient(app.create_app(empty_store, model)) as http:
        calls = rank_calls(empty_store)
        assert http.post("/rank", json=question).status_code == 422
        assert rank_calls(empty_store) == calls


@pytest.mark.parametrize(
    ("commands", "logged"),
    [
        (["FS.SERVICE DEL late_flights"], "NOSERVICE"),
        (["FS.DROP weather"], "NOVIEW"),
        (
            ["FS.DROP record", "FS.REGISTER record ENTITY flight SCHEMA late_30d INT arr_delay_7d FLOAT"],
            "SCHEMA",
        ),
        (["SET fs:v1:weather:JFK sunny"], "WRONGTYPE"),
        (["ACL SETUSER default -fs.rank"], "no permissions"),
    ],
)
def test_what_the_store_refuses_is_a_503_and_told_in_the_log(empty_store, model, caplog, commands, logged):
    with TestClient(app.create_app(empty_store, model)) as http:
        assert http.post("/rank", json=QUESTION).status_code == 200
        assert "FS.RANK" not in caplog.text
        for command in commands:
            empty_store.execute_command(*command.split())
        answer = http.post("/rank", json=QUESTION)
    assert (answer.status_code, answer.json()) == (503, {"detail": "the features cannot be read now"})
    assert logged in caplog.text


def test_a_store_that_is_gone_is_a_503(fresh_server, model, caplog):
    server = fresh_server()
    client = decoding(server)
    features.define(client)
    with TestClient(app.create_app(client, model)) as http:
        server.kill()
        answer = http.post("/rank", json=QUESTION)
        assert (answer.status_code, answer.json()) == (503, {"detail": "the features cannot be read now"})
        assert "refused" in caplog.text
        server.start()
        assert http.post("/rank", json=QUESTION).status_code == 503, "definitions were saved nowhere"
        features.define(decoding(server))
        assert http.post("/rank", json=QUESTION).status_code == 200


def test_a_service_of_another_width_is_a_503_until_it_is_set_again(empty_store, model):
    with TestClient(app.create_app(empty_store, model)) as http:
        assert http.post("/rank", json=QUESTION).status_code == 200
        set_service(empty_store, *features.FEATURES.split()[1:])
        answer = http.post("/rank", json=QUESTION)
        assert answer.status_code == 503 and "another one" in answer.json()["detail"]
        set_service(empty_store, *features.FEATURES.split())
        assert http.post("/rank", json=QUESTION).status_code == 200


# As a reader starts it


def test_uvicorn_serves_the_app_over_a_socket(played, client, model, flights):
    port = free_port()
    environment = {**os.environ, "VALKEY_URL": f"valkey://127.0.0.1:{played.port}", "MODEL": model}
    words = ["--app-dir", EXAMPLE, "--factory", "app:from_environment", "--port", str(port)]
    process = subprocess.Popen([sys.executable, "-m", "uvicorn", *words], env=environment)
    try:

        def answered() -> list[dict] | None:
            assert process.poll() is None, "uvicorn has ended"
            try:
                return demo.ask(f"http://127.0.0.1:{port}", "JFK", flights)
            except HTTPError:
                raise
            except URLError:
                return None  # Not listening yet.

        def both() -> tuple[list[dict], list[dict]]:
            return await_until(answered, 60, "uvicorn"), ask(client, model, "JFK", flights).json()

        over_socket, in_process = within_an_hour(both)
        assert over_socket == in_process
    finally:
        process.terminate()
        process.wait(timeout=20)


def test_the_demo_trains_answers_and_leaves_nothing_behind():
    words = [sys.executable, EXAMPLE / "demo.py", "--every", "20", "--serve"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        lines = []
        for line in process.stdout:
            lines.append(line.rstrip())
            if "Ctrl-C" in line:
                break
        process.terminate()
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 143 and "Traceback" not in errors, errors
    printed = "\n".join(lines)
    assert "October to December  AUC 0." in printed
    assert re.search(r"^  [A-Z0-9]{2}-\d+ +[A-Z]{3} +\d\d:\d\d +\d+\.\d% +on time$", printed, re.MULTILINE), (
        printed
    )
    for port in re.findall(r"://127\.0\.0\.1:(\d+)", lines[-1]):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(port)))


# What the tests share


def decoding(server: Server) -> valkey.Valkey:
    return server.client(protocol=3, decode_responses=True)


def unix_s(moment: str) -> int:
    return int(pd.Timestamp(moment, tz="UTC").timestamp())


def played_up_to(server: Server, flights: pd.DataFrame, end_s: int) -> tuple[pd.DataFrame, np.ndarray]:
    client = decoding(server)
    features.define(client)
    return train.play(Replay(client, history.events(flights), end_s), flights)


def within_an_hour(act: Callable):
    """What `act` answers while the clock stays in one hour, since windows move with the hour."""
    while True:
        hour = int(time.time()) // HOUR_S
        answer = act()
        if int(time.time()) // HOUR_S == hour:
            return answer


def ask(client: valkey.Valkey, model: str, origin: str, flights: list[str]):
    with TestClient(app.create_app(client, model)) as http:
        return http.post("/rank", json={"origin": origin, "flights": flights})


def set_service(client: valkey.Valkey, *names: str, format: str = "TENSOR") -> None:
    """The service with other columns."""
    ranking = ("CONTEXT", "airport", "CANDIDATE", "flight", "PAIR", "departure", "FORMAT", format)
    client.execute_command("FS.SERVICE", "SET", "late_flights", *ranking, "FEATURES", len(names), *names)


def rank_calls(client: valkey.Valkey) -> int:
    return client.info("commandstats").get("cmdstat_fs.rank", {"calls": 0})["calls"]
