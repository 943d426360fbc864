"""How stages stand on a cluster: one file, read when pipelines are compiled, and nothing at all without it.

Kubernetes does what the file says; KFP's local runner leaves it aside. Secrets are named here, their values never are.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from unlearning.config import nearest
from unlearning.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

VARIABLE = "UNLEARN_CLUSTER_SETTINGS"
ALL = "all"
SIGNS = "settle"
"""The one stage that signs: no other ever gets the key."""
REPEATABLE = frozenset(
    {
        "load_model",
        "select",
        "synthesize",
        "impair",
        "repair",
        "distill",
        "retrain",
        "evaluate",
        "attack",
        "audit",
        "claim",
        "compare",
        "gate",
        "promote",
        "settle",
    }
)
"""Stages that change nothing when they are done twice; only these are retried."""
STAGES = (ALL, *sorted(REPEATABLE))

SPREADABLE = frozenset({"synthesize", "impair", "repair", "distill", "retrain", "audit"})
"""Stages that several processes share the work of."""

_NAME = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"
_LABEL = r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"
_LABEL_KEY = r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
Name = Annotated[str, Field(pattern=_NAME)]
Key = Annotated[str, Field(pattern=r"^[-._A-Za-z0-9]{1,253}$")]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Folder = Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._-]+)+$")]
Cores = Annotated[str, Field(pattern=r"^([0-9]+(\.[0-9]+)?|[0-9]+m)$")]
Bytes = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?([EPTGMK]i?)?$")]
LabelKey = Annotated[str, Field(pattern=_LABEL_KEY)]
LabelValue = Annotated[str, Field(pattern=_LABEL)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Frozen):
    """Keys of a secret or config map, as environment variables, as files, or both.

    Attributes:
        name: Of the secret or config map in the namespace of the runs.
        env: Its keys to the variables that they become.
        folder: Where its keys appear as files.
        stages: Those that get it; all when left out.
        optional: Whether a pod starts without it.
    """

    name: Name
    env: dict[Key, Variable] = Field(default_factory=dict)
    folder: Folder | None = None
    stages: tuple[str, ...] = ()
    optional: bool = False

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if not self.env and self.folder is None:
            raise ValueError(f'"{self.name}" gives nothing: say which env or folder')
        _known(self.stages)
        return self

    def serves(self, stage: str) -> bool:
        """Whether the stage gets it."""
        return not self.stages or stage in self.stages


class SigningKey(_Frozen):
    """The secret that certificates are signed with; `settle` alone gets it, as files.

    Attributes:
        secret: Its name.
        folder: Where its keys appear as files.
        optional: Whether `settle` starts without it.
    """

    secret: Name
    folder: Folder = "/var/run/unlearning/signing"
    optional: bool = False


class Toleration(_Frozen):
    """A taint that the pods put up with; fields as Kubernetes has them."""

    key: LabelKey | None = None
    operator: Literal["Equal", "Exists"] = "Equal"
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    seconds: Annotated[int, Field(ge=0)] | None = None


class Stage(_Frozen):
    """What one stage gets. What is left out comes from `all`, and else is as the cluster has it.

    Attributes:
        cpu: Cores asked for, such as "2" or "500m".
        cpu_limit: Most cores.
        memory: Bytes asked for and most, such as 8Gi.
        gpu: Accelerators.
        gpu_type: Name of the resource.
        shared_memory: Bytes of /dev/shm, for worker processes; counts as memory.
        timeout: Seconds after which the pod is stopped.
        retries: More attempts after a failure.
        node_selector: Labels that the node must have.
        tolerations: Taints that the pods put up with.
        nodes: Pods that share the stage's work, as a TrainJob; its own pod then only waits for them.
        processes: On each node; one for each GPU, as a rule.
    """

    cpu: Cores | None = None
    cpu_limit: Cores | None = None
    memory: Bytes | None = None
    gpu: Annotated[int, Field(ge=0, le=64)] | None = None
    gpu_type: Annotated[str, Field(pattern=_LABEL_KEY)] | None = None
    shared_memory: Bytes | None = None
    timeout: Annotated[int, Field(ge=1, le=30 * 86400)] | None = None
    retries: Annotated[int, Field(ge=0, le=10)] | None = None
    node_selector: dict[LabelKey, LabelValue] | None = None
    tolerations: tuple[Toleration, ...] | None = None
    nodes: Annotated[int, Field(ge=1, le=1024)] | None = None
    processes: Annotated[int, Field(ge=1, le=64)] | None = None

    @property
    def spread(self) -> bool:
        """Whether several processes share its work."""
        return (self.nodes or 1) * (self.processes or 1) > 1


class Placement(_Frozen):
    """Settings of a cluster, for all pipelines.

    Attributes:
        config_maps: Addresses and the like; nothing secret.
        secrets: By name.
        signing_key: For `settle` alone.
        scratch: Bytes of a writable /tmp, where all stages write; without, they write into the container.
        user: Numeric id that the stages run as; the image's when left out.
        group: Likewise.
        image_pull_secrets: Names of secrets.
        image_pull_policy: As Kubernetes has it.
        pod_labels: Of all pods of stages; network policies and quotas go by them.
        retry_after: Seconds before the first new attempt; each later one waits twice as long.
        training_runtime: Kubeflow Trainer's, for stages on several nodes.
        stages: By name, and `all` for what they have in common.
    """

    config_maps: tuple[Source, ...] = ()
    secrets: tuple[Source, ...] = ()
    signing_key: SigningKey | None = None
    scratch: Bytes | None = None
    user: Annotated[int, Field(ge=1)] | None = None
    group: Annotated[int, Field(ge=0)] | None = None
    image_pull_secrets: tuple[Name, ...] = ()
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    pod_labels: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    retry_after: Annotated[int, Field(ge=0, le=3600)] = 30
    training_runtime: Name = "torch-distributed"
    stages: dict[str, Stage] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _sound(self) -> Self:
        _known(self.stages)
        if self.signing_key is not None:
            shared = [source.name for source in (*self.secrets, *self.config_maps)]
            if self.signing_key.secret in shared:
                raise ValueError(
                    f'the secret "{self.signing_key.secret}" holds the signing key: it goes to {SIGNS} alone'
                )
        for stage in STAGES[1:]:
            given = [source for source in (*self.config_maps, *self.secrets) if source.serves(stage)]
            variables = [variable for source in given for variable in source.env.values()]
            if twice := sorted({variable for variable in variables if variables.count(variable) > 1}):
                raise ValueError(f"two sources set {', '.join(twice)} of {stage}")
            wide = self.stage(stage)
            if wide.spread and stage not in SPREADABLE:
                raise ValueError(
                    f"{stage} runs in one process: nodes and processes are for {', '.join(sorted(SPREADABLE))}"
                )
            if (wide.nodes or 1) > 1 and (files := [source.name for source in given if source.folder]):
                raise ValueError(f"{stage} is on several nodes, which take variables and no files: {', '.join(files)}")
        return self

    def stage(self, name: str) -> Stage:
        """What a stage gets: its own settings, and those of `all` for the rest."""
        own, common = (self.stages.get(key, Stage()) for key in (name, ALL))
        return common.model_copy(update={field: getattr(own, field) for field in own.model_fields_set})


def read_placement(path: Path) -> Placement:
    """The settings in a YAML file.

    Raises:
        UsageError: When it is not there, no YAML, or holds something else; all mistakes in one line.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"no cluster settings at {path}: mend --settings or {VARIABLE}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"cluster settings {path}: no YAML: {' '.join(str(error).split())}") from error
    try:
        return Placement.model_validate({} if content is None else content)
    except ValidationError as error:
        raise UsageError(
            f"cluster settings {path}: {'; '.join(map(_told, error.errors(include_url=False)))}"
        ) from error


