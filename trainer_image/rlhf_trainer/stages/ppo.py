"""PPO from human feedback (Ouyang et al. 2022; the algorithm: Schulman et al. 2017).

A rollout: answer prompts, score the answers, estimate advantages, update for several epochs. All
that is random in rollout r (its prompts, its tokens, the order of its minibatches) is a pure
function of the job's seed and r, and a checkpoint lies between two rollouts: a run that was killed
goes on as if it had not been.

GRPO, RLOO and REINFORCE++ are the same loop with other advantages and no critic.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rlhf_api.run import ExitCode, StageResult
from rlhf_api.stages.ppo import PPOStage
from torch import Tensor

from rlhf_trainer import evaluate
from rlhf_trainer.data.batches import further_rows, global_batch
from rlhf_trainer.data.stage_rows import prompt_rows, write_left_out
from rlhf_trainer.errors import ConfigurationError, Terminated
from rlhf_trainer.models.actor_critic import TokenScores
from rlhf_trainer.models.scored_lm import token_batch
from rlhf_trainer.peak_memory import PeakMemory
from rlhf_trainer.ppo.answered import Answered, Question
from rlhf_trainer.ppo.balance import balanced_micro_batches, tokens_at_once
from rlhf_trainer.ppo.dynamic_sampling import (
    Sampled,
    groups_that_teach,
    groups_to_ask,
    merged,
    sampling_metrics,
    taken,
)
from rlhf_trainer.ppo.experience import (
    Experience,
    ExperienceFigures,
    Rollout,
    TokenFigures,
    assemble,
    kl_per_response,
    score_figures,
    score_tokens,
)
from rlhf_trainer.ppo.pretraining import PretrainingTexts
from rlhf_trainer.ppo.reward_sources import ROWS_OF_MICRO_BATCH
from rlhf_trainer.ppo.team import Team, assemble_team, value_of
from rlhf_trainer.ppo.update import UpdateFigures, steps_per_rollout, update
from rlhf_trainer.ranks import Ranks
from rlhf_trainer.rewards import AdaptiveKL, FixedKL
from rlhf_trainer.session import Session
from rlhf_trainer.supervised import is_due


def train(session: Session) -> StageResult:
    """Train the actor from the newest checkpoint to the last rollout; commit what it became."""
    config = session.config
    assert isinstance(config, PPOStage)
    prompts = Prompts(session, config)
    pretraining = PretrainingTexts.load(session, config)
    team = assemble_team(session, config, steps_per_rollout(config))
    beta = kl_controller(config)
    base = evaluate_base(session, team)  # each attempt has a record of samples of its own
    done, metrics = restore(session, team, beta)
    too_far = False
    while done < config.rollouts:
        clock = Clock(session.ranks)
        sampled, sampling = sample(session, config, team, prompts, done, clock)
        rollout, scores = sampled.rollout, sampled.scores
        with session.guard.batch(done, rollout.ids):
            tokens = score_by_models(session, config, team, rollout)
            too_far = goes_too_far(config, tokens, rollout)
            if too_far:
                break
            experience, figures = assemble(config, rollout, tokens, scores, beta.coef)
            check(session, experience)
            clock.lap("score")
            if config.max_kl is not None:
                team.remember_good()
            updated = update(
                session, config, team, experience, pretraining, done, kl_coef=beta.coef
            )
            clock.lap("update")
        metrics = named(config, team, figures, updated, rollout, beta.coef, clock)
        metrics = base | sampling | metrics
        if done >= config.critic_warmup_rollouts:  # until then the policy stands still
            beta.update(figures.kl, config.global_batch_size)
        done += 1
        session.telemetry.log(done, metrics)
        session.telemetry.progress(done, config.rollouts)
        save_if_due(session, config, team, beta, done, metrics)
    if config.max_kl is not None and not too_far:
        too_far = last_update_went_too_far(session, config, team, prompts)
    return finish(session, team, done, too_far, metrics)


class Prompts:
    """The stage's prompts; those of rollout r are a pure function of the seed and r."""

    def __init__(self, session: Session, config: PPOStage) -> None:
        run = session.run
        loaded = session.rows(prompt_rows(config))
        if session.ranks.is_main:
            write_left_out(Path(run.output), loaded)
        self.seed, self.samples = run.seed, config.rollout.samples_per_prompt
        if config.global_batch_size % self.samples:
            raise ConfigurationError(
                f"globalBatchSize {config.global_batch_size} is no multiple of "
                f"rollout.samplesPerPrompt {self.samples}"
            )
        self.per_rollout = config.global_batch_size // self.samples
        self.questions = [
            Question(p.id, p.text, p.asked.messages, p.asked.extras, p.asked.row, p.tokens)
            for p in loaded.train
        ]

    def of_rollout(self, rollout: int) -> list[Question]:
        """One question a row; the samples of a prompt are neighbours."""
        return self.of_draw(rollout, 0, self.per_rollout)

    def of_draw(self, rollout: int, draw: int, groups: int) -> list[Question]:
        """So many prompts of a rollout's further rounds of sampling; round 0 is its first."""
        shape = len(self.questions), self.per_rollout, self.seed, rollout
        chosen = further_rows(*shape, draw) if draw else global_batch(*shape)
        return [self.questions[i] for i in chosen[:groups] for _ in range(self.samples)]


