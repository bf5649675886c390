"""`check`: a verdict on each row of a data set."""

from dataclasses import asdict

from sft.cli.options import add_command, add_json, format_of, positive, print_json, to_stderr

LISTED_ROWS = 20  # for each verdict


def add_to(commands) -> None:
    check = add_command(commands, "check", _check, "give a verdict on each row of a data set")
    check.add_argument("dataset", metavar="DATASET", help="a file, a folder or a Hub id")
    check.add_argument("--model", metavar="ID", default="embedded", help="whose chat format (default: embedded)")
    check.add_argument("--max-length", metavar="N", type=positive, help="cut rows at N tokens")
    check.add_argument("--columns", metavar="MAP", help="what the columns hold: 'user=Frage, assistant=Antwort'")
    check.add_argument("--dataset-config", metavar="NAME", help="configuration of a Hub data set")
    check.add_argument("--split", metavar="NAME", default="train", help="split of a Hub data set (default: train)")
    add_json(check)


def _check(options) -> None:
    from sft.check import Summary, check
    from sft.shapes import shape_of
    from sft.tables import read_table

    table = read_table(options.dataset, options.dataset_config, options.split)
    shape, _ = shape_of(table, options.columns)
    chat_format = format_of(options.model)
    summary, verdicts = Summary(), []
    for verdict in check(table, chat_format, options.max_length, options.columns):
        summary.add(verdict)
        # every verdict for --json, and only as many as are shown for people: a data set may have a million rows
        if options.json or (verdict.problems and getattr(summary, verdict.verdict) <= LISTED_ROWS):
            verdicts.append(verdict)
        if summary.rows % 1000 == 0:
            to_stderr("Checking", summary.rows / len(table.rows))
    if options.json:
        print_json(_summary_json(shape, summary, verdicts, options.max_length))
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
