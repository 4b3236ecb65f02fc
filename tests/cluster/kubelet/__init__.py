"""A stand-in for the kubelets of fake nodes: pods are run as processes, or played from a script.

    with Kubelet(kubeconfig, Scripted(play)) as kubelet: ...

It watches the pods that are bound to its nodes and reports their status as a kubelet does. Faults
are methods: `kill`, `oom`, `evict`, `lose_node`, `recover_node`.
"""

from cluster.kubelet.kubelet import Kubelet
from cluster.kubelet.processes import Processes
from cluster.kubelet.script import Script, Scripted, succeed, trained

__all__ = ["Kubelet", "Processes", "Script", "Scripted", "succeed", "trained"]
