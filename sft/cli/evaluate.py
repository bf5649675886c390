"""`evaluate`: base model, base model with the best prompt, and tuned model on held-out rows."""

from sft.cli.options import add_command, add_json, add_runs_dir, count, positive, print_json, seed, to_stderr

TITLES = {
    "loss": "loss per answer token",
    "exact_match": "exactly as wanted",
    "valid_format": "valid format",
    "stop_rate": "ended by itself",
    "loop_rate": "went in circles",
    "prompt_tokens": "prompt tokens",
    "reply_tokens": "reply tokens",
    "seconds": "seconds, all rows",
}
WIDTH = 20


def add_to(commands) -> None:
    evaluate = add_command(commands, "evaluate", _evaluate, "prompt or tune? a verdict on held-out rows")
    evaluate.add_argument("run", metavar="RUN")
    evaluate.add_argument("--data", metavar="FILE", help="other rows than the run's own held-out part")
    evaluate.add_argument("--limit", metavar="N", type=positive, help="only N of the rows, drawn by the seed")
    evaluate.add_argument("--system", metavar="TEXT", help="what the prompted model is told")
    evaluate.add_argument(
        "--examples", metavar="K", type=count, default=3, help="its examples, from the training rows (64 at most)"
    )
    evaluate.add_argument("--seed", metavar="N", type=seed, default=0, help="draws rows, examples and intervals")
    add_runs_dir(evaluate)
    add_json(evaluate)


def _evaluate(options) -> None:
    from sft.evaluation import Settings, keep, reporting
    from sft.runs import find_run, runs_dir

    run = find_run(options.run, runs_dir(options.runs_dir))
    settings = Settings(options.data, options.limit, options.system, options.examples, options.seed)
    with reporting(run) as report:
        from sft.contest import Contestant  # some seconds, in which the run's folder says so already
        from sft.evaluate import evaluate, rows_of

        Contestant(run).check()  # before all rows are read

        def tell(stage: str, share: float) -> None:
            report(stage, share)
            to_stderr(stage, share)

        document = evaluate(run, *rows_of(run, settings.data, settings.limit, settings.seed), settings, tell).as_json()
        keep(run, document)
    print_json(document) if options.json else _print(document)


def _print(document: dict) -> None:
    arms = document["arms"]
    print(f"{len(document['rows'])} held-out rows; in brackets 95 % intervals\n")
    print(f"{'':24}" + "".join(f"{name:>{WIDTH}}" for name in arms))
    for measure, title in TITLES.items():
        if any(arm[measure] is not None for arm in arms.values()):
            print(f"{title:24}" + "".join(f"{_cell(arm, measure):>{WIDTH}}" for arm in arms.values()))
    if check := document["settings"]["check"]:
        print(f"\nvalid format: {check}")
    print(f"\n{document['verdict']['sentence']}")


def _cell(arm: dict, measure: str) -> str:
    if arm[measure] is None:
        return "–"
    ends = arm["intervals"].get(measure)
    between = f" ({'–'.join(_figure(measure, end).removesuffix(' %') for end in ends)})" if ends else ""
    return _figure(measure, arm[measure]) + between


def _figure(measure: str, value: float) -> str:
    if measure == "loss":
        return f"{value:.2f}"
    return f"{value:.1f}" if measure.endswith("tokens") or measure == "seconds" else f"{100 * value:.0f} %"
