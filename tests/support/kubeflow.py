"""A stand-in for the API server of Kubeflow Pipelines on loopback, for its real client.

It speaks the v2beta1 REST paths that the client calls, keeps what it is given, pages its listings, filters by display
name as the server does, and writes down every request. Of the server's rules it has those that our commands rely on: a
version's name is unique in its pipeline, a token is checked, a recurring run needs a trigger and 1 to 10 at once.
"""

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

Json = dict[str, Any]
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass
class Kubeflow:
    """The server's state.

    Attributes:
        token: Wanted of every request but the health check; "" for none.
        multi_user: Whether listings and runs want a namespace.
        page: Most entries in one answer.
        states: What a run goes through, one more at each look.
        refuse: Status to answer every request with, after the health check.
    """

    token: str = ""
    multi_user: bool = False
    page: int = 3
    states: tuple[str, ...] = ("PENDING", "RUNNING", "SUCCEEDED")
    refuse: int = 0
    failures: list[int] = field(default_factory=list)
    health: tuple[int, str, str] = (200, "application/json", "")
    requests: list[Request] = field(default_factory=list)
    pipelines: list[Json] = field(default_factory=list)
    versions: list[Json] = field(default_factory=list)
    experiments: list[Json] = field(default_factory=list)
    runs: list[Json] = field(default_factory=list)
    recurring: list[Json] = field(default_factory=list)
    looks: dict[str, int] = field(default_factory=dict)
    address: str = ""
    made: int = 0

    def id(self, kind: str) -> str:
        self.made += 1
        return f"{kind}-{self.made}"

    def sent(self, method: str, path: str) -> list[Request]:
        """The requests of a method whose path begins so."""
        return [one for one in self.requests if one.method == method and one.path.startswith(path)]


class RefusalError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def answer(server: Kubeflow, asked: Request) -> Json:
    parts = asked.path.removeprefix("/apis/v2beta1/").split("/")
    kind = parts[0]
    if kind == "pipelines":
        return _pipelines(server, asked, parts[1:])
    if kind == "experiments":
        return _experiments(server, asked)
    if kind == "runs":
        return _runs(server, asked, parts[1:])
    if kind == "recurringruns":
        return _recurring(server, asked, parts[1:])
    raise RefusalError(404, "Not Found")


def _listing(server: Kubeflow, asked: Request, key: str, entries: list[Json]) -> Json:
    if text := asked.query.get("filter"):
        for rule in json.loads(text)["predicates"]:
            assert rule["operation"] in ("EQUALS", 1), rule
            entries = [one for one in entries if one[rule["key"]] == rule["stringValue"]]
    start = int(asked.query.get("page_token") or 0)
    size = min(server.page, int(asked.query.get("page_size") or server.page))
    shown = entries[start : start + size]
    after = start + size
    return {key: shown, "total_size": len(entries)} | ({"next_page_token": str(after)} if after < len(entries) else {})


def _pipelines(server: Kubeflow, asked: Request, rest: list[str]) -> Json:
    if asked.method == "POST" and not rest:
        if any(one["display_name"] == asked.body["display_name"] for one in server.pipelines):
            raise RefusalError(409, "Already exist error")
        server.pipelines.append({"pipeline_id": server.id("pipeline"), **asked.body})
        return server.pipelines[-1]
    if asked.method == "GET" and not rest:
        if server.multi_user and asked.query.get("namespace") not in (None, "team"):
            raise RefusalError(403, "not your namespace")
        wanted = asked.query.get("namespace", "")
        ours = [one for one in server.pipelines if one.get("namespace", "") == wanted]
        return _listing(server, asked, "pipelines", ours)
    if asked.method == "POST" and rest == ["upload_version"]:
        name, pipeline = asked.query["name"], asked.query["pipelineid"]
        if pipeline not in [one["pipeline_id"] for one in server.pipelines]:
            raise RefusalError(404, f"Pipeline {pipeline} not found")
        if any(one["name"] == name and one["pipeline_id"] == pipeline for one in server.versions):
            raise RefusalError(409, f"Failed to create a new pipeline version: {name} already exists")
        documents = list(yaml.load_all(asked.body["uploadfile"], Loader=LOADER))
        if documents[0]["schemaVersion"] != "2.1.0":
            raise RefusalError(400, "unsupported schema")
        server.versions.append(
            {
                "pipeline_id": pipeline,
                "pipeline_version_id": server.id("version"),
                "display_name": name,
                "name": name,
                "description": asked.query.get("description", ""),
                "pipeline_spec": documents[0],
            }
        )
        return server.versions[-1]
    if asked.method == "GET" and len(rest) == 2 and rest[1] == "versions":
        ours = [one for one in server.versions if one["pipeline_id"] == rest[0]]
        return _listing(server, asked, "pipeline_versions", ours)
    raise RefusalError(404, f"Not Found: {asked.method} {asked.path}")


def _experiments(server: Kubeflow, asked: Request) -> Json:
    if asked.method == "POST":
        if server.multi_user and not asked.body.get("namespace"):
            raise RefusalError(400, "Invalid input error: Experiment should specify namespace")
        server.experiments.append({"experiment_id": server.id("experiment"), **asked.body})
        return server.experiments[-1]
    if server.multi_user and not asked.query.get("namespace"):
        raise RefusalError(400, "Invalid input error: a namespace is needed")
    return _listing(server, asked, "experiments", server.experiments)


