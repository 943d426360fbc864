"""The commands for a cluster, through KFP's real client, against a stand-in that writes down what is sent."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.kubeflow import Kubeflow, serving
from support.tls import certificate

from unlearning.errors import ClusterError
from unlearning_pipelines.catalogue import PIPELINES
from unlearning_pipelines.compile import COMPILED
from unlearning_pipelines.content import content_of

TOKEN = "canary-token-5f1c"
NIGHTLY = ("schedule", "delete_samples", "--cron", "0 0 2 * * *")


def said(ended: Any) -> Any:
    """The JSON of a command's last line; it ended well and wrote no error."""
    assert (ended.code, ended.err) == (0, ""), ended
    return json.loads(ended.out.splitlines()[-1])


def refused(ended: Any, code: int, *parts: str) -> None:
    assert ended.code == code, ended
    assert ended.err.startswith("error: "), ended
    assert ended.err.count("\n") == 1, ended
    assert TOKEN not in ended.out + ended.err
    for part in parts:
        assert part in ended.err, ended


# Versions


def test_every_pipeline_is_uploaded_once_however_often_it_is_asked_for(unlearn: Any, kubeflow: Kubeflow) -> None:
    first = said(unlearn("upload", "--json"))["versions"]
    assert [one["pipeline"] for one in first] == [PIPELINES[name].name for name in PIPELINES]
    assert all(one["new"] for one in first)
    again = said(unlearn("upload", "--json"))["versions"]
    assert again == [{**one, "new": False} for one in first]
    assert len(kubeflow.pipelines) == len(kubeflow.versions) == len(PIPELINES)


def test_a_version_is_named_by_what_was_compiled_and_holds_it(unlearn: Any, kubeflow: Kubeflow) -> None:
    (sent,) = said(unlearn("upload", "delete_class", "--json"))["versions"]
    content = content_of(COMPILED / "delete_class.yaml")
    assert (sent["pipeline"], sent["version"]) == ("delete-class", content.version)
    assert re.fullmatch(r"\d+\.\d+\.\d+-[0-9a-f]{12}", content.version)
    (version,) = kubeflow.versions
    kept = yaml.safe_load((COMPILED / "delete_class.yaml").read_text())
    assert version["pipeline_spec"]["root"] == kept["root"]
    assert content.digest in version["description"]
    assert content.images[0] in version["description"]
    assert kubeflow.pipelines[0]["description"] == kept["pipelineInfo"]["description"]


