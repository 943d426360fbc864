#!/usr/bin/env bash
# Builds the image from the unchanged Dockerfile and shows that it works: no container registry, no cluster, no network
# at run time, an arbitrary user id. One PASS or FAIL line per check.
#
#   scripts/verify_image.sh [--keep] [WORKDIR]
#
# A running Docker daemon is used when there is one. Otherwise the script starts its own under WORKDIR (root, dockerd),
# reachable only by a socket there, and stops exactly that one at the end. Where the Dockerfile's base image cannot be
# pulled, a stand-in is made with debootstrap: Debian's Python with this machine's certificates. About 5 minutes and
# 15 GB of disk with the CUDA build of torch.
#
#   --keep          leave WORKDIR (images, store, logs): the next run with the same WORKDIR reuses every layer
#   WORKDIR         default: ${TMPDIR:-/tmp}/verify-image; logs of the checks are in WORKDIR/logs
#   UNLEARN_IMAGE   name of the image (default kfp-unlearning-python:<version of pyproject.toml>)
#   PYTHON          Python with this project installed (default .venv/bin/python)
#   TORCH           what pip is told about torch, see the Dockerfile
#
# Exit status: 0 every check passed, 1 a check failed, 2 could not begin.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() { echo "verify_image: $*" >&2; exit 2; }
say() { printf '\n== %s\n' "$*"; }

keep=no work=
for argument in "$@"; do
    case $argument in
        --keep) keep=yes ;;
        -h | --help) sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        -*) die "no such option: $argument; see --help" ;;
        *) [[ -z $work ]] || die "one WORKDIR, not two: $work and $argument"; work=$argument ;;
    esac