class Clock:
    """Seconds of the parts of a rollout, and the memory that each took at most."""

    def __init__(self, ranks: Ranks) -> None:
        self.memory, self.peaks = PeakMemory(ranks), dict[str, float]()
        self.last, self.seconds = time.perf_counter(), dict[str, float]()

    def lap(self, name: str) -> None:
        """What was done since the last lap is another part of this name. A collective."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now
        for phase, peak in self.memory.of_phase(name).items():
            self.peaks[phase] = max(peak, self.peaks.get(phase, 0.0))

    @property
    def metrics(self) -> dict[str, float]:
        """``time/…`` and ``memory/…`` of each part."""
        return {f"time/{name}": spent for name, spent in self.seconds.items()} | self.peaks


def kl_controller(config: PPOStage) -> FixedKL:
    """β, fixed or adaptive."""
    adaptive = config.kl.adaptive
    if adaptive is None:
        return FixedKL(config.kl.coef)
    return AdaptiveKL(config.kl.coef, adaptive.target, adaptive.horizon)


def restore(session: Session, team: Team, beta: FixedKL) -> tuple[int, dict[str, float]]:
    """Rollouts done, and the newest metrics; everything else is put back in place."""
    restored = session.checkpointer.restore(team.engines)
    if restored is None:
        return 0, {}
    beta.load_state_dict(restored.state["beta"])
    team.load_weights(session, restored)
    session.telemetry.saved(restored.step)
    return restored.step, restored.state["metrics"]


def evaluate_base(session: Session, team: Team) -> dict[str, float]:
    """What the base model answers, where the actor still is the base model."""
    if session.run.evaluation is None:
        return {}  # and nothing needs the whole model
    with team.actor.gathered():
        return evaluate.answer_as_base(session, team.lm)


def sample(
    session: Session, config: PPOStage, team: Team, prompts: Prompts, rollout: int, clock: Clock
) -> tuple[Sampled, dict[str, float]]:
    """A rollout's responses with their scores, and metrics of that. With dynamicSampling in as many
    rounds as it takes; scores in the metrics are the first one's, which nothing was left out of.
    """
    rounds, teaches = list[Sampled](), list[list[bool]]()
    while groups := groups_to_ask(config, teaches):
        questions = prompts.of_draw(rollout, len(rounds), groups)
        with session.guard.batch(rollout, [question.id for question in questions]):
            responses = answer(session, config, team, questions, rollout, len(rounds))
            clock.lap("generate")
            scores = team.reward.score(answered(session, questions, responses))
            session.guard.check_finite("reward", scores.raw)
            clock.lap("score")
        rounds.append(Sampled(questions, responses, scores))
        teaches.append(groups_that_teach(config, rounds[-1]))
    metrics = score_metrics(config, rounds[0])
    if config.dynamic_sampling is None:
        return rounds[0], metrics
    places = taken(teaches, prompts.per_rollout)
    return merged(rounds, places, prompts.samples), metrics | sampling_metrics(teaches, places)


@torch.no_grad()
def answer(
    session: Session,
    config: PPOStage,
    team: Team,
    questions: Sequence[Question],
    rollout: int,
    draw: int = 0,
) -> Rollout:
    """Sample a response to each question; every rank answers its share and gets all."""
    ranks = session.ranks
    by_length = sorted(range(len(questions)), key=lambda i: (-len(questions[i].tokens), i))
    # Samples of a prompt are asked for of one rank, which reads it once, where all ranks get as
    # many of them.
    samples = config.rollout.samples_per_prompt
    together = samples if len(questions) % (samples * ranks.world_size) == 0 else 1
    mine = [i for n, i in enumerate(by_length) if n // together % ranks.world_size == ranks.rank]
    responses = team.rollout.answer(
        [questions[i].tokens for i in mine], mine, len(questions), rollout, draw
    )
    says = responses.logprobs is not None
    logprobs = responses.logprobs or [[] for _ in mine]
    answers = zip(mine, responses.tokens, responses.finished, logprobs, strict=True)
    parts = ranks.gather_objects(list(answers))
    rows = sorted(row for part in parts for row in part)
    return Rollout(
        ids=[question.id for question in questions],
        prompts=[question.tokens for question in questions],
        responses=[tokens for _, tokens, *_ in rows],
        finished=[ended for _, _, ended, _ in rows],
        logprobs=[logprobs for *_, logprobs in rows] if says else None,
    )


@torch.no_grad()
def score_by_models(
    session: Session, config: PPOStage, team: Team, rollout: Rollout
) -> TokenFigures:
    """Log-probs of actor and reference, entropy and values of every response token."""
    device = session.ranks.device
    for engine in team.engines.values():
        engine.module.eval()

    def figures_of(rows: Sequence[int]) -> list[Tensor]:
        prompts, responses = ([x[i] for i in rows] for x in (rollout.prompts, rollout.responses))
        batch = token_batch(prompts, responses, device)
        scores = TokenScores(*team.actor(batch, with_entropy=True))
        assert scores.entropy is not None
        values = value_of(team, batch, scores.values)
        return [scores.logprobs, scores.entropy, team.reference(batch), values]

    capacity = ROWS_OF_MICRO_BATCH * tokens_at_once(config)
    return score_tokens(rollout, session.ranks, capacity, figures_of)


def answered(session: Session, questions: Sequence[Question], rollout: Rollout) -> Answered:
    """The responses as reward sources read them."""
    decode = session.tokenizer.decode
    return Answered(
        questions,
        [str(decode(list(r), skip_special_tokens=True)) for r in rollout.responses],
        [[*p, *r] for p, r in zip(rollout.prompts, rollout.responses, strict=True)],
        rollout.finished,
    )


def check(session: Session, experience: Experience) -> None:
    """NaN or Inf ends the step before anything is learnt from it."""
    names = (
        "log-prob of the actor",
        "log-prob of the reference",
        "value",
        "advantage",
        "return",
        "importance weight",
    )
    for name, x_BT in zip(names, experience[2:], strict=True):
        session.guard.check_finite(name, x_BT)


def goes_too_far(config: PPOStage, tokens: TokenFigures, rollout: Rollout) -> bool:
    """The stop rule: whether the actor is further from the reference than maxKL."""
    if config.max_kl is None:
        return False
    return kl_per_response(tokens, rollout.mask) > config.max_kl


def last_update_went_too_far(
    session: Session, config: PPOStage, team: Team, prompts: Prompts
) -> bool:
    """No rollout follows the last update: it is measured on one that nothing is learnt from."""
    questions = prompts.of_rollout(config.rollouts)
    rollout = answer(session, config, team, questions, config.rollouts)
    tokens = score_by_models(session, config, team, rollout)
    return goes_too_far(config, tokens, rollout)


def pad_fraction(config: PPOStage, team: Team, rollout: Rollout) -> float:
    """Share of pads in what the actor computes: 0 where rows are packed."""
    if team.is_packable:
        return 0.0
    lengths = rollout.lengths
    micros = balanced_micro_batches(range(len(lengths)), lengths, tokens_at_once(config), 1)[0]
    cells = sum(len(micro) * max(lengths[i] for i in micro) for micro in micros if micro)
    return 1 - sum(lengths) / cells


def score_metrics(config: PPOStage, sampled: Sampled) -> dict[str, float]:
    """What responses scored, by the metrics' names."""
    figures = score_figures(config, sampled.scores, sampled.rollout)
    metrics = {
        "ppo/reward": figures.reward,
        "ppo/reward_normalised": figures.reward_normalised,
        "ppo/reward_clipped_fraction": figures.reward_clipped_fraction,
        "reward/score_mean": figures.reward,
        "reward/score_std": figures.reward_std,
    }
    if config.rollout.samples_per_prompt > 1:
        metrics["ppo/equal_scores_fraction"] = figures.equal_scores_fraction
    return metrics


