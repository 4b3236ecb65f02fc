"""rlhfctl on a cluster: each verb against a real API server, with an operator at work."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import warm
import yaml
from cluster.client import PATIENCE
from cluster.control_plane import ControlPlane
from cluster.kubelet import Kubelet, Script, Scripted, trained
from cluster.nodes import FakeNodes
from cluster_jobs import Jobs, condition, manifest, stage, wait_until
from operator_process import OperatorProcess
from rlhf_api.crd import COLUMNS
from rlhf_cli.commands import submit

Object = dict[str, Any]
LINES = "".join(
    f"ppo  step {n}/60  reward {n / 10}  kl 0.{n:02d}  lr 1e-04\n" for n in range(1, 41)
)
BROKEN = {"exitCode": 64, "reason": "BadData", "message": "sft.jsonl:17: the answer is empty"}


def heeds_ctrl_c() -> None:
    """Whatever started the tests: a shell's job in the background is born deaf to SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Story:
    """`long` trains PPO until it is stopped, `quick` ends well, `broken` has bad data until mended.

    The operator serves the one namespace.
    """

    def __init__(self, plane: ControlPlane, namespace: str, folder: Path) -> None:
        self.plane, self.namespace, self.folder = plane, namespace, folder
        self.jobs = Jobs(plane.client, namespace)
        self.is_mended = False

    def script(self, pod: Object) -> Script:
        labels = pod["metadata"]["labels"]
        job, of = labels["rlhf.dev/job"], labels["rlhf.dev/stage"]
        if job == "broken" and of == "sft" and not self.is_mended:
            return Script(exit_code=64, message=json.dumps(BROKEN), log="row 17 is empty\n")
        if job == "long" and of == "ppo":
            return Script(run_s=None, log=LINES, term_s=0.1)
        return Script(message=trained(pod, **{"train/loss": 0.4}), log=f"{of} of {job}\nlast\n")

    def write(self, name: str, nodes: int = 2, **spec: Any) -> Path:
        made = manifest(self.namespace, name, nodes=nodes, stages="sft reward ppo")
        del made["metadata"]["namespace"]
        made["spec"] |= spec
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(made))
        return file

    def start(self, *words: str, login: str = "", **options: Any) -> subprocess.Popen[str]:
        place = ["--kubeconfig", login or str(self.plane.kubeconfig), "-n", self.namespace]
        command = warm.command("rlhf_cli", *words, *place)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        options.setdefault("preexec_fn", heeds_ctrl_c)
        return subprocess.Popen(command, text=True, cwd=self.folder, **pipes, **options)

    def run(self, *words: str, code: int = 0, login: str = "") -> str:
        """What it says on both streams; the exit code has to be this one."""
        process = self.start(*words, login=login)
        said = "".join(process.communicate(timeout=PATIENCE))
        assert "Traceback" not in said
        assert process.returncode == code, said
        return said

    @property
    def place(self) -> list[str]:
        return ["--kubeconfig", str(self.plane.kubeconfig), "-n", self.namespace]


