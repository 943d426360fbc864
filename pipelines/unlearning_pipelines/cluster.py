"""A Kubeflow Pipelines server, asked through its own client; what it refuses becomes one line that says what to do."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from unlearning.errors import ClusterError, UsageError
from unlearning_pipelines.connection import Connection

T = TypeVar("T")

API = "/apis/v2beta1"
LOOK_SECONDS = (4.0, 8.0)
"""To connect and to answer, for the first look at a server."""
CALL_SECONDS = (5, 60)
"""Likewise, for every call of the client, which has no limit of its own."""
_PAGE = 100


@dataclass(frozen=True, slots=True)
class Uploaded:
    """One version of a pipeline on the server.

    Attributes:
        pipeline: The pipeline's name there.
        pipeline_id: Of the pipeline.
        version: The version's name, which follows from its content.
        version_id: Of the version.
        new: Whether this call made it.
    """

    pipeline: str
    pipeline_id: str
    version: str
    version_id: str
    new: bool


class Cluster:
    """Kubeflow Pipelines at one address, for one namespace and experiment.

    Args:
        where: From `connection`. The server is looked at once, for at most about 12 seconds.

    Raises:
        ClusterError: When nothing answers there, it has no v2beta1 API, it refuses the token, or it wants a namespace.
    """

    def __init__(self, where: Connection) -> None:
        self.where = where
        users = _looked_at(where)
        if users and not where.namespace:
            raise ClusterError(f"{where.host} has users: set UNLEARN_KFP_NAMESPACE or give --namespace")
        self.namespace = where.namespace if users else ""
        self.client = self.ask("connect", partial(_client, where))

    def ask(self, wanted: str, call: Callable[[], T]) -> T:
        """The answer to one call of the client, which prints nothing.

        Args:
            wanted: What the call is for, as in "list the runs".
            call: Made once.

        Raises:
            ClusterError: What went wrong and what to do about it, in one line without secrets.
        """
        with _explained(self.where, wanted), _quiet():
            return call()

    def pages(self, wanted: str, entries: str, call: Callable[..., Any]) -> Iterator[Any]:
        """Everything that a listing of the client gives, page by page.

        Args:
            wanted: What the call is for.
            entries: The attribute of an answer that holds them.
            call: Takes `page_token` and `page_size`.
        """
        token = ""
        while True:
            answer = self.ask(wanted, partial(call, page_token=token, page_size=_PAGE))
            yield from getattr(answer, entries) or []
            token = answer.next_page_token or ""
            if not token:
                return

    def upload(self, package: Path) -> Uploaded:
        """The version with this content: found, or made now. The pipeline is made when it is missing.

        Args:
            package: YAML that `unlearn compile` wrote.
        """
        from unlearning_pipelines.content import content_of

        content = content_of(package)
        pipeline_id = self._pipeline(content.pipeline, content.description)
        found = self._version(pipeline_id, content.version)
        if found is not None:
            return Uploaded(content.pipeline, pipeline_id, content.version, found, new=False)
        try:
            made = self.ask(
                f"upload {content.pipeline}",
                lambda: self.client.upload_pipeline_version(
                    str(package), content.version, pipeline_id=pipeline_id, description=content.note
                ),
            )
        except _ExistsError:
            found = self._version(pipeline_id, content.version)
            if found is None:
                raise
            return Uploaded(content.pipeline, pipeline_id, content.version, found, new=False)
        return Uploaded(content.pipeline, pipeline_id, content.version, made.pipeline_version_id, new=True)

    def experiment(self, *, make: bool) -> str:
        """The id of the experiment; "" when there is none and none is to be made."""
        name = self.where.experiment
        found = self.pages(
            "look for the experiment",
            "experiments",
            partial(self.client.list_experiments, namespace=self.namespace, filter=named(name)),
        )
        for experiment in found:
            return str(experiment.experiment_id)
        if not make:
            return ""
        about = "Deletion requests served by unlearning, and comparisons of methods"
        made = self.ask(
            "make the experiment",
            lambda: self.client.create_experiment(name, description=about, namespace=self.namespace or None),
        )
        return str(made.experiment_id)

    def link(self, kind: str, id_: str) -> str:
        """The address of a page of the UI: of a run ("runs") or a schedule ("recurringrun")."""
        return f"{self.where.host}/#/{kind}/details/{id_}"

    def _pipeline(self, name: str, description: str) -> str:
        lookup = partial(self.client.list_pipelines, namespace=self.namespace or None, filter=named(name))
        found = list(self.pages("look for the pipeline", "pipelines", lookup))
        if not found:
            made = {"display_name": name, "name": name, "description": description}
            made |= {"namespace": self.namespace} if self.namespace else {}
            try:
                # An empty one, so that its first version too is named by content, not after the pipeline.
                new = self.ask(
                    f"make the pipeline {name}",
                    lambda: self.client.pipelines.pipeline_service_create_pipeline(made),
                )
            except _ExistsError:
                found = list(self.pages("look for the pipeline", "pipelines", lookup))
                if not found:
                    raise
            else:
                return str(new.pipeline_id)
        return str(found[0].pipeline_id)

    def _version(self, pipeline_id: str, name: str) -> str | None:
        lookup = partial(self.client.list_pipeline_versions, pipeline_id, filter=named(name))
        found = list(self.pages("list the versions", "pipeline_versions", lookup))
        return str(found[0].pipeline_version_id) if found else None


def named(name: str) -> str:
    """The filter of KFP's listings that lets one display name pass."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


