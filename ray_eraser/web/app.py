"""The HTTP API and the operator's page, on top of anything with the methods of a `runtime.client.Client`.

This is the only module that imports FastAPI, which the extra `serve` installs.
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
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt, StrictStr, WithJsonSchema
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException

from ray_eraser.errors import RayEraserError, one_line
from ray_eraser.ids import LONGEST_ID, RawId, RequestId, id_text
from ray_eraser.status import Progress, Status
from ray_eraser.unlearning.evidence import ReceiptFile
from ray_eraser.unlearning.receipt import Receipt
from ray_eraser.unlearning.request import LONGEST_KEY, RequestState
from ray_eraser.web.answers import Answer, answer_to
from ray_eraser.web.guard import Guard
from ray_eraser.web.keys import Keys, Role
from ray_eraser.web.limits import Limits
from ray_eraser.web.reference import reference_page

_T = TypeVar("_T")
_HEALTH_SECONDS = 1.0
_POLL_SECONDS = "5"
_WAITING = (RequestState.RECEIVED, RequestState.EXCISED, RequestState.ROUTED)


class AcceptedErasure(Protocol):
    """The part of a `runtime.client.Ticket` that answers need."""

    request_id: RequestId
    salt: str | None
    here_again: bool
    pairs_absent: int | None


class Deployment(Protocol):
    """The methods of `runtime.client.Client` that the API calls, as documented there."""

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

    def retry(self, request_id: RequestId) -> None: ...

    def process_now(self) -> None: ...

    def describe(self) -> Status: ...

    def progress(self) -> Progress: ...


class Ask(Protocol):
    """Calls a function with the deployment, in whichever process the deployment runs at the time."""

    def __call__(self, call: Callable[[Deployment], _T]) -> _T: ...


_SAFE = 2**53 - 1
"""The largest integer that JavaScript's numbers tell from its neighbours (ECMA-262, `Number.MAX_SAFE_INTEGER`)."""
_UNSAFE = "unsafe_integer"
_WAYS_OUT = {
    "string_type": 'give an id as a string, "42", or as an integer, 42',
    "extra_forbidden": "unknown field, give user_id, item_id or pairs",
}
"""Words for the errors of pydantic that name no way out."""


def _checked_integer(number: int) -> int:
    # A JavaScript program has rounded a larger number before it sent it, so the number may name a neighbour.
    if abs(number) > _SAFE:
        way_out = 'a number beyond 2^53 - 1 may have been rounded: send the id as a string, "..."'
        raise PydanticCustomError(_UNSAFE, "{way_out}", {"way_out": way_out})
    return number


# `UnlearningRequest` checks the other rules for ids and words their errors.
_Text = Annotated[StrictStr, WithJsonSchema({"type": "string", "maxLength": LONGEST_ID, "pattern": "^[^\\u0000]*$"})]
_Number = Annotated[
    StrictInt, AfterValidator(_checked_integer), WithJsonSchema({"type": "integer", "minimum": -_SAFE, "maximum": _SAFE})
]
Id = _Text | _Number
"""An id in a body. Ids are text; an integer stands for its decimal digits. Answers hold text only."""


class ErasureRequest(BaseModel):
    """A user, an item, or (user id, item id) pairs: exactly one of the three.

    Write ids as the log does; 7 and "7" are the same id. Send an integer beyond 2^53 - 1 as a string.
    """

    # One schema instead of a union of three models, so that the error names the mistake: no key of the three, or two.
    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"oneOf": [{"required": [name]} for name in ("user_id", "item_id", "pairs")]}
    )

    user_id: Id | SkipJsonSchema[None] = None
    item_id: Id | SkipJsonSchema[None] = None
    pairs: Annotated[list[Annotated[list[Id], Len(2, 2)]], Len(1)] | SkipJsonSchema[None] = None


class Recommendations(BaseModel):
    """Items that the user has not seen, best first. Ids are strings, whatever type the log has."""

    items: list[str]


class Erasure(BaseModel):
    """The state of an erasure. From `excised` on, no answer of the deployment depends on the data."""

    id: str
    state: RequestState
    reason: str | None = Field(None, description="Why training failed, if the erasure is set aside.")


class Accepted(BaseModel):
    """An erasure that is recorded. It survives any crash."""

    id: str
    state: RequestState
    salt: str | None = Field(
        description="Opens the receipt's commitment. Keep it: the system deletes it when the erasure is finished. Null if the "
        "Idempotency-Key was sent before and the erasure is finished."
    )
    here_again: bool = Field(
        description="True if the Idempotency-Key was sent before, the erasure is finished, and some of the data was learned "
        "again since. The new data stay: erasing them takes a new key."
    )
    pairs_absent: int | None = Field(
        description="How many distinct pairs of the request are not stored and were passed over. Null if the Idempotency-Key "
        "was sent before."
    )