def _known_version(server: Kubeflow, body: Json) -> None:
    wanted = body["pipeline_version_reference"]
    pairs = [(one["pipeline_id"], one["pipeline_version_id"]) for one in server.versions]
    if (wanted["pipeline_id"], wanted["pipeline_version_id"]) not in pairs:
        raise RefusalError(404, "the pipeline version was not found")
    if body["experiment_id"] not in [one["experiment_id"] for one in server.experiments]:
        raise RefusalError(404, "the experiment was not found")


def _runs(server: Kubeflow, asked: Request, rest: list[str]) -> Json:
    if asked.method == "POST":
        _known_version(server, asked.body)
        server.runs.append(
            {"run_id": server.id("run"), "state": None, "created_at": "2026-11-21T12:00:00Z", **asked.body}
        )
        return server.runs[-1]
    if not rest:
        ours = [one for one in server.runs if one["experiment_id"] == asked.query.get("experiment_id")]
        if asked.query.get("sort_by") == "created_at desc":
            ours.reverse()
        return _listing(server, asked, "runs", ours)
    for run in server.runs:
        if run["run_id"] == rest[0]:
            look = min(server.looks.get(rest[0], 0), len(server.states) - 1)
            server.looks[rest[0]] = look + 1
            state = server.states[look]
            tasks = [{"display_name": name, "state": state} for name in ("root", "load-model-driver", "load-model")]
            error = {"error": {"code": 13, "message": "task load-model\nfailed"}} if state == "FAILED" else {}
            return {**run, "state": state, "run_details": {"task_details": tasks}, **error}
    raise RefusalError(404, f"Run {rest[0]} not found")


def _recurring(server: Kubeflow, asked: Request, rest: list[str]) -> Json:
    if asked.method == "POST" and not rest:
        _known_version(server, asked.body)
        trigger = asked.body["trigger"]
        cron = trigger.get("cron_schedule", {}).get("cron", "")
        if cron and len(cron.split()) != 6:
            raise RefusalError(400, f"Schedule cron is not a valid schedule: {cron}")
        if not 1 <= int(asked.body["max_concurrency"]) <= 10:
            raise RefusalError(400, "The max concurrency must be between 1 and 10")
        given = {
            **asked.body,
            "status": f"{asked.body['mode']}D",
            "max_concurrency": str(asked.body["max_concurrency"]),
        }
        server.recurring.append({"recurring_run_id": server.id("recurring"), **given})
        return server.recurring[-1]
    if not rest:
        ours = [one for one in server.recurring if one["experiment_id"] == asked.query.get("experiment_id")]
        return _listing(server, asked, "recurringRuns", ours)
    id_, _, verb = rest[0].partition(":")
    for one in server.recurring:
        if one["recurring_run_id"] == id_:
            if asked.method == "DELETE":
                server.recurring.remove(one)
            elif verb in ("enable", "disable"):
                one |= {"mode": verb.upper(), "status": f"{verb.upper()}D"}
            return {}
    raise RefusalError(404, f"recurring run {id_} not found")


def _handler(server: Kubeflow) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # one write for each answer

        def log_message(self, *_: Any) -> None:
            pass

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Request(self.command, parts.path, query, headers, self._body(content))
            server.requests.append(asked)
            if parts.path == "/apis/v2beta1/healthz":
                status, kind, text = server.health
                return self._send(status, text or json.dumps({"multi_user": server.multi_user}), kind)
            if parts.path == "/apis/v1beta1/healthz":
                return self._send(200, "{}")
            if server.token and self.headers.get("Authorization") != f"Bearer {server.token}":
                return self._send(401, '{"error": "Unauthenticated"}')
            if status := (server.failures.pop(0) if server.failures else server.refuse):
                return self._send(status, json.dumps({"error": "no\nreason", "code": 7, "message": "no\nreason"}))
            try:
                return self._send(200, json.dumps(answer(server, asked)))
            except RefusalError as refusal:
                return self._send(refusal.status, json.dumps({"code": 3, "message": refusal.message}))

        do_GET = do_POST = do_DELETE = _serve  # noqa: N815

        def _body(self, content: bytes) -> Any:
            kind = self.headers.get("Content-Type", "")
            if kind.startswith("multipart/form-data"):
                mail = BytesParser().parsebytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + content)
                return {
                    part.get_param("name", header="Content-Disposition"): part.get_payload(decode=True)
                    for part in mail.get_payload()
                }
            return json.loads(content) if content and "json" in kind else content

        def _send(self, status: int, text: str, kind: str = "application/json") -> None:
            content = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            if 300 <= status < 400:
                self.send_header("Location", "/dex/auth")
            self.end_headers()
            self.wfile.write(content)

    return Handler


@contextmanager
def serving(server: Kubeflow, tls: ssl.SSLContext | None = None) -> Iterator[Kubeflow]:
    """The server, answering at its `address` until the block ends."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    if tls is not None:
        http.socket = tls.wrap_socket(http.socket, server_side=True)
        http.handle_error = lambda *_: None  # type: ignore[method-assign]
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    server.address = f"{'https' if tls else 'http'}://127.0.0.1:{http.server_port}"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join(10)