class _ExistsError(ClusterError):
    """Somebody made the same at the same time."""


def _client(where: Connection) -> Any:
    """KFP's own client, with a limit to the time of every call; the token is read anew for each."""
    import kfp
    import kfp_server_api
    from kfp.client.token_credentials_base import TokenCredentialsBase

    class Token(TokenCredentialsBase):  # type: ignore[misc]
        def refresh_api_key_hook(self, config: Any) -> None:
            config.api_key["authorization"] = where.bearer()

    class Client(kfp.Client):  # type: ignore[misc]
        def get_kfp_healthz(self, sleep_duration: int = 5) -> Any:
            """Not asked again: it would come without the token, and the namespace is ours to say."""
            return kfp_server_api.V2beta1GetHealthzResponse(multi_user=False)

    try:
        client = Client(
            host=where.host,
            namespace=where.namespace or "kubeflow",
            credentials=Token() if where.bearer() else None,
            ssl_ca_cert=str(where.ca_file) if where.ca_file else None,
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        file = Client._LOCAL_KFP_CONTEXT
        raise UsageError(f"the settings of KFP's own client are damaged: mend or remove {file}") from error
    rest = client._run_api.api_client.rest_client
    request = rest.request

    def limited(*arguments: Any, **named_ones: Any) -> Any:
        return request(*arguments, **{**named_ones, "_request_timeout": CALL_SECONDS})

    rest.request = limited
    return client


def _looked_at(where: Connection) -> bool:
    """Whether the server has users; errors say what else it is, if it is no Kubeflow Pipelines of ours."""
    import certifi
    import urllib3

    authorization = {"Authorization": f"Bearer {token}"} if (token := where.bearer()) else {}
    pool = urllib3.PoolManager(
        headers={"Accept": "application/json", **authorization},
        timeout=urllib3.Timeout(*LOOK_SECONDS),
        retries=urllib3.Retry(0, redirect=False),
        ca_certs=str(where.ca_file) if where.ca_file else certifi.where(),  # as the client has it
    )

    def get(path: str) -> urllib3.BaseHTTPResponse:
        return pool.request("GET", where.host + path, redirect=False)

    with _explained(where, "connect"):
        answer = get(f"{API}/healthz")
        if answer.status == 404:
            old = get("/apis/v1beta1/healthz").status == 200
            reason = "it is older than Kubeflow Pipelines 2.0: upgrade it" if old else "mend UNLEARN_KFP_HOST"
            raise ClusterError(f"{where.host} has no v2beta1 API of Kubeflow Pipelines: {reason}")
        if answer.status in (401, 403) or 300 <= answer.status < 400:
            raise ClusterError(_refused(where, "connect", answer.status))
        if answer.status != 200:
            raise ClusterError(
                f"cannot connect to {where.host}: it answered {answer.status}: try again, or see its log"
            )
        try:
            health = json.loads(answer.data)
        except ValueError:
            health = None
        if not isinstance(health, dict):
            raise ClusterError(
                f"{where.host} answered with a page, not with Kubeflow Pipelines' API: it may be a login page; set "
                "UNLEARN_KFP_TOKEN or UNLEARN_KFP_TOKEN_FILE, or mend UNLEARN_KFP_HOST"
            )
    return health.get("multi_user") is True


def _refused(where: Connection, wanted: str, status: int) -> str:
    if where.token_file is not None:
        cause = f"the token of {where.token_file} may have expired, or"
    elif where.token.get_secret_value():
        cause = "the token of UNLEARN_KFP_TOKEN may have expired, or"
    else:
        cause = "no token is set (UNLEARN_KFP_TOKEN or UNLEARN_KFP_TOKEN_FILE), or"
    namespace = f' in namespace "{where.namespace}"' if where.namespace else ""
    return f"cannot {wanted}: {where.host} refused it ({status}): {cause} its owner lacks the permission{namespace}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the links that the client prints and what it warns its programmers of."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _explained(where: Connection, wanted: str) -> Iterator[None]:
    """Turns what the client raises into one line."""
    import urllib3
    from kfp_server_api.exceptions import ApiException

    try:
        yield
    except ApiException as error:
        raise _told(where, wanted, error) from error
    except (urllib3.exceptions.HTTPError, AttributeError, TimeoutError) as error:
        # The generated client stumbles over certificates that it does not trust with an AttributeError.
        cause = _ssl(error)
        if cause is None and isinstance(error, AttributeError):
            raise
        reason = "its certificate is not trusted: set UNLEARN_KFP_CA_FILE"
        if cause is None:
            kind = type(_root(error)).__name__
            reason = f"no answer ({kind}): check that it runs and that UNLEARN_KFP_HOST is its address"
        raise ClusterError(f"cannot {wanted}: {where.host}: {reason}") from error


def _told(where: Connection, wanted: str, error: Any) -> ClusterError:
    status, message = int(error.status or 0), _message(error.body)
    if status in (401, 403):
        return ClusterError(_refused(where, wanted, status))
    if status == 409:
        return _ExistsError(f"cannot {wanted}: {where.host} says that it exists, and does not list it: {message}")
    if status == 404:
        return ClusterError(f"cannot {wanted}: there is no such thing at {where.host}: {message}")
    if 400 <= status < 500:
        return ClusterError(f"cannot {wanted}: {where.host} does not accept it ({status}): {message}")
    return ClusterError(f"cannot {wanted}: {where.host} answered {status}: {message}: try again, or see its log")


def _message(body: Any) -> str:
    """What the server said, in one line; it says it in JSON, more than once."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body or "")
    with contextlib.suppress(ValueError, TypeError, KeyError):
        said = json.loads(text)
        text = str(said.get("message") or said.get("error") or said)
    return (" ".join(text.split()) or "it did not say why")[:300].rstrip(":. ")


def _root(error: BaseException) -> BaseException:
    while isinstance(reason := getattr(error, "reason", None), BaseException):
        error = reason
    return error


def _ssl(error: BaseException) -> BaseException | None:
    """The error of the certificate behind this one, if that is what it is."""
    import ssl

    import urllib3

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(_root(seen), ssl.SSLError | urllib3.exceptions.SSLError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None
