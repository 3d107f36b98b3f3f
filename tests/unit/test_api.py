"""The HTTP API without Ray: keys, limits, answers to errors, and the whole application over a coordinator in this process."""

from __future__ import annotations

import asyncio
import hmac
import inspect
import json
import logging
import string
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from in_process import InProcess

from ray_eraser import errors
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.files import read_dataset
from ray_eraser.errors import InputError, PoolError, QueueFullError, RayEraserError, RequestError, UnknownIdError
from ray_eraser.pool import LocalShardPool
from ray_eraser.unlearning.receipt import commitment
from ray_eraser.unlearning.request import RequestState, UnlearningRequest
from ray_eraser.web import keys as keys_module
from ray_eraser.web.answers import Answer, answer_to
from ray_eraser.web.keys import Keys, Role, read_keys
from ray_eraser.web.limits import Limits, TokenBuckets

READER, ERASER = "r" * 32, "e" * 32
KEYS = Keys.of([(Role.READ, READER), (Role.ERASE, ERASER)])


# ---- keys ------------------------------------------------------------------------------------------------------------------


def key_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    file = folder / "api.keys"
    file.write_text(text)
    file.chmod(mode)
    return file


def test_a_key_file_gives_each_key_its_role(tmp_path):
    keys = read_keys(key_file(tmp_path, f"# ours\n\nread {READER}\n  erase  {ERASER}\n"))
    assert keys.find(READER)[0] is Role.READ
    assert keys.find(ERASER)[0] is Role.ERASE
    assert keys.find("x" * 32) is None
    assert keys.find("") is None
    assert keys == KEYS


def test_keys_are_kept_nowhere(tmp_path):
    assert READER not in repr(read_keys(key_file(tmp_path, f"read {READER}\n")))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_key_file_that_others_can_read_is_refused(tmp_path, mode):
    file = key_file(tmp_path, f"read {READER}\n", mode)
    with pytest.raises(InputError, match="chmod 600"):
        read_keys(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no key"),
        ("# nothing\n", "holds no key"),
        (f"admin {READER}", "line 1: expected"),
        (f"read {READER} today", "line 1: expected"),
        (f"{READER}", "line 1: expected"),
        ("read short", "has 5 characters"),
        (f"read {'ü' * 40}", "a header cannot hold"),
        (f"read {READER}\nerase {READER}", "line 2: an earlier line has the same key"),
    ],
)
def test_a_line_that_is_no_key_is_named_and_the_key_is_not(tmp_path, text, said):
    with pytest.raises(InputError, match=said) as caught:
        read_keys(key_file(tmp_path, text))
    assert READER not in str(caught.value)


def test_a_key_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_keys(tmp_path / "none")


def test_every_key_is_compared_in_constant_time(monkeypatch):
    compared = []
    compare = hmac.compare_digest
    monkeypatch.setattr(keys_module.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or compare(a, b))
    KEYS.find(READER)
    assert len(compared) == 2  # the second as well, though the first was right
    assert all(len(a) == len(b) == 32 for a, b in compared)


def test_erasing_includes_reading_and_not_the_other_way_round():
    assert Role.ERASE.allows(Role.READ)
    assert Role.ERASE.allows(Role.ERASE)
    assert Role.READ.allows(Role.READ)
    assert not Role.READ.allows(Role.ERASE)


# ---- limits ----------------------------------------------------------------------------------------------------------------


def test_a_bucket_gives_a_burst_then_its_rate():
    now = [100.0]
    buckets = TokenBuckets(rate=2, burst=3, clock=lambda: now[0])
    assert [buckets.take("a") for _ in range(3)] == [0, 0, 0]
    assert buckets.take("a") == pytest.approx(0.5)
    now[0] += 0.5
    assert buckets.take("a") == 0
    assert buckets.take("a") == pytest.approx(0.5)
    now[0] += 1000
    assert [buckets.take("a") > 0 for _ in range(4)] == [False, False, False, True]


def test_each_key_has_a_bucket_of_its_own():
    buckets = TokenBuckets(rate=1, burst=1, clock=lambda: 0.0)
    assert buckets.take("a") == 0
    assert buckets.take("b") == 0
    assert buckets.take("a") == buckets.take("b") == 1


