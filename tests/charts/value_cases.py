"""For each value of the chart a setting, and all that it changes in the rendered objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from differences import ANY

DEPLOYMENT: Final = "Deployment rlhf-operator spec."
TEMPLATE: Final = f"{DEPLOYMENT}template."
POD: Final = f"{TEMPLATE}spec."
CONTAINER: Final = f"{POD}containers.operator."
HELM_TEST: Final = "Pod rlhf-operator-test "
POLICY: Final = "NetworkPolicy rlhf-operator spec."
WEBHOOK: Final = "ValidatingWebhookConfiguration rlhf-operator "
MONITOR: Final = "ServiceMonitor rlhf-operator "
RULES: Final = "PrometheusRule rlhf-operator "
CRD: Final = "CustomResourceDefinition rlhfjobs.rlhf.dev"

CERTIFICATE: Final = {"tls": {"certManager": {"enabled": True}}}
WITH_WEBHOOK: Final = {"webhook": {"enabled": True}, "tls": {"secretName": "own"}}
TAINT: Final = {"key": "nvidia.com/gpu", "operator": "Exists"}


class Case(NamedTuple):
    """`expected` is the whole difference that `setting` makes, where `given` is set before."""

    value: str
    setting: Any
    expected: Mapping[str, Any]
    given: Mapping[str, Any] = {}


def flag(text: str) -> dict[str, Any]:
    """A flag that the operator gets."""
    return {f"{CONTAINER}args[{text}]": True}


def image(name: str) -> dict[str, Any]:
    """The image of the operator's pods, and of the pod of `helm test`."""
    return {f"{CONTAINER}image": name, f"{HELM_TEST}spec.containers.answers.image": name}


OPERATOR: Final = [
    Case(
        "replicaCount",
        1,
        {f"{DEPLOYMENT}replicas": 1, "PodDisruptionBudget rlhf-operator*": None},
    ),
    Case("commonLabels", {"team": "ml"}, {"*metadata.labels.team": "ml"}),
    Case("image.registry", "registry.example", image("registry.example/rlhf-operator:0.1.0")),
    Case("image.repository", "mirror/operator", image("mirror/operator:0.1.0")),
    Case("image.tag", "0.1.1", image("rlhf-operator:0.1.1")),
    Case(
        "image.digest",
        "sha256:ab",
        image("rlhf-operator@sha256:ab"),
        {"image": {"tag": "not-this-one"}},
    ),
    Case(
        "image.pullPolicy",
        "Always",
        {
            f"{CONTAINER}imagePullPolicy": "Always",
            f"{HELM_TEST}spec.containers.answers.imagePullPolicy": "Always",
        },
    ),
    Case(
        "imagePullSecrets",
        [{"name": "registry"}],
        {
            f"{POD}imagePullSecrets.registry.name": "registry",
            f"{HELM_TEST}spec.imagePullSecrets.registry.name": "registry",
        },
    ),
    Case("logLevel", "DEBUG", flag("--log-level=DEBUG") | {f"{CONTAINER}args[*INFO]": None}),
    Case("extraArgs", ["--workers=32"], flag("--workers=32")),
    Case(
        "extraEnv",
        [{"name": "TZ", "value": "UTC"}],
        {f"{CONTAINER}env.TZ.name": "TZ", f"{CONTAINER}env.TZ.value": "UTC"},
    ),
    Case(
        "resources",
        {"requests": {"cpu": "2"}, "limits": {"memory": "2Gi"}},
        {
            f"{CONTAINER}resources.requests.cpu": "2",
            f"{CONTAINER}resources.limits.memory": "2Gi",
        },
    ),
    Case(
        "nodeSelector",
        {"pool": "infra"},
        {f"{POD}nodeSelector.pool": "infra", f"{HELM_TEST}spec.nodeSelector.pool": "infra"},
    ),
    Case(
        "tolerations",
        [{"key": "infra"}],
        {f"{POD}tolerations.0.key": "infra", f"{HELM_TEST}spec.tolerations.0.key": "infra"},
    ),
    Case("affinity", {"nodeAffinity": {}}, {f"{POD}affinity.nodeAffinity": {}}),
    Case(
        "topologySpreadConstraints",
        [{"topologyKey": "rack", "maxSkew": 2, "whenUnsatisfiable": "DoNotSchedule"}],
        {
            f"{POD}topologySpreadConstraints.0.topologyKey": "rack",
            f"{POD}topologySpreadConstraints.0.maxSkew": 2,
            f"{POD}topologySpreadConstraints.0.whenUnsatisfiable": "DoNotSchedule",
            f"{POD}topologySpreadConstraints.0.labelSelector*": None,
            f"{POD}topologySpreadConstraints.1*": None,
        },
    ),
    Case(
        "priorityClassName",
        "system-cluster-critical",
        {f"{POD}priorityClassName": "system-cluster-critical"},
    ),
    Case("podAnnotations", {"team": "ml"}, {f"{TEMPLATE}metadata.annotations.team": "ml"}),
    Case("podLabels", {"team": "ml"}, {f"{TEMPLATE}metadata.labels.team": "ml"}),
    Case(
        "podSecurityContext",
        {"fsGroup": 65532},
        {
            f"{POD}securityContext.fsGroup": 65532,
            f"{HELM_TEST}spec.securityContext.fsGroup": 65532,
        },
    ),
    Case(
        "securityContext",
        {"runAsUser": 1000},
        {
            f"{CONTAINER}securityContext.runAsUser": 1000,
            f"{HELM_TEST}spec.containers.answers.securityContext.runAsUser": 1000,
        },
    ),
]

