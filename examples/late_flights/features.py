"""The features of the model, defined once: it is trained on them and served with them.

A request names an airport (the context) and flights (the candidates). A departure is both together: flight EV-5148
leaves from Newark on one day and from LaGuardia on another.
"""

import valkey

SERVICE = "late_flights"
VIEWS = {
    "weather": """
        ENTITY airport SCHEMA
        temp_f FLOAT  humidity FLOAT  wind_mph FLOAT  rain_in FLOAT  pressure_mbar FLOAT  visibility_mi FLOAT
    """,
    "traffic": """
        ENTITY airport SCHEMA
        dep_delay_min FLOAT INPUT  cancelled BOOL INPUT
        dep_delay_3h FLOAT AGG MEAN dep_delay_min WINDOW 3h HOP 1h
        dep_delay_1d FLOAT AGG MEAN dep_delay_min WINDOW 1d HOP 1h
        cancelled_1d FLOAT AGG MEAN cancelled WINDOW 1d HOP 1h
    """,
    "record": """
        ENTITY flight SCHEMA
        arr_delay_min FLOAT INPUT  late BOOL INPUT
        arr_delay_7d FLOAT AGG MEAN arr_delay_min WINDOW 7d HOP 1h
        late_30d FLOAT AGG MEAN late WINDOW 30d HOP 1h
    """,
    "schedule": """
        ENTITY departure SCHEMA
        carrier STRING VALUES 16 9E AA AS B6 DL EV F9 FL HA MQ OO UA US VX WN YV
        distance_mi INT  minute INT MIN 0 MAX 1439  weekday INT MIN 0 MAX 6
    """,
}
FEATURES = """
    weather:temp_f weather:humidity weather:wind_mph weather:rain_in weather:pressure_mbar weather:visibility_mi
    traffic:dep_delay_3h traffic:dep_delay_1d traffic:cancelled_1d
    record:arr_delay_7d record:late_30d
    schedule:carrier schedule:distance_mi schedule:minute schedule:weekday
"""


def define(client: valkey.Valkey) -> None:
    """Registers the views and sets the service, in a store that has none of them yet."""
    for view, definition in VIEWS.items():
        client.execute_command("FS.REGISTER", view, *definition.split())
    entities = ("CONTEXT", "airport", "CANDIDATE", "flight", "PAIR", "departure")
    names = FEATURES.split()
    client.execute_command(
        "FS.SERVICE", "SET", SERVICE, *entities, "FORMAT", "TENSOR", "FEATURES", len(names), *names
    )


def go_live(client: valkey.Valkey) -> None:
    """Lets schedules turn old, so that a flight that does not leave today is unknown.

    Not before the past has been played in: what is older than its TTL when it comes makes no row.
    """
    client.execute_command("FS.ALTER", "schedule", "TTL", "10h")


def entity_ids(origin: str, flight: str) -> dict[str, str]:
    """The id of each entity, as FS.RANK makes them of the context and a candidate."""
    return {"airport": origin, "flight": flight, "departure": f"{origin}:{flight}"}
