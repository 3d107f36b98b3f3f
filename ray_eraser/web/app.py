"""The HTTP API and the operator's page, for whatever answers like a `runtime.client.Client`.

FastAPI comes with the extra `serve` and is imported here only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import resources
from typing import Annotated, Any, Literal, Protocol, TypeVar

from annotated_types import Len
from fastapi import Depends, FastAPI, Header, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, WithJsonSchema
from pydantic.json_schema import SkipJsonSchema
from starlette.exceptions import HTTPException

from ray_eraser.errors import RayEraserError, one_line
from ray_eraser.ids import LONGEST_ID, RawId, RequestId, id_text
from ray_eraser.status import Progress, Status
from ray_eraser.unlearning.evidence import ReceiptFile
from ray_eraser.unlearning.receipt import Receipt
from ray_eraser.unlearning.request import LONGEST_KEY, RequestState
from ray_eraser.web.answers import Answer, answer_to
from ray_eraser.web.guard import Guard
from ray_eraser.web.keys import Keys
from ray_eraser.web.limits import Limits
from ray_eraser.web.reference import reference_page

_T = TypeVar("_T")
_HEALTH_SECONDS = 1.0
_POLL_SECONDS = "5"


class AcceptedErasure(Protocol):
    """As `runtime.client.Ticket`."""

    request_id: RequestId
    salt: str | None
    here_again: bool


class Deployment(Protocol):
    """What of a `runtime.client.Client` is served; see there."""

    def recommend(self, user_id: RawId, n: int = 10) -> list[RawId]: ...

    def unlearn(
        self,
        *,
        user_id: RawId | None = None,
        item_id: RawId | None = None,
        pairs: Sequence[tuple[RawId, RawId]] | None = None,
        idempotency_key: str | None = None,
    ) -> AcceptedErasure: ...

    def status(self, request_id: RequestId) -> RequestState: ...

    def receipt(self, request_id: RequestId) -> Receipt | None: ...

    def reason(self, request_id: RequestId) -> str: ...

    def erasures(self, limit: int = 100, *, finished: bool = False) -> list[dict[str, Any]]: ...

    def describe(self) -> Status: ...

    def progress(self) -> Progress: ...


class Ask(Protocol):
    """Calls a function with the deployment, whichever process it runs in now."""

    def __call__(self, call: Callable[[Deployment], _T]) -> _T: ...


# What else makes a text no id, `UnlearningRequest` refuses in its own words.
_Text = Annotated[StrictStr, WithJsonSchema({"type": "string", "maxLength": LONGEST_ID, "pattern": "^[^\\u0000]*$"})]
Id = _Text | StrictInt
"""An id in a body. Ids are text; an integer stands for its decimal digits. Answers have text only."""


class ErasureRequest(BaseModel):
    """A user, an item, or (user id, item id) pairs: exactly one of the three. Ids as the log names them; 7 and "7" are one."""

    # One schema with one of three keys, not a union of three models: anyone who gives none or two is told so.
    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"oneOf": [{"required": [name]} for name in ("user_id", "item_id", "pairs")]}
    )

    user_id: Id | SkipJsonSchema[None] = None
    item_id: Id | SkipJsonSchema[None] = None
    pairs: Annotated[list[Annotated[list[Id], Len(2, 2)]], Len(1)] | SkipJsonSchema[None] = None


class Recommendations(BaseModel):
    """Items that the user has not seen, best first."""

    items: list[str]


class Erasure(BaseModel):
    """Where an erasure stands. From `excised` on nothing that is served depends on the data."""

    id: str
    state: RequestState
    reason: str | None = Field(None, description="Why it was set aside, where it was.")


class Accepted(BaseModel):
    """An erasure that survives any crash from here on."""

    id: str
    state: RequestState
    salt: str | None = Field(
        description="Opens the receipt's commitment. The system forgets it when the erasure is finished: keep it. None where "
        "the Idempotency-Key was sent before and the erasure is finished."
    )
    here_again: bool = Field(
        description="The Idempotency-Key was sent before, the erasure is finished, and something of it was learned again "
        "since. It is not erased again: that takes a new key."
    )


class ErasureRow(BaseModel):
    """One erasure of a list. Times are seconds since 1970, UTC."""

    id: str
    kind: Literal["user", "item", "pairs"]
    state: RequestState
    received_at: float
    excised_at: float | None
    deadline_at: float = Field(description="When the law wants it done, by unlearning.deadline_days.")
    finished_at: float | None
    generation: int | None


class Health(BaseModel):
    """Whether the deployment answers."""

    status: Literal["ok", "unavailable"]


class Problem(BaseModel):
    """A refusal or a failure."""

    error: str = Field(description="What is wrong, and the way out.")


_KEYED = [Depends(HTTPBearer(auto_error=False, description="An API key."))]
"""For the description alone: the guard checks keys, before a body is read."""

_IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=LONGEST_KEY,
        description="A submission repeated under one key is one erasure, and gets the same answer. Another erasure under it "
        "is refused.",
    ),
]

_PROBLEMS = {
    400: "The body cannot be read.",
    401: "No key, or an unknown one.",
    403: "The key has not the role that this needs.",
    404: "There is no such user, item or erasure (any more).",
    408: "The body did not arrive in time: send it at once. The connection is closed.",
    409: "The erasure is not finished: ask again after Retry-After.",
    413: "The body is larger than the limit.",
    422: "The request cannot be accepted as it is. Nothing was changed.",
    429: "This key asks too often, or sends too many bodies at a time: ask again after Retry-After.",
    503: "The deployment does not answer, or too many erasures wait: try again after Retry-After.",
}


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem, "description": _PROBLEMS[status]} for status in (*statuses, 401, 422, 429, 503)}


def make_app(ask: Ask, keys: Keys, limits: Limits | None = None) -> FastAPI:
    """The application.

    Args:
        ask: reaches the deployment.
        keys: who may do what.
        limits: of every key and every body.
    """
    limits = Limits() if limits is None else limits
    app = FastAPI(
        title="ray_eraser",
        summary="Recommendations, and erasures with receipts",
        docs_url=None,  # FastAPI's own loads its scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # it would lead to whatever host the request names
    )
    app.add_middleware(Guard, keys=keys, limits=limits)
    _add_recommendations(app, ask)
    _add_erasures(app, ask)
    _add_status(app, ask)
    _add_pages(app)
    _add_error_answers(app)
    return app


def _add_recommendations(app: FastAPI, ask: Ask) -> None:
    @app.get("/users/{user_id:path}/recommendations", responses=_problems(404), dependencies=_KEYED)
    def recommendations(
        user_id: Annotated[str, Path(description="The user, as the log names it.")],
        n: Annotated[int, Query(ge=1, le=1000, description="How many items at most.")] = 10,
    ) -> Recommendations:
        """Items for a user. Answered while shards are trained again."""
        items = ask(lambda deployment: deployment.recommend(user_id, n))
        return Recommendations(items=[id_text(item) for item in items])


def _add_erasures(app: FastAPI, ask: Ask) -> None:
    @app.post("/erasures", status_code=202, responses=_problems(400, 403, 404, 408, 413), dependencies=_KEYED)
    def submit(wanted: ErasureRequest, response: Response, idempotency_key: _IdempotencyKey = None) -> Accepted:
        """Have a user, an item or interactions forgotten. Once accepted, nothing that is served depends on the data."""
        pairs = None if wanted.pairs is None else [(user, item) for user, item in wanted.pairs]
        named: dict[str, Any] = {"user_id": wanted.user_id, "item_id": wanted.item_id, "pairs": pairs}
        accepted = ask(lambda deployment: deployment.unlearn(**named, idempotency_key=idempotency_key))
        state = ask(lambda deployment: deployment.status(accepted.request_id))
        response.headers["Location"] = f"/erasures/{accepted.request_id}"
        return Accepted(id=accepted.request_id, state=state, salt=accepted.salt, here_again=accepted.here_again)

    @app.get("/erasures", responses=_problems(), dependencies=_KEYED)
    def erasures(
        finished: Annotated[bool, Query(description="Those that are finished, the newest first; else the others.")] = False,
        limit: Annotated[int, Query(ge=1, le=500, description="How many at most.")] = 100,
    ) -> list[ErasureRow]:
        """Erasures that wait, the oldest first, or finished ones. Says nothing of what they are about."""
        rows = ask(lambda deployment: deployment.erasures(limit, finished=finished))
        return [ErasureRow(id=row.pop("request_id"), **row) for row in rows]

    @app.get("/erasures/{erasure_id}", responses=_problems(404), dependencies=_KEYED)
    def erasure(erasure_id: str) -> Erasure:
        """Where an erasure stands."""
        request_id = RequestId(erasure_id)
        state = ask(lambda deployment: deployment.status(request_id))
        reason = None
        if state is RequestState.SET_ASIDE:
            reason = ask(lambda deployment: deployment.reason(request_id))
        return Erasure(id=erasure_id, state=state, reason=reason)

    @app.get(
        "/erasures/{erasure_id}/receipt",
        response_model=dict[str, Any],
        response_description="The receipt.",
        responses=_problems(404, 409),
        dependencies=_KEYED,
    )
    def receipt(erasure_id: str) -> Response:
        """The receipt of a finished erasure, as `audit.py --receipt` reads it; put the salt in the place of null."""
        request_id = RequestId(erasure_id)
        found = ask(lambda deployment: deployment.receipt(request_id))
        if found is None:
            state = ask(lambda deployment: deployment.status(request_id))
            if state is RequestState.DONE:
                raise HTTPException(404, "this asked for no erasure: there is no receipt")
            # Not 202: who takes any 2xx for the receipt would file a promise as the proof.
            raise HTTPException(409, f"the erasure is {state}: there is no receipt yet", {"Retry-After": _POLL_SECONDS})
        return Response(ReceiptFile.of(found, None).to_json(), media_type="application/json")


def _add_status(app: FastAPI, ask: Ask) -> None:
    health = _Health(ask)

    @app.get("/status", response_description="As `Client.describe()`.", responses=_problems(), dependencies=_KEYED)
    def status() -> dict[str, Any]:
        """The deployment: generation, guarantee, shards, requests by state, the plan and what is overdue."""
        described = ask(lambda deployment: deployment.describe()).to_dict()
        for name in ("digest", "storage_path"):  # a digest that a reader keeps gives away what is erased later
            del described[name]
        progress = ask(lambda deployment: deployment.progress())
        return described | {"progress": asdict(progress), "now": time.time()}

    @app.get("/healthz", responses={503: {"model": Health, "description": "The deployment does not answer."}})
    def healthz(response: Response) -> Health:
        """Whether the deployment answers. Needs no key."""
        if health.is_up():
            return Health(status="ok")
        response.status_code = 503
        return Health(status="unavailable")


class _Health:
    """Whether the deployment answers: asked once a second at most, and by one thread, however many want to know."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._asking = threading.Lock()
        self._asked_at, self._is_up = float("-inf"), False

    def is_up(self) -> bool:
        if time.monotonic() > self._asked_at + _HEALTH_SECONDS and self._asking.acquire(blocking=False):
            try:
                self._ask(lambda deployment: deployment.progress())
                self._is_up = True
            except RayEraserError:
                self._is_up = False
            finally:
                self._asked_at = time.monotonic()
                self._asking.release()
        return self._is_up


