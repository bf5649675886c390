"""`python -m sft …`: the command line. Parses, calls, prints; knows nothing that the page does not know too.

Heavy libraries are imported by the commands that need them, so that `--help` answers at once.
"""

import argparse
import json
import sys
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date
from pathlib import Path

from sft.errors import ConfigError, MessagesError, RunError, UserError

LISTED_ROWS = 20  # that `check` names for each verdict


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. Returns 0 when it is done, 2 when the input was wrong."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sft", description="See what a chat model reads, tune it, compare it with what it was."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(command=command)
        return sub

    def add_runs_dir(sub):
        sub.add_argument("--runs-dir", metavar="DIR", help="where runs live (SFT_RUNS_DIR, else runs/)")

    def add_json(sub):
        sub.add_argument("--json", action="store_true", help="print one JSON document and nothing else")

    preview = add("preview", _preview, "show the text, tokens and loss mask of a conversation")
    preview.add_argument("--messages", metavar="FILE", required=True, help="JSON: messages, or {messages, tools}")
    source = preview.add_mutually_exclusive_group()
    source.add_argument("--model", metavar="ID", default="embedded", help="whose template (default: embedded)")
    source.add_argument("--template", metavar="FILE", help="a Jinja template alone, without a tokenizer")
    preview.add_argument("--template-kwargs", metavar="JSON", help="further variables of the template")
    preview.add_argument("--date", metavar="DAY", type=_day, help="freeze today's date, as 2024-07-26")
    preview.add_argument("--max-length", metavar="N", type=_positive, help="say what a cut at N tokens takes away")
    preview.add_argument("--chat-with", metavar="TEMPLATE", help="a preset or file: what if chat used that one?")
    preview.add_argument("--generation-prompt", action="store_true", help="end with the assistant's header")
    add_json(preview)

    check = add("check", _check, "give a verdict on each row of a data set")
    check.add_argument("dataset", metavar="DATASET", help="a file, a folder or a Hub id")
    check.add_argument("--model", metavar="ID", default="embedded", help="whose chat format (default: embedded)")
    check.add_argument("--max-length", metavar="N", type=_positive, help="cut rows at N tokens")
    check.add_argument("--columns", metavar="MAP", help="what the columns hold: 'user=Frage, assistant=Antwort'")
    check.add_argument("--dataset-config", metavar="NAME", help="configuration of a Hub data set")
    check.add_argument("--split", metavar="NAME", default="train", help="split of a Hub data set (default: train)")
    add_json(check)

    train = add("train", _train, "tune a model as a config says")
    train.add_argument("config", metavar="CONFIG.yaml")
    train.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change one setting")
    train.add_argument("--run-name", metavar="NAME", help="name of the run folder")
    add_runs_dir(train)

    runs = add("runs", _runs, "list the runs and their states")
    add_runs_dir(runs)
    add_json(runs)

    chat = add("chat", _chat, "let base and tuned model answer a prompt")
    chat.add_argument("run", metavar="RUN")
    chat.add_argument("--prompt", metavar="TEXT", required=True)
    chat.add_argument("--system", metavar="TEXT", help="a system message")
    chat.add_argument("--max-new-tokens", metavar="N", type=_positive, default=128)
    chat.add_argument("--temperature", metavar="T", type=_temperature, default=0.0, help="0 takes the likeliest token")
    chat.add_argument("--seed", metavar="N", type=_seed, default=0)
    add_runs_dir(chat)
    add_json(chat)

    evaluate = add("evaluate", _evaluate, "measure base and tuned model on held-out rows")
    evaluate.add_argument("run", metavar="RUN")
    evaluate.add_argument("--data", metavar="FILE", help="other rows than the run's own held-out part")
    evaluate.add_argument("--limit", metavar="N", type=_positive, help="only the first N rows")
    add_runs_dir(evaluate)
    add_json(evaluate)

    # Waits, with what training needs imported, for one command line on standard input: see launch.py.
    commands.add_parser("standby").set_defaults(command=_standby)
    return parser


def _number(kind: type, text: str):
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a {'whole ' if kind is int else ''}number, not {text}") from None


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a day such as 2024-07-26, not {text}") from None


