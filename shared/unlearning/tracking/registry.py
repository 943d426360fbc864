"""Registered model versions and aliases: which model is which, and which one serves."""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearning.errors import ModelError, TrackingError
from unlearning.storage import download_folder, open_store, split
from unlearning.tracking.runs import Tracker

_DIGEST = "unlearning.digest"
_WEIGHTS = "unlearning.weights_sha256"
_BUNDLE = "unlearning.bundle_uri"
_CANDIDATE = "candidate"
"""The alias that every promotion sets and nobody serves from: it goes with its version."""
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


@dataclass(frozen=True)
class RegisteredVersion:
    """One version of a registered model.

    Attributes:
        name: The registered model.
        version: Its number, from 1.
        bundle_uri: The bundle in the object store; "" when the files are MLflow artifacts.
        source: What MLflow calls the version's source.
        digest: Names the bundle's content; "" for a version that others registered.
        tags: All of them.
        aliases: Those that point here, sorted.
    """

    name: str
    version: int
    bundle_uri: str
    source: str
    digest: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...]


class Registry:
    """The model registry of the tracker's MLflow.

    Args:
        tracker: Where.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def register(
        self,
        name: str,
        *,
        bundle_uri: str,
        digest: str,
        weights_sha256: str,
        run_id: str,
        description: str = "",
        tags: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> int:
        """The version number of this bundle, which is registered once however often this is called.

        Args:
            name: The registered model; made when it is not there.
            bundle_uri: The bundle's address in the object store.
            digest: Names the bundle's content.
            weights_sha256: Of its weights file.
            run_id: The run that made it.
            description: For the registry's page.
            tags: Added to the version.
            folder: The bundle's local files; needed when a server gets a bundle that is not in S3, for it accepts no
                local address: the files then become artifacts of the run.

        Raises:
            TrackingError: When MLflow refuses, or a server needs the folder.
        """
        check_name(name)
        in_store = bundle_uri.startswith("s3://") or not self._tracker.is_server
        labels = {
            **(tags or {}),
            _DIGEST: digest,
            _WEIGHTS: weights_sha256,
            **({_BUNDLE: bundle_uri} if in_store else {}),
        }
        if there := self._with_digest(name, digest):
            return self._completed(there[0], labels)
        self._make_model(name)
        source = bundle_uri if in_store else self._logged(run_id, folder)
        with self._tracker.asking(f'register a version of "{name}"'):
            made = self._tracker.client.create_model_version(
                name, source, run_id or None, tags=labels, description=description or None, await_creation_for=0
            )
        first = self._with_digest(name, digest)[0]
        if first.version != int(made.version):
            with self._tracker.asking("withdraw a version that another process registered first"):
                self._tracker.client.delete_model_version(name, made.version)
            return self._completed(first, labels)
        return int(made.version)

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Points the alias at the version, and reads it back.

        Raises:
            ModelError: When there is no such model or version.
            TrackingError: When the alias then points elsewhere, since aliases are last writer wins.
        """
        self.version(name, str(version))
        with self._tracker.asking(f'set the alias "{alias}"'):
            self._tracker.client.set_registered_model_alias(name, alias, str(version))
        found = self.version(name, alias).version
        if found != version:
            raise TrackingError(
                f'the alias "{alias}" of "{name}" was set to version {version} but points at {found}: another writer '
                "moved it; find out who, and set it again"
            )

    def version(self, name: str, alias_or_version: str) -> RegisteredVersion:
        """One version by its alias or number.

        Raises:
            ModelError: For an unknown model, alias or number, naming those there are.
        """
        from mlflow.exceptions import MlflowException

        client = self._tracker.client
        with self._tracker.asking(f'read the registered model "{name}"'):
            try:
                if re.fullmatch(r"[0-9]+", alias_or_version):
                    found = client.get_model_version(name, alias_or_version)
                else:
                    found = client.get_model_version_by_alias(name, alias_or_version)
                return _plain(found)
            except MlflowException as error:
                if error.error_code not in _ABSENT:
                    raise
                raise ModelError(self._there_is(name, alias_or_version)) from error

    def resolve(self, uri: str) -> RegisteredVersion:
        """The version that a model address names.

        Args:
            uri: "models:/NAME@ALIAS" or "models:/NAME/3".

        Raises:
            ModelError: For another form, or an unknown model, alias or number, naming those there are.
        """
        found = re.fullmatch(r"models:/{1,3}([^/:@]+)(?:@([^/:@]+)|/([0-9]+))", uri)
        if found is None:
            raise ModelError(f"{uri!r} names no registered model: write models:/NAME@ALIAS or models:/NAME/3")
        return self.version(found[1], found[2] or found[3])

    def fetch(self, uri: str, into: Path, store_uri: str = "") -> Path:
        """`into`, with the files of a registered version.

        Args:
            uri: As for `resolve`.
            into: A folder, made when it is not there.
            store_uri: The store of a bundle whose address is a plain key.

        Raises:
            ModelError: For an unknown model, alias or number, or a version whose files are gone.
            StorageError: When the object store fails.
        """
        found = self.resolve(uri)
        if found.bundle_uri:
            relative = store_uri and "://" not in found.bundle_uri and not found.bundle_uri.startswith("/")
            where, key = (store_uri, found.bundle_uri) if relative else split(found.bundle_uri)
            return download_folder(open_store(where), key, into)
        from mlflow.artifacts import download_artifacts

        address = self._tracker.tracking_uri
        into.mkdir(parents=True, exist_ok=True)
        with self._tracker.asking(f"download {uri}"), tempfile.TemporaryDirectory(dir=into.parent) as folder:
            source = self._tracker.client.get_model_version_download_uri(found.name, str(found.version))
            came = Path(
                download_artifacts(artifact_uri=source, dst_path=folder, tracking_uri=address, registry_uri=address)
            )
            files = [path for path in came.rglob("*") if path.is_file()] if came.is_dir() else []
            if not files:
                raise ModelError(f"{uri} has no files at {found.source}: register the model again")
            for path in files:
                target = into / path.relative_to(came)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
        return into

    def copies(self, name: str, digest: str) -> list[str]:
        """What MLflow holds of this content: its versions of the model, and the files beneath their runs.

        Raises:
            TrackingError: When MLflow fails.
        """
        found = []
        for version in self._with_digest(name, digest):
            found.append(f"models:/{name}/{version.version}")
            if not version.bundle_uri:
                with self._tracker.asking(f"list the files of models:/{name}/{version.version}"):
                    where = self._artifacts(version)
                    found += [f"{version.source}/{one.path}" for one in where.list_artifacts() or []]
        return found

    def remove(self, name: str, digest: str) -> int:
        """The number of versions of this content that were removed, with the files that MLflow keeps of them.

        Raises:
            TrackingError: When an alias points at one of them, other than "candidate", or MLflow fails.
        """
        found = self._with_digest(name, digest)
        with self._tracker.asking(f'read the aliases of "{name}"'):
            aliases = self._tracker.client.get_registered_model(name).aliases if found else {}
        numbers = {str(version.version) for version in found}
        mine = sorted(alias for alias, number in aliases.items() if str(number) in numbers)
        for alias in mine:
            if alias != _CANDIDATE:
                raise TrackingError(f'models:/{name}/{aliases[alias]} has the alias "{alias}": take it off first')
        for alias in mine:
            with self._tracker.asking(f'take the alias "{alias}" off'):
                self._tracker.client.delete_registered_model_alias(name, alias)
        for version in found:
            with self._tracker.asking(f"remove models:/{name}/{version.version}"):
                if not version.bundle_uri:
                    self._artifacts(version).delete_artifacts()
                self._tracker.client.delete_model_version(name, str(version.version))
        return len(found)

    def holders(self, digest: str) -> list[str]:
        """The registered models that have a version of this content, sorted."""
        with self._tracker.asking("look for a model's versions"):
            page = self._tracker.client.search_model_versions(f"tags.`{_DIGEST}` = '{digest}'")
            return sorted({str(one.name) for one in page})

    def _artifacts(self, version: RegisteredVersion) -> Any:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        return get_artifact_repository(version.source, tracking_uri=self._tracker.tracking_uri)

    def with_digest(self, name: str, digest: str) -> RegisteredVersion | None:
        """The oldest version with this content, None when there is none."""
        return next(iter(self._with_digest(name, digest)), None)

    def _with_digest(self, name: str, digest: str) -> list[RegisteredVersion]:
        """The versions of this content, oldest first."""
        return [version for version in self._versions(name) if version.digest == digest]

    def _versions(self, name: str) -> list[RegisteredVersion]:
        with self._tracker.asking(f'list the versions of "{name}"'):
            found: list[RegisteredVersion] = []
            token: str | None = None
            while True:
                page = self._tracker.client.search_model_versions(f"name = '{name}'", page_token=token)
                found += [_plain(item) for item in page]
                token = page.token
                if not token:
                    return sorted(found, key=lambda item: item.version)

    def _completed(self, version: RegisteredVersion, labels: Mapping[str, str]) -> int:
        with self._tracker.asking("write tags"):
            for key, value in labels.items():
                if key not in version.tags:
                    self._tracker.client.set_model_version_tag(version.name, str(version.version), key, value)
        return version.version

    def _make_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        with self._tracker.asking(f'make the registered model "{name}"'):
            try:
                self._tracker.client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise

    def _logged(self, run_id: str, folder: Path | None) -> str:
        """The artifact address of the bundle's files, put beneath the run."""
        if folder is None or not folder.is_dir() or not run_id:
            raise TrackingError(
                "an MLflow server accepts no local address of a model: pass the bundle's folder and a run, or keep "
                "bundles in S3 (UNLEARN_STORE)"
            )
        with self._tracker.asking("keep the model's files"):
            self._tracker.client.log_artifacts(run_id, str(folder), "model")
            return f"{self._tracker.client.get_run(run_id).info.artifact_uri}/model"

    def _there_is(self, name: str, wanted: str) -> str:
        """The sentence for an alias or version that is not there."""
        from mlflow.exceptions import MlflowException

        try:
            aliases = sorted(self._tracker.client.get_registered_model(name).aliases)
        except MlflowException as error:
            if error.error_code not in _ABSENT:
                raise
            return f'there is no registered model "{name}": register one, or check the name'
        numbers = [str(item.version) for item in self._versions(name)]
        return (
            f'the registered model "{name}" has no "{wanted}": its aliases are {", ".join(aliases) or "none"}, its '
            f"versions {', '.join(numbers) or 'none'}"
        )


def check_name(name: str) -> None:
    """Nothing, when a registered model can have this name in every MLflow.

    Raises:
        TrackingError: When it cannot.
    """
    if not re.fullmatch(r"[^/:@'\"`\\%]{1,200}", name):
        raise TrackingError(f"a registered model cannot be called {name!r}: use letters, digits, dots and dashes")


def _plain(found: Any) -> RegisteredVersion:
    tags = dict(found.tags)
    return RegisteredVersion(
        name=str(found.name),
        version=int(found.version),
        bundle_uri=tags.get(_BUNDLE, ""),
        source=str(found.source),
        digest=tags.get(_DIGEST, ""),
        tags=tags,
        aliases=tuple(sorted(found.aliases)),
    )