@given(
    rate=st.floats(0.1, 100),
    burst=st.integers(1, 50),
    pauses=st.lists(st.floats(0, 3), min_size=1, max_size=100),
)
def test_no_more_are_granted_than_the_burst_and_the_rate_over_time(rate, burst, pauses):
    now = [0.0]
    buckets = TokenBuckets(rate, burst, clock=lambda: now[0])
    granted = 0
    for pause in pauses:
        now[0] += pause
        granted += buckets.take("a") == 0
    assert granted <= burst + rate * now[0] + 1e-6


def test_processes_share_a_limit():
    assert Limits(100, 200, 5).divided(4) == Limits(25, 50, 5)
    assert Limits(1, 1, 5).divided(4).burst == 1  # else none would ever be granted


# ---- answers to errors -----------------------------------------------------------------------------------------------------


def an_error(cls: type[RayEraserError]) -> RayEraserError:
    samples = {"str": "a name", "int": 3, "float": 1.5, "int | None": 7, "tuple[str, ...]": ("another",)}
    if "__init__" not in vars(cls):
        return cls("what is wrong")
    return cls(*(samples[parameter.annotation] for parameter in list(inspect.signature(cls).parameters.values())))


STATUSES = {
    errors.UnknownIdError: 404,
    errors.UnknownRequestError: 404,
    errors.IllegalTransitionError: 409,
    errors.RequestError: 422,
    errors.ConfigError: 422,
    errors.InputError: 422,
    errors.QueueFullError: 503,
    errors.DeploymentError: 503,
    errors.PoolError: 503,
    errors.LedgerError: 503,
    errors.StoreError: 503,
    errors.StaleEpochError: 503,
    errors.WaitTimeoutError: 503,
    errors.TrainingError: 500,
}


@pytest.mark.parametrize(("cls", "status"), STATUSES.items())
def test_an_error_has_its_status(cls, status):
    answer = answer_to(an_error(cls))
    assert answer.status == status
    assert ("Retry-After" in answer.headers) == (status == 503)


def test_what_the_asker_did_is_said_and_what_failed_inside_is_not():
    assert "no user 'anna' here" in answer_to(UnknownIdError("user", "anna")).error
    assert "both" in answer_to(RequestError("both")).error
    assert "/secret" not in answer_to(errors.StoreError("/secret/place", "is gone")).error
    assert "anna" not in answer_to(PoolError("shard 3", "failed: KeyError: anna")).error
    assert "anna" not in answer_to(ValueError("anna")).error


def test_a_full_queue_says_when_to_come_again():
    assert answer_to(QueueFullError(5, 1, 5, 12.2)).headers == {"Retry-After": "13"}
    assert answer_to(QueueFullError(5, 1, 5)).headers == {"Retry-After": "60"}
    assert Answer(429, "", 0.001).headers == {"Retry-After": "1"}


# ---- the application over a coordinator in this process -------------------------------------------------------------------


class Caller:
    """Calls an ASGI application as a server does."""

    def __init__(self, app) -> None:
        self.app = app

    def __call__(self, method, path, body=None, *, key=ERASER, headers=(), chunks=None):
        path, _, query = path.partition("?")
        sent = []
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        given = [(b"host", b"here"), (b"content-type", b"application/json"), *headers]
        if key is not None:
            given.append((b"authorization", f"Bearer {key}".encode()))
        if chunks is None:
            chunks = [body or b""]
            given.append((b"content-length", str(len(chunks[0])).encode()))
        scope = {
            "type": "http", "method": method, "path": path, "raw_path": quote(path).encode(), "root_path": "",
            "query_string": query.encode(), "headers": given, "scheme": "http", "http_version": "1.1",
            "server": ("here", 80), "client": ("there", 1), "asgi": {"version": "3.0"}, "state": {},
        }  # fmt: skip
        waiting = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
        waiting[-1]["more_body"] = False

        async def receive():
            return waiting.pop(0) if waiting else {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        asyncio.run(self.app(scope, receive, send))
        content = b"".join(message.get("body", b"") for message in sent[1:])
        given = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], json.loads(content) if given.get("content-type") == "application/json" else content, given