def _add_pages(app: FastAPI) -> None:
    folder = resources.files("ray_eraser.web") / "page"

    def add(path: str, content: str, media_type: str) -> None:
        answer = Response(content, media_type=media_type)
        app.add_api_route(path, lambda: answer, include_in_schema=False, response_class=Response)

    for path, name, media_type in (
        ("/", "index.html", "text/html"),
        ("/page.css", "page.css", "text/css"),
        ("/page.js", "page.js", "text/javascript"),
        ("/icon.svg", "icon.svg", "image/svg+xml"),
    ):
        add(path, (folder / name).read_text("utf-8"), media_type)
    add("/docs", reference_page(app.openapi()), "text/html")


def _add_error_answers(app: FastAPI) -> None:
    def as_json(answer: Answer) -> JSONResponse:
        return JSONResponse({"error": answer.error}, answer.status, answer.headers)

    @app.exception_handler(RayEraserError)
    def ours(_: Request, error: RayEraserError) -> JSONResponse:
        return as_json(answer_to(error))

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        # Where it is, without the part of the request that it is in; what was given is not repeated.
        where = ".".join(str(part) for part in first["loc"][1:])
        return as_json(Answer(422, one_line(f"{where or first['loc'][0]}: {first['msg']}")))

    @app.exception_handler(HTTPException)
    def refused(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)