def _positive(text: str) -> int:
    number = _number(int, text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {number}")
    return number


def _temperature(text: str) -> float:
    number = _number(float, text)
    if not 0 <= number <= 100:
        raise argparse.ArgumentTypeError(f"must be between 0 and 100, not {text}")
    return number


def _seed(text: str) -> int:
    number = _number(int, text)
    if not 0 <= number < 2**63:
        raise argparse.ArgumentTypeError(f"must be between 0 and 2^63 - 1, not {text}")
    return number


# ---- preview, check ----


def _preview(options) -> None:
    from sft import doctor, sandbox
    from sft.messages import parse_conversation
    from sft.mismatch import to_json

    sandbox.warm()  # while the rest is imported
    conversation = parse_conversation(_read_json(options.messages))
    chat_format = _format_to_preview(options)
    asked = conversation.messages, conversation.tools
    rendered = chat_format.render(*asked, options.generation_prompt)
    findings = doctor.examine(chat_format, *asked, rendered, options.max_length)
    foretold = _mismatch(chat_format, options.chat_with, *asked) if options.chat_with else None
    if options.json:
        more = {"mismatch": to_json(foretold)} if foretold else {}
        _print_json(doctor.to_json(rendered, findings) | more)
        return
    print(_marked(rendered.text, rendered.assistant_spans))
    if rendered.token_ids is not None:
        print(f"\n{len(rendered.token_ids)} tokens, {sum(rendered.assistant_mask)} trained on (between ⟦ and ⟧)")
    for finding in findings:
        print(f"{finding.level}: {finding.message}\n  → {finding.remedy}")
    if foretold:
        _print_mismatch(foretold, options.chat_with)


def _format_to_preview(options):
    from sft.chat_format import ChatFormat
    from sft.config import template_arguments
    from sft.sandbox import guarded

    kwargs = template_arguments(options.template_kwargs) if options.template_kwargs is not None else {}
    if options.template:
        if options.max_length:
            raise ConfigError(
                "--max-length counts tokens, and a template alone has none.", "Give --model instead of --template."
            )
        chat_format = ChatFormat(None, _read_text(options.template), kwargs, options.template)
    else:
        chat_format = _format_of(options.model, kwargs)
    return guarded(chat_format.as_of(options.date) if options.date else chat_format)


def _mismatch(chat_format, other: str, messages: list[dict], tools):
    from dataclasses import replace

    from sft.chat_format import preset, presets
    from sft.mismatch import mismatch
    from sft.sandbox import guarded

    if other not in presets() and not Path(other).exists():
        known = ", ".join(presets())
        raise ConfigError(
            f"{other} is neither a preset nor a file.", f"Give one of {known}, or the path of a template."
        )
    source = preset(other) if other in presets() else _read_text(other)
    chatted = guarded(replace(chat_format, chat_template=source, origin=other))
    return mismatch(chat_format, chatted, messages, tools)


def _print_mismatch(found, other: str) -> None:
    verdict = "they fit" if found.harmless else "they do not fit"
    if found.harmless and found.stops is None:
        verdict = "their texts fit"
    print(f"Tuned with this, chatted with {other}: {verdict}.")
    for line in found.said():
        print(f"  {line}")


def _marked(text: str, spans: list[tuple[int, int]]) -> str:
    for start, end in sorted(spans, reverse=True):
        text = f"{text[:start]}⟦{text[start:end]}⟧{text[end:]}"
    return text


def _read_text(path: str) -> str:
    try:
        return Path(path).read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path} cannot be read: there is no such file.", "Give the path of a text file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", "Give the path of a text file.") from None


def _read_json(path: str):
    from sft.json_text import JsonProblem, loads

    try:
        return loads(_read_text(path).removeprefix("\ufeff"))  # some editors write this mark before the text
    except JsonProblem as problem:
        said = f"{path} is not JSON: line {problem.line}: {problem.said}"
        raise MessagesError(said, 'Write [{"role": "user", "content": "Hello"}].') from None


def _format_of(model: str, template_kwargs: dict | None = None):
    from sft import models
    from sft.chat_format import ChatFormat
    from sft.sandbox import guarded

    tokenizer = models.load_tokenizer(models.locate(model, _to_stderr, weights=False))
    return guarded(ChatFormat.of(tokenizer, template_kwargs))