JOBS: Final = [
    Case(
        "watchNamespaces",
        ["team-a"],
        flag("--namespace=team-a")
        | {
            f"{CONTAINER}args[--all-namespaces]": None,
            "Role rlhf-operator *": ANY,
            "RoleBinding rlhf-operator *": ANY,
            "ClusterRole rlhf-operator rules*": ANY,
        },
    ),
    Case("jobDefaults.image", "r.example/t:1", flag("--default-image=r.example/t:1")),
    Case(
        "jobDefaults.gangSchedulers",
        ["kueue", "native"],
        flag("--gang-order=kueue,native") | {"ClusterRole rlhf-operator rules*": ANY},
    ),
    Case("jobDefaults.queue", "research", flag("--default-queue=research")),
    Case("jobDefaults.storageClass", "nfs", flag("--default-storage-class=nfs")),
    Case(
        "jobDefaults.nodeSelector",
        {"pool": "gpu", "nvidia.com/gpu.product": "H100"},
        flag("--default-node-selector=nvidia.com/gpu.product=H100,pool=gpu"),
    ),
    Case(
        "jobDefaults.tolerations",
        [TAINT],
        flag('--default-tolerations=[{"key":"nvidia.com/gpu","operator":"Exists"}]'),
    ),
    Case("crds.enabled", False, {f"{CRD} *": None}, {"crds": {"enabled": True}}),
    Case(
        "crds.keep",
        False,
        {f"{CRD} metadata.annotations.helm.sh/resource-policy": None},
        {"crds": {"enabled": True}},
    ),
]

ACCESS: Final = [
    Case(
        "serviceAccount.create",
        False,
        {"ServiceAccount rlhf-operator *": None},
        {"serviceAccount": {"name": "rlhf-operator"}},
    ),
    Case(
        "serviceAccount.name",
        "own",
        {
            f"{POD}serviceAccountName": "own",
            "ServiceAccount rlhf-operator *": None,
            "ServiceAccount own *": ANY,
            "* rlhf-operator* subjects.rlhf-operator.*": None,
            "RoleBinding rlhf-operator-lease subjects.own.*": ANY,
            "ClusterRoleBinding rlhf-operator subjects.own.*": ANY,
        },
    ),
    Case(
        "serviceAccount.annotations",
        {"eks.amazonaws.com/role-arn": "arn"},
        {"ServiceAccount rlhf-operator metadata.annotations.eks.amazonaws.com/role-arn": "arn"},
    ),
    Case(
        "rbac.create",
        False,
        {
            "ClusterRole rlhf-operator *": None,
            "ClusterRoleBinding rlhf-operator *": None,
            "Role rlhf-operator-lease *": None,
            "RoleBinding rlhf-operator-lease *": None,
        },
    ),
    Case(
        "rbac.clusterRoles",
        False,
        {"ClusterRole rlhf-operator-editor *": None, "ClusterRole rlhf-operator-viewer *": None},
    ),
    Case(
        "rbac.aggregateClusterRoles",
        True,
        {
            f"ClusterRole rlhf-operator-{role} metadata.labels.rbac.authorization.k8s.io/"
            f"aggregate-to-{to}": "true"
            for role, to in (
                ("editor", "edit"),
                ("editor", "admin"),
                ("viewer", "view"),
                ("viewer", "edit"),
                ("viewer", "admin"),
            )
        },
    ),
    Case("podDisruptionBudget.enabled", False, {"PodDisruptionBudget rlhf-operator *": None}),
    Case("networkPolicy.enabled", False, {"NetworkPolicy rlhf-operator *": None}),
    Case(
        "networkPolicy.apiServerPorts",
        [6443],
        {f"{POLICY}egress.0.ports.0.port": 6443, f"{POLICY}egress.0.ports.*": None},
    ),
    Case(
        "networkPolicy.metricsFrom",
        [{"namespaceSelector": {"matchLabels": {"team": "monitoring"}}}],
        {
            f"{POLICY}ingress.0.from.0.podSelector.*": ANY,
            f"{POLICY}ingress.0.from.1.namespaceSelector.matchLabels.team": "monitoring",
        },
    ),
]

