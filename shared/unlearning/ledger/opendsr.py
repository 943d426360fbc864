"""Erasure requests in the form of OpenDSR 2.0, and answers in that form.

Only the messages: the HTTP server around them, its certificates and its signature header are the operator's.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from unlearning.errors import DataError, UsageError
from unlearning.ledger import tables
from unlearning.ledger.events import time_of
from unlearning.ledger.filing import Holds, file_requests
from unlearning.ledger.filing import cancel as cancel_request
from unlearning.ledger.requests import request_from
from unlearning.ledger.store import Ledger

API_VERSION = "2.0"
MOST_BYTES = 1 << 20
IDENTITY_TYPES = ("controller_customer_id",)

_UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_STATUS = {
    "pending": "pending",
    "held": "pending",
    "claimed": "in_progress",
    "promoting": "in_progress",
    "served": "in_progress",
    "closed": "completed",
    "cancelled": "cancelled",
    "denied": "cancelled",
}
Answer = tuple[int, dict[str, Any]]


def accept(
    ledger: Ledger,
    body: bytes,
    *,
    controller: str,
    model: str,
    actor: str,
    dataset: str = "*",
    identity_types: tuple[str, ...] = IDENTITY_TYPES,
    hold: Holds = lambda request: None,
) -> Answer:
    """HTTP status and answer to a POST of `/requests`: 201 with the receipt, or 4xx without any identity.

    Args:
        ledger: Where the request is filed, about subjects.
        body: As it came.
        controller: Who sent it, from the authentication, never from the body.
        model: The registered model that is to forget.
        actor: The process that takes it in.
        dataset: Name of the data set, or "*".
        identity_types: Those whose values are the data set's subject ids.
        hold: As for `file_requests`.
    """
    try:
        asked = _parsed(body, identity_types)
        request = request_from(
            {**asked, "controller": controller, "model": model, "dataset": dataset, "kind": "subject"}
        )
    except DataError as error:
        return _error(400, str(error))
    (filed,) = file_requests(ledger, [request], actor=actor, hold=hold)
    if filed.status == "conflict":
        return _error(409, "subject_request_id was used before for another request, which is held now")
    if filed.status == "refused":
        return _error(400, filed.reason)
    row = _row(ledger, filed.ref)
    return 201, {
        "controller_id": controller,
        "expected_completion_time": _seconds(row["aim_at"]),
        "received_time": _seconds(row["received_at"]),
        "encoded_request": base64.b64encode(body).decode(),
        "subject_request_id": request.key,
    }


def answer_status(ledger: Ledger, subject_request_id: str, *, controller: str) -> Answer:
    """HTTP status and answer to a GET of `/requests/<id>`; "completed" only once everything is closed."""
    row = _row(ledger, ledger.names.request(controller, subject_request_id))
    if row is None:
        return _error(404, "there is no such request")
    return 200, {
        "controller_id": controller,
        "expected_completion_time": _seconds(row["aim_at"]),
        "subject_request_id": subject_request_id,
        "request_status": _STATUS[row["state"]],
        "api_version": API_VERSION,
        # OpenDSR has no word for these, and "completed" says too little about them.
        "extensions": {"kfp-unlearning": {"state": row["state"], "outcome": row["outcome"], "due": row["due_at"]}},
    }


def cancel(ledger: Ledger, subject_request_id: str, *, controller: str, actor: str) -> Answer:
    """HTTP status and answer to a DELETE of `/requests/<id>`: 202 before the point of no return, else 400."""
    ref = ledger.names.request(controller, subject_request_id)
    if _row(ledger, ref) is None:
        return _error(404, "there is no such request")
    try:
        cancel_request(ledger, ref, "the controller took it back", actor=actor)
    except UsageError as error:
        return _error(400, str(error))
    row = _row(ledger, ref)
    return 202, {
        "controller_id": controller,
        "received_time": _seconds(row["changed_at"]),
        "subject_request_id": subject_request_id,
        "api_version": API_VERSION,
    }


def _parsed(body: bytes, identity_types: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a deletion request.

    Raises:
        DataError: Without any of what the body held.
    """
    if len(body) > MOST_BYTES:
        raise DataError(f"the request has more than {MOST_BYTES} bytes")
    try:
        found = json.loads(body.decode())
    except (ValueError, RecursionError):
        raise DataError("the request is no JSON") from None
    if not isinstance(found, Mapping):
        raise DataError("the request is no JSON object")
    if found.get("subject_request_type") != "erasure":
        raise DataError('subject_request_type: only "erasure" is served here')
    if found.get("regulation") not in ("gdpr", "ccpa"):
        raise DataError('regulation: wanted "gdpr" or "ccpa"')
    key = found.get("subject_request_id")
    if not isinstance(key, str) or not _UUID4.fullmatch(key):
        raise DataError("subject_request_id: wanted a UUID of version 4 in lower case")
    identities = found.get("subject_identities")
    if not isinstance(identities, list) or not identities:
        raise DataError("subject_identities: wanted a list of one or more")
    for identity in identities:
        if not isinstance(identity, Mapping) or identity.get("identity_type") not in identity_types:
            raise DataError(f"subject_identities: only {', '.join(identity_types)} are known here")
        if identity.get("identity_format") != "raw":
            raise DataError('subject_identities: only the format "raw" can be matched with a data set')
    return {
        "key": key,
        "ids": [identity.get("identity_value") for identity in identities],
        "regulation": found["regulation"],
        "submitted_at": found.get("submitted_time"),
    }


def _row(ledger: Ledger, ref: str) -> Any:
    with ledger.reading() as connection:
        found = connection.execute(sa.select(tables.requests).where(tables.requests.c.ref == ref)).mappings().first()
    return found


def _seconds(text: str) -> str:
    return f"{time_of(text):%Y-%m-%dT%H:%M:%SZ}"


def _error(code: int, message: str) -> Answer:
    return code, {"error": {"code": code, "message": message}}
