"""Bytes of a device and a volume, by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rlhf_api.resources import Resources
from rlhf_api.stages import AnyStage, DPOStage, PPOStage, RewardStage, SFTStage
from rlhf_planner.advice import changed, what_fits
from rlhf_planner.architecture import Architecture, Linear
from rlhf_planner.disk import of_a_checkpoint
from rlhf_planner.hardware import GIB, Device, device_named, device_of_resource
from rlhf_planner.memory import Memory, Models, of_a_device, of_the_host

DATA = {"data": {"source": "unused"}}
LINEARS = (Linear("q_proj", 4096, 4096), Linear("up_proj", 4096, 11008))
P = 7.5e9
"""Parameters of figure 1 of the ZeRO paper, on its 64 devices."""
SHAPE = Architecture("llama", int(P), int(P), 32, 4096, 11008, 1024, 32000, LINEARS)
MODELS = Models(SHAPE, SHAPE)
GANG = Resources(nodes=8, gpus_per_node=8)
KINDS: tuple[Any, ...] = (SFTStage, RewardStage, PPOStage, DPOStage)


def stage(kind: Any, **fields: Any) -> AnyStage:
    made: AnyStage = kind.model_validate({**DATA, **fields})
    return made


def taken(kind: Any, models: Models = MODELS, evaluates: bool = False, **fields: Any) -> Memory:
    return of_a_device(stage(kind, **fields), models, GANG, evaluates=evaluates)


@pytest.mark.parametrize(
    ("zero", "expected"),
    [
        # The paper has gradients in fp16: 31.4, 16.6 and 1.9 GB. Ours are in fp32.
        (1, (2 * P, 4 * P, 12 * P / 64)),
        (2, (2 * P, 4 * P / 64, 12 * P / 64)),
        (3, (2 * P / 64, 4 * P / 64, 12 * P / 64)),
    ],
)
def test_states_are_parted_as_zero_parts_them(zero: int, expected: tuple[float, ...]) -> None:
    assert taken(SFTStage, zero={"stage": zero})[:3] == expected


def test_bf16_weights_have_their_masters_parted_though_nobody_asked() -> None:
    """DeepSpeed gets ZeRO 1 then."""
    assert taken(SFTStage)[:3] == taken(SFTStage, zero={"stage": 1})[:3]


def test_fp32_needs_no_second_copy_and_parts_nothing() -> None:
    assert taken(SFTStage, precision="fp32")[:3] == (4 * P, 4 * P, 8 * P)


def test_a_cpu_computes_in_fp32_unless_it_is_told_to_in_bf16() -> None:
    cpus = Resources(nodes=8, processes_per_node=8)
    assert of_a_device(stage(SFTStage), MODELS, cpus).weights == 4 * P
    assert of_a_device(stage(SFTStage, precision="bf16"), MODELS, cpus).weights == 2 * P


def test_what_is_offloaded_has_buckets_and_no_small_model_has_large_ones() -> None:
    """DeepSpeed needs ZeRO 1 for it, in fp32 too."""
    runtime, logits = 2e9, 1e9
    fields = {"precision": "fp32", "zero": {"offload": "cpu"}}
    assert taken(SFTStage, **fields).reserve == 3e9 + logits + runtime
    small = SHAPE._replace(parameters=10**8)
    assert taken(SFTStage, Models(small, small)).reserve == 6e8 + logits + runtime


def test_one_rank_has_whole_weights_whatever_zero_parts() -> None:
    zero = {"zero": {"stage": 3}}
    one = Resources(gpus_per_node=1)
    assert of_a_device(stage(SFTStage, **zero), MODELS, one, evaluates=True).generation == 0


def test_an_adapter_trains_its_two_matrices_of_each_layer() -> None:
    lora = {"rank": 8}
    adapter = 32 * 8 * (4096 + 4096 + 4096 + 11008)
    found = taken(SFTStage, lora=lora)
    assert found[:3] == (2 * (P + adapter), 4 * adapter, 12 * adapter / 64)
    one = taken(SFTStage, lora=lora | {"targetModules": ["q_proj"]})
    assert one.gradients == 4 * 32 * 8 * (4096 + 4096)


def test_what_is_trained_in_full_beside_an_adapter_counts_whole() -> None:
    lora = {"rank": 8, "modulesToSave": ["embed_tokens", "lm_head", "q_proj"]}
    adapter = 32 * 8 * (4096 + 11008)
    whole = 2 * 32000 * 4096 + 32 * 4096 * 4096
    assert taken(SFTStage, lora=lora).gradients == 4 * (adapter + whole)


def test_what_is_offloaded_is_on_the_host() -> None:
    settings = {"zero": {"stage": 3, "offload": "cpu"}}
    found = taken(SFTStage, **settings)
    assert found[:3] == (0, 0, 0)
    assert of_the_host(stage(SFTStage, **settings), MODELS, GANG) == 16 * P / 8
    assert of_the_host(stage(SFTStage), MODELS, GANG) == 0


def test_ppo_trains_two_models_and_reads_two() -> None:
    found = taken(PPOStage)
    assert found.optimizer == 2 * taken(SFTStage).optimizer
    assert found.frozen == 2 * 2 * P
    assert taken(PPOStage, zero={"stage": 3}).frozen == 2 * 2 * P / 64


@pytest.mark.parametrize(
    ("fields", "models_read"),
    [
        ({"lora": {"rank": 8}}, 1),  # the reference is the actor without its adapter
        ({"rewards": {"x": {"http": {"url": "http://judge"}}}}, 1),
        ({"rewards": {n: {"model": {"source": n}} for n in "ab"}}, 3),
        ({"advantage": "grpo", "rollout": {"samplesPerPrompt": 4}}, 2),
    ],
    ids=str,
)
def test_how_many_models_ppo_reads(fields: dict[str, Any], models_read: int) -> None:
    assert taken(PPOStage, **fields).frozen == models_read * 2 * P


@pytest.mark.parametrize("fields", [{"advantage": "rloo"}, {"critic": "shared"}], ids=str)
def test_without_a_critic_of_its_own_ppo_trains_one(fields: dict[str, Any]) -> None:
    assert taken(PPOStage, **fields).optimizer == taken(SFTStage).optimizer


def test_a_smaller_reward_model_makes_a_smaller_critic() -> None:
    small = SHAPE._replace(parameters=10**9)
    found = taken(PPOStage, Models(SHAPE, small))
    assert found.optimizer == 12 * (P + 1e9) / 64
    fresh = taken(PPOStage, Models(SHAPE, small), critic="fresh")
    assert fresh.optimizer == 12 * 2 * P / 64


@pytest.mark.parametrize(
    ("fields", "frozen"),
    [
        ({}, 0),  # its log-probs are computed once, and it goes
        ({"referenceCache": False}, 2 * P),
        ({"referenceCache": False, "lora": {"rank": 8}}, 0),
        ({"referenceCache": False, "loss": "orpo"}, 0),
    ],
    ids=str,
)
def test_dpo_keeps_a_reference_where_it_is_asked_to(fields: dict[str, Any], frozen: float) -> None:
    assert taken(DPOStage, **fields).frozen == frozen


def test_generation_holds_whole_weights_keys_and_values() -> None:
    rows, tokens = 128 / 64, 512 + 256
    cache = 2 * 2 * 32 * 1024 * rows * tokens
    assert taken(PPOStage).generation == cache
    assert taken(PPOStage, zero={"stage": 3}).generation == 2 * P + cache


def test_vllm_takes_its_share_of_the_device() -> None:
    found = of_a_device(
        stage(PPOStage, rollout={"engine": "vllm", "gpuMemoryUtilization": 0.25}),
        MODELS,
        GANG,
        device_memory=80e9,
    )
    assert found.generation == 20e9


def test_evaluation_needs_the_whole_model_under_zero_3() -> None:
    zero = {"stage": 3}
    assert taken(SFTStage, zero=zero, evaluates=True).generation == 2 * P
    assert taken(SFTStage, zero=zero).generation == 0
    assert taken(RewardStage, zero=zero, evaluates=True).generation == 0  # it answers nothing


def test_the_worst_moment_counts() -> None:
    found = taken(PPOStage, zero={"stage": 3}, gradientCheckpointing=True)
    assert found.worst_moment == "generation"
    assert found.total == found.kept + found.generation
    found = taken(SFTStage)
    assert found.worst_moment == "training"
    assert found.total == found.kept + found.activations


def test_activations_grow_with_rows_and_checkpointing_keeps_inputs() -> None:
    layer = 8 * 11008 + 24 * 4096
    assert taken(SFTStage, microBatchSize=2, maxLength=100).activations == 200 * 32 * layer
    found = taken(SFTStage, microBatchSize=2, maxLength=100, gradientCheckpointing=True)
    assert found.activations == 200 * (32 * 2 * 4096 + layer)


@pytest.mark.parametrize(
    ("kind", "fields", "each"),
    [
        (SFTStage, {}, 14),
        (SFTStage, {"zero": {"stage": 3}}, 12),
        (SFTStage, {"precision": "fp32"}, 12),
        (PPOStage, {}, 28),
        (PPOStage, {"maxKl": 10, "ema": {}}, 34),
    ],
)
def test_a_checkpoint_is_the_optimizers_state(kind: Any, fields: Any, each: int) -> None:
    assert of_a_checkpoint(stage(kind, **fields), MODELS) == each * P


@pytest.mark.parametrize(
    ("text", "gib"),
    [("h100", 79), ("A100 80GB", 79), ("79Gi", 79), ("80GB", 80e9 / GIB), ("24gib", 24)],
)
def test_devices_by_name_or_memory(text: str, gib: float) -> None:
    found = device_named(text)
    assert found is not None
    assert found.memory == pytest.approx(gib * GIB)


@pytest.mark.parametrize("text", ["H1000", "", "80", "0GB", "GB"])
def test_what_is_no_device(text: str) -> None:
    assert device_named(text) is None


def test_a_mig_slice_tells_its_memory() -> None:
    found = device_of_resource("nvidia.com/mig-3g.40gb")
    assert found is not None
    assert found.memory == 39 * GIB
    assert device_of_resource("nvidia.com/gpu") is None


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    zero=st.sampled_from([0, 1, 2, 3]),
    rows=st.sampled_from([1, 2, 16]),
    memory=st.floats(5e9, 400e9),
    nodes=st.sampled_from([1, 8]),
    checkpointing=st.booleans(),
)
def test_what_is_advised_fits_and_none_of_it_is_needless(
    kind: Any, zero: int, rows: int, memory: float, nodes: int, checkpointing: bool
) -> None:
    own = stage(
        kind,
        zero={"stage": zero},
        microBatchSize=rows,
        gradientCheckpointing=checkpointing,
    )
    gang, device = Resources(nodes=nodes, gpus_per_node=8), Device("a device", memory)

    def fits(candidate: AnyStage) -> bool:
        return of_a_device(candidate, MODELS, gang, device_memory=memory).total <= device.room

    found = what_fits(own, MODELS, gang, device)
    if found is None:
        assert not fits(own)
        return
    assert fits(changed(own, found.changes))
    assert found.keeps_result == all(change.path != "lora.rank" for change in found.changes)
    for change in found.changes:
        if change.path != "lora.rank":
            fewer = [each for each in found.changes if each != change]
            assert not fits(changed(own, fewer))
