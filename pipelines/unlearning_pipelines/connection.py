"""Where Kubeflow Pipelines is and who asks."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from unlearning.errors import UsageError


class Connection(BaseSettings):
    """Where the Kubeflow Pipelines API is and who asks; tokens come from the environment or a file, never an option."""

    model_config = SettingsConfigDict(env_prefix="UNLEARN_KFP_", extra="ignore", populate_by_name=True)

    host: str = Field(
        default="",
        validation_alias=AliasChoices("UNLEARN_KFP_HOST", "KF_PIPELINES_ENDPOINT"),
        description="Address of Kubeflow Pipelines (UNLEARN_KFP_HOST)",
    )
    namespace: str = Field(default="", description="Of the user, where the server has users (UNLEARN_KFP_NAMESPACE)")
    token: SecretStr = Field(default=SecretStr(""), description="Sent as bearer token (UNLEARN_KFP_TOKEN)")
    token_file: Path | None = Field(
        default=None, description="File of the token, read anew for each call (UNLEARN_KFP_TOKEN_FILE)"
    )
    ca_file: Path | None = Field(default=None, description="Certificates to trust (UNLEARN_KFP_CA_FILE)")
    account: str = Field(default="", description="Kubernetes service account of the pods (UNLEARN_KFP_ACCOUNT)")
    pause: float = Field(default=5, ge=0, le=600, description="Seconds between looks at a run (UNLEARN_KFP_PAUSE)")
    experiment: str = Field(default="unlearning", description="Of runs and schedules (UNLEARN_KFP_EXPERIMENT)")

    def bearer(self) -> str:
        """The token, or "" where none is set.

        Raises:
            UsageError: When its file cannot be read, is empty, or holds more than one word.
        """
        if self.token_file is None:
            token = self.token.get_secret_value().strip()
        else:
            try:
                token = self.token_file.read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(
                    f"the token cannot be read from {self.token_file}: mend UNLEARN_KFP_TOKEN_FILE"
                ) from error
            if not token:
                raise UsageError(f"there is no token in {self.token_file}: mend UNLEARN_KFP_TOKEN_FILE")
        if not re.fullmatch(r"[!-~]*", token):
            raise UsageError("the token holds spaces or signs that no header may: mend UNLEARN_KFP_TOKEN")
        return token


def connection(host: str = "", namespace: str = "") -> Connection:
    """The connection in force: what is given goes before the environment.

    Raises:
        UsageError: When there is no address, or it is none.
    """
    try:
        found = Connection()
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)
        names = ", ".join(f"UNLEARN_KFP_{str(one['loc'][0]).upper()}: {one['msg']}" for one in wrong)
        raise UsageError(f"the settings of Kubeflow Pipelines: {names}") from None
    found = found.model_copy(update={k: v for k, v in {"host": host, "namespace": namespace}.items() if v})
    if not found.host:
        raise UsageError("no Kubeflow Pipelines address: set UNLEARN_KFP_HOST or give --host https://kfp.example.org")
    parts = urlsplit(found.host)
    if parts.username or parts.password:
        raise UsageError("the address of Kubeflow Pipelines holds a user name: give it bare, and set UNLEARN_KFP_TOKEN")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise UsageError(f'wanted an address such as https://kfp.example.org, got "{found.host}"')
    return found.model_copy(update={"host": found.host.rstrip("/")})