def in_force() -> Placement | None:
    """The settings that the environment names; None where it names none."""
    path = os.environ.get(VARIABLE, "")
    return _read_once(Path(path), Path(path).absolute()) if path else None


def place(task: Any, stage: str) -> Any:
    """The task, as the settings in force want it; as it was without any.

    Args:
        task: Of a pipeline that is being built.
        stage: Its name, such as load_model.
    """
    placement = in_force()
    return task if placement is None else _placed(task, stage, placement)


@cache
def _read_once(path: Path, absolute: Path) -> Placement:
    """Once for every file; `absolute` tells those of the same name in other folders apart."""
    return read_placement(path)


def _placed(task: Any, name: str, placement: Placement) -> Any:
    from kfp import kubernetes

    stage = placement.stage(name)
    for sources, as_env, as_files in (
        (placement.config_maps, kubernetes.use_config_map_as_env, kubernetes.use_config_map_as_volume),
        (placement.secrets, kubernetes.use_secret_as_env, kubernetes.use_secret_as_volume),
    ):
        for source in (one for one in sources if one.serves(name)):
            if source.env:
                as_env(task, source.name, dict(source.env), optional=source.optional)
            if source.folder:
                as_files(task, source.name, source.folder, optional=source.optional)
    if placement.signing_key is not None and name == SIGNS:
        key = placement.signing_key
        kubernetes.use_secret_as_volume(task, key.secret, key.folder, optional=key.optional)
    if stage.spread:
        _spread(task, name, stage, placement)
    if (stage.nodes or 1) == 1:  # else its own pod waits for the others
        _resources(task, stage)
    if stage.shared_memory:
        kubernetes.empty_dir_mount(task, "unlearning-shm", "/dev/shm", "Memory", stage.shared_memory)  # noqa: S108
    if placement.scratch:
        kubernetes.empty_dir_mount(task, "unlearning-scratch", "/tmp", size_limit=placement.scratch)  # noqa: S108
    kubernetes.set_security_context(
        task, run_as_user=placement.user, run_as_group=placement.group, run_as_non_root=True
    )
    _scheduling(task, stage, placement)
    if stage.timeout:
        kubernetes.set_timeout(task, stage.timeout)
    if stage.retries and name in REPEATABLE:
        task.set_retry(stage.retries, f"{placement.retry_after}s", 2.0, "3600s")
    return task


