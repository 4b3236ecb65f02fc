"""report.html: complete, escaped, self-contained, and the same for the same run."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rlhf_api.status import StageStatus
from rlhf_api.validation import parse_job
from rlhf_cli.failures import Failure
from rlhf_cli.figures import model_scores
from rlhf_cli.plotting import chosen_stage
from rlhf_cli.report.collect import collect
from rlhf_cli.report.curves import smoothed
from rlhf_cli.report.page import bars, manifest_text, plots, render_report
from rlhf_cli.report.records import MetricRow, merged_metrics, read_metrics, series
from rlhf_cli.report.verdicts import verdict
from rlhf_cli.report.write import write_report
from rlhf_cli.run_folder import RunFolder
from rlhf_cli.yaml_text import read_document
from synthetic_run import MANIFEST, write_run

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Text and tags of a page; complains where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    path = tmp_path_factory.mktemp("run")
    write_run(path)
    return RunFolder(path)


@pytest.fixture(scope="module")
def html(folder: RunFolder) -> str:
    return write_report(folder).read_text("utf-8")


def test_the_page_is_well_formed_and_holds_every_part(html: str) -> None:
    page = Page(html)
    headings = ["Score of each model", "The same prompts", "SFT", "Reward model", "PPO", "DPO"]
    for heading in [*headings, "Stages", "Data", "To reproduce this", "Versions"]:
        assert heading in page.text
    for title in ["Loss", "Accuracy", "Reward", "KL to the reference", "Entropy"]:
        assert title in page.text
    assert "Response length" in page.text
    assert page.tags.count("svg") == html.count("<figure>") > 20


def test_answers_are_shown_as_they_are_and_never_as_markup(html: str) -> None:
    page = Page(html)
    assert "<script>alert(2)</script>" in page.text
    assert "蜜蜂一共有6条腿。希望对您有帮助！" in page.text
    assert "the answer is <blank>" in page.text
    assert "files that were not read: my_eval.jsonl" in page.text
    assert "script" not in page.tags


def test_an_answer_without_a_word_is_told_from_one_that_is_not_there(folder: RunFolder) -> None:
    run = collect(folder)
    blank = [answer._replace(text=" \n") for answer in run.answers if answer.model == "sft"]
    html = render_report(run._replace(answers=blank))
    assert Page(html).text.count("(empty)") == len(blank) > 0


def test_the_page_needs_nothing_from_outside(html: str) -> None:
    assert not re.findall(r"https?://", html)
    assert not {"script", "link", "iframe", "img", "object"} & set(Page(html).tags)
    assert not re.findall(r"@import|url\((?!#)", html)


def test_the_same_run_gives_the_same_bytes(folder: RunFolder, html: str) -> None:
    assert write_report(folder).read_text("utf-8") == html


def test_a_report_leaves_the_files_beside_it_alone(folder: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "mine.tmp").write_text("notes")
    write_report(folder, tmp_path / "mine.html")
    assert {path.name for path in tmp_path.iterdir()} == {"mine.html", "mine.tmp"}
    assert (tmp_path / "mine.tmp").read_text() == "notes"


@pytest.mark.parametrize(
    ("name", "said"),
    [("folder", "folder is a folder: name a file in it"), ("nope/a.html", "nope/a.html: No such")],
)
def test_where_no_report_can_be_is_told_by_the_name_that_was_given(
    folder: RunFolder, tmp_path: Path, name: str, said: str
) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(Failure, match=said):
        write_report(folder, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_no_two_elements_share_an_id(html: str) -> None:
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_every_reference_inside_the_page_leads_somewhere(html: str) -> None:
    ids = set(re.findall(r'\sid="([^"]+)"', html))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', html)) <= ids


def test_colours_are_those_of_the_page_so_that_it_can_be_dark(html: str) -> None:
    figures = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert "var(--tone-1)" in figures
    assert not re.findall(r"#[0-9a-f]{6}", figures)


@pytest.mark.parametrize(
    ("metrics", "stage"),
    [((), "dpo"), (("ppo/reward",), "ppo"), (("train/loss",), "dpo"), (("nonsense",), "dpo")],
)
def test_curves_are_of_the_last_stage_that_has_the_metrics(
    folder: RunFolder, metrics: tuple[str, ...], stage: str
) -> None:
    assert chosen_stage(collect(folder), None, metrics).name == stage


def test_a_panel_without_points_is_left_out(folder: RunFolder) -> None:
    records = {record.name: record for record in collect(folder).stages}
    titles = [plot.title for plot in plots(records["sft"])]
    assert "Loss" in titles
    assert "Accuracy" not in titles  # no accuracy was recorded for SFT


def test_a_panel_of_one_point_is_left_out(folder: RunFolder) -> None:
    (sft,) = (record for record in collect(folder).stages if record.name == "sft")
    once = [MetricRow(1, {"train/loss": 2.0, "eval/loss": 2.1}), MetricRow(2, {"train/loss": 1.9})]
    assert [plot.title for plot in plots(sft._replace(rows=once))] == ["Loss"]
    assert plots(sft._replace(rows=once[:1])) == []


def test_how_far_both_policies_went_from_their_reference_is_told(folder: RunFolder) -> None:
    told = {record.name: verdict(record) for record in collect(folder).stages}
    assert "KL to the reference" in told["ppo"]
    assert "KL to the reference 1.370" in told["dpo"]


def test_kto_whose_rows_are_no_pairs_is_not_told_of_pairs(folder: RunFolder) -> None:
    (dpo,) = (record for record in collect(folder).stages if record.name == "dpo")
    assert "held-out pairs" in verdict(dpo)
    kto = dpo.status.model_copy(update={"metrics": dpo.status.metrics | {"dpo/kl_baseline": 0.1}})
    assert "held-out answers" in verdict(dpo._replace(status=kto))
    assert "pairs" not in verdict(dpo._replace(status=kto))


def test_what_an_attempt_did_after_the_checkpoint_of_the_next_is_dropped() -> None:
    first = [MetricRow(step, {"loss": 1.0}) for step in range(10)]
    second = [MetricRow(step, {"loss": 2.0}) for step in range(3, 6)]
    merged = series(merged_metrics([first, second]), "loss")
    assert merged == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0)]


def test_lines_that_a_kill_cut_short_and_values_that_are_no_numbers_are_passed_over(
    tmp_path: Path,
) -> None:
    file = tmp_path / "metrics.jsonl"
    good = json.dumps({"step": 1, "time": 0.0, "metrics": {"a": 1.0, "b": None}})
    huge = "1" + "0" * 400
    lines = [f'{{"step": {huge}, "metrics": {{}}}}', "[" * 100_000, '{"step": 2, "metr']
    file.write_text("\n".join([good.replace("null", huge), *lines]))
    assert read_metrics(file) == [MetricRow(1, {"a": 1.0})]


def test_rows_left_out_that_are_no_list_are_none(tmp_path: Path) -> None:
    write_run(tmp_path)
    for file in tmp_path.rglob("data.json"):
        wrong = {"train": "many", "heldout": None, "leftOut": True, "unread": 1}
        file.write_text(json.dumps(wrong))
    Page(render_report(collect(RunFolder(tmp_path))))


def test_smoothing_keeps_length_ends_and_constants() -> None:
    assert smoothed([3.0] * 100) == [3.0] * 100
    values = [float(n) for n in range(100)]
    assert smoothed(values) == pytest.approx(values, abs=1e-9)  # a straight line has no lag
    assert smoothed([1.0]) == [1.0]


def test_scores_come_in_the_order_of_the_pipeline(folder: RunFolder) -> None:
    assert list(model_scores(folder.job()).items()) == [
        ("base", 0.0), ("sft", 0.31), ("ppo", 0.87), ("dpo", 0.79),
    ]  # fmt: skip


def test_bars_share_one_scale_with_its_zero_inside() -> None:
    low, high = bars({"sft": -1.0, "ppo": 3.0})
    assert (low.start, low.width, low.is_negative) == (0.0, 25.0, True)
    assert (high.start, high.width, high.is_negative) == (25.0, 75.0, False)
    assert bars({"sft": 0.5})[0].width == 50.0


def test_the_manifest_in_the_report_is_the_job_that_ran(folder: RunFolder) -> None:
    again = parse_job(read_document(manifest_text(collect(folder))).value)
    assert again.spec == parse_job(MANIFEST).spec


def test_a_failed_stage_says_why(tmp_path: Path) -> None:
    failed = StageStatus(phase="Failed", reason="Diverged", message="KL <inf> at rollout 3")
    write_run(tmp_path, ppo=failed)
    text = Page(render_report(collect(RunFolder(tmp_path)))).text
    assert "failed (Diverged): KL <inf> at rollout 3" in text


def test_a_run_that_has_only_begun_has_a_report(tmp_path: Path) -> None:
    nothing = {name: StageStatus() for name in ("sft", "reward", "ppo", "dpo")}
    write_run(tmp_path, **nothing)
    page = Page(render_report(collect(RunFolder(tmp_path))))
    assert "svg" not in page.tags
    assert "The same prompts" not in page.text
