"""The files under deploy/: what Kubernetes, kustomize and S3 would say to them."""

import json
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import kubernetes_validate
import pytest
import yaml
from botocore.exceptions import ClientError
from conftest import MOTO
from support.s3 import client, require_conditions

from unlearning.storage import open_store
from unlearning_pipelines.placement import STAGES, read_placement

DEPLOY = Path(__file__).parent.parent / "deploy"
FILES = sorted(DEPLOY.rglob("*.yaml"))
OVERLAYS = ("seaweedfs", "aws")
CLUSTERS = {"seaweedfs": DEPLOY / "cluster.yaml", "aws": DEPLOY / "overlays" / "aws" / "cluster.yaml"}
SERVERS = ("1.30", "1.37")
TUNING = ("apiVersion", "kind", "namespace", "resources", "components", "patches", "labels")


@cache
def documents(path: Path) -> list[Any]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]


def objects() -> Iterator[tuple[Path, Any]]:
    """Every Kubernetes object that is written out in whole or as a patch by fields."""
    for path in FILES:
        if path.name not in ("cluster.yaml", "kustomization.yaml"):
            yield from ((path, document) for document in documents(path) if isinstance(document, dict))


def kustomizations() -> list[Path]:
    return [path.parent for path in FILES if path.name == "kustomization.yaml"]


def named(path: Path) -> str:
    return str(path.relative_to(DEPLOY))


# Kubernetes


@pytest.mark.parametrize("server", SERVERS)
def test_every_object_fits_the_schema_of_kubernetes(server: str) -> None:
    seen = set()
    for path, document in objects():
        kubernetes_validate.validate(document, server, strict=True)
        seen.add(document["kind"])
        assert document["metadata"]["name"].startswith("unlearning"), path
    assert seen == {"ConfigMap", "Namespace", "NetworkPolicy", "Role", "RoleBinding", "Secret", "ServiceAccount"}


def test_the_schema_is_not_asleep() -> None:
    policy = json.loads(json.dumps(documents(DEPLOY / "base" / "network-policy.yaml")[0]))
    policy["spec"]["egres"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="egres"):
        kubernetes_validate.validate(policy, SERVERS[-1], strict=True)


@pytest.mark.parametrize("folder", kustomizations(), ids=named)
def test_what_a_kustomization_names_is_there(folder: Path) -> None:
    (tuning,) = documents(folder / "kustomization.yaml")
    assert set(tuning) <= set(TUNING)
    for entry in [*tuning.get("resources", []), *tuning.get("components", [])]:
        target = folder / entry
        assert target.is_file() or (target / "kustomization.yaml").is_file(), entry
    for patch in tuning.get("patches", []):
        assert (folder / patch["path"]).is_file(), patch
    kinds = {"Component"} if folder.parent.name == "components" else {"Kustomization"}
    assert {tuning["kind"]} == kinds


@pytest.mark.parametrize("folder", kustomizations(), ids=named)
def test_no_file_of_a_kustomization_is_forgotten(folder: Path) -> None:
    (tuning,) = documents(folder / "kustomization.yaml")
    used = {*tuning.get("resources", []), *(patch["path"] for patch in tuning.get("patches", []))}
    there = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml", "cluster.yaml"}
    assert there == {name for name in used if name.endswith(".yaml")}


