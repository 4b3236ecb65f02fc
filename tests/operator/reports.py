"""Reports of pods to an operator, with the token that the kubelet would mount; and its metrics."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from cluster.client import Client
from prometheus_client.parser import text_string_to_metric_families

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def token_of(client: Client, pod: dict[str, Any]) -> str:
    """As the kubelet asks for it, for the pod's projected volume."""
    (volume,) = (v for v in pod["spec"]["volumes"] if v["name"] == "token")
    source = volume["projected"]["sources"][0]["serviceAccountToken"]
    meta = pod["metadata"]
    bound = {"kind": "Pod", "apiVersion": "v1", "name": meta["name"], "uid": meta["uid"]}
    spec = {
        "audiences": [source["audience"]],
        "expirationSeconds": source["expirationSeconds"],
        "boundObjectRef": bound,
    }
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    account = pod["spec"]["serviceAccountName"]
    answer = client.post("v1/serviceaccounts", account, "token", body, meta["namespace"])
    return str(answer["status"]["token"])


def path_of(pod: dict[str, Any]) -> str:
    """The path that the pod is told to report to."""
    values = {item["name"]: item.get("value") for item in pod["spec"]["containers"][0]["env"]}
    url = str(values["KUBEFLOW_TRAINER_SERVER_URL"])
    return "/" + url.partition("//")[2].partition("/")[2]


def report(port: int, path: str, token: str, percent: int, **metrics: float) -> int:
    """Posts as KubeflowCallback does; the HTTP status, 0 where nobody listens."""
    listed = [{"name": name, "value": str(value)} for name, value in metrics.items()]
    body = json.dumps({"trainerStatus": {"progressPercentage": percent, "metrics": listed}})
    headers = {"Authorization": f"Bearer {token}"}
    url = f"http://127.0.0.1:{port}{path}"
    request = urllib.request.Request(url, body.encode(), headers, method="POST")
    try:
        with OPENER.open(request, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def scraped(port: int) -> dict[tuple[str, ...], float]:
    with OPENER.open(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    return {(s.name, *s.labels.values()): s.value for f in families for s in f.samples}