def test_what_is_sent_is_compiled_just_then(kubeflow: Kubeflow, desk: Path) -> None:
    command = [str(Path(sys.executable).with_name("unlearn")), "upload", "delete_class", "--image", "my/python-image:7"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")
    (version,) = kubeflow.versions
    executors = version["pipeline_spec"]["deploymentSpec"]["executors"].values()
    assert {executor["container"]["image"] for executor in executors} == {"my/python-image:7"}
    assert list(desk.iterdir()) == []


def test_names_follow_the_content_and_not_the_compiler_or_the_layout(tmp_path: Path) -> None:
    text = (COMPILED / "delete_class.yaml").read_text()
    spec = yaml.safe_load(text)
    name = content_of(COMPILED / "delete_class.yaml").version

    def named(spec: dict[str, Any], sort: bool = True) -> str:
        (tmp_path / "x.yaml").write_text(yaml.safe_dump(spec, sort_keys=sort))
        return content_of(tmp_path / "x.yaml").version

    assert named({**spec, "sdkVersion": "kfp-9.9.9"}, sort=False) == name
    other = json.loads(json.dumps(spec).replace("kfp-unlearning-python:", "other-python:"))
    assert named(other) != name
    spec["root"]["inputDefinitions"]["parameters"]["seed"]["defaultValue"] = 1
    assert named(spec) != name
    platform = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": {}}}}}
    (tmp_path / "x.yaml").write_text(f"{text}---\n{yaml.safe_dump(platform)}")
    assert content_of(tmp_path / "x.yaml").version != name


def test_another_image_is_another_version_of_the_same_pipeline(
    unlearn: Any, kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unlearning_pipelines.cluster import Cluster
    from unlearning_pipelines.connection import connection

    cluster = Cluster(connection())
    package = Path("delete_class.yaml")
    text = (COMPILED / "delete_class.yaml").read_text()
    package.write_text(text)
    first = cluster.upload(package)
    package.write_text(text.replace("kfp-unlearning-python:", "other-python:"))
    second = cluster.upload(package)
    assert first.pipeline_id == second.pipeline_id
    assert first.version != second.version
    assert (len(kubeflow.pipelines), len(kubeflow.versions)) == (1, 2)


def test_two_uploads_at_the_same_time_are_one_version(
    unlearn: Any, kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unlearning_pipelines.cluster import Cluster
    from unlearning_pipelines.connection import connection

    known = said(unlearn("upload", "delete_class", "--json"))["versions"][0]
    cluster = Cluster(connection())
    lookup, blind = cluster._version, [True]

    def late(pipeline: str, name: str) -> str | None:
        return None if blind and blind.pop() else lookup(pipeline, name)

    monkeypatch.setattr(cluster, "_version", late)
    assert cluster.upload(COMPILED / "delete_class.yaml").version_id == known["version_id"]
    assert len(kubeflow.versions) == 1


def test_a_version_beyond_the_first_page_is_found(unlearn: Any, kubeflow: Kubeflow) -> None:
    """The stand-in answers with three entries at a time; without the filter it would take four pages."""
    from unlearning_pipelines.cluster import Cluster
    from unlearning_pipelines.connection import connection

    cluster = Cluster(connection())
    text = (COMPILED / "delete_class.yaml").read_text()
    for number in range(10):
        Path("x.yaml").write_text(text.replace("kfp-unlearning-python:", f"python-{number}:"))
        made = cluster.upload(Path("x.yaml"))
    everything = cluster.pages(
        "list", "pipeline_versions", lambda **page: cluster.client.list_pipeline_versions(made.pipeline_id, **page)
    )
    assert len({one.display_name for one in everything}) == 10
    assert not cluster.upload(Path("x.yaml")).new


# Runs


def test_a_run_gets_what_was_set_and_is_followed_to_its_end(unlearn: Any, kubeflow: Kubeflow) -> None:
    sets = ("--set", "forget=1,4", "--set", "settings.noise_steps=3", "--set", "seed=7")
    ended = unlearn("submit", "delete_class", *sets, "--wait", "--account", "runner", "--name", "mine", "--json")
    result = said(ended)
    assert (result["state"], result["pipeline"], result["new"]) == ("SUCCEEDED", "delete-class", True)
    assert result["url"] == f"{kubeflow.address}/#/runs/details/{result['run_id']}"
    (run,) = kubeflow.runs
    assert run["runtime_config"]["parameters"] == {"forget": ["1", "4"], "settings": {"noise_steps": 3}, "seed": 7}
    assert (run["display_name"], run["service_account"]) == ("mine", "runner")
    assert run["pipeline_version_reference"]["pipeline_version_id"] == kubeflow.versions[0]["pipeline_version_id"]
    assert "pipeline_spec" not in run
    assert [one["display_name"] for one in kubeflow.experiments] == ["unlearning"]
    lines = ended.out.splitlines()
    assert [line for line in lines if line.startswith("run: ")] == ["run: pending", "run: running", "run: succeeded"]
    assert [line for line in lines if line.startswith("load-model: ")][-1] == "load-model: succeeded"
    assert not any("driver" in line or line.startswith("root") for line in lines)


def test_without_waiting_nothing_is_looked_at(unlearn: Any, kubeflow: Kubeflow) -> None:
    assert said(unlearn("submit", "delete_class", "--json"))["state"] == "PENDING"
    assert kubeflow.looks == {}
    assert said(unlearn("submit", "delete_class", "--json"))["new"] is False
    assert len(kubeflow.runs) == 2


@pytest.mark.parametrize(("state", "words"), [("FAILED", "task load-model failed"), ("CANCELED", "cancelled")])
def test_a_run_that_fails_ends_the_command_with_1_and_the_reason(
    unlearn: Any, kubeflow: Kubeflow, state: str, words: str
) -> None:
    kubeflow.states = ("RUNNING", state)
    refused(unlearn("submit", "delete_class", "--wait"), 1, words, "/#/runs/details/run-")


@pytest.mark.parametrize(("verdict", "code"), [("pass", 0), ("fail", 3), ("inconclusive", 3), ("", 0)])
def test_after_waiting_the_exit_code_follows_the_verdict_in_mlflow(
    unlearn: Any, kubeflow: Kubeflow, ready: Path, monkeypatch: pytest.MonkeyPatch, verdict: str, code: int
) -> None:
    from unlearning_components.surroundings import tracker

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{ready / 'mlflow.db'}")
    tracker().prepare()
    for run, said_there in (("other-run-4", "fail"), ("run-4", verdict), ("run-44", "fail")):
        opened = tracker().open_run("delete_class", f"delete-class-x7/{run}", {}, {})
        if said_there:
            tracker().client.set_tag(opened, "unlearning.verdict", said_there)
    ended = unlearn("submit", "delete_class", "--wait", "--json")
    assert (ended.code, ended.err) == (code, "")
    result = json.loads(ended.out.splitlines()[-1])
    assert (result["run_id"], result["verdict"]) == ("run-4", verdict)
    assert (f"verdict: {verdict.upper()}" in ended.out) == bool(verdict)


def test_a_verdict_that_cannot_be_read_is_an_error_and_not_a_pass(
    unlearn: Any, kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    refused(unlearn("submit", "delete_class", "--wait"), 1, "MLFLOW_TRACKING_URI")


def test_the_doctor_looks_at_the_cluster_when_there_is_one(
    unlearn: Any, kubeflow: Kubeflow, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (desk / "cluster.yaml").write_text("scratch: much")
    monkeypatch.setenv("UNLEARN_CLUSTER_SETTINGS", "cluster.yaml")

    def found() -> dict[str, bool]:
        return {
            one["what"]: one["ok"] for one in json.loads(unlearn("doctor", "--json").out.splitlines()[-1])["findings"]
        }

    assert (found()["Kubeflow Pipelines"], found()["cluster settings"]) == (True, False)
    (desk / "cluster.yaml").write_text("scratch: 1Gi")
    kubeflow.refuse = 403
    assert (found()["Kubeflow Pipelines"], found()["cluster settings"]) == (False, True)
    assert kubeflow.experiments == []


def test_settings_that_are_no_number_are_refused_in_one_line(
    unlearn: Any, kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNLEARN_KFP_PAUSE", "long")
    refused(unlearn("runs"), 2, "UNLEARN_KFP_PAUSE")


def test_a_lost_answer_is_no_end_of_waiting_and_a_dead_server_is(unlearn: Any, kubeflow: Kubeflow) -> None:
    from unlearning_pipelines.cluster import Cluster
    from unlearning_pipelines.connection import connection
    from unlearning_pipelines.submissions import wait

    run = said(unlearn("submit", "delete_class", "--json"))["run_id"]
    cluster = Cluster(connection())
    kubeflow.failures = [503, 502, 500, 503]
    assert wait(cluster, run, on_line=lambda _: None, every=0) == "SUCCEEDED"
    kubeflow.failures = [503] * 5
    with pytest.raises(Exception, match="answered 503"):
        wait(cluster, run, on_line=lambda _: None, every=0)
    assert kubeflow.failures == []


def test_waiting_has_a_limit_and_the_run_goes_on(unlearn: Any, kubeflow: Kubeflow) -> None:
    kubeflow.states = ("RUNNING",)
    refused(unlearn("submit", "delete_class", "--wait", "--timeout", "0.05"), 1, "takes longer than 0.05 s and goes on")


def test_runs_and_schedules_are_listed_newest_first(unlearn: Any, kubeflow: Kubeflow) -> None:
    assert "no schedules and no runs" in unlearn("runs").out
    assert kubeflow.experiments == [], "looking makes nothing"
    made = [said(unlearn("submit", "delete_class", "--name", f"run {n}", "--json"))["run_id"] for n in range(5)]
    said(unlearn(*NIGHTLY, "--json"))
    found = said(unlearn("runs", "--most", "4", "--json"))
    assert [run["run_id"] for run in found["runs"]] == made[:0:-1]
    assert [one["name"] for one in found["schedules"]] == ["delete-samples"]
    assert found["schedules"][0]["when"] == "0 0 2 * * *"
    assert "run 4" in unlearn("runs").out


# Schedules


def test_a_schedule_is_made_as_deletions_want_it(unlearn: Any, kubeflow: Kubeflow) -> None:
    ended = unlearn(*NIGHTLY, "--set", "ids=s3://bucket/ids.txt", "--account", "runner", "--json")
    assert said(ended)["change"] == "made"
    (sent,) = kubeflow.sent("POST", "/apis/v2beta1/recurringruns")
    assert sent.body["trigger"] == {"cron_schedule": {"cron": "0 0 2 * * *"}}
    assert (sent.body["max_concurrency"], sent.body["no_catchup"], sent.body["mode"]) == (1, True, "ENABLE")
    assert sent.body["runtime_config"]["parameters"] == {"ids": "s3://bucket/ids.txt"}
    assert sent.body["service_account"] == "runner"
    assert sent.body["pipeline_version_reference"]["pipeline_version_id"] == kubeflow.versions[0]["pipeline_version_id"]


def test_scheduled_twice_is_one_schedule(unlearn: Any, kubeflow: Kubeflow) -> None:
    first = said(unlearn(*NIGHTLY, "--json"))
    second = said(unlearn(*NIGHTLY, "--json"))
    assert (first["change"], second["change"]) == ("made", "unchanged")
    assert first["schedule_id"] == second["schedule_id"]
    assert len(kubeflow.recurring) == 1
    assert len(kubeflow.sent("POST", "/apis/v2beta1/recurringruns")) == 1


@pytest.mark.parametrize(
    "changed",
    [
        ("--set", "seed=1"),
        ("--cron", "0 0 3 * * *"),
        ("--at-once", "2"),
        ("--catch-up",),
        ("--account", "another"),
    ],
)
def test_changed_content_takes_the_place_of_the_old_and_there_is_never_none(
    unlearn: Any, kubeflow: Kubeflow, changed: tuple[str, ...]
) -> None:
    first = said(unlearn(*NIGHTLY, "--json"))
    second = said(unlearn(*NIGHTLY, *changed, "--json"))
    assert second["change"] == "replaced"
    assert [one["recurring_run_id"] for one in kubeflow.recurring] == [second["schedule_id"]]
    assert first["schedule_id"] != second["schedule_id"]
    writes = [one.method for one in kubeflow.requests if "recurringruns" in one.path and one.method != "GET"]
    assert writes == ["POST", "POST", "DELETE"]


def test_a_new_version_of_the_pipeline_replaces_the_schedule(unlearn: Any, kubeflow: Kubeflow) -> None:
    from unlearning_pipelines.cluster import Cluster
    from unlearning_pipelines.connection import connection
    from unlearning_pipelines.schedules import schedule, timing

    cluster, text = Cluster(connection()), (COMPILED / "delete_class.yaml").read_text()
    changes = []
    for image in ("one", "one", "two"):
        Path("x.yaml").write_text(text.replace("kfp-unlearning-python:", f"python-{image}:"))
        changes.append(schedule(cluster, cluster.upload(Path("x.yaml")), {}, timing(every="1d")).change)
    assert changes == ["made", "unchanged", "replaced"]
    assert len(kubeflow.recurring) == 1
    assert kubeflow.recurring[0]["trigger"] == {"periodic_schedule": {"interval_second": 86400}}


def test_a_schedule_that_was_paused_is_resumed(unlearn: Any, kubeflow: Kubeflow) -> None:
    said(unlearn(*NIGHTLY, "--json"))
    kubeflow.recurring[0] |= {"mode": "DISABLE", "status": "DISABLED"}
    assert "schedule off delete-samples" in unlearn("runs").out
    assert said(unlearn(*NIGHTLY, "--json"))["change"] == "resumed"
    assert kubeflow.recurring[0]["status"] == "ENABLED"


def test_copies_that_somebody_made_by_hand_are_cleared_away(unlearn: Any, kubeflow: Kubeflow) -> None:
    first = said(unlearn(*NIGHTLY, "--json"))
    for number in range(4):
        kubeflow.recurring.append({**kubeflow.recurring[0], "recurring_run_id": f"copy-{number}"})
    assert said(unlearn(*NIGHTLY, "--json"))["schedule_id"] == first["schedule_id"]
    assert len(kubeflow.recurring) == 1


def test_schedules_of_other_names_are_left_alone(unlearn: Any, kubeflow: Kubeflow) -> None:
    said(unlearn(*NIGHTLY, "--json"))
    said(unlearn(*NIGHTLY, "--name", "weekly", "--json"))
    assert [one["display_name"] for one in kubeflow.recurring] == ["delete-samples", "weekly"]
    assert said(unlearn("unschedule", "weekly", "--json"))["removed"] == 1
    assert said(unlearn("unschedule", "weekly", "--json"))["removed"] == 0
    assert [one["display_name"] for one in kubeflow.recurring] == ["delete-samples"]


def test_five_fields_of_cron_get_second_0(unlearn: Any, kubeflow: Kubeflow) -> None:
    said(unlearn("schedule", "delete_samples", "--cron", "30 2 * * 1-5", "--json"))
    assert kubeflow.recurring[0]["trigger"] == {"cron_schedule": {"cron": "0 30 2 * * 1-5"}}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "either --cron"),
        (("--cron", "0 0 2 * * *", "--every", "1d"), "either --cron"),
        (("--cron", "daily"), 'got "daily"'),
        (("--cron", "0 0 2 * * * *"), "five or six fields"),
        (("--cron", "0 2 * * $(id)"), "five or six fields"),
        (("--every", "5s"), "at least 60 seconds"),
        (("--every", "1w"), 'got "1w"'),
        (("--every", "1d", "--at-once", "11"), "from 1 to 10"),
    ],
)
def test_a_timing_that_makes_no_sense_is_refused_before_the_server_is_asked(
    unlearn: Any, kubeflow: Kubeflow, arguments: tuple[str, ...], words: str
) -> None:
    refused(unlearn("schedule", "delete_samples", *arguments), 2, words)
    assert kubeflow.requests == []


# Who asks, and where


def test_the_token_goes_into_every_request_and_nowhere_else(
    unlearn: Any, kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kubeflow.token = TOKEN
    monkeypatch.setenv("UNLEARN_KFP_TOKEN", TOKEN)
    caplog.set_level("DEBUG")
    ended = unlearn("submit", "delete_class", "--wait", "--json")
    assert said(ended)["state"] == "SUCCEEDED"
    assert TOKEN not in ended.out + ended.err + caplog.text
    assert {one.headers.get("authorization") for one in kubeflow.requests} == {f"Bearer {TOKEN}"}
    assert TOKEN not in json.dumps([kubeflow.runs, kubeflow.versions, kubeflow.pipelines])


def test_a_token_that_changes_in_its_file_is_read_anew(
    unlearn: Any, kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from unlearning_pipelines.cluster import Cluster
    from unlearning_pipelines.connection import connection

    file = tmp_path / "token"
    file.write_text("first\n")
    monkeypatch.setenv("UNLEARN_KFP_TOKEN_FILE", str(file))
    kubeflow.token = "first"
    cluster = Cluster(connection())
    assert cluster.experiment(make=True)
    kubeflow.token = "second"
    file.write_text("second\n")
    assert cluster.experiment(make=False)
    file.write_text("third\n")
    with pytest.raises(Exception, match=re.escape(str(file))):
        cluster.experiment(make=False)


def test_a_server_with_users_is_told_the_namespace_everywhere(unlearn: Any, kubeflow: Kubeflow) -> None:
    kubeflow.multi_user = True
    refused(unlearn("runs"), 1, "has users", "--namespace")
    said(unlearn(*NIGHTLY, "--namespace", "team", "--json"))
    said(unlearn("submit", "delete_samples", "--namespace", "team", "--json"))
    assert (kubeflow.pipelines[0]["namespace"], kubeflow.experiments[0]["namespace"]) == ("team", "team")
    assert len(kubeflow.versions) == 1
    assert len(said(unlearn("runs", "--namespace", "team", "--json"))["runs"]) == 1


def test_without_an_address_the_command_says_which_to_set(
    unlearn: Any, kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UNLEARN_KFP_HOST")
    for command in (("upload",), ("submit", "delete_class"), NIGHTLY, ("unschedule", "x"), ("runs",)):
        refused(unlearn(*command), 2, "UNLEARN_KFP_HOST", "--host")
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", kubeflow.address)
    assert unlearn("runs").code == 0


@pytest.mark.parametrize("host", ["kfp.example.org", "ftp://kfp", "https://", "https://x/?a=b"])
def test_an_address_that_is_none_is_refused(unlearn: Any, kubeflow: Kubeflow, host: str) -> None:
    refused(unlearn("runs", "--host", host), 2, "https://kfp.example.org")


def test_a_password_in_the_address_is_refused_unseen(unlearn: Any, kubeflow: Kubeflow) -> None:
    refused(unlearn("runs", "--host", f"https://me:{TOKEN}@kfp.example.org"), 2, "UNLEARN_KFP_TOKEN")


@pytest.mark.parametrize(
    "command", [("upload",), ("submit", "delete_clas"), ("schedule", "delete_clas", "--every", "1d")]
)
def test_an_unknown_pipeline_is_refused_with_the_nearest(
    unlearn: Any, kubeflow: Kubeflow, command: tuple[str, ...]
) -> None:
    command = (*command, "delete_clas") if command == ("upload",) else command
    refused(unlearn(*command), 2, 'unknown pipeline "delete_clas"; did you mean "delete_class"?')
    assert kubeflow.pipelines == []


def test_parameters_that_are_too_large_or_secret_are_not_sent(
    unlearn: Any, kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(unlearn("submit", "delete_class", "--set", f"forget={'x' * 10_000}"), 2, "fewer than 10000")
    monkeypatch.setenv("MY_API_KEY", TOKEN)
    refused(unlearn("submit", "delete_class", "--set", f"model=s3://{TOKEN}/x"), 2, "value of MY_API_KEY")
    assert kubeflow.requests == []


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_says_whether_there_was_a_token(
    unlearn: Any, kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    kubeflow.refuse = status
    refused(unlearn("runs"), 1, f"({status})", "no token is set")
    monkeypatch.setenv("UNLEARN_KFP_TOKEN", TOKEN)
    refused(unlearn("runs"), 1, f"({status})", "the token of UNLEARN_KFP_TOKEN may have expired")


@pytest.mark.parametrize("status", [302, 401, 403])
def test_a_gate_before_the_server_is_recognised(unlearn: Any, kubeflow: Kubeflow, status: int) -> None:
    kubeflow.health = (status, "text/html", "<html>")
    refused(unlearn("runs"), 1, f"({status})", "UNLEARN_KFP_TOKEN")


def test_a_login_page_is_recognised(unlearn: Any, kubeflow: Kubeflow) -> None:
    kubeflow.health = (200, "text/html", "<html>please log in</html>")
    refused(unlearn("runs"), 1, "login page", "UNLEARN_KFP_TOKEN")


def test_an_old_server_is_recognised(unlearn: Any, kubeflow: Kubeflow) -> None:
    kubeflow.health = (404, "text/plain", "404 page not found")
    refused(unlearn("runs"), 1, "no v2beta1 API", "older than Kubeflow Pipelines 2.0")


@pytest.mark.parametrize(("status", "words"), [(500, "answered 500: no reason"), (400, "does not accept it (400)")])
def test_what_the_server_says_is_told_in_one_line(unlearn: Any, kubeflow: Kubeflow, status: int, words: str) -> None:
    kubeflow.refuse = status
    refused(unlearn("submit", "delete_class"), 1, words)


def test_nobody_at_the_address_is_told_soon(unlearn: Any, kubeflow: Kubeflow) -> None:
    refused(unlearn("runs", "--host", "http://127.0.0.1:1"), 1, "no answer", "UNLEARN_KFP_HOST")


@pytest.mark.parametrize(
    ("content", "words"), [("", "there is no token in"), ("a b", "spaces"), (None, "cannot be read")]
)
def test_a_token_file_that_holds_none_is_refused(
    unlearn: Any, kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None, words: str
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("UNLEARN_KFP_TOKEN_FILE", str(file))
    refused(unlearn("runs"), 2, words)
    assert kubeflow.requests == []


def test_a_certificate_is_trusted_only_by_its_file(
    unlearn: Any, kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import certifi

    from unlearning_pipelines.cluster import Cluster
    from unlearning_pipelines.connection import connection

    file, context = certificate(tmp_path)
    with serving(Kubeflow(), context) as server:
        address = server.address.replace("127.0.0.1", "localhost")
        refused(unlearn("runs", "--host", address), 1, "certificate is not trusted", "UNLEARN_KFP_CA_FILE")
        monkeypatch.setenv("UNLEARN_KFP_CA_FILE", str(file))
        assert "there are no schedules" in unlearn("runs", "--host", address).out
        cluster = Cluster(connection(address))
        pool = cluster.client._run_api.api_client.rest_client.pool_manager
        pool.connection_pool_kw["ca_certs"] = certifi.where()  # as if the server's had changed since
        pool.clear()
        with pytest.raises(ClusterError, match="certificate is not trusted"):
            cluster.experiment(make=False)


def test_damaged_settings_of_kfps_own_client_are_named(
    unlearn: Any, kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("kfp.Client._LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    for content in ("{", "[]", "{}"):
        (tmp_path / "context.json").write_text(content)
        refused(unlearn("runs"), 2, str(tmp_path / "context.json"))
