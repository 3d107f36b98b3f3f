"""The part of Kubernetes' and KubeRay's formats that `cluster/kuberay/` uses. Kubernetes ignores a key that it does not know;
here it is an error.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic.alias_generators import to_camel

Text = dict[str, str]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


class Metadata(Part):
    name: str
    labels: Text = {}
    annotations: Text = {}


class Labels(Part):
    labels: Text


class Selector(Part):
    match_labels: Text = {}


class Named(Part):
    name: str


class SecretKey(Part):
    name: str
    key: str


class ValueFrom(Part):
    secret_key_ref: SecretKey


class EnvironmentVariable(Part):
    name: str
    value: str | None = None
    value_from: ValueFrom | None = None


class EnvironmentFrom(Part):
    secret_ref: Named


class Port(Part):
    name: str
    container_port: int


class Resources(Part):
    requests: Text
    limits: Text = {}


class Seccomp(Part):
    type: Literal["RuntimeDefault"]


class Capabilities(Part):
    drop: list[Literal["ALL"]]


class ContainerSecurity(Part):
    allow_privilege_escalation: bool
    capabilities: Capabilities


class PodSecurity(Part):
    run_as_non_root: bool
    run_as_user: int
    fs_group: int | None = None
    seccomp_profile: Seccomp


class Mount(Part):
    name: str
    mount_path: str
    read_only: bool = False


class Container(Part):
    name: str
    image: str
    env: list[EnvironmentVariable] = []
    env_from: list[EnvironmentFrom] = []
    ports: list[Port] = []
    resources: Resources
    security_context: ContainerSecurity
    volume_mounts: list[Mount] = []


class Claim(Part):
    claim_name: str


class SecretVolume(Part):
    secret_name: str


class EmptyFolder(Part):
    pass


class Volume(Part):
    name: str
    persistent_volume_claim: Claim | None = None
    secret: SecretVolume | None = None
    empty_dir: EmptyFolder | None = None


class Spread(Part):
    max_skew: int
    topology_key: str
    when_unsatisfiable: Literal["ScheduleAnyway", "DoNotSchedule"]
    label_selector: Selector


class Toleration(Part):
    key: str
    operator: Literal["Exists", "Equal"]
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class Pod(Part):
    automount_service_account_token: bool
    restart_policy: Literal["Always", "OnFailure", "Never"] | None = None
    security_context: PodSecurity
    tolerations: list[Toleration] = []
    topology_spread_constraints: list[Spread] = []
    containers: list[Container] = Field(min_length=1)
    volumes: list[Volume] = []


class PodTemplate(Part):
    metadata: Labels | None = None
    spec: Pod


class Head(Part):
    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"]
    ray_start_params: Text
    template: PodTemplate


class Workers(Part):
    group_name: str
    replicas: int
    min_replicas: int
    max_replicas: int
    ray_start_params: Text
    template: PodTemplate


class Authentication(Part):
    mode: Literal["disabled", "token"]
    secret_name: str


class RayClusterSpec(Part):
    ray_version: str
    auth_options: Authentication
    enable_in_tree_autoscaling: bool = False
    head_group_spec: Head
    worker_group_specs: list[Workers]


class RayJobSpec(Part):
    cluster_selector: Text
    submission_mode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
    backoff_limit: int
    active_deadline_seconds: int
    entrypoint: str
    submitter_pod_template: PodTemplate


class Upgrade(Part):
    type: Literal["None", "NewCluster", "NewClusterWithIncrementalUpgrade"]


class RayServiceSpec(Part):
    upgrade_strategy: Upgrade
    serve_config_v2: str = Field(alias="serveConfigV2")
    ray_cluster_config: RayClusterSpec


class ClaimSpec(Part):
    access_modes: list[Literal["ReadWriteOnce", "ReadWriteMany"]]
    storage_class_name: str | None = None
    resources: Resources


class Peer(Part):
    namespace_selector: Selector | None = None
    pod_selector: Selector


class PolicyPort(Part):
    protocol: Literal["TCP", "UDP"]
    port: int


class Ingress(Part):
    source: list[Peer] = Field([], alias="from")
    ports: list[PolicyPort] = []


class Egress(Part):
    to: list[Peer] = []
    ports: list[PolicyPort] = []


class PolicySpec(Part):
    pod_selector: Selector
    policy_types: list[Literal["Ingress", "Egress"]]
    ingress: list[Ingress]
    egress: list[Egress]


class RayCluster(Part):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: RayClusterSpec


class RayJob(Part):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: RayJobSpec


class RayService(Part):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: Metadata
    spec: RayServiceSpec


class PersistentVolumeClaim(Part):
    api_version: Literal["v1"]
    kind: Literal["PersistentVolumeClaim"]
    metadata: Metadata
    spec: ClaimSpec


class NetworkPolicy(Part):
    api_version: Literal["networking.k8s.io/v1"]
    kind: Literal["NetworkPolicy"]
    metadata: Metadata
    spec: PolicySpec


Document = RayCluster | RayJob | RayService | PersistentVolumeClaim | NetworkPolicy
DOCUMENT: TypeAdapter[Document] = TypeAdapter(Annotated[Document, Field(discriminator="kind")])