@pytest.fixture(scope="module")
def trained(tiny, tiny_config, tmp_path_factory):
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    place = str(tmp_path_factory.mktemp("api") / "storage")
    coordinator = Coordinator("api", place, partial(LocalShardPool, place), tiny_config)
    coordinator.fit(tiny)
    yield coordinator
    coordinator.close()


@pytest.fixture
def deployment(trained):
    return InProcess(trained)


@pytest.fixture
def call(deployment):
    from ray_eraser.web.app import make_app

    return Caller(make_app(deployment, KEYS, Limits(rate=1e6, burst=1e6)))


def limited(deployment, limits):
    from ray_eraser.web.app import make_app

    return Caller(make_app(deployment, KEYS, limits))


def test_recommendations_are_those_of_the_deployment(call, trained):
    status, body, _ = call("GET", "/users/1003/recommendations?n=4", key=READER)
    assert (status, body) == (200, {"items": [str(item) for item in trained.recommend(1003, 4)]})


@pytest.mark.parametrize("user", ["nobody", "9999999", "a/b", "../..", "1" * 1000, "ü", "%"])
def test_a_user_who_is_not_here_is_404(call, user):
    status, body, _ = call("GET", f"/users/{user}/recommendations")
    assert status == 404
    assert "never learned from, or it has been erased" in body["error"]


@pytest.mark.parametrize(
    ("user", "said"), [("", "is empty"), (" ", "is empty"), ("1" * 1001, "has 1001 characters"), ("a\0", "holds a NUL byte")]
)
def test_what_cannot_be_a_user_is_422(call, user, said):
    status, body, _ = call("GET", f"/users/{user}/recommendations")
    assert status == 422
    assert f"the user id {said}" in body["error"].replace(repr(user) + " ", "")


def test_ids_in_answers_are_text_also_where_the_log_has_integers(deployment):
    from ray_eraser.web.app import make_app

    deployment.recommend = lambda user_id, n: [7, 12]
    call = Caller(make_app(deployment, KEYS))
    assert call("GET", "/users/1003/recommendations")[1] == {"items": ["7", "12"]}


def test_an_integer_in_a_body_asks_for_the_id_of_its_digits(call, trained):
    header = [(b"idempotency-key", b"number or text")]
    first = call("POST", "/erasures", {"user_id": 1010}, headers=header)
    again = call("POST", "/erasures", {"user_id": "1010"}, headers=header)
    assert first[0] == 202
    assert first[:2] == again[:2]
    trained.process_pending()


LARGEST = 2**53 - 1


@pytest.mark.parametrize("number", [2**53, 2**53 + 1, -(2**53), 9_100_000_000_000_000_051])
@pytest.mark.parametrize("body", ["user", "item", "pair"])
def test_a_number_that_javascript_may_have_rounded_is_400_and_the_error_says_to_send_a_string(call, number, body):
    bodies = {"user": {"user_id": number}, "item": {"item_id": number}, "pair": {"pairs": [["1003", "7"], ["1003", number]]}}
    places = {"user": "user_id", "item": "item_id", "pair": "pairs.1.1"}
    status, answer, _ = call("POST", "/erasures", bodies[body])
    assert status == 400
    assert answer["error"].startswith(
        f"{places[body]}: a number beyond 2^53 - 1 may have been rounded: send the id as a string"
    )
    assert str(number) not in answer["error"]


@pytest.mark.parametrize("number", [LARGEST, -LARGEST, str(2**53), str(2**53 + 1), "9" * 40])
def test_other_integers_and_strings_of_digits_are_looked_up(call, number):
    status, answer, _ = call("POST", "/erasures", {"user_id": number})
    assert (status, answer["error"].split(" here")[0]) == (404, f"no user '{number}'")