@pytest.fixture(scope="module")
def story(
    installed: ControlPlane,
    fake_nodes: FakeNodes,
    module_namespace: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("verbs")
    lease = ("--lease-namespace", module_namespace)
    operator = OperatorProcess(
        installed.kubeconfig, [module_namespace], folder / "operator.log", *lease
    )
    nodes = [fake_nodes.add({"nvidia.com/gpu": 8}) for _ in range(2)]
    told = Story(installed, module_namespace, folder)
    operator.start()
    try:
        with Kubelet(installed.kubeconfig, Scripted(told.script)):
            yield told
    finally:
        operator.end()
        print(operator.log()[-8000:])
        for node in nodes:
            fake_nodes.remove(node)


def test_a_manifest_is_submitted_once_and_changes_nothing_the_second_time(story: Story) -> None:
    file = str(story.write("long"))
    assert "is accepted (dry run)" in story.run("submit", file, "--dry-run")
    assert "No RLHFJobs" in story.run("list")
    assert story.run("submit", file) == "rlhfjob.rlhf.dev/long created\n"
    before = story.jobs.get("long")["metadata"]["generation"]
    assert story.run("submit", "-f", file) == "rlhfjob.rlhf.dev/long unchanged\n"
    assert story.run("submit", file, "--set", "spec.stages.ppo.kl.coef=0.03", "-o", "name")
    assert story.jobs.get("long")["metadata"]["generation"] == before + 1
    (entry,) = [
        item
        for item in story.jobs.get("long")["metadata"]["managedFields"]
        if item["manager"] == "rlhfctl"
    ]
    assert entry["operation"] == "Apply"


def test_a_status_that_is_written_meanwhile_is_no_change_of_the_job() -> None:
    meta = {"uid": "1", "generation": 2, "resourceVersion": "5", "labels": {"team": "a"}}
    later = {"metadata": meta | {"resourceVersion": "6"}, "status": {"phase": "Running"}}
    other = {"metadata": meta | {"resourceVersion": "6", "labels": {"team": "b"}}}
    assert submit._done(later, {"metadata": meta}, False) == "unchanged"
    assert submit._done(other, {"metadata": meta}, False) == "configured"


def test_what_the_api_server_refuses_is_not_applied_in_part(story: Story) -> None:
    good, bad = story.write("fine"), story.write("wrong")
    text = bad.read_text().replace("name: wrong", "name: long")
    text = text.replace("spec:\n", "spec:\n  checkpoints: {existingClaim: elsewhere}\n")
    bad.write_text(text)
    story.jobs.wait(lambda job: "storage" in ((job or {}).get("status") or {}), "long")
    assert "is immutable" in story.run("submit", str(good), str(bad), code=64)
    assert story.jobs.client.find("rlhf.dev/v1alpha1/rlhfjobs", "fine", story.namespace) is None


def test_a_field_of_somebody_else_s_is_taken_only_by_force(story: Story) -> None:
    seed = {"spec": {"seed": 7}}
    story.jobs.patch(seed, "long")
    file = str(story.write("long", seed=8))
    said = story.run("submit", file, code=64)
    assert "others have set fields of long" in said
    assert "--force-conflicts" in said
    assert "configured" in story.run("submit", file, "--force-conflicts")


def test_paths_of_this_machine_are_refused_before_anything_is_sent(story: Story) -> None:
    file = story.write("paths")
    file.write_text(file.read_text().replace("hf://org/data", "data/rows.jsonl"))
    said = story.run("submit", str(file), code=64)
    assert "spec.stages.sft.data" in said
    assert "pods cannot see" in said


def test_jobs_are_listed_in_each_form(story: Story) -> None:
    story.jobs.wait_running("ppo", of="long")
    heading, row = story.run("list").splitlines()
    assert heading.split() == ["NAME", *(c[0].upper() for c in COLUMNS if not c[3])]
    assert row.split()[:4] == ["long", "Running", "ppo", "3/3"]
    assert story.run("get", "long", "-o", "name") == "rlhfjob.rlhf.dev/long\n"
    found = json.loads(story.run("get", "long", "-o", "json"))
    assert (found["kind"], "managedFields" in found["metadata"]) == ("RLHFJob", False)
    listed = yaml.safe_load(story.run("list", "-o", "yaml"))
    assert [item["metadata"]["name"] for item in listed["items"]] == ["long"]
    assert "RESTARTS" in story.run("list", "-o", "wide")
    assert story.run("list", "-A").split()[0] == "NAMESPACE"
    assert "No RLHFJobs" in story.run("list", "-l", "team=nobody")


def test_a_name_that_is_nearly_right_is_suggested(story: Story) -> None:
    assert "did you mean long?" in story.run("get", "logn", code=64)


def test_a_description_tells_pods_events_and_results(story: Story) -> None:
    said = story.run("describe", "long")
    for told in ("Conditions", "Every pod of ppo has its place", "StageStarted"):
        assert told in said
    assert said.count("long-ppo-") >= 2
    assert story.jobs.get("long")["status"]["stages"]["sft"]["checkpoint"]["digest"] in said


def test_logs_are_those_of_the_stage_under_way_pod_by_pod(story: Story) -> None:
    said = story.run("logs", "long", "--tail", "2")
    assert [line.split(" | ")[0] for line in said.splitlines()] == ["ppo-0"] * 2 + ["ppo-1"] * 2
    assert "step 40/60" in said
    assert story.run("logs", "long", "--rank", "5", "--tail", "1").startswith("ppo  step 40/60")
    assert story.run("logs", "long", "--stage", "sft", "--rank", "0") == "sft of long\nlast\n"
    assert "\x1b[" in story.run("logs", "long", "--color", "always")
    assert "there is no rank 8: ranks are 0 to 7" in story.run(
        "logs", "long", "--rank", "8", code=64
    )
    assert "it has prepare, sft" in story.run("logs", "long", "--stage", "dpo", code=64)


def test_followed_logs_go_on_until_ctrl_c(story: Story) -> None:
    process = story.start("logs", "long", "-f", "--rank", "0")
    assert process.stdout
    first = [process.stdout.readline() for _ in range(40)]
    assert first[0].startswith("ppo-0 | ppo  step 1/60")
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 130
    assert process.stderr
    assert process.stderr.read() == ""


def test_logs_that_may_not_be_read_are_refused_while_they_are_followed(story: Story) -> None:
    plane, namespace = story.plane, story.namespace
    resources = "rlhfjobs.rlhf.dev,pods"
    login = str(plane.account_with("onlooker", namespace, "get,list,watch", resources))
    for follow in ([], ["-f"]):
        said = story.run("logs", "long", *follow, code=77, login=login)
        assert f"kubectl auth can-i get pods/log -n {namespace}" in said


def test_a_watch_tells_stages_and_ends_with_ctrl_c(story: Story) -> None:
    process = story.start("watch", "long")
    assert process.stdout
    seen = ""
    while "PPO" not in seen:
        seen += process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 130
    assert "Traceback" not in "".join(process.communicate())


def test_events_are_watched_and_not_listed_again_and_again(story: Story) -> None:
    plane, namespace = story.plane, story.namespace
    resources = "rlhfjobs.rlhf.dev,pods,events"
    login = str(plane.account_with("watcher", namespace, "get,list,watch", resources))
    process = story.start("events", "long", "-w", "-o", "json", login=login)
    assert process.stdout
    assert json.loads(process.stdout.readline())["message"]
    labels = "rlhf.dev/job=long,rlhf.dev/stage=ppo"
    pod = plane.client.list("v1/pods", namespace, labels=labels)[0]["metadata"]["name"]
    for name in ("someone-else", pod):
        plane.client.create(sneeze(name, namespace), namespace)
    seen = {"reason": ""}
    while seen["reason"] != "Sneezed":
        seen = json.loads(process.stdout.readline())
    assert (seen["about"], process.poll()) == (pod, None)
    time.sleep(5)
    asked = [r.verb for r in plane.requests_of("watcher", namespace) if r.resource == "events"]
    assert asked.count("list") == 2  # the job's own, and those of pods
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 130
    assert "".join(process.communicate()) == ""


def sneeze(pod: str, namespace: str) -> Object:
    about = {"apiVersion": "v1", "kind": "Pod", "name": pod, "namespace": namespace}
    meta = {"name": f"{pod}.sneezed"}
    told = {"type": "Warning", "reason": "Sneezed", "message": "Atishoo", "count": 1}
    return {"apiVersion": "v1", "kind": "Event", "metadata": meta, "involvedObject": about, **told}


def test_waiting_ends_with_its_time(story: Story) -> None:
    assert "did not come within 1 s" in story.run("watch", "long", "--timeout", "1", code=124)


def test_a_suspended_job_gives_its_devices_back_and_goes_on(story: Story) -> None:
    name = "rlhfjob.rlhf.dev/long\n"
    assert story.run("suspend", "long", "-o", "name") == name
    said = story.run("suspend", "long", "--wait", "--timeout", f"{PATIENCE:g}s")
    assert "Its pods have ended." in said
    assert condition(story.jobs.get("long"), "Suspended")[0] == "True"
    assert "rlhfctl resume long" in story.run("describe", "long")
    assert "goes on" in story.run("resume", "long")
    assert story.run("resume", "long", "-o", "name") == name
    story.jobs.wait(lambda job: stage(job, "ppo").get("attempt", 0) > 1, "long")


def test_a_submitted_job_is_followed_to_its_end(story: Story) -> None:
    said = story.run("submit", str(story.write("quick")), "--wait", "--timeout", f"{PATIENCE:g}s")
    for told in ("created", "SFT", "succeeded", "rlhfctl report quick"):
        assert told in said


def test_events_are_told_oldest_first(story: Story) -> None:
    told = ("Succeeded", "Every stage has succeeded.")
    wait_until(lambda: told in story.jobs.events())  # it follows the status
    said = story.run("events", "quick")
    steps = ("sft: attempt 1 runs", "ppo: attempt 1 runs", "Every stage has succeeded")
    order = [said.index(step) for step in steps]
    assert order == sorted(order)
    rows = [json.loads(line) for line in story.run("events", "quick", "-o", "json").splitlines()]
    assert [row["time"] for row in rows] == sorted(row["time"] for row in rows)


def test_a_job_that_failed_says_why_and_is_retried_once_it_is_mended(story: Story) -> None:
    said = story.run("submit", str(story.write("broken")), "--wait", code=64)
    assert "rlhfctl retry broken" in said
    assert "the answer is empty" in story.run("describe", "broken")
    assert "row 17 is empty" in story.run("logs", "broken")
    generation = story.jobs.get("broken")["metadata"]["generation"]
    assert "ppo of broken has not failed" in story.run("retry", "broken", "--stage", "ppo", code=64)
    story.is_mended = True
    assert "sft gets another try" in story.run("retry", "broken")
    story.jobs.wait_ready("broken")
    assert story.jobs.attempts("broken")["sft"] == 2
    assert story.jobs.get("broken")["metadata"]["generation"] == generation
    assert "no stage of broken has failed" in story.run("retry", "broken", code=64)


def test_a_cancelled_job_has_no_pods_and_is_kept(story: Story) -> None:
    story.jobs.wait_running("ppo", of="long")
    said = story.run("cancel", "long", "--timeout", f"{PATIENCE:g}s")
    assert "results and checkpoints are kept" in said
    assert story.run("cancel", "long", "-o", "name") == "rlhfjob.rlhf.dev/long\n"
    pods = story.plane.client.list("v1/pods", story.namespace, labels="rlhf.dev/job=long")
    assert all(pod["status"]["phase"] in ("Succeeded", "Failed") for pod in pods)


def test_a_watched_list_goes_on_with_each_change(story: Story) -> None:
    process, stream = (
        story.start("get", "long", "-w"),
        story.start("get", "long", "-w", "-o", "yaml"),
    )
    assert process.stdout
    assert stream.stdout
    assert process.stdout.readline().startswith("NAME")
    assert "Suspended" in process.stdout.readline()
    assert stream.stdout.readline().startswith("apiVersion")
    story.run("delete", "long", "--no-wait")
    assert process.wait(PATIENCE) == 0
    told = "".join(stream.stdout)
    assert stream.wait(PATIENCE) == 0
    assert {item["metadata"]["name"] for item in yaml.safe_load_all(told)} == {"long"}


def test_a_deleted_job_leaves_its_checkpoints_unless_they_are_named(story: Story) -> None:
    said = story.run("delete", "quick")
    assert "rlhfjob.rlhf.dev/quick deleted" in said
    assert "Its checkpoints stay in the claim quick-checkpoints." in said
    claims = "v1/persistentvolumeclaims"
    assert story.plane.client.find(claims, "quick-checkpoints", story.namespace)
    assert story.plane.client.list("v1/pods", story.namespace, labels="rlhf.dev/job=quick") == []
    assert "add --yes" in story.run("delete", "broken", "--checkpoints", code=64)
    file = story.write("made", checkpoints={"claim": {"size": "1Gi"}})
    story.run("submit", str(file), "--wait", "--timeout", f"{PATIENCE:g}s")
    story.run("delete", "made", "--checkpoints", "--yes")

    def is_gone() -> bool:
        found = story.plane.client.find(claims, "made-checkpoints", story.namespace)
        return found is None or "deletionTimestamp" in found["metadata"]

    wait_until(is_gone)


def test_the_doctor_finds_what_is_there(story: Story) -> None:
    seen = json.loads(story.run("doctor", "-o", "json"))
    assert any(story.namespace in one["found"] for one in seen if one["subject"] == "Operator")
    found = {item["subject"]: item for item in seen}
    assert found["Kubernetes"]["level"] == "ok"
    assert "of this version" in found["Resource"]["found"]
    assert "16 nvidia.com/gpu" in found["Devices"]["found"]
    assert found["Gang scheduling"]["found"] == "native"
    assert found["Permissions"]["level"] == "ok"
    assert "ReadWriteMany" in found["Storage"]["found"]
    assert found["Storage"]["advice"]


def test_a_lease_that_another_installation_left_is_no_error_beside_one_that_is_held(
    story: Story,
) -> None:
    left = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "rlhf-operator", "namespace": "kube-public"},
        "spec": {"holderIdentity": ""},
    }
    story.plane.client.apply(left)
    try:
        seen = json.loads(story.run("doctor", "-o", "json"))
    finally:
        story.plane.client.delete("coordination.k8s.io/v1/leases", "rlhf-operator", "kube-public")
    operators = {one["found"]: one["level"] for one in seen if one["subject"] == "Operator"}
    assert operators["the lease in kube-public is free: no operator runs there"] == "warning"
    assert "ok" in operators.values()
    assert "error" not in operators.values()