done
work=$(realpath -m "${work:-${TMPDIR:-/tmp}/verify-image}")
[[ $work/ != "$PWD"/* ]] || die "WORKDIR $work is inside the checkout; give a folder outside of it"
python=${PYTHON:-.venv/bin/python}
"$python" -c 'import docker, kfp' || die "$python cannot import kfp and docker; install the project or set PYTHON"
version=$("$python" -c 'import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["project"]["version"])')
image=${UNLEARN_IMAGE:-kfp-unlearning-python:$version}
revision=$(git rev-parse --short HEAD 2>/dev/null || true)
rm -rf "$work/logs" "$work/run" "$work/changed"
mkdir -p "$work/logs"

# ---------------------------------------------------------------------------------------------------- Docker daemon
own=$work/docker # data, pid file and socket of the daemon that this script starts; absent when one was there already
started=no
finish() {
    local status=$?
    trap - EXIT
    if [[ $started == yes && -s $own/pid ]]; then
        local pid
        pid=$(<"$own/pid")
        kill "$pid" && while kill -0 "$pid" 2>/dev/null; do sleep 0.2; done
    fi
    # What a stopped daemon or an interrupted debootstrap leaves mounted cannot, and must not, be removed.
    umount "$own"/exec/netns/* "$work"/rootfs/{proc,sys} 2>/dev/null || true
    [[ $keep == yes ]] || rm -rf --one-file-system "$own" "$work/rootfs" "$work/run" "$work/changed" || status=1
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if docker info >"$work/logs/docker-info.log" 2>&1; then
    say "Docker: the running daemon ${DOCKER_HOST:-of this machine}"
else
    for tool in docker dockerd; do
        command -v "$tool" >/dev/null || die "no Docker daemon answers and $tool is missing: apt-get install docker.io"
    done
    [[ $EUID -eq 0 ]] || die "no Docker daemon answers, and starting one takes root; start it or set DOCKER_HOST"
    mkdir -p "$own"
    say "Docker: none answers, so a private daemon is started in $own"
    dockerd --data-root "$own/data" --exec-root "$own/exec" -p "$own/pid" -H "unix://$own/docker.sock" \
        --storage-driver=overlay2 --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false \
        --bridge=none >"$work/logs/dockerd.log" 2>&1 &
    started=yes
    export DOCKER_HOST=unix://$own/docker.sock
    for _ in $(seq 120); do
        if docker info >/dev/null 2>&1; then break; fi
        kill -0 $! 2>/dev/null || break
        sleep 0.5
    done
    docker info >/dev/null 2>&1 || { tail -n 5 "$work/logs/dockerd.log" >&2; die "the private Docker daemon did not start"; }
fi

# ------------------------------------------------------------------------------------------------------- base image
base=$(sed -n 's/^ARG BASE=//p' Dockerfile)
if docker image inspect "$base" >/dev/null 2>&1 || timeout 300 docker pull "$base" >"$work/logs/pull.log" 2>&1; then
    say "Base image: $base"
else
    stand_in="python-stand-in:3.11"
    say "Base image: $base cannot be pulled; $stand_in is a STAND-IN (Debian's Python, this machine's certificates)"
    if ! docker image inspect "$stand_in" >/dev/null 2>&1; then
        command -v debootstrap >/dev/null || die "no base image and no debootstrap: apt-get install debootstrap"
        [[ $EUID -eq 0 ]] || die "making the stand-in base image takes root"
        root=$work/rootfs
        rm -rf "$root"
        debootstrap --variant=minbase --include=python3,python3-pip,python3-venv,ca-certificates bookworm "$root" \
            >"$work/logs/debootstrap.log" 2>&1 || { tail -n 5 "$work/logs/debootstrap.log" >&2; die "debootstrap failed"; }
        rm -rf "$root"/usr/lib/python3*/EXTERNALLY-MANAGED "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
        ln -s /usr/bin/python3 "$root/usr/local/bin/python"
        # What fetching packages takes on this machine goes into the stand-in alone, never into the Dockerfile.
        certificates=/etc/ssl/certs/ca-certificates.crt
        cp -L "${SSL_CERT_FILE:-$certificates}" "$root$certificates"
        index=$("$python" -m pip config list | sed -n "s/.*\.index-url='\(https\{0,1\}:[^']*\)'\$/\1/p" | head -n 1)
        if [[ -n $index ]]; then printf '[global]\nindex-url = %s\n' "$index" >"$root/etc/pip.conf"; fi
        tar -C "$root" -c . | docker import -c "ENV PIP_CERT=$certificates" -c 'CMD ["python3"]' - "$stand_in" >/dev/null
        rm -rf "$root"
    fi
    base=$stand_in
fi

# ------------------------------------------------------------------------------------------------------------ build
build() { # build TAG CONTEXT
    docker build --network host --build-arg "BASE=$base" --build-arg "VERSION=$version" \
        --build-arg "REVISION=$revision" ${TORCH:+--build-arg "TORCH=$TORCH"} --tag "$1" "$2"
}
say "Build: $image"
start=$SECONDS
build "$image" . >"$work/logs/build.log" 2>&1 || {
    tail -n 20 "$work/logs/build.log" >&2
    echo "FAIL  the Dockerfile builds"
    exit 1
}
field() { docker image inspect --format "$1" "${2:-$image}"; }
echo "built in $((SECONDS - start)) s; $(($(field '{{.Size}}') / 1000000)) MB; the four largest layers:"
docker history --human=false --no-trunc --format '{{.Size}} {{.CreatedBy}}' "$image" | sort -rn | head -n 4 |
    sed -E 's#(PIP_[A-Z_]+=[^ ]* ?|\|[0-9]+ |TORCH=.* /bin/sh -c |/bin/sh -c )##g' |
    while read -r size command; do printf '%7d MB  %s\n' $((size / 1000000)) "${command:-(base image)}"; done

# ----------------------------------------------------------------------------------------------------------- checks
checks=0 failed=0
check() { # check NAME COMMAND...: its output goes to a log, whose end is shown when it fails
    local name=$1 start=$SECONDS verdict=PASS log
    checks=$((checks + 1))
    log=$work/logs/$(printf '%02d' "$checks")-${name//[^a-z0-9]/-}.log
    shift
    "$@" >"$log" 2>&1 || { verdict=FAIL failed=$((failed + 1)); }
    printf '%s  %4d s  %s\n' "$verdict" $((SECONDS - start)) "$name"
    [[ $verdict == PASS ]] || tail -n 12 "$log" | sed 's/^/      | /'
}
store=$work/run/store
user=$((EUID ? EUID : 1234567)):0 # nobody that the image knows; files in mounted folders can be removed again
narrow=(--rm --network none --user "$user" --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges)
inside() { # The narrowest container a cluster is likely to give: no network, some user, nothing writable but /tmp.
    docker run "${narrow[@]}" --env UNLEARN_HOME=/tmp/unlearn-data "$image" "$@"
}
expect() { # expect WANTED COMMAND...: what the command prints is WANTED
    local got
    got=$("${@:2}") && echo "wanted '$1', got '$got'" && [[ $got == "$1" ]]
}
exits() { # exits STATUS COMMAND...
    local status=0
    "${@:2}" || status=$?
    echo "wanted exit status $1, got $status" && [[ $status -eq $1 ]]
}
non_root() {
    local user
    user=$(field '{{.Config.User}}') && echo "user $user" && [[ $user =~ ^[1-9][0-9]*:0$ ]]
}
materials() { # Every installed distribution with its version is in the list, and nothing else.
    inside python3 -c '
import importlib.metadata, json, sys
materials = json.load(open("/usr/share/kfp-unlearning/materials.cdx.json"))["components"]
listed = {(one["name"].lower(), one["version"]) for one in materials}
there = {(one.metadata["Name"].lower(), one.version) for one in importlib.metadata.distributions()}
print(f"{len(listed)} listed, {len(there)} installed; differing: {sorted(listed ^ there)}")
sys.exit(listed != there)
'
}
no_compiler() { inside sh -c 'for tool in cc c++ gcc g++ clang; do ! command -v "$tool" || exit 1; done'; }
no_shadow_of_the_build() {
    inside sh -c 'env; ls -d /source /root/.cache 2>&1 || true' >"$work/logs/environment.txt" &&
        ! grep -E '^(PIP_(DISABLE|NO_CACHE|ROOT|INDEX)|/source|/root/.cache)' "$work/logs/environment.txt"
}
run_inside() { # One command, the whole pipeline, KFP's local runner in the container.
    local home=$work/run/inside
    mkdir -p "$home" && chmod 777 "$home" &&
        docker run "${narrow[@]}" --volume "$home:/tmp/unlearn-data" --env UNLEARN_HOME=/tmp/unlearn-data "$image" \
            unlearn run delete_class --json | tee "$work/logs/delete_class.txt" &&
        tail -n 1 "$work/logs/delete_class.txt" >"$work/logs/delete_class.json" &&
        "$python" -m json.tool "$work/logs/delete_class.json"
}
prepare_store() { # What the pipelines below begin with: trained models, and a request that waits.
    mkdir -p "$store" && chmod 777 "$store" && in_store unlearn train &&
        in_store unlearn train --name diabetes --manifest diabetes &&
        in_store unlearn requests add --key T-1 --kind class --id 7 --model digits
}
in_store() { docker run "${narrow[@]}" --volume "$store:$store" --env "UNLEARN_HOME=$store" "$image" "$@"; }
compile_for_image() {
    local compiled=pipelines/unlearning_pipelines/compiled
    mkdir -p "$work/run/compiled"
    if grep -qF "image: $image" $compiled/delete_class.yaml; then
        cp $compiled/*.yaml "$work/run/compiled"
    else
        "$(dirname "$python")/unlearn" compile --image "$image" --out "$work/run/compiled"
    fi
}
run_compiled() { # run_compiled PIPELINE ARGUMENTS: the YAML for the cluster, one container per task, started from here.
    local outputs=$work/run/outputs/$1
    mkdir -p "$outputs" && chmod 777 "$outputs" &&
        "$python" - "$work/run/compiled/$1.yaml" "$2" "$store" "$outputs" "$user" "$work/logs/$1.compiled.json" <<'PY'
import json, pathlib, sys
import docker
import yaml
from kfp import components, local

source, arguments, store, outputs, user, results = sys.argv[1:]
runner = local.DockerRunner(
    network_mode="none",
    user=user,
    environment={"UNLEARN_HOME": store},
    mounts=[docker.types.Mount(target=store, source=store, type="bind")],
)
local.init(runner, pipeline_root=outputs)
run = components.load_component_from_file(source)(**json.loads(arguments))

# The runner takes a container that vanished before its log was read for a success: ask the files instead.
print("outputs:", run.outputs)
pathlib.Path(results).write_text(json.dumps({name: str(value) for name, value in run.outputs.items()}))
done = {path.parent.name for path in pathlib.Path(outputs).glob("*/*/executor_output.json")}
spec = next(yaml.safe_load_all(pathlib.Path(source).read_text()))
dags = [spec["root"]["dag"], *(one["dag"] for one in spec["components"].values() if "dag" in one)]
tasks = {name: task["componentRef"]["name"] for dag in dags for name, task in dag["tasks"].items()}
wanted = {name for name, component in tasks.items() if "dag" not in spec["components"][component]}
print(f"tasks that wrote their outputs: {sorted(done)}; missing: {sorted(wanted - done)}")
sys.exit(0 if wanted <= done and run.outputs.get("verdict", "pass") == "pass" else 1)
PY
}
digest() { # The digest of the model in a run's results: the last part of its address.
    "$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["model_uri"].rpartition("/")[2])' "$1"
}
same_model() { expect "$(digest "$work/logs/delete_class.json")" digest "$work/logs/delete_class.compiled.json"; }
layers() { field '{{range .RootFS.Layers}}{{println .}}{{end}}' "$1"; }
code_change_keeps_dependencies() {
    local context=$work/changed tag=kfp-unlearning-python:verify-changed
    mkdir -p "$context" && cp -r Dockerfile .dockerignore pyproject.toml constraints.txt README.md shared components \
        pipelines "$context" && echo '# changed' >>"$context/shared/unlearning/__init__.py" && build "$tag" "$context" || return 1
    local new
    new=$(comm -13 <(layers "$image" | sort) <(layers "$tag" | sort) | wc -l)
    docker image rm "$tag" && echo "$new new layers" && [[ $new -ge 1 && $new -le 4 ]]
}

say "Checks"
check "the user is not root and its group is 0" non_root
check "no entrypoint: KFP sets the command" expect null field '{{json .Config.Entrypoint}}'
check "the label names the version" expect "$version" field '{{index .Config.Labels "org.opencontainers.image.version"}}'
check "the installed package has that version" expect "$version" inside \
    python3 -c 'import importlib.metadata; print(importlib.metadata.version("kfp-unlearning"))'
check "pip check: the dependencies agree" inside python3 -m pip check
check "the ledger's PostgreSQL driver is there" inside python3 -c 'import psycopg; print(psycopg.__version__)'
check "the bill of materials lists what is installed" materials
check "no compiler inside, none needed" no_compiler
check "pickles are refused by MLflow's setting" expect false inside printenv MLFLOW_ALLOW_PICKLE_DESERIALIZATION
check "nothing of the build is left behind" no_shadow_of_the_build
check "torch and torchvision import offline" inside \
    python3 -W error -c 'import torch, torchvision; print(torch.__version__, torchvision.__version__, torch.ones(2) @ torch.ones(2))'
check "the command line answers: exit status 0" exits 0 inside unlearn --help
check "a wrong pipeline name: exit status 2" exits 2 inside unlearn run no_such_pipeline
check "unlearn run delete_class: offline, any user, read-only image" run_inside
check "the pipelines are compiled for this image" compile_for_image
check "models are trained and a request is filed, in the image" prepare_store
first='"model": "models:/digits/1", "register_as"'
check "delete_class compiled, one container per task" run_compiled delete_class '{}'
check "delete_class_zero_shot compiled" run_compiled delete_class_zero_shot "{$first: \"digits-zero\"}"
check "delete_samples compiled" run_compiled delete_samples "{$first: \"digits-rows\"}"
check "delete_regression compiled" run_compiled delete_regression '{}'
check "compare_methods compiled" run_compiled compare_methods '{"model": "models:/digits/1", "methods": ["unsir", "fine_tune"], "seeds": 1}'
check "deletion_batch compiled: a request that waits is served" run_compiled deletion_batch '{"name": "digits"}'
check "both ways end in the same model, bit for bit" same_model
check "a change of code keeps the dependency layers" code_change_keeps_dependencies

say "$((checks - failed)) of $checks checks passed; image $image, $(($(field '{{.Size}}') / 1000000)) MB, on $base; logs in $work/logs"
[[ $failed -eq 0 ]]