def test_neighbours_beyond_2_to_the_53_are_told_apart(tiny_config, tmp_path):
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    from ray_eraser.web.app import make_app

    first, items = 2**53, [9_100_000_000_000_000_001 + 2 * number for number in range(12)]
    pairs = [(first + user, items[(user + step) % 12]) for user in range(12) for step in range(8)]
    place = str(tmp_path / "big")
    coordinator = Coordinator("big", place, partial(LocalShardPool, place), tiny_config)
    config = tiny_config.model_copy(update={"data": tiny_config.data.model_copy(update={"test_share": 0, "valid_share": 0})})
    log = tmp_path / "log.csv"
    log.write_text("user_id,item_id\n" + "".join(f"{user},{item}\n" for user, item in pairs))
    coordinator.fit(read_dataset(str(log), config.data, config.seed))
    call = Caller(make_app(InProcess(coordinator), KEYS))

    def recommended(user):
        return call("GET", f"/users/{user}/recommendations?n=20")

    unseen = {str(items[(1 + step) % 12]) for step in range(8, 12)}
    assert (recommended(first + 1)[0], set(recommended(first + 1)[1]["items"])) == (200, unseen)
    assert call("POST", "/erasures", {"user_id": first})[0] == 400
    assert [recommended(first + user)[0] for user in (0, 1)] == [200, 200]
    assert call("POST", "/erasures", {"user_id": str(first + 1)})[0] == 202
    assert [recommended(first + user)[0] for user in (0, 1)] == [200, 404]
    coordinator.close()


def test_an_id_is_taken_with_its_blanks(call):
    for user in (" 1003", "1003 ", "\t1003", "01003"):
        assert call("POST", "/erasures", {"user_id": user})[0] == 404
        assert call("GET", f"/users/{user}/recommendations")[0] == 404
    assert call("GET", "/users/1003/recommendations")[0] == 200


def test_the_reference_says_how_large_ids_are_written(call):
    page = call("GET", "/docs", key=None)[1].decode()
    assert "2<sup>53</sup> - 1" in page
    number = call("GET", "/openapi.json", key=None)[1]["components"]["schemas"]["ErasureRequest"]["properties"]["user_id"]
    assert {"type": "integer", "minimum": -LARGEST, "maximum": LARGEST} in number["anyOf"]


def test_a_key_is_told_its_role(call):
    assert call("GET", "/key", key=READER)[:2] == (200, {"role": "read"})
    assert call("GET", "/key", key=ERASER)[:2] == (200, {"role": "erase"})
    assert call("GET", "/key", key=None)[0] == 401


def test_a_run_carries_out_what_waits(call, trained):
    accepted = call("POST", "/erasures", {"user_id": 1011})[1]
    assert call("POST", "/run", key=READER)[0] == 403
    assert trained.status(accepted["id"]) is RequestState.EXCISED
    assert call("POST", "/run")[:2] == (202, {"waiting": 1})
    assert trained.status(accepted["id"]) is RequestState.ERASED
    assert call("POST", "/run")[:2] == (202, {"waiting": 0})


def test_an_erasure_that_was_set_aside_can_be_retried_and_no_other(call, trained, monkeypatch):
    def fails(*_, **__):
        raise ValueError("it diverged")

    accepted = call("POST", "/erasures", {"user_id": 1012})[1]
    place = f"/erasures/{accepted['id']}"
    assert call("POST", f"{place}/retry")[0] == 409
    with monkeypatch.context() as patch:
        patch.setattr(trained._builder, "train_and_publish", fails)
        while trained.status(accepted["id"]) is not RequestState.SET_ASIDE:
            with suppress(ValueError):
                trained.process_pending()
    assert call("GET", place)[1]["state"] == "set_aside"
    assert call("POST", f"{place}/retry", key=READER)[0] == 403
    assert call("POST", "/erasures/none/retry")[0] == 404
    assert call("POST", f"{place}/retry")[:2] == (202, {"id": accepted["id"], "state": "excised", "reason": None})
    assert call("POST", "/run")[0] == 202
    assert call("GET", place)[1]["state"] == "erased"
    assert call("POST", f"{place}/retry")[0] == 409