def test_the_doctor_of_a_user_without_rights_says_what_is_missing(story: Story) -> None:
    story.plane.kubectl("create", "serviceaccount", "nobody", "-n", story.namespace)
    kubeconfig = story.plane.kubeconfig_for("nobody", story.namespace)
    command = [sys.executable, "-m", "rlhf_cli", "doctor", "--kubeconfig", str(kubeconfig)]
    command += ["-n", story.namespace]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert "you may not create rlhfjobs" in done.stdout
    assert "cannot be looked at" in done.stdout
    assert "Traceback" not in done.stderr


def test_names_of_jobs_complete_themselves(story: Story) -> None:
    command = [sys.executable, "-m", "rlhf_cli", "__complete", "logs", *story.place, "b"]

    def told() -> str:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        return done.stdout

    # Names are waited for two seconds, in which a machine with other work may not get that far.
    wait_until(lambda: told() == "broken\n")


def test_kubectl_s_plug_in_has_its_own_name(story: Story) -> None:
    plugin = Path(sys.executable).with_name("kubectl-rlhf")
    done = subprocess.run(
        [str(plugin), "get", "nobody", *story.place],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 64
    assert done.stderr.startswith("kubectl rlhf: there is no RLHFJob nobody")
    assert "kubectl rlhf list" in done.stderr


def test_a_reader_that_goes_away_ends_a_follower(story: Story) -> None:
    script = f"{sys.executable} -m rlhf_cli list -o json {' '.join(story.place)} | head -n 1"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout, done.stderr) == ("{\n", "")
