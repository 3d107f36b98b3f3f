"""The files in `cluster/`: what Ray and Kubernetes would say to them, and that all of them mean the same Ray."""

from __future__ import annotations

import copy
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from cluster.kubernetes import DOCUMENT, Pod, RayCluster, RayJob, RayService

REPOSITORY = Path(__file__).parents[2]
CLUSTER = REPOSITORY / "cluster"
LAUNCHED = ("aws", "gcp", "onprem")
KUBERNETES = sorted((CLUSTER / "kuberay").glob("*.yaml"))
RAY = importlib.metadata.version("ray")
GPU_TAINT = ("nvidia.com/gpu", "Exists", "NoSchedule")


def _launched(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((CLUSTER / f"{name}.yaml").read_text()))


def _documents(file: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(file.read_text()) if document is not None]


# What Ray's cluster launcher says.


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_accepts_the_file_and_fills_in_the_rest(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(_launched(name))
    validate_config(config)
    kinds = [
        kind for key, kind in config["available_node_types"].items() if key != config["head_node_type"] or name == "onprem"
    ]
    with_gpus = [kind for kind in kinds if "GPU" in kind["resources"]]
    # Shards hold no CPU, so nothing would ever ask for a node.
    assert all(kind["min_workers"] == kind["max_workers"] == 3 for kind in kinds if kind not in with_gpus)
    # Ray's launcher has one kind of node on machines of your own, and finds out what they have.
    assert [(kind["min_workers"], kind["max_workers"]) for kind in with_gpus] == ([] if name == "onprem" else [(0, 3)])
    commands = " ".join([*config["setup_commands"], *config["head_start_ray_commands"], *config["initialization_commands"]])
    assert "RAY_AUTH_MODE=token" in commands
    assert "--num-cpus=0" in commands
    assert "--dashboard-host=127.0.0.1" in commands
    assert config["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_refuses_the_file_with_a_misspelt_key(name: str) -> None:
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = _launched(name)
    config["setup_comands"] = config.pop("setup_commands")
    with pytest.raises(jsonschema.ValidationError, match="setup_comands"):
        validate_config(prepare_config(config))


# What Kubernetes should say.


@pytest.mark.parametrize("file", KUBERNETES, ids=lambda file: file.stem)
def test_every_key_is_one_that_kubernetes_knows(file: Path) -> None:
    for document in _documents(file):
        DOCUMENT.validate_python(document)


def _mappings(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        yield path
        for key, inner in value.items():
            yield from _mappings(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _mappings(inner, (*path, index))


# The writer of the file chooses these keys.
FREE = {"labels", "matchLabels", "rayStartParams", "clusterSelector", "requests", "limits"}


@pytest.mark.parametrize("file", KUBERNETES, ids=lambda file: file.stem)
def test_a_misspelt_key_is_caught_wherever_it_stands(file: Path) -> None:
    tried = 0
    for document in _documents(file):
        for path in _mappings(document):
            if path and path[-1] in FREE:
                continue
            misspelt = copy.deepcopy(document)
            place = misspelt
            for step in path:
                place = place[step]
            place["misspelt"] = place.pop(next(iter(place), ""), "value")
            with pytest.raises(ValidationError):
                DOCUMENT.validate_python(misspelt)
            tried += 1
    assert tried > 10


def _pods(file: Path) -> Iterator[Pod]:
    for document in map(DOCUMENT.validate_python, _documents(file)):
        if isinstance(document, RayJob):
            yield document.spec.submitter_pod_template.spec
        spec = document.spec.ray_cluster_config if isinstance(document, RayService) else document.spec
        if isinstance(document, RayCluster | RayService):
            yield spec.head_group_spec.template.spec
            yield from (group.template.spec for group in spec.worker_group_specs)


@pytest.mark.parametrize("file", KUBERNETES, ids=lambda file: file.stem)
def test_pods_run_as_a_normal_user_and_every_volume_is_there(file: Path) -> None:
    for pod in _pods(file):
        assert pod.security_context.run_as_non_root
        assert pod.security_context.run_as_user == 1000
        for container in pod.containers:
            assert not container.security_context.allow_privilege_escalation
            assert {mount.name for mount in container.volume_mounts} <= {volume.name for volume in pod.volumes}


@pytest.mark.parametrize("name", ["cluster", "service"])
def test_ray_counts_the_gpus_of_the_group_that_has_some_and_its_pods_may_go_to_nodes_with_gpus(name: str) -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    document = _documents(CLUSTER / "kuberay" / f"{name}.yaml")[-1]
    cluster = document["spec"].get("rayClusterConfig", document["spec"])
    config = _derive_autoscaling_config_from_ray_cr({"metadata": {"name": name, "namespace": "default"}, "spec": cluster})
    kinds = config["available_node_types"]
    gpus = {key: kind["resources"].get("GPU", 0) for key, kind in kinds.items()}
    assert gpus == {"headgroup": 0, "shards": 0, "gpu-shards": 1}
    assert kinds["gpu-shards"]["min_workers"] == 0 < kinds["gpu-shards"]["max_workers"]
    for pod in _pods(CLUSTER / "kuberay" / f"{name}.yaml"):
        (container,) = pod.containers
        has_gpu = "nvidia.com/gpu" in container.resources.limits
        assert has_gpu == container.image.endswith("-cuda")
        assert has_gpu == any((one.key, one.operator, one.effect) == GPU_TAINT for one in pod.tolerations)


@pytest.mark.parametrize("file", KUBERNETES, ids=lambda file: file.stem)
def test_clusters_ask_for_the_token_that_their_jobs_bring(file: Path) -> None:
    for document in map(DOCUMENT.validate_python, _documents(file)):
        if isinstance(document, RayCluster | RayService):
            spec = document.spec.ray_cluster_config if isinstance(document, RayService) else document.spec
            assert (spec.auth_options.mode, spec.auth_options.secret_name) == ("token", "ray-eraser-token")
        if isinstance(document, RayJob):
            (container,) = document.spec.submitter_pod_template.spec.containers
            token = next(variable for variable in container.env if variable.name == "RAY_AUTH_TOKEN")
            assert token.value_from.secret_key_ref.name == "ray-eraser-token"


def test_jobs_go_to_the_cluster_and_start_a_program_that_is_there() -> None:
    (job,) = map(DOCUMENT.validate_python, _documents(CLUSTER / "kuberay" / "job-train.yaml"))
    clusters = [document["metadata"]["name"] for document in _documents(CLUSTER / "kuberay" / "cluster.yaml")]
    assert job.spec.cluster_selector["ray.io/cluster"] in clusters
    program = job.spec.entrypoint.split()[1]
    assert (REPOSITORY / program.removeprefix("/home/ray/ray_eraser/")).is_file()


def test_the_service_is_one_that_ray_serve_accepts() -> None:
    pytest.importorskip("fastapi")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray Serve's own about coming versions of pydantic
        from ray.serve.schema import ServeDeploySchema

        from ray_eraser.runtime import serve_app

    (service,) = map(DOCUMENT.validate_python, _documents(CLUSTER / "kuberay" / "service.yaml"))
    config = ServeDeploySchema.model_validate(yaml.safe_load(service.spec.serve_config_v2))
    (application,) = config.applications
    module, _, function = application.import_path.partition(":")
    assert module == serve_app.__name__
    assert callable(getattr(serve_app, function))
    assert serve_app.Settings.model_validate(application.args).deployment == "shop"
    assert config.logging_config.enable_access_log is False


# That all mean the same Ray, and the same package.


def test_every_file_names_the_ray_that_is_pinned_and_installed() -> None:
    assert f"ray=={RAY}\n" in (REPOSITORY / "constraints.txt").read_text()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    major, minor, _ = RAY.split(".")
    assert f"ray[default,tune]>={major}.{minor},<{major}.{int(minor) + 1}" in project["dependencies"]
    image = f"ray-eraser:{project['version']}-ray{RAY}"
    for file in [*KUBERNETES, *(CLUSTER / f"{name}.yaml" for name in LAUNCHED), CLUSTER / "Dockerfile"]:
        text = file.read_text()
        assert {image, f"{image}-cuda"} >= set(re.findall(r"ray-eraser:[0-9]\S*", text)), file
        assert {RAY} >= set(re.findall(r"(?:rayVersion: |rayproject/ray:|ray\[\S*\]==)([0-9.]+[0-9])", text)), file
        if file.stem != "network-policy":
            assert RAY in text, file


def _instructions() -> list[list[str]]:
    """The words of every instruction of the Dockerfile."""
    text = re.sub(r"\\\n", " ", (CLUSTER / "Dockerfile").read_text())
    return [line.split() for line in text.splitlines() if line and not line.startswith("#")]


def test_the_image_runs_as_a_normal_user() -> None:
    instructions = _instructions()
    assert [words[1] for words in instructions if words[0] == "USER"] == ["1000"]
    copied = [words[2:-1] for words in instructions if words[0] == "COPY"]
    assert all((REPOSITORY / name).exists() for names in copied for name in names)


def test_the_image_for_cpus_is_built_unless_the_one_for_gpus_is_asked_for() -> None:
    targets = [words[1:] for words in _instructions() if words[0] == "FROM"]
    assert targets == [
        [f"rayproject/ray:{RAY}-py311-cpu", "AS", "base"],
        ["base", "AS", "cuda"],
        ["base", "AS", "cpu"],  # the last one is built unless a target is named
    ]


def test_the_target_for_gpus_refuses_a_cpu_build_of_pytorch() -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    of_cuda = text.partition("AS cuda\n")[2].partition("FROM ")[0]
    (check,) = re.findall(r'^RUN python -c "(.*)"$', of_cuda, re.MULTILINE)
    code = "import sys, types; sys.modules['torch'] = types.SimpleNamespace(version=types.SimpleNamespace(cuda={})); " + check
    for cuda, problem in (("None", "change TORCH_INDEX"), ("'13.0'", "")):
        command = [sys.executable, "-c", code.format(cuda)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        assert (done.returncode == 0, problem in done.stderr) == (problem == "", True)


def test_there_is_no_python_in_the_folder() -> None:
    assert list(CLUSTER.rglob("*.py")) == []


def test_the_script_says_how_it_is_used() -> None:
    done = subprocess.run(["bash", CLUSTER / "local-nodes.sh"], capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 2
    assert "local-nodes.sh start [NODES]" in done.stderr
    assert "LOCAL_NODES_CPUS" in done.stderr
    assert "LOCAL_NODES_GPUS" in done.stderr
    assert "set -euo" not in done.stderr