def test_an_erasure_goes_from_202_to_its_receipt(call, trained):
    status, accepted, headers = call("POST", "/erasures", {"user_id": 1005})
    assert status == 202
    assert accepted["state"] == "excised"
    assert headers["location"] == f"/erasures/{accepted['id']}"
    assert call("GET", "/users/1005/recommendations")[0] == 404

    assert call("GET", headers["location"], key=READER)[:2] == (200, {"id": accepted["id"], "state": "excised", "reason": None})
    status, body, headers_then = call("GET", f"{headers['location']}/receipt", key=READER)
    assert (status, body) == (409, {"error": "the erasure is excised: there is no receipt yet"})
    assert headers_then["retry-after"] == "5"
    pending = call("GET", "/erasures")[1]
    assert [row["id"] for row in pending] == [accepted["id"]]
    assert pending[0]["deadline_at"] == pending[0]["received_at"] + 30 * 86_400

    trained.process_pending()
    status, receipt, _ = call("GET", f"{headers['location']}/receipt", key=READER)
    assert status == 200
    assert receipt["commitment"] == commitment(UnlearningRequest(user_id=1005), accepted["salt"])
    assert receipt["salt"] is None
    assert call("GET", "/erasures")[1] == []
    finished = call("GET", "/erasures?finished=true&limit=1")[1]
    assert (finished[0]["id"], finished[0]["state"]) == (accepted["id"], "erased")
    assert (finished[0]["restored_at"], finished[0]["finished_at"]) == (receipt["restored_at"], receipt["purged_at"])
    assert finished[0]["shards"] == receipt["shards_touched"]
    assert (pending[0]["restored_at"], pending[0]["shards"]) == (None, None)


def test_a_repeated_key_is_the_same_erasure(call, trained):
    header = [(b"idempotency-key", b"ticket 7")]
    first = call("POST", "/erasures", {"user_id": 1006}, headers=header)
    again = call("POST", "/erasures", {"user_id": 1006}, headers=header)
    assert first[:2] == again[:2]
    assert call("POST", "/erasures", {"user_id": 1007}, headers=header)[0] == 422
    trained.process_pending()
    status, body, _ = call("POST", "/erasures", {"user_id": 1006}, headers=header)
    assert (status, body) == (
        202,
        {"id": first[1]["id"], "state": "erased", "salt": None, "here_again": False, "pairs_absent": 0},
    )


def test_items_and_pairs_can_be_erased(call, trained, tiny):
    pair = [(tiny.users.ids[int(u)], tiny.items.ids[int(i)]) for u, i in zip(tiny.train.users, tiny.train.items, strict=True)][
        -1
    ]
    status, accepted, _ = call("POST", "/erasures", {"pairs": [list(pair), [pair[0], "never seen"], ["never seen", pair[1]]]})
    assert (status, accepted["pairs_absent"]) == (202, 2)
    assert call("POST", "/erasures", {"item_id": str(tiny.items.ids[3])})[0] == 202
    kinds = [row["kind"] for row in call("GET", "/erasures")[1]]
    assert kinds == ["pairs", "item"]
    trained.process_pending()


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"user_id": None},
        {"user_id": 1, "item_id": 2},
        {"user_id": True},
        {"user_id": 1.5},
        {"user_id": ["a"]},
        {"user_id": 1, "more": 2},
        {"user_id": "a\0b"},
        {"user_id": "x" * 5000},
        {"user_id": 10**1400},
        {"pairs": []},
        {"pairs": [[1]]},
        {"pairs": [[1, 2, 3]]},
        {"pairs": "ab"},
        {"pairs": {"1": 2}},
        [],
        "user",
        7,
        b"",
        b"{",
        b'{"user_id": "\\ud800"}',
        b"\xff\xfe",
        b"[" * 5000,
        b'{"user_id": ' + b"9" * 5000 + b"}",
        b'{"user_id": NaN}',
    ],
)
def test_a_body_that_is_no_request_is_refused_and_changes_nothing(call, body):
    before = call("GET", "/status")[1]["requests"]
    status, answer, _ = call("POST", "/erasures", body)
    assert status in (400, 422)
    assert answer["error"]
    assert len(answer["error"]) < 1100
    assert call("GET", "/status")[1]["requests"] == before


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"user_id": 42.0}, 'user_id: give an id as a string, "42", or as an integer, 42'),
        ({"user_id": 1e21}, 'user_id: give an id as a string, "42", or as an integer, 42'),
        ({"pairs": [["1003", True]]}, 'pairs.0.1: give an id as a string, "42", or as an integer, 42'),
        ({"user": "anna"}, "user: unknown field, give user_id, item_id or pairs"),
    ],
)
def test_a_refusal_names_the_place_and_the_way_out(call, body, said):
    assert call("POST", "/erasures", body)[:2] == (422, {"error": said})


