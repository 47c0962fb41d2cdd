"""Ranks flights by the probability that they arrive late: one FS.RANK, one call of the model.

    MODEL=late_flights.joblib uvicorn --factory app:from_environment

VALKEY_URL names the store, valkey://127.0.0.1:6379 if it is not set.
"""

import logging
import os
from typing import Annotated

import joblib
import numpy as np
import valkey
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from features import SERVICE
from pydantic import BaseModel, Field

LOG = logging.getLogger("uvicorn.error")
Airport = Annotated[str, Field(pattern="^[A-Z]{3}$")]
Flight = Annotated[str, Field(pattern="^[A-Z0-9]{2}-[1-9][0-9]{0,3}$")]


class Question(BaseModel):
    """A traveller's: which of these flights from there?"""

    origin: Airport
    flights: Annotated[list[Flight], Field(min_length=1, max_length=500)]


class Answer(BaseModel):
    """`late`: the probability. `known`: the store has a schedule of the flight; if not, the airport alone speaks."""

    flight: str
    late: float
    known: bool


def create_app(client: valkey.Valkey, model_path: str) -> FastAPI:
    """`client`: with RESP3 and decoded replies. Errors when the model was trained on other columns than are served."""
    model = joblib.load(model_path)
    classifier, columns = model["classifier"], model["columns"]
    service = client.execute_command("FS.SERVICE", "GET", SERVICE)
    if service["problem"]:
        raise ValueError(service["problem"])
    if (service["format"], service["columns"]) != ("tensor", columns):
        answer = f"service '{SERVICE}' answers as {service['format']} {service['columns']}"
        raise ValueError(f"the model was trained on {columns}, {answer}")
    scheduled = columns.index("schedule:minute")
    app = FastAPI(title="Late flights")

    @app.post("/rank")
    def rank(question: Question) -> list[Answer]:
        """The flights, the one that is least probably late first."""
        matrix = features(client, question.origin, question.flights)
        if matrix.shape[1] != len(columns):
            raise HTTPException(503, f"service '{SERVICE}' is another one than the model was trained for")
        late = classifier.predict_proba(matrix)[:, 1]
        known = ~np.isnan(matrix[:, scheduled])
        return [
            Answer(flight=question.flights[i], late=late[i], known=known[i])
            for i in np.argsort(late, kind="stable")
        ]

    @app.exception_handler(valkey.ValkeyError)
    def unavailable(_: Request, error: valkey.ValkeyError) -> JSONResponse:
        """No service, no view, no permission, no server: not the traveller's fault, and for the log to tell."""
        LOG.error("FS.RANK %s: %s", SERVICE, error)
        return JSONResponse({"detail": "the features cannot be read now"}, 503)

    return app


def features(client: valkey.Valkey, origin: str, flights: list[str]) -> np.ndarray:
    """A row of float32 for each flight: the reply's own bytes, without a copy."""
    shape, numbers, *_ = client.execute_command("FS.RANK", SERVICE, origin, *flights, NEVER_DECODE=True)
    return np.frombuffer(numbers, "<f4").reshape(shape)


def from_environment() -> FastAPI:
    """What uvicorn starts."""
    url = os.environ.get("VALKEY_URL", "valkey://127.0.0.1:6379")
    return create_app(valkey.Valkey.from_url(url, protocol=3, decode_responses=True), os.environ["MODEL"])