class ErasureRow(BaseModel):
    """One erasure of a list. Times are seconds since 1970, UTC."""

    id: str
    kind: Literal["user", "item", "pairs"]
    state: RequestState
    received_at: float
    excised_at: float | None
    deadline_at: float = Field(description="The legal deadline, from unlearning.deadline_days.")
    restored_at: float | None = Field(None, description="When the new generation was served.")
    finished_at: float | None = Field(description="When the superseded files were deleted and the receipt was written.")
    generation: int | None
    shards: list[int] | None = Field(None, description="The shards that held the data and were trained again.")


class RunAsked(BaseModel):
    """The deployment starts a run for all requests that wait, before its plan would."""

    waiting: int = Field(description="How many requests wait.")


class KeyRole(BaseModel):
    """The role of a key."""

    role: Role


class Health(BaseModel):
    """Whether the deployment answers."""

    status: Literal["ok", "unavailable"]


class Problem(BaseModel):
    """A refusal or a failure."""

    error: str = Field(description="What is wrong, and the way out.")


_KEYED = [Depends(HTTPBearer(auto_error=False, description="An API key."))]
"""For the OpenAPI description only. `Guard` checks keys, before it reads a body."""

_IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=LONGEST_KEY,
        description="Makes a request safe to repeat: the same erasure under the same key is recorded once and gets the same "
        "answer. Another erasure under the same key is refused.",
    ),
]

_PROBLEMS = {
    400: "The body cannot be read, or an id in it is a number beyond 2^53 - 1: send that id as a string.",
    401: "The key is missing or unknown.",
    403: "The key lacks the role that this needs.",
    404: "No such user, item or erasure is here, or it was erased.",
    408: "The body did not arrive in time: send it at once. The connection is closed.",
    409: "The state of the erasure does not allow this. An unfinished erasure has no receipt: ask again after Retry-After.",
    413: "The body is larger than the limit.",
    422: "The request cannot be accepted as it is. Nothing was changed.",
    429: "This key asks too often, or sends too many bodies at a time: ask again after Retry-After.",
    503: "The deployment does not answer, or too many erasures wait: try again after Retry-After.",
}


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem, "description": _PROBLEMS[status]} for status in (*statuses, 401, 422, 429, 503)}


def make_app(ask: Ask, keys: Keys, limits: Limits | None = None) -> FastAPI:
    """Make the ASGI application.

    Args:
        ask: reaches the deployment.
        keys: the accepted keys, with their roles.
        limits: on each key and each body.
    """
    limits = Limits() if limits is None else limits
    app = FastAPI(
        title="ray_eraser",
        summary="Recommendations, and erasures with receipts",
        docs_url=None,  # FastAPI's own loads its scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # a redirect would go to any host that the request names
    )
    app.add_middleware(Guard, keys=keys, limits=limits)
    _add_recommendations(app, ask)
    _add_erasures(app, ask)
    _add_receipts(app, ask)
    _add_operation(app, ask)
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
        """Recommend items to a user. Works while shards are being trained."""
        items = ask(lambda deployment: deployment.recommend(user_id, n))
        return Recommendations(items=[id_text(item) for item in items])


def _add_erasures(app: FastAPI, ask: Ask) -> None:
    @app.post("/erasures", status_code=202, responses=_problems(400, 403, 404, 408, 413), dependencies=_KEYED)
    def submit(wanted: ErasureRequest, response: Response, idempotency_key: _IdempotencyKey = None) -> Accepted:
        """Erase a user, an item or interactions. Once this answers 202, no recommendation depends on the data."""
        pairs = None if wanted.pairs is None else [(user, item) for user, item in wanted.pairs]
        named: dict[str, Any] = {"user_id": wanted.user_id, "item_id": wanted.item_id, "pairs": pairs}
        accepted = ask(lambda deployment: deployment.unlearn(**named, idempotency_key=idempotency_key))
        state = ask(lambda deployment: deployment.status(accepted.request_id))
        response.headers["Location"] = f"/erasures/{accepted.request_id}"
        return Accepted(
            id=accepted.request_id,
            state=state,
            salt=accepted.salt,
            here_again=accepted.here_again,
            pairs_absent=accepted.pairs_absent,
        )

    @app.get("/erasures", responses=_problems(), dependencies=_KEYED)
    def erasures(
        finished: Annotated[
            bool, Query(description="True: finished erasures, the newest first. False: pending ones, the oldest first.")
        ] = False,
        limit: Annotated[int, Query(ge=1, le=500, description="How many at most.")] = 100,
    ) -> list[ErasureRow]:
        """List pending or finished erasures. The list does not name users or items."""
        rows = ask(lambda deployment: deployment.erasures(limit, finished=finished))
        return [ErasureRow(id=row.pop("request_id"), **row) for row in rows]

    @app.get("/erasures/{erasure_id}", responses=_problems(404), dependencies=_KEYED)
    def erasure(erasure_id: str) -> Erasure:
        """Give the state of an erasure."""
        request_id = RequestId(erasure_id)
        state = ask(lambda deployment: deployment.status(request_id))
        reason = None
        if state is RequestState.SET_ASIDE:
            reason = ask(lambda deployment: deployment.reason(request_id))
        return Erasure(id=erasure_id, state=state, reason=reason)