@pytest.mark.parametrize("key", ["", "x" * 201, "a\0b"])
def test_an_idempotency_key_that_is_none_is_422(call, key):
    assert call("POST", "/erasures", {"user_id": 1008}, headers=[(b"idempotency-key", key.encode())])[0] == 422


def test_an_erasure_that_is_not_known_is_404(call):
    for path in ("/erasures/none", "/erasures/none/receipt", f"/erasures/{'0' * 32}", "/erasures/%00"):
        assert call("GET", path)[0] == 404


def test_what_asked_for_no_erasure_has_no_receipt_and_is_in_no_list(call, trained, tiny):
    learned = trained.learn([(tiny.users.ids[20], 999_000 + number) for number in range(20)])  # some are held out for the test
    assert call("GET", f"/erasures/{learned.request_id}/receipt")[0] == 409
    assert call("GET", "/erasures")[1] == []
    trained.process_pending()
    assert trained.status(learned.request_id) is RequestState.DONE
    assert call("GET", f"/erasures/{learned.request_id}/receipt")[0] == 404


@pytest.mark.parametrize("key", [None, "", "x" * 32, READER[:-1], READER + "r", "\N{LATIN SMALL LETTER U WITH DIAERESIS}"])
@pytest.mark.parametrize("path", ["/status", "/erasures", "/users/1003/recommendations", "/erasures/a/receipt", "/nothing"])
def test_without_a_key_that_is_known_everything_is_401(call, key, path):
    status, body, headers = call("GET", path, key=key)
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert "Authorization: Bearer" in body["error"]


def test_another_scheme_is_no_key(call):
    assert call("GET", "/status", key=None, headers=[(b"authorization", f"Basic {READER}".encode())])[0] == 401
    assert call("GET", "/status", key=None, headers=[(b"authorization", f"bearer {READER}".encode())])[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "BREW"])
def test_a_key_that_reads_may_do_nothing_else(call, method):
    assert call(method, "/erasures", {"user_id": 1009}, key=READER)[0] == 403


def test_a_key_is_asked_for_before_the_body_is_read(call):
    assert call("POST", "/erasures", b"{", key=None)[0] == 401
    assert call("POST", "/erasures", b"{", key=READER)[0] == 403


def test_a_body_over_the_limit_is_413_declared_or_not(deployment):
    call = limited(deployment, Limits(body=1000))
    assert call("POST", "/erasures", b" " * 1001)[0] == 413
    assert call("POST", "/erasures", chunks=[b" " * 600, b" " * 600])[0] == 413
    assert call("POST", "/erasures", b" " * 500, headers=[(b"content-length", b"9" * 30)])[0] in (413, 422)
    assert call("POST", "/erasures", b" " * 999 + b"{")[0] == 422


def test_who_asks_too_often_is_429_and_others_are_not(deployment):
    call = limited(deployment, Limits(rate=0.5, burst=3))
    assert [call("GET", "/erasures", key=READER)[0] for _ in range(4)] == [200, 200, 200, 429]
    assert int(call("GET", "/erasures", key=READER)[2]["retry-after"]) in (1, 2)
    assert call("GET", "/erasures")[0] == 200
    assert [call("GET", "/", key=None)[0] for _ in range(5)] == [200] * 5


def test_a_queue_that_is_full_is_503_with_the_time_to_come_again(call, deployment):
    deployment.broken = QueueFullError(10, 1, 10, 33.0)
    status, body, headers = call("POST", "/erasures", {"user_id": 1009})
    assert (status, headers["retry-after"]) == (503, "33")
    assert "unlearning.max_pending" in body["error"]


def test_a_deployment_that_does_not_answer_is_503(call, deployment):
    deployment.broken = PoolError("deployment 'api'", "its process died: KeyError: 1003")
    for path in ("/users/1003/recommendations", "/erasures", "/erasures/a", "/status"):
        status, body, headers = call("GET", path)
        assert (status, headers["retry-after"]) == (503, "5")
        assert "1003" not in body["error"]
    assert call("GET", "/healthz", key=None)[:2] == (503, {"status": "unavailable"})