def _check(options) -> None:
    from sft.check import Summary, check
    from sft.shapes import shape_of
    from sft.tables import read_table

    table = read_table(options.dataset, options.dataset_config, options.split)
    shape, _ = shape_of(table, options.columns)
    chat_format = _format_of(options.model)
    summary, verdicts = Summary(), []
    for verdict in check(table, chat_format, options.max_length, options.columns):
        summary.add(verdict)
        # every verdict for --json, and only as many as are shown for people: a data set may have a million rows
        if options.json or (verdict.problems and getattr(summary, verdict.verdict) <= LISTED_ROWS):
            verdicts.append(verdict)
        if summary.rows % 1000 == 0:
            _to_stderr("Checking", summary.rows / len(table.rows))
    if options.json:
        _print_json(_summary_json(shape, summary, verdicts, options.max_length))
        return
    _print_verdicts(summary, verdicts)
    print(f"{table.source}: {summary.rows:,} rows of shape {shape}")
    _print_summary(summary)
    _print_histogram(summary.histogram(options.max_length), options.max_length)


def _summary_json(shape: str, summary, verdicts: list, max_length: int | None) -> dict:
    counts = asdict(summary)
    del counts["lengths"]
    bars = [{"from": low, "to": high, "rows": rows} for low, high, rows in summary.histogram(max_length)]
    return {"shape": shape, **counts, "histogram": bars, "verdicts": [asdict(verdict) for verdict in verdicts]}


def _print_verdicts(summary, verdicts: list) -> None:
    """The first rows that are not kept whole, verdict by verdict, and how many more there are."""
    for name in ("wrong", "dropped", "cut"):
        for verdict in verdicts:
            for problem in verdict.problems if verdict.verdict == name else ():
                print(f"{verdict.place}: {name}: {problem}")
        if (more := getattr(summary, name) - LISTED_ROWS) > 0:
            print(f"… and {more:,} more rows {name}")


def _print_summary(summary) -> None:
    print(f"  {summary.kept:,} kept, {summary.cut:,} cut, {summary.dropped:,} dropped, {summary.wrong:,} wrong")
    print(f"  {summary.tokens:,} tokens, {summary.trained:,} trained on; the longest row has {summary.longest:,}")
    if summary.cut_tokens:
        print(
            f"  {summary.cut_tokens:,} tokens are beyond max length; {summary.lost_stops:,} stop tokens are among them"
        )