def named(
    config: PPOStage,
    team: Team,
    figures: ExperienceFigures,
    updated: UpdateFigures,
    rollout: Rollout,
    kl_coef: float,
    clock: Clock,
) -> dict[str, float]:
    """A rollout's metrics by their names."""
    tokens = sum(rollout.lengths) + len(rollout.lengths)
    metrics = {
        "ppo/kl": figures.kl,
        "ppo/kl_coef": kl_coef,
        "ppo/entropy": figures.entropy,
        "ppo/response_length": figures.response_length,
        "ppo/eos_fraction": figures.eos_fraction,
        "ppo/explained_variance": figures.explained_variance,
        "train/pad_fraction": pad_fraction(config, team, rollout),
        "train/tokens_per_second": tokens / sum(clock.seconds.values()),
    }
    for role, stats in (("actor", updated.actor), ("critic", updated.critic)):
        if stats is not None:
            metrics[f"ppo/{role}_lr"] = stats.learning_rate
            metrics[f"ppo/{role}_grad_norm"] = stats.grad_norm
    return metrics | figures.mismatch | updated.means | clock.metrics


def save_if_due(
    session: Session,
    config: PPOStage,
    team: Team,
    beta: FixedKL,
    done: int,
    metrics: dict[str, float],
) -> None:
    """A checkpoint between two rollouts; on SIGTERM too, and then the end."""
    stopping = session.guard.should_stop()
    due = is_due(done, config.checkpointing.every_steps, config.rollouts, 10)
    if stopping or (due and done < config.rollouts):
        state = {"beta": beta.state_dict(), "metrics": metrics}
        session.checkpointer.save(done, team.engines, state, weights=team.weights(session))
        session.telemetry.saved(done)
    if stopping:
        raise Terminated(f"SIGTERM: saved at rollout {done} of {config.rollouts}", step=done)


def finish(
    session: Session, team: Team, done: int, undo: bool, metrics: dict[str, float]
) -> StageResult:
    """Commit the actor, and answer the evaluation's prompts with it."""
    final = {k: v for k, v in metrics.items() if not k.startswith(("time/", "memory/"))}
    checkpoint = session.checkpointer.commit_output(
        lambda directory: team.write(session, directory, undo), final
    )
    final |= evaluate.answer_as(session, session.run.stage)
    session.telemetry.log(done, final)
    message = "the last update took the KL above maxKl and was undone" if undo else ""
    return StageResult(
        exit_code=ExitCode.DONE,
        reason="StoppedByKL" if undo else "Done",
        message=message,
        step=done,
        checkpoint=checkpoint,
        metrics=session.telemetry.newest | final,
    )
