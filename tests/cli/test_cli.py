"""rlhfctl as a user meets it: exit codes, one place for errors, never a traceback."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import jsonschema
import pytest
import warm
import yaml
from cluster.client import PATIENCE
from rich.cells import cell_len
from rlhf_cli.arguments.parser import build_parser
from rlhf_cli.commands import schema
from rlhf_cli.failures import Terminated
from rlhf_cli.main import main
from rlhf_cli.output import table
from rlhf_cli.targets.directory import Directory
from rlhf_cli.targets.target import LogOptions, PodView
from synthetic_run import MANIFEST, write_run

Result = subprocess.CompletedProcess[str]


def rlhfctl(*arguments: str, text: str | None = None) -> Result:
    """Run the command line in a process of its own."""
    command = warm.command("rlhf_cli", *arguments)
    result = subprocess.run(command, input=text, capture_output=True, text=True, timeout=PATIENCE)
    assert "Traceback" not in result.stdout + result.stderr
    return result


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    """The command line owns the signals of its process; here the process is the tests'."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    file = tmp_path / "good.yaml"
    file.write_text(yaml.safe_dump(MANIFEST), "utf-8")
    return file


class LostTerminal:
    """Python writes down what is raised in a destructor, and goes on."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_termination_counts_once_and_again_where_it_was_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[str] = []

    def execute(args: object) -> int:
        gone = LostTerminal()
        del gone
        heard.append("lost")
        try:
            signal.raise_signal(signal.SIGTERM)
        except Terminated:
            signal.raise_signal(signal.SIGTERM)  # who asks again does not want less to be saved
            try:
                raise ValueError
            except ValueError:
                signal.raise_signal(signal.SIGTERM)
            heard.append("saved")
            raise
        return 0

    monkeypatch.setattr(schema, "execute", execute)
    assert main(["schema"]) == 143
    assert heard == ["lost", "saved"]
    signal.raise_signal(signal.SIGTERM)  # it ends


def test_help_names_every_command_and_the_exit_codes() -> None:
    result = rlhfctl("--help")
    assert result.returncode == 0
    for word in ("validate", "schema", "render", "run", "status", "report", "chat", "exit codes"):
        assert word in result.stdout


def test_help_imports_neither_pydantic_nor_rich() -> None:
    code = (
        "import sys, rlhf_cli.main as m\n"
        "try: m.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'pydantic', 'rich', 'yaml', 'matplotlib'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_the_version_is_shown() -> None:
    assert rlhfctl("--version").stdout.startswith("rlhfctl 0.")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["validate"],
        ["validate", "--colour", "x.yaml"],
        ["validate", "no-such-file.yaml"],
        ["validate", "/"],
        ["render", "no-such-file.yaml"],
        ["run", "no-such-file.yaml"],
        ["report", "/no/such/run"],
        ["status", "/no/such/run"],
        ["chat", "/no/such/run"],
        ["chat", ".", "--stage", "reward"],
    ],
)
def test_wrong_usage_ends_with_64_and_says_why(arguments: list[str]) -> None:
    result = rlhfctl(*arguments)
    assert result.returncode == 64
    assert result.stderr.startswith("rlhfctl")


def test_a_good_manifest_is_valid(good: Path) -> None:
    result = rlhfctl("validate", str(good))
    assert (result.returncode, result.stdout) == (0, f"{good} is valid\n")


def test_standard_input_is_validated_too(good: Path) -> None:
    assert rlhfctl("validate", "-", text=good.read_text()).returncode == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "just text",
        "[1, 2]",
        "a: [",
        "a: 1\na: 2\n",
        "a: \0",
        "\ud800".encode("utf-16", "surrogatepass").decode("latin-1"),
        "? [1]\n: 2\n",
        "? {a: b}\n: 2\n",
        "a: !!python/object/apply:os.system [ls]\n",
        "a: 1\n---\nb: 2\n",
        "&a [*a]",
        "[" * 500,
        "spec: {model: {source: .nan}, seed: .inf, stages: {sft: {epochs: 1e999}}}",
        "apiVersion: rlhf.dev/v1alpha1\nkind: RLHFJob\nmetadata: {name: ../x}\nspec: {}\n",
    ],
)
def test_a_bad_manifest_ends_with_64_and_names_its_file(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(text.encode("utf-8"))
    for command in ("validate", "render", "run"):
        assert main([command, str(file)]) == 64
        assert str(file) in capsys.readouterr().err


@pytest.mark.parametrize("command", ["validate", "render", "run"])
def test_a_manifest_that_is_no_yaml_gives_no_traceback(tmp_path: Path, command: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(b"a: \0")
    result = rlhfctl(command, str(file))
    assert result.returncode == 64
    assert f"{file}:1:4" in result.stderr


def test_bytes_that_are_no_utf_8_are_refused_with_their_line(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(b"a: 1\nb: \xff\n")
    result = rlhfctl("validate", str(file))
    assert result.returncode == 64
    assert f"{file}:2: is not UTF-8 text" in result.stderr


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "huge.yaml"
    file.write_bytes(b"a" * (2 << 20))
    assert "larger than 1 MiB" in rlhfctl("validate", str(file)).stderr


def test_problems_are_told_with_line_and_column(tmp_path: Path, good: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(good.read_text().replace("coef: 0.05", "ceof: 0.05"))
    result = rlhfctl("validate", str(good), str(bad), "-o", "json")
    assert result.returncode == 64
    fine, refused = json.loads(result.stdout)
    assert fine == {"file": str(good), "valid": True, "problems": []}
    (problem,) = refused["problems"]
    line = bad.read_text().splitlines()[problem["line"] - 1]
    assert line[problem["column"] - 1 :] == "ceof: 0.05"
    assert problem["allowed"] == "did you mean coef?"


def test_a_field_can_be_set_from_the_command_line(good: Path) -> None:
    fine = rlhfctl("validate", str(good), "--set", "spec.stages.ppo.kl.coef=5e-2")
    wrong = rlhfctl("validate", str(good), "--set", "spec.stages.ppo.kl.coef=-1")
    assert (fine.returncode, wrong.returncode) == (0, 64)
    assert "spec.stages.ppo.kl.coef: -1 is too small" in wrong.stderr


def test_the_schema_accepts_what_validate_accepts() -> None:
    schema = json.loads(rlhfctl("schema").stdout)
    jsonschema.Draft202012Validator(schema).validate(MANIFEST)


def test_the_custom_resource_definition_can_be_printed() -> None:
    printed = yaml.safe_load(rlhfctl("schema", "--crd").stdout)
    assert printed["kind"] == "CustomResourceDefinition"
    assert printed["metadata"]["name"] == "rlhfjobs.rlhf.dev"


def test_rendered_objects_are_yaml_in_the_order_of_the_stages(good: Path) -> None:
    result = rlhfctl("render", str(good))
    assert result.returncode == 0
    jobs = [item for item in yaml.safe_load_all(result.stdout) if item["kind"] == "Job"]
    names = [item["metadata"]["name"] for item in jobs]
    assert names == [f"quickstart-{s}-1" for s in ("prepare", "sft", "reward", "ppo", "dpo")]
    assert result.stdout.startswith("# What quickstart leads to")


def test_rendering_is_refused_with_every_problem(good: Path) -> None:
    assert rlhfctl("render", str(good), "--set", "spec.seed=-1").returncode == 64


def test_a_run_whose_data_are_not_there_does_not_start(tmp_path: Path, good: Path) -> None:
    result = rlhfctl("run", str(good), "--dir", str(tmp_path / "run"))
    assert result.returncode == 64
    assert "spec.stages.sft.data: /data/sft.jsonl does not exist" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_finished_run_can_be_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path)
    status = rlhfctl("status", str(tmp_path))
    assert status.returncode == 0
    assert "held-out accuracy 0.953" in status.stdout
    for output, load in (("json", json.loads), ("yaml", yaml.safe_load)):
        assert main(["status", str(tmp_path), "-o", output]) == 0
        assert load(capsys.readouterr().out)["status"]["phase"] == "Succeeded"
    report = rlhfctl("report", str(tmp_path))
    assert (report.returncode, report.stdout) == (0, f"{tmp_path / 'report.html'}\n")


@pytest.mark.parametrize("text", ["", "a: [", "kind: RLHFJob", "\0", "- 1"])
def test_a_damaged_status_is_told_and_nothing_more(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "status.yaml").write_text(text)
    for command in ("status", "report", "chat"):
        assert main([command, str(tmp_path)]) == 64
        assert "status.yaml cannot be read" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error() -> None:
    script = f"{sys.executable} -m rlhf_cli schema | head -n 1; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert result.stdout.splitlines() == ["{", "0"]
    assert result.stderr == ""


def test_a_caller_that_has_closed_the_output_gets_no_traceback(tmp_path: Path) -> None:
    write_run(tmp_path)
    script = f"{sys.executable} -m rlhf_cli status --dir {tmp_path} >&-"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_runs_that_share_a_name_are_listed_with_their_directories(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second"):
        write_run(tmp_path / name)
    assert main(["list", "--dir", str(tmp_path)]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split()[:2] == ["DIR", "NAME"]
    places = [str(tmp_path / name) for name in ("first", "second")]
    assert [line.split()[:2] for line in lines] == [[place, "quickstart"] for place in places]
    assert main(["list", "--dir", str(tmp_path), "-o", "json"]) == 0
    items = json.loads(capsys.readouterr().out)["items"]
    assert [item["metadata"]["annotations"]["rlhf.dev/directory"] for item in items] == places


def test_one_run_that_cannot_be_read_hides_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("good", "odd", "torn"):
        write_run(tmp_path / name)
    text = (tmp_path / "odd/status.yaml").read_text()
    (tmp_path / "odd/status.yaml").write_text(text.replace("phase: Succeeded", "phase: Odd", 1))
    (tmp_path / "torn/status.yaml").write_text("kind: RLHFJob\nspec: {")
    assert main(["list", "--dir", str(tmp_path)]) == 64
    out, said = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["DIR", str(tmp_path / "good")]
    assert "odd/status.yaml cannot be read" in said
    assert "phase: 'Odd' is not allowed here (one of Pending, " in said
    assert "torn/status.yaml cannot be read: line " in said
    assert main(["list", "--dir", str(tmp_path), "-o", "json"]) == 64
    assert len(json.loads(capsys.readouterr().out)["items"]) == 1


def test_a_run_that_cannot_be_read_can_be_deleted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path)
    (tmp_path / "pods/quickstart-sft-1-0").mkdir(parents=True)
    (tmp_path / "status.yaml").write_text("kind: RLHFJob\n")
    assert main(["delete", "--dir", str(tmp_path), "--checkpoints", "--yes"]) == 64
    said = capsys.readouterr().err
    assert "metadata: is missing" in said
    assert "nothing tells which folders" in said
    assert main(["delete", "--dir", str(tmp_path)]) == 0
    volume = tmp_path / "volumes/quickstart-checkpoints"
    assert f"{volume} stays: nothing tells whose it is." in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"volumes"}
    assert list(volume.rglob("metrics.jsonl"))


def test_several_runs_are_deleted_one_after_the_other_also_where_one_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = places = [tmp_path / name for name in ("first", "second", "third")]
    for place in (first, third):
        write_run(place)
    assert main(["delete", *map(str, places), "--checkpoints", "--yes"]) == 64
    assert not first.exists()
    assert not third.exists()
    out, err = capsys.readouterr()
    assert [line.split()[3] for line in out.splitlines()] == [str(first), str(third)]
    assert f"{second} holds no run" in err


@pytest.mark.parametrize(
    ("words", "said", "see"),
    [
        ("get x --outptu json", "there is no flag --outptu; did you mean --output?", "get"),
        ("logs x --tial=3", "there is no flag --tial=3; did you mean --tail?", "logs"),
        ("list --colour", "there is no flag --colour", "list"),
        ("submit x --dir y", "no flag --dir; did you mean rlhfctl run FILE --dir DIR?", "submit"),
        ("describe a b", "b is one word too many", "describe"),
        ("logs a --tail -2", "-2 is no number of lines", "logs"),
        ("watch a --timeout 1h30", "1h30 is no time such as", "watch"),
        ("sumbit x", "there is no command sumbit; did you mean submit?", ""),
        ("apply -f x", "there is no command apply; did you mean submit?", ""),
        ("xyz", "there is no command xyz", ""),
        ("-n", "COMMAND", ""),
    ],
)
def test_a_wrong_word_is_told_with_the_right_one_and_where_to_read_on(
    words: str, said: str, see: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="64"):
        main(words.split())
    first, last = capsys.readouterr().err.splitlines()
    assert said in first
    assert last == f"Try '{' '.join(filter(None, ['rlhfctl', see]))} --help'."


def test_flags_of_a_cluster_may_stand_before_the_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["-n", "research", "--kubeconfig=none.yaml", "get", "x"]) == 69
    assert "there is no kubeconfig none.yaml" in capsys.readouterr().err


def test_without_a_cluster_a_run_of_that_name_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    Path("demo/status.yaml").touch()
    assert main(["chat", "demo", "--kubeconfig=none.yaml"]) == 69
    assert "for the run in ./demo: --dir demo" in capsys.readouterr().err
    assert main(["chat", "other", "--kubeconfig=none.yaml"]) == 69
    assert "--dir" not in capsys.readouterr().err


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("1h30m", 5400), ("2d1s", 172801)])
def test_a_time_is_told_as_to_kubectl(text: str, seconds: int) -> None:
    args = build_parser().parse_args(["watch", "x", "--timeout", text])
    assert args.timeout == seconds


@pytest.mark.parametrize(
    ("tail", "shown"),
    [("0", []), ("1", ["c"]), ("2", ["b 1%\rb 9%", "c"]), ("9", None), ("-1", None)],
)
def test_the_last_lines_of_a_log_are_counted_as_kubectl_counts_them(
    tail: str, shown: list[str] | None, tmp_path: Path
) -> None:
    every = ["a", "b 1%\rb 9%", "c"]
    for name, end in (("whole", "\n"), ("begun", "")):
        file = tmp_path / "pods" / name / "log.txt"
        file.parent.mkdir(parents=True)
        file.write_text("\n".join(every) + end)
        asked = LogOptions(tail=build_parser().parse_args(["logs", "--tail", tail]).tail)
        lines = Directory(str(tmp_path)).log(PodView(name, "sft", 1, 0, "Succeeded"), asked)

        async def read(lines: AsyncIterator[str] = lines) -> list[str]:
            return [line async for line in lines]

        assert asyncio.run(read()) == (every if shown is None else shown)


def test_no_answer_to_a_question_deletes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        """Where somebody types Ctrl-D."""

        def isatty(self) -> bool:
            return True

    write_run(tmp_path)
    monkeypatch.setattr(sys, "stdin", Terminal())
    assert main(["delete", "--dir", str(tmp_path), "--checkpoints"]) == 64
    assert "nothing was deleted" in capsys.readouterr().err
    assert (tmp_path / "status.yaml").exists()


def test_the_runs_of_a_directory_are_watched_until_none_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("数据一", "second"):
        write_run(tmp_path / name)
    assert main(["list", "--dir", str(tmp_path), "-w"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in (heading, *lines)] == [
        *("DIR", str(tmp_path / "second"), str(tmp_path / "数据一"))
    ]


def test_columns_stand_below_each_other_where_characters_take_two_places(tmp_path: Path) -> None:
    lines = table([["DIR", "NAME"], ["runs/数据一", "a"], ["runs/long-name", "b"]])
    assert [cell_len(line.partition(line.split()[1])[0]) for line in lines] == [17, 17, 17]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("approve assistant -n research reward", {"job": "assistant", "stage": "reward"}),
        ("approve --dir run reward", {"job": None, "stage": "reward", "dir": "run"}),
        ("approve reward --dir run", {"job": None, "stage": "reward", "dir": "run"}),
        ("validate a -o json b", {"files": ["a", "b"], "output": "json"}),
        ("submit a --dry-run b", {"files": ["a", "b"], "dry_run": True}),
        ("submit -f a", {"files": [], "filename": ["a"]}),
        ("logs -f assistant --tail -1", {"job": "assistant", "follow": True, "tail": None}),
        ("list", {"job": None, "output": "table"}),
    ],
)
def test_flags_may_stand_between_words(words: str, found: dict[str, object]) -> None:
    args = vars(build_parser().parse_args(words.split()))
    assert {name: args[name] for name in found} == found