def _spread(task: Any, name: str, stage: Stage, placement: Placement) -> None:
    """The stage's command under torchrun, here or as a TrainJob."""
    from unlearning_components.nodes import wrapped

    spread: dict[str, Any] = {"nodes": stage.nodes or 1, "processes": stage.processes or 1}
    if spread["nodes"] > 1:
        resources = {"cpu": stage.cpu, "memory": stage.memory}
        if stage.gpu:
            resources[stage.gpu_type or "nvidia.com/gpu"] = str(stage.gpu)
        env = [
            {"name": variable, "valueFrom": {kind: {"name": source.name, "key": key, "optional": source.optional}}}
            for kind, sources in (("configMapKeyRef", placement.config_maps), ("secretKeyRef", placement.secrets))
            for source in sources
            if source.serves(name)
            for key, variable in source.env.items()
        ]
        spread |= {
            "runtime": placement.training_runtime,
            "image": task.container_spec.image,
            "resources": {key: value for key, value in resources.items() if value},
            "env": env,
        }
    task.container_spec.command = wrapped(spread, task.container_spec.command)


def _resources(task: Any, stage: Stage) -> None:
    if stage.cpu:
        task.set_cpu_request(stage.cpu)
    if stage.cpu_limit:
        task.set_cpu_limit(stage.cpu_limit)
    if stage.memory:
        task.set_memory_request(stage.memory).set_memory_limit(stage.memory)
    if stage.gpu:
        task.set_accelerator_type(stage.gpu_type or "nvidia.com/gpu").set_accelerator_limit(stage.gpu)


def _scheduling(task: Any, stage: Stage, placement: Placement) -> None:
    from kfp import kubernetes

    labels: Mapping[str, str] = stage.node_selector or {}
    for key, value in labels.items():
        kubernetes.add_node_selector(task, key, value)
    for taint in stage.tolerations or ():
        kubernetes.add_toleration(task, taint.key, taint.operator, taint.value, taint.effect, taint.seconds)
    for key, value in placement.pod_labels.items():
        kubernetes.add_pod_label(task, key, value)
    if placement.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(placement.image_pull_secrets))
    if placement.image_pull_policy:
        kubernetes.set_image_pull_policy(task, placement.image_pull_policy)


def _known(stages: Iterable[str]) -> None:
    for name in stages:
        if name not in STAGES:
            raise ValueError(f'unknown stage "{name}"{nearest(name, STAGES)} (valid: {", ".join(STAGES)})')


def _told(mistake: Any) -> str:
    where = ".".join(str(part) for part in mistake["loc"])
    if mistake["type"] == "extra_forbidden":
        level: dict[str, type[_Frozen]] = {
            "stages": Stage,
            "secrets": Source,
            "config_maps": Source,
            "signing_key": SigningKey,
        }
        known: type[_Frozen] = level.get(str(mistake["loc"][0]), Placement) if len(mistake["loc"]) > 1 else Placement
        return f'unknown setting "{where}"{nearest(str(mistake["loc"][-1]), known.model_fields)}'
    text = re.sub(r"^Value error, ", "", str(mistake["msg"]))
    return f"{where}: {text}" if where else text
