"""rlhfctl estimate: whether a job fits, before it is sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from rlhf_cli.main import main

ROOT = Path(__file__).parents[2]
QWEN_7B: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
TINY = QWEN_7B | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
SPEC: dict[str, Any] = {
    "model": {"source": "model"},
    "resources": {"gpusPerNode": 8},
    "stages": {
        "sft": {"data": {"source": "hf://a/b"}, "zero": {"stage": 3}},
        "dpo": {
            "data": {"source": "hf://a/b"},
            "lora": {"rank": 8},
            "gradientCheckpointing": True,
        },
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps(QWEN_7B), "utf-8")
    write(tmp_path, SPEC)
    return tmp_path


def write(folder: Path, spec: dict[str, Any]) -> None:
    job = {
        "apiVersion": "rlhf.dev/v1alpha1",
        "kind": "RLHFJob",
        "metadata": {"name": "assistant"},
        "spec": spec,
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job), "utf-8")


def estimate(folder: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str, str]:
    code = main(["estimate", str(folder / "job.yaml"), *flags])
    return code, *capsys.readouterr()


def test_each_stage_has_a_column_whose_parts_add_up(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = estimate(folder, capsys)
    assert code == 0
    assert out.startswith("assistant: qwen2, 7.62 billion parameters, 28 layers of 3584\n")
    assert figures(out, "devices") == [8, 8]
    kept = ("weights that train", "gradients", "optimizer", "models that only read", "buckets,")
    for i in range(2):
        parts = sum(figures(out, name)[i] for name in kept)
        more = max(figures(out, name)[i] for name in ("+ activations", "+ weights"))
        assert figures(out, "at most")[i] == pytest.approx(parts + more, abs=0.3)
    assert "the claim has 107 GB (100Gi), which is too small: set spec.checkpoints.claim" in out
    assert "With --gpu it says whether they fit" in out


def test_four_stages_fit_in_a_terminal_of_80_columns(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"data": {"source": "x"}}
    write(folder, SPEC | {"stages": SPEC["stages"] | {"reward": more, "ppo": more}})
    _, out, _ = estimate(folder, capsys, "--gpu", "A100-40GB")
    table = out[out.index("each device") : out.index("Checkpoints and outputs")]
    assert table.splitlines()[1].split() == ["sft", "reward", "ppo", "dpo"]
    assert max(map(len, table.splitlines())) <= 80


def test_what_does_not_fit_ends_with_1_and_fits_with_what_is_advised(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = estimate(folder, capsys, "--gpu", "A100-40GB")
    assert code == 1
    assert "sft does not fit: in training it takes " in out
    flags = [line.split() for line in out.splitlines() if line.startswith("    --set")]
    assert ["--set", "spec.stages.sft.gradientCheckpointing=true"] in flags
    code, out, _ = estimate(folder, capsys, "--gpu", "A100-40GB", *(w for f in flags for w in f))
    assert (code, "does not fit" in out) == (0, False)


def test_where_nothing_helps_it_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = estimate(folder, capsys, "--gpu", "2GB")
    assert code == 1
    assert "No setting makes it fit: it takes more devices, or larger ones." in out


def test_a_mig_slice_needs_no_flag(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, SPEC | {"resources": {"gpusPerNode": 1, "device": "nvidia.com/mig-1g.10gb"}})
    code, out, _ = estimate(folder, capsys)
    assert code == 1
    assert "nvidia.com/mig-1g.10gb has 9.7" in out


def test_for_programs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = estimate(folder, capsys, "--gpu", "A100-40GB", "-o", "json")
    assert code == 1
    found = json.loads(out)
    sft, dpo = found["stages"]["sft"], found["stages"]["dpo"]
    assert (sft["fits"], dpo["fits"]) == (False, True)
    assert sft["changes"] == {"gradientCheckpointing": True}
    parts = sft["bytesOfADevice"]
    kept = ("weights", "gradients", "optimizer", "frozen", "reserve", "activations")
    assert parts["total"] == pytest.approx(sum(parts[name] for name in kept), abs=5)


def test_a_job_for_cpus_is_estimated_and_not_judged(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, {key: value for key, value in SPEC.items() if key != "resources"})
    code, out, _ = estimate(folder, capsys, "--gpu", "4GB")
    assert (code, "does not fit" in out) == (0, False)


def test_a_model_elsewhere_needs_its_config(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, SPEC | {"model": {"source": "pvc://models/qwen"}})
    code, _, err = estimate(folder, capsys)
    assert code == 64
    assert "spec.model.source: pvc://models/qwen cannot be read from here" in err
    assert "--config" in err
    assert estimate(folder, capsys, "--config", str(folder / "model"))[0] == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no JSON: Expecting property name"),
        ("[]", "is no config.json: it holds no object"),
        ('{"model_type": "mamba"}', "model_type mamba is none of cohere"),
    ],
)
def test_a_config_that_tells_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    (folder / "model/config.json").write_text(content, "utf-8")
    code, _, err = estimate(folder, capsys)
    assert code == 64
    assert said in err


def test_no_such_gpu(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = estimate(folder, capsys, "--gpu", "H1000")
    assert code == 64
    assert "--gpu H1000: is none of A10, L4, L40S" in err


def test_a_reward_model_that_is_not_here_counts_as_the_policy(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ppo = {"data": {"source": "hf://a/b"}, "rewards": {"x": {"model": {"source": "pvc://a/b"}}}}
    write(folder, SPEC | {"stages": {"ppo": ppo}})
    _, out, _ = estimate(folder, capsys)
    assert "Note: spec.stages.ppo.rewards.x.model: taken to be as large as the policy" in out
    (frozen,) = figures(out, "models that only read")
    ppo["rewards"]["x"]["model"]["source"] = "small"  # type: ignore[index]
    (folder / "small").mkdir()
    (folder / "small/config.json").write_text(json.dumps(TINY), "utf-8")
    write(folder, SPEC | {"stages": {"ppo": ppo}})
    _, out, _ = estimate(folder, capsys)
    assert "Note" not in out
    assert frozen == pytest.approx(2 * 15.23, abs=0.1)
    assert figures(out, "models that only read") == [pytest.approx(15.23, abs=0.1)]


def test_of_several_reward_models_the_largest_counts(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "small").mkdir()
    (folder / "small/config.json").write_text(json.dumps(TINY), "utf-8")
    rewards = {name: {"model": {"source": name}} for name in ("model", "small")}
    write(folder, SPEC | {"stages": {"ppo": {"data": {"source": "x"}, "rewards": rewards}}})
    _, out, _ = estimate(folder, capsys)
    assert figures(out, "models that only read") == [pytest.approx(3 * 15.23, abs=0.1)]


def figures(out: str, name: str) -> list[float]:
    """Those of a row, a stage each."""
    (line,) = (line for line in out.splitlines() if line.startswith(name))
    return [float(word) for word in line.split() if word.replace(".", "").isdecimal()]


class Hub(BaseHTTPRequestHandler):
    """Has one model, for those who have the token."""

    def do_GET(self) -> None:
        is_known = self.path == "/Qwen/Tiny/resolve/refs%2Fpr%2F1/config.json"
        may = self.headers.get("Authorization") == "Bearer secret"
        self.send_response(200 if is_known and may else 401 if is_known else 404)
        self.end_headers()
        if is_known and may:
            self.wfile.write(json.dumps(TINY).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_hub_is_asked_for_a_config_alone(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    hub: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(folder, SPEC | {"model": {"source": "hf://Qwen/Tiny", "revision": "refs/pr/1"}})
    code, _, err = estimate(folder, capsys)
    assert code == 64
    assert f"hf://Qwen/Tiny: {hub} says: 401 Unauthorized (HF_TOKEN is not set); give" in err
    monkeypatch.setenv("HF_TOKEN", "secret")
    code, out, _ = estimate(folder, capsys)
    assert code == 0
    assert "2 layers of 64" in out


def test_a_hub_that_is_away(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    write(folder, SPEC | {"model": {"source": "hf://Qwen/Tiny"}})
    code, _, err = estimate(folder, capsys)
    assert code == 64
    assert "http://127.0.0.1:1: [Errno 111] Connection refused; give the model's" in err