SERVED: Final = [
    Case(
        "progress.enabled",
        False,
        {
            f"{CONTAINER}args[--progress-url=http://rlhf-operator.rlhf-system.svc:8082]": None,
            f"{CONTAINER}ports.progress.*": None,
            "Service rlhf-operator spec.ports.progress.*": None,
            f"{POLICY}ingress.1.*": None,
            f"{POLICY}egress.1.*": None,
            "ClusterRole rlhf-operator rules*": None,
        },
    ),
    Case(
        "progress.url",
        "http://gateway.example/",
        flag("--progress-url=http://gateway.example") | {f"{CONTAINER}args[*svc:8082]": None},
    ),
    Case(
        "webhook.enabled",
        True,
        flag("--webhook-port=8443")
        | {
            f"{CONTAINER}ports.webhook.*": ANY,
            "Service rlhf-operator spec.ports.webhook.*": ANY,
            f"{POLICY}ingress.2.*": ANY,
            f"{WEBHOOK}*": ANY,
            "ClusterRole rlhf-operator rules*": ANY,
        },
        {"tls": {"secretName": "own"}},
    ),
    Case(
        "webhook.failurePolicy",
        "Fail",
        {f"{WEBHOOK}webhooks.validate.rlhf.dev.failurePolicy": "Fail"},
        WITH_WEBHOOK,
    ),
    Case(
        "webhook.timeoutSeconds",
        9,
        {f"{WEBHOOK}webhooks.validate.rlhf.dev.timeoutSeconds": 9},
        WITH_WEBHOOK,
    ),
    Case(
        "tls.secretName",
        "own",
        flag("--tls-directory=/tls")
        | flag("--tls-name=rlhf-operator.rlhf-system.svc")
        | {
            f"{CONTAINER}volumeMounts.tls.*": ANY,
            f"{POD}volumes.tls.name": "tls",
            f"{POD}volumes.tls.secret.secretName": "own",
        },
    ),
    Case(
        "tls.caBundle",
        "PEM",
        {
            f"{WEBHOOK}webhooks.validate.rlhf.dev.clientConfig.caBundle": "UEVN",
            f"{WEBHOOK}metadata.annotations.cert-manager.io/inject-ca-from-secret": None,
        },
        WITH_WEBHOOK,
    ),
    Case(
        "tls.certManager.enabled",
        True,
        flag("--tls-directory=/tls")
        | flag("--tls-name=rlhf-operator.rlhf-system.svc")
        | {
            f"{CONTAINER}volumeMounts.tls.*": ANY,
            f"{POD}volumes.tls.name": "tls",
            f"{POD}volumes.tls.secret.secretName": "rlhf-operator-tls",
            "Issuer rlhf-operator *": ANY,
            "Certificate rlhf-operator *": ANY,
        },
    ),
    Case(
        "tls.certManager.issuerRef",
        {"name": "company", "kind": "ClusterIssuer"},
        {
            "Issuer rlhf-operator *": None,
            "Certificate rlhf-operator spec.issuerRef.name": "company",
            "Certificate rlhf-operator spec.issuerRef.kind": "ClusterIssuer",
        },
        CERTIFICATE,
    ),
]

SEEN: Final = [
    Case("prometheus.serviceMonitor.enabled", True, {f"{MONITOR}*": ANY}),
    Case(
        "prometheus.serviceMonitor.interval",
        "5s",
        {f"{MONITOR}spec.endpoints.0.interval": "5s"},
        {"prometheus": {"serviceMonitor": {"enabled": True}}},
    ),
    Case(
        "prometheus.serviceMonitor.labels",
        {"release": "kps"},
        {f"{MONITOR}metadata.labels.release": "kps"},
        {"prometheus": {"serviceMonitor": {"enabled": True}}},
    ),
    Case("prometheus.prometheusRule.enabled", True, {f"{RULES}*": ANY}),
    Case(
        "prometheus.prometheusRule.labels",
        {"release": "kps"},
        {f"{RULES}metadata.labels.release": "kps"},
        {"prometheus": {"prometheusRule": {"enabled": True}}},
    ),
    Case(
        "prometheus.prometheusRule.runbookUrl",
        "https://docs.example/alerts",
        {f"{RULES}spec.groups.*.annotations.runbook_url": ANY},
        {"prometheus": {"prometheusRule": {"enabled": True}}},
    ),
    Case("grafana.dashboard.enabled", True, {"ConfigMap rlhf-operator-dashboard *": ANY}),
    Case(
        "grafana.dashboard.labels",
        {"folder": "ml"},
        {"ConfigMap rlhf-operator-dashboard metadata.labels.folder": "ml"},
        {"grafana": {"dashboard": {"enabled": True}}},
    ),
    Case(
        "grafana.dashboard.annotations",
        {"grafana_folder": "ml"},
        {"ConfigMap rlhf-operator-dashboard metadata.annotations*grafana_folder": "ml"},
        {"grafana": {"dashboard": {"enabled": True}}},
    ),
]

CASES: Final = [*OPERATOR, *JOBS, *ACCESS, *SERVED, *SEEN]
NAMES: Final = ("nameOverride", "fullnameOverride")
"""Values that rename everything, which have tests of their own."""