def _print_histogram(bars: list[tuple[int, int, int]], max_length: int | None) -> None:
    """Rows by their length in tokens, with a line where max length cuts."""
    most = max((rows for _, _, rows in bars), default=0)
    if bars:
        print("  rows by length in tokens:")
    end = 0
    for low, high, rows in bars:
        if max_length and end <= max_length < low:
            print(f"  {'':17} {'':9} ──── max length {max_length:,} cuts here ────")
        bar, end = "█" * -(-rows * 40 // most), high  # rounded up: one row is seen too
        print(f"  {f'{low:,}–{high:,}':>17} {rows:>9,} {bar}".rstrip())


# ---- train, runs ----


def _train(options) -> int:
    import os

    from sft.config import TrainConfig
    from sft.launch import wait_in_line
    from sft.runs import runs_dir

    root = runs_dir(options.runs_dir)
    config = TrainConfig.load(options.config, options.set)
    run = _run_to_train(config, root, options)
    with _log_to(run.log_file):
        if os.environ.get("RANK", "0") == "0":
            print(f"run {run.name} in {run.folder}", flush=True)
            run.set_status("queued", max_steps=config.max_steps)
            wait_in_line(run)
            run.set_status("preparing", max_steps=config.max_steps, message="Loading the libraries.")
        from sft.train import train

        train(config, run)
    return 0


def _run_to_train(config, root: Path, options):
    """A new run; or the folder that launch.py made for this process; or, in a further process of the same
    distributed training, the folder that the first process makes."""
    import os

    from sft.runs import Run, create_run

    run = Run(root / (options.run_name or ""))
    if options.run_name and Path(options.config) == run.folder / "config.yaml":
        status = run.status()
        if status.state == "queued" and status.pid == os.getpid():
            return run
        raise RunError(f"The run {run.name} is {status.state} already.", "Give another --run-name to train once more.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not options.run_name:
        raise ConfigError("Several processes train together and have no name for their run.", "Give --run-name NAME.")
    if os.environ.get("RANK", "0") != "0":
        return run
    return create_run(config, root, options.run_name)


@contextmanager
def _log_to(path: Path):
    """Everything printed goes to the log file too, unless it already goes there."""
    import os

    if os.environ.get("RANK", "0") != "0" or _is_open_as_output(path):
        yield
        return
    with path.open("a", encoding="utf-8") as log:
        out, err = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = _Tee(out, log), _Tee(err, log)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = out, err


def _is_open_as_output(path: Path) -> bool:
    import os

    return path.exists() and os.path.samestat(path.stat(), os.fstat(1))


class _Tee:
    def __init__(self, shown, log):
        self._shown, self._log = shown, log

    def write(self, text: str) -> int:
        self._log.write(text)
        self._log.flush()
        return self._shown.write(text)

    def __getattr__(self, name):
        return getattr(self._shown, name)


def _standby(options) -> int:
    import os

    import sft.train  # noqa: F401  (the point of standing by)

    line = sys.stdin.readline()
    if not line:
        return 0
    task = json.loads(line)
    log = os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    return main(task["command"])


def _runs(options) -> None:
    from sft.runs import list_runs, runs_dir

    root = runs_dir(options.runs_dir)
    rows = []
    for run in list_runs(root):
        status = run.status()
        logs, evals = run.events("log"), run.events("eval")
        rows.append(
            {
                "name": run.name,
                "state": status.state,
                "step": status.step,
                "max_steps": status.max_steps,
                "loss": logs[-1]["loss"] if logs else None,
                "eval_loss": evals[-1]["loss"] if evals else None,
                "adapter": str(run.adapter) if run.has_adapter else None,
                "message": status.message,
            }
        )
    if options.json:
        _print_json(rows)
        return
    if not rows:
        print(f"No runs in {root} yet. Start one: python -m sft train examples/support-json.yaml")
    for row in rows:
        loss = f"loss {row['loss']:.3f}" if row["loss"] is not None else ""
        held_out = f"held-out {row['eval_loss']:.3f}" if row["eval_loss"] is not None else ""
        print(f"{row['name']:40} {row['state']:12} {row['step']}/{row['max_steps']:<6} {loss:12} {held_out}")
        if row["state"] in ("failed", "interrupted"):
            print(f"    {row['message']}")


# ---- chat, evaluate ----


def _chat(options) -> None:
    from sft import chat
    from sft.runs import find_run, runs_dir

    contest = chat.Contest.of_run(find_run(options.run, runs_dir(options.runs_dir)))
    messages = [{"role": "system", "content": options.system}] if options.system else []
    prompt = contest.chat_format.prompt_ids([*messages, {"role": "user", "content": options.prompt}])
    sampling = chat.Sampling(temperature=options.temperature, max_new_tokens=options.max_new_tokens, seed=options.seed)
    replies = []
    for replies in chat.stream(contest, [prompt] * len(contest.adapters), sampling):  # noqa: B007
        pass
    base, tuned = map(asdict, replies)
    if options.json:
        _print_json({"prompt_token_ids": prompt, "base": base, "tuned": tuned})
        return
    for name, reply in (("base", base), ("tuned", tuned)):
        ending = "" if reply["stopped"] else "  [did not stop]"
        print(f"--- {name} ---\n{reply['text']}{ending}")


def _evaluate(options) -> None:
    from sft.evaluate import evaluate, held_out_rows, to_json, verdict
    from sft.runs import find_run, runs_dir

    run = find_run(options.run, runs_dir(options.runs_dir))
    rows = held_out_rows(run, options.data, options.limit)
    arms = evaluate(run, rows, _to_stderr)
    if options.json:
        _print_json(to_json(arms))
        return
    print(f"{len(rows)} held-out rows\n")
    print(f"{'':16}" + "".join(f"{name:>10}" for name in arms))
    for measure in ("loss", "exact_match", "valid_format", "stop_rate", "prompt_tokens", "reply_tokens"):
        values = [getattr(arm, measure) for arm in arms.values()]
        if values[0] is not None:
            print(f"{measure:16}" + "".join(f"{_figure(measure, value):>10}" for value in values))
    print(f"\n{verdict(arms)}")


def _figure(measure: str, value: float) -> str:
    if measure == "loss":
        return f"{value:.3f}"
    return f"{value:.1f}" if measure.endswith("tokens") else f"{value:.0%}"


def _print_json(value) -> None:
    print(json.dumps(value, ensure_ascii=False))


def _to_stderr(stage: str, share: float) -> None:
    end = "\r" if sys.stderr.isatty() else "\n"
    if sys.stderr.isatty() or share in (0.0, 1.0):
        print(f"{stage} {share:4.0%}", end=end, file=sys.stderr, flush=True)
