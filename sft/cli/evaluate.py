"""`evaluate`: base and tuned model on held-out rows."""

from sft.cli.options import add_command, add_json, add_runs_dir, positive, print_json, to_stderr


def add_to(commands) -> None:
    evaluate = add_command(commands, "evaluate", _evaluate, "measure base and tuned model on held-out rows")
    evaluate.add_argument("run", metavar="RUN")
    evaluate.add_argument("--data", metavar="FILE", help="other rows than the run's own held-out part")
    evaluate.add_argument("--limit", metavar="N", type=positive, help="only the first N rows")
    add_runs_dir(evaluate)
    add_json(evaluate)


def _evaluate(options) -> None:
    from sft.evaluate import evaluate, held_out_rows, to_json, verdict
    from sft.runs import find_run, runs_dir

    run = find_run(options.run, runs_dir(options.runs_dir))
    rows = held_out_rows(run, options.data, options.limit)
    arms = evaluate(run, rows, to_stderr)
    if options.json:
        print_json(to_json(arms))
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