@cache
def built(overlay: str) -> list[Any]:
    """What kustomize makes of an overlay."""
    command = ["kubectl", "kustomize", str(DEPLOY / "overlays" / overlay)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return list(yaml.safe_load_all(ended.stdout))


def one(overlay: str, kind: str, name: str) -> Any:
    (found,) = [one for one in built(overlay) if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl, which has kustomize in it")
@pytest.mark.parametrize("overlay", OVERLAYS)
class TestBuilt:
    def test_the_whole_fits_the_schema_and_one_namespace(self, overlay: str) -> None:
        for document in built(overlay):
            kubernetes_validate.validate(document, SERVERS[-1], strict=True)
        places = {document["metadata"].get("namespace") for document in built(overlay)} - {None}
        assert places == {documents(DEPLOY / "overlays" / overlay / "kustomization.yaml")[0]["namespace"]}
        (subject,) = one(overlay, "RoleBinding", "unlearning-runner")["subjects"]
        assert {subject["namespace"]} == places

    def test_every_address_that_a_stage_asks_for_is_in_the_config_map(self, overlay: str) -> None:
        for source in read_placement(CLUSTERS[overlay]).config_maps:
            assert set(source.env) <= set(one(overlay, "ConfigMap", source.name)["data"]), source.name

    def test_nothing_in_the_config_map_is_left_unused(self, overlay: str) -> None:
        asked = {key for source in read_placement(CLUSTERS[overlay]).config_maps for key in source.env}
        maps = [document for document in built(overlay) if document["kind"] == "ConfigMap"]
        assert {key for document in maps for key in document["data"]} == asked

    def test_stages_reach_the_store_and_nobody_reaches_them(self, overlay: str) -> None:
        spec = one(overlay, "NetworkPolicy", "unlearning-stages")["spec"]
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        assert not spec.get("ingress")
        ports = {port["port"] for rule in spec["egress"] for port in rule["ports"]}
        assert {53, 5000, 5432} <= ports
        assert all(rule["to"] and rule["ports"] for rule in spec["egress"]), "a rule without either opens everything"
        assert spec["podSelector"]["matchLabels"] == read_placement(CLUSTERS[overlay]).pod_labels
        blocks = [to["ipBlock"] for rule in spec["egress"] for to in rule["to"] if "ipBlock" in to]
        assert all(b["cidr"] != "0.0.0.0/0" or "169.254.0.0/16" in b["except"] for b in blocks)

    def test_no_secret_is_applied(self, overlay: str) -> None:
        assert not [document for document in built(overlay) if document["kind"] == "Secret"]


def test_the_runs_account_may_start_nothing_and_read_one_secret() -> None:
    rules = documents(DEPLOY / "base" / "role.yaml")[0]["rules"]
    for rule in rules:
        assert "*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]
        if {"secrets", "configmaps"} & set(rule["resources"]):
            assert rule["resourceNames"]
            assert rule["verbs"] == ["get"]
        assert not {"pods", "pods/exec", "jobs"} & set(rule["resources"]) or "create" not in rule["verbs"]


# Secrets and settings


def templates() -> dict[str, Any]:
    return {path.stem: documents(path)[0] for path in (DEPLOY / "secrets").glob("*.yaml")}


def test_templates_of_secrets_hold_none() -> None:
    assert templates()
    for name, template in templates().items():
        assert template["metadata"]["name"] == name
        assert "data" not in template
        assert set(template["stringData"].values()) == {""}


@pytest.mark.parametrize("cluster", CLUSTERS.values(), ids=named)
def test_every_secret_that_a_stage_asks_for_has_its_template(cluster: Path) -> None:
    placement = read_placement(cluster)
    for source in placement.secrets:
        assert set(source.env) <= set(templates()[source.name]["stringData"])
    assert placement.signing_key is not None
    (file,) = templates()[placement.signing_key.secret]["stringData"]
    (address,) = [
        document["data"]["UNLEARN_SIGNING_KEY"]
        for document in documents(DEPLOY / "base" / "config-map.yaml")
        if "UNLEARN_SIGNING_KEY" in document["data"]
    ]
    assert address == f"{placement.signing_key.folder}/{file}"


@pytest.mark.parametrize("cluster", CLUSTERS.values(), ids=named)
def test_every_stage_has_time_memory_retries_and_its_keys(cluster: Path) -> None:
    placement = read_placement(cluster)
    for name in STAGES[1:]:
        stage = placement.stage(name)
        assert stage.cpu, name
        assert stage.memory
        assert stage.timeout
        assert stage.retries
        given = {variable for source in placement.secrets if source.serves(name) for variable in source.env.values()}
        assert ("AWS_SECRET_ACCESS_KEY" in given) == (cluster.parent == DEPLOY)
    assert placement.scratch


def test_nothing_names_a_registry_a_key_or_a_place_on_a_machine() -> None:
    wrong = re.compile(
        r"docker\.io|gcr\.io|quay\.io|\.dkr\.ecr|azurecr|AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE|/home/|/root"
    )
    found = [named(path) for path in DEPLOY.rglob("*") if path.is_file() and wrong.search(path.read_text())]
    assert found == []
    assert wrong.search("image: quay.io/x")


# S3


ROLES = ("stages", "promote", "settle", "intake", "operator", "retire", "auditor")
PREFIXES = ("models", "manifests", "requests", "references", "checkpoints", "audits", "work", "evidence", "elsewhere")
MAY: dict[str, dict[str, str]] = {  # role to prefix to what it may: get, put, delete
    "stages": {
        **dict.fromkeys(("models", "manifests", "requests"), "g"),
        **dict.fromkeys(("references", "checkpoints", "audits"), "gpd"),
    },
    "promote": {"models": "gp", "evidence": "gp"},
    "settle": {"models": "gp", "manifests": "g", "requests": "gpd", "work": "gpd", "evidence": "gp"},
    "intake": {"requests": "gpd", "evidence": "gp"},
    "operator": {"models": "gp", "manifests": "gp", "references": "gp"},
    "retire": {"models": "d", "references": "d", "checkpoints": "d", "evidence": "gp"},
    "auditor": {"evidence": "g"},
}


@pytest.fixture(scope="module")
def guarded() -> Iterator[Any]:
    """Clients by role, of an S3 server of their own that keeps to their policies."""
    server = subprocess.Popen(
        [sys.executable, "-c", f"import os; os.environ['INITIAL_NO_AUTH_ACTION_COUNT'] = '1e9'\n{MOTO}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    address = f"http://127.0.0.1:{server.stdout.readline().strip()}"

    def client(service: str, id_: str = "first", key: str = "first") -> Any:
        keys = {"aws_access_key_id": id_, "aws_secret_access_key": key, "aws_session_token": None}
        return boto3.session.Session().client(service, endpoint_url=address, region_name="us-east-1", **keys)

    root, iam = client("s3"), client("iam")
    root.create_bucket(Bucket="unlearning")
    clients = {}
    for role in ROLES:
        iam.create_user(UserName=role)
        policy = (DEPLOY / "s3" / f"{role}.json").read_text()
        iam.put_user_policy(UserName=role, PolicyName=role, PolicyDocument=policy)
        made = iam.create_access_key(UserName=role)["AccessKey"]
        clients[role] = client("s3", made["AccessKeyId"], made["SecretAccessKey"])
        for prefix in PREFIXES:
            root.put_object(Bucket="unlearning", Key=f"{prefix}/{role}", Body=b"x")
    order = urllib.request.Request(f"{address}/moto-api/reset-auth", data=b"0", headers={"Content-Type": "text/plain"})
    with urllib.request.urlopen(order, timeout=20):
        yield clients
    server.stdin.close()
    server.stdout.close()
    server.wait(20)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_what_it_must_and_no_more(role: str, guarded: Any) -> None:
    s3 = guarded[role]

    def allowed(call: Any, **arguments: Any) -> bool:
        try:
            call(Bucket="unlearning", **arguments)
        except ClientError as error:
            if error.response["Error"]["Code"] != "AccessDenied":
                raise
            return False
        return True

    found = {}
    for prefix in PREFIXES:
        letters = "g" * allowed(s3.get_object, Key=f"{prefix}/{role}")
        letters += "p" * allowed(s3.put_object, Key=f"{prefix}/{role}-new", Body=b"x")
        letters += "d" * allowed(s3.delete_object, Key=f"{prefix}/{role}")
        if letters:
            found[prefix] = letters
    assert found == MAY[role]
    assert allowed(s3.list_objects_v2)


def test_stages_keep_what_they_finished_of_a_batch_and_cannot_say_how_it_ended(guarded: Any) -> None:
    batch = f"work/{'a' * 64}"
    guarded["stages"].put_object(Bucket="unlearning", Key=f"{batch}/stages/impair-1/3/weights.safetensors", Body=b"x")
    for key in (f"{batch}/facts/done.json", f"{batch}/facts/3/facts.json", f"{batch}/candidates/{'b' * 64}"):
        with pytest.raises(ClientError, match="AccessDenied"):
            guarded["stages"].put_object(Bucket="unlearning", Key=key, Body=b"x")


def statements(name: str) -> list[Any]:
    content = json.loads((DEPLOY / "s3" / f"{name}.json").read_text())
    assert content["Version"] == "2012-10-17"
    return list(content["Statement"])


@pytest.mark.parametrize("role", [*ROLES, "bucket"])
def test_policies_name_one_bucket_and_no_wildcard_of_actions(role: str) -> None:
    for statement in statements(role):
        resources = statement["Resource"] if isinstance(statement["Resource"], list) else [statement["Resource"]]
        assert all(
            re.fullmatch(r"arn:aws:s3:::unlearning(/([a-z]+/)?\*|/work/\*/stages/\*)?", one) for one in resources
        )
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        if statement["Effect"] == "Allow":
            assert "*" not in "".join(actions)
            assert not any(one.startswith("s3:PutBucket") or "Bypass" in one for one in actions)
            assert "arn:aws:s3:::unlearning/*" not in resources
    assert {statement["Effect"] for statement in statements(role)} == {"Deny" if role == "bucket" else "Allow"}


def test_nobody_removes_evidence_or_writes_over_it_or_comes_without_tls() -> None:
    found = {statement["Sid"]: statement for statement in statements("bucket")}
    assert all(statement["Principal"] == "*" for statement in found.values())
    assert {"s3:DeleteObject", "s3:DeleteObjectVersion", "s3:BypassGovernanceRetention"} <= set(
        found["EvidenceIsNeverRemoved"]["Action"]
    )
    assert found["EvidenceIsWrittenOnce"]["Condition"] == {"Null": {"s3:if-none-match": "true"}}
    assert found["OnlyOverTls"]["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def set_up(bucket: str, *options: str) -> Any:
    command = [sys.executable, str(DEPLOY / "s3" / "setup_bucket.py"), bucket, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_bucket_is_set_up_once_and_again_and_locks_evidence_alone(s3: str) -> None:
    bucket, s3_client = f"{s3}-new", client()
    require_conditions(s3, versions=True)
    first, second = set_up(bucket), set_up(bucket)
    assert (first.returncode, second.returncode, first.stderr, second.stderr) == (0, 0, "", "")
    assert f"made {bucket}" in first.stdout
    assert "one is first" in first.stdout
    assert "Versions" not in s3_client.list_object_versions(Bucket=bucket), "trying leaves nothing behind"
    assert f"{bucket} was there" in second.stdout
    assert s3_client.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    lock = s3_client.get_object_lock_configuration(Bucket=bucket)["ObjectLockConfiguration"]
    assert lock["ObjectLockEnabled"] == "Enabled"
    assert "Rule" not in lock, "a default would lock models and requests too"
    rules = s3_client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert {rule["Filter"]["Prefix"].rstrip("/") for rule in rules} == set(PREFIXES) - {"evidence", "elsewhere"}
    assert all("Expiration" not in rule for rule in rules), "what is in force never goes by itself"
    policy = json.loads(s3_client.get_bucket_policy(Bucket=bucket)["Policy"])
    over_tls = s3_client.meta.endpoint_url.startswith("https:")
    always = {"EvidenceIsNeverRemoved", "EvidenceIsWrittenOnce"}
    assert {one["Sid"] for one in policy["Statement"]} == always | ({"OnlyOverTls"} if over_tls else set())
    assert ("only over TLS" if over_tls else "WITHOUT TLS") in first.stdout
    assert f"arn:aws:s3:::{bucket}/evidence/*" in str(policy)
    assert "arn:aws:s3:::unlearning" not in str(policy)
    assert all(s3_client.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"].values())


def test_our_store_works_in_a_bucket_that_was_set_up(s3: str) -> None:
    bucket, s3_client = f"{s3}-used", client()
    require_conditions(s3, versions=True)
    assert set_up(bucket, "--no-policy").returncode == 0
    store = open_store(f"s3://{bucket}", lock_days=30)
    assert store.create("evidence/1", b"x")
    assert store.create("models/1/card.json", b"x")
    assert s3_client.head_object(Bucket=bucket, Key="evidence/1")["ObjectLockMode"] == "GOVERNANCE"
    assert store.delete("models/1") == 1
    assert "Versions" not in s3_client.list_object_versions(Bucket=bucket, Prefix="models/")


def test_a_plain_bucket_has_neither_versions_nor_locks(s3: str) -> None:
    bucket, s3_client = f"{s3}-plain", client()
    assert set_up(bucket, "--plain", "--no-policy").returncode == 0
    assert "Status" not in s3_client.get_bucket_versioning(Bucket=bucket)
    assert open_store(f"s3://{bucket}").create("evidence/1", b"x")


def test_a_bucket_whose_server_ignores_the_condition_is_not_called_in_order(s3: str) -> None:
    sys.path.insert(0, str(DEPLOY / "s3"))
    try:
        from setup_bucket import tried
    finally:
        sys.path.pop(0)
    s3_client = client()
    assert "one is first" in tried(s3_client, s3)

    def drop(params: Any, **_: Any) -> None:
        params["headers"].pop("If-None-Match", None)

    s3_client.meta.events.register("before-call.s3.PutObject", drop)
    with pytest.raises(ValueError, match="--plain"):
        tried(s3_client, s3)
    assert "Contents" not in s3_client.list_objects_v2(Bucket=s3)


def test_a_bucket_that_is_not_ours_or_a_dead_server_is_one_line(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = set_up(s3)
    assert plain.returncode == 1
    assert plain.stderr.startswith(f"error: {s3}: ")
    assert "Status" not in client().get_bucket_versioning(Bucket=s3), "what cannot be had is refused before all else"
    assert set_up(s3, "--plain", "--no-policy").returncode == 0
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    dead = set_up(s3)
    assert (dead.returncode, dead.stderr.count("\n")) == (1, 1)
    assert "Traceback" not in dead.stderr