def _add_receipts(app: FastAPI, ask: Ask) -> None:
    @app.get(
        "/erasures/{erasure_id}/receipt",
        response_model=dict[str, Any],
        response_description="The receipt.",
        responses=_problems(404, 409),
        dependencies=_KEYED,
    )
    def receipt(erasure_id: str) -> Response:
        """Give the receipt of a finished erasure, for `ray-eraser verify --receipt`. Replace the null salt with yours."""
        request_id = RequestId(erasure_id)
        found = ask(lambda deployment: deployment.receipt(request_id))
        if found is None:
            state = ask(lambda deployment: deployment.status(request_id))
            if state is RequestState.DONE:
                raise HTTPException(404, "this request erased nothing, so there is no receipt")
            # Not 202: a program that files every 2xx body as the receipt would file a promise as the proof.
            raise HTTPException(409, f"the erasure is {state}: there is no receipt yet", {"Retry-After": _POLL_SECONDS})
        return Response(ReceiptFile.of(found, None).to_json(), media_type="application/json")


def _add_operation(app: FastAPI, ask: Ask) -> None:
    @app.post("/run", status_code=202, responses=_problems(403, 408, 413), dependencies=_KEYED)
    def run() -> RunAsked:
        """Carry out all pending requests next, whatever the plan says. Does not wait for the end."""
        requests = ask(lambda deployment: deployment.describe()).requests
        ask(lambda deployment: deployment.process_now())
        return RunAsked(waiting=sum(requests.get(state, 0) for state in _WAITING))

    @app.post(
        "/erasures/{erasure_id}/retry", status_code=202, responses=_problems(403, 404, 408, 409, 413), dependencies=_KEYED
    )
    def retry(erasure_id: str) -> Erasure:
        """Try an erasure again that was set aside because its training failed too often."""
        request_id = RequestId(erasure_id)
        ask(lambda deployment: deployment.status(request_id))  # refuses an id that is unknown
        ask(lambda deployment: deployment.retry(request_id))
        return Erasure(id=erasure_id, state=ask(lambda deployment: deployment.status(request_id)), reason=None)

    @app.get("/key", responses=_problems(), dependencies=_KEYED)
    def key(request: Request) -> KeyRole:
        """Give the role of the key that the request carries."""
        return KeyRole(role=request.state.role)


def _add_status(app: FastAPI, ask: Ask) -> None:
    health = _Health(ask)

    @app.get("/status", response_description="As `Client.describe()`.", responses=_problems(), dependencies=_KEYED)
    def status() -> dict[str, Any]:
        """Describe the deployment: generation, guarantee, shards, requests by state, the plan, overdue requests."""
        described = ask(lambda deployment: deployment.describe()).to_dict()
        for name in ("digest", "storage_path"):  # with an old digest, a reader could test guesses about later erasures
            del described[name]
        progress = ask(lambda deployment: deployment.progress())
        return described | {"progress": asdict(progress), "now": time.time()}

    @app.get("/healthz", responses={503: {"model": Health, "description": "The deployment does not answer."}})
    def healthz(response: Response) -> Health:
        """Say whether the deployment answers. Needs no key."""
        if health.is_up():
            return Health(status="ok")
        response.status_code = 503
        return Health(status="unavailable")


class _Health:
    """Whether the deployment answers. Asks it once a second at most, from one thread, however many callers there are."""

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
        ("/pictures.js", "pictures.js", "text/javascript"),
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
        errors = error.errors()
        unsafe = [each for each in errors if each["type"] == _UNSAFE]
        first = (unsafe or errors)[0]
        # The answer names the place and does not repeat the value. The first part of a location is the part of the request, and
        # later names belong to pydantic's types.
        part, *place = first["loc"]
        where = ".".join(str(name) for depth, name in enumerate(place) if depth == 0 or isinstance(name, int))
        said = _WAYS_OUT.get(first["type"], first["msg"]) if part == "body" else first["msg"]
        return as_json(Answer(400 if unsafe else 422, one_line(f"{where or part}: {said}")))

    @app.exception_handler(HTTPException)
    def refused(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)