def test_health_needs_no_key_and_asks_once_a_second_at_most(call, deployment):
    assert call("GET", "/healthz", key=None)[:2] == (200, {"status": "ok"})
    deployment.broken = PoolError("deployment 'api'", "is gone")
    assert call("GET", "/healthz", key=None)[0] == 200


def test_what_should_not_have_failed_is_500_and_named_nowhere(call, deployment, caplog, capfd):
    deployment.broken = KeyError("user anna")
    with caplog.at_level(logging.DEBUG):
        status, body, headers = call("GET", "/users/anna/recommendations")
    assert (status, headers["x-content-type-options"]) == (500, "nosniff")
    assert "anna" not in json.dumps(body)
    said = caplog.text + "".join(capfd.readouterr())
    assert "request failed" in said
    assert "anna" not in said


def test_nothing_of_a_request_is_logged(call, caplog):
    with caplog.at_level(logging.DEBUG):
        call("GET", "/users/anna/recommendations")
        call("POST", "/erasures", {"user_id": "anna"}, headers=[(b"idempotency-key", b"anna's")])
    assert "anna" not in caplog.text


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/page.js", "/page.css", "/icon.svg", "/openapi.json", "/healthz", "/status", "/no"]
)
def test_every_answer_says_what_a_browser_may_do_with_it(call, path):
    headers = call("GET", path)[2]
    assert headers["content-security-policy"].startswith("default-src 'self';")
    assert "form-action 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_the_pages_load_nothing_from_elsewhere_and_have_nothing_inline(call, path):
    status, body, headers = call("GET", path, key=None)
    page = body.decode()
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "//" not in page.replace("<!doctype html>", "")
    assert "<script>" not in page
    assert " style=" not in page
    assert " on" not in {word[:3] for word in page.split("<") if "=" in word}


def test_the_reference_names_every_operation(call):
    page = call("GET", "/docs", key=None)[1].decode()
    described = call("GET", "/openapi.json", key=None)[1]
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            assert f"{method.upper()} {path}" in page
            assert ("security" in operation) == (path != "/healthz")
    assert "Idempotency-Key" in page


def test_status_says_what_is_due_and_not_where_it_is_kept(call, trained):
    body = call("GET", "/status", key=READER)[1]
    assert {"plan", "due_at", "overdue", "oldest_pending_seconds", "set_aside", "shards", "generation", "requests"} <= set(body)
    assert "digest" not in body
    assert trained.storage_path not in json.dumps(body)


# ---- requests that the description allows, and others -----------------------------------------------------------------------

IDS = st.one_of(st.integers(), st.integers(1000, 1060), st.text(), st.text(string.digits, min_size=1))
LIKE_BODIES = st.one_of(
    st.fixed_dictionaries({"user_id": IDS}),
    st.fixed_dictionaries({"item_id": IDS}),
    st.fixed_dictionaries({"pairs": st.lists(st.lists(IDS, min_size=2, max_size=2), max_size=5)}),
    st.dictionaries(st.sampled_from(["user_id", "item_id", "pairs", "other"]), st.none() | st.booleans() | st.floats() | IDS),
    st.recursive(st.one_of(st.none(), st.booleans(), IDS), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)),
    st.binary(),
)  # fmt: skip
ALLOWED = {200, 202, 400, 404, 405, 409, 422}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=LIKE_BODIES, key=st.none() | st.text(string.printable, max_size=210))
def test_no_body_makes_the_api_fail(call, body, key):
    headers = [] if key is None else [(b"idempotency-key", key.encode("latin-1"))]
    try:
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    except UnicodeEncodeError:
        return
    assert call("POST", "/erasures", sent, headers=headers)[0] in ALLOWED


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"]),
    path=st.one_of(
        st.text().map("/{}".format),
        st.text().map("/users/{}/recommendations".format),
        st.text().map("/erasures/{}".format),
        st.text().map("/erasures/{}/receipt".format),
        st.just("/erasures"),
    ),
    query=st.text(string.printable),
)
def test_no_path_makes_the_api_fail(call, method, path, query):
    status = call(method, f"{path.replace('?', '')}?{quote(query, safe='=&+%')}")[0]
    assert status in ALLOWED
