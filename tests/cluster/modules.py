"""The Go modules from which the tests' programs are built; their go.mod files pin the versions."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from cluster.toolchain import pinned_version

_HERE: Final = Path(__file__).parent


class Module(NamedTuple):
    """Programs that are built together: `packages` is each one's package, by its name.

    What is in the folder, and how it is linked, makes the key of its programs in the cache.
    """

    title: str
    version: str
    folder: Path
    packages: dict[str, str]
    link: str = "-s -w"
    tags: str = ""

    @property
    def build(self) -> tuple[str, ...]:
        """The arguments of `go` that are the same for each of its programs."""
        flags = ("build", "-mod=readonly", "-trimpath", "-buildvcs=false", f"-ldflags={self.link}")
        return (*flags, f"-tags={self.tags}") if self.tags else flags


def _linked(variables: dict[str, str]) -> str:
    return "-s -w " + " ".join(f"-X {name}={value}" for name, value in variables.items())


def _of_kubernetes(version: str) -> str:
    """What a program of Kubernetes is told of its version."""
    names = {"gitVersion": f"v{version}"} | dict(
        zip(("gitMajor", "gitMinor"), version.split("."), strict=False)
    )
    return _linked(
        {f"k8s.io/component-base/version.{name}": value for name, value in names.items()}
    )


def _kubernetes() -> Module:
    folder = _HERE / "tools"
    version = pinned_version(folder, "k8s.io/kubernetes")
    return Module(
        "Kubernetes",
        version,
        folder,
        {
            "etcd": "./etcd",
            "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
            "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
            "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
            "kubectl": "k8s.io/kubernetes/cmd/kubectl",
        },
        _of_kubernetes(version),
    )


def _helm() -> Module:
    folder = _HERE / "go" / "helm"
    library = "helm.sh/helm/v3"
    version = pinned_version(folder, library)
    minor = pinned_version(folder, "k8s.io/client-go").split(".")[1]
    variables = {f"{library}/internal/version.version": f"v{version}"}
    for package in ("chartutil", "lint/rules"):  # the Kubernetes that it takes for the cluster's
        where = f"{library}/pkg/{package}"
        variables |= {f"{where}.k8sVersionMajor": "1", f"{where}.k8sVersionMinor": minor}
    return Module(
        "Helm",
        version,
        folder,
        {"helm": "helm.sh/helm/v3/cmd/helm"},
        _linked(variables),
    )


def _promtool() -> Module:
    folder = _HERE / "go" / "promtool"
    version = pinned_version(folder, "github.com/prometheus/prometheus")
    package = "github.com/prometheus/prometheus/cmd/promtool"
    return Module("promtool", version, folder, {"promtool": package}, tags="remove_all_sd")


def _gitops_judge() -> Module:
    folder = _HERE / "go" / "gitops"
    version = pinned_version(folder, "sigs.k8s.io/cli-utils")
    packages = {"gitops-judge": ".", "flux-check": "./flux"}
    return Module("kstatus, Flux's types and Argo CD's Lua", version, folder, packages)


def _dashboard_check() -> Module:
    folder = _HERE / "go" / "grafana"
    version = pinned_version(folder, "github.com/grafana/grafana-foundation-sdk/go")
    return Module("Grafana's types", version, folder, {"dashboard-check": "."})


def _node() -> Module:
    folder = _HERE / "go" / "node"
    version = pinned_version(folder, "k8s.io/kubernetes")
    packages = {
        "kubelet": "k8s.io/kubernetes/cmd/kubelet",
        "kube-proxy": "k8s.io/kubernetes/cmd/kube-proxy",
        "pause": "./pause",
    }
    return Module("Kubernetes' node", version, folder, packages, _of_kubernetes(version))


def _dns() -> Module:
    folder = _HERE / "go" / "dns"
    version = pinned_version(folder, "github.com/coredns/coredns")
    return Module("CoreDNS", version, folder, {"coredns": "."})


KUBERNETES: Final = _kubernetes()
MODULES: Final = (KUBERNETES, _helm(), _promtool(), _gitops_judge(), _dashboard_check())
NODE: Final = (_node(), _dns())
"""What a real kubelet's test has beside these: not built for `make test`."""
