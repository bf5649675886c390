"""`runs`: what runs there are and how they went; also stops, renames, deletes and compares them."""

from sft.cli.options import add_command, add_json, add_runs_dir, print_json


def add_to(commands) -> None:
    runs = add_command(commands, "runs", _runs, "list the runs and their states")
    action = runs.add_mutually_exclusive_group()
    action.add_argument("--compare", metavar="RUN", nargs="+", help="which settings differ, and the last losses")
    action.add_argument("--rename", metavar=("OLD", "NEW"), nargs=2, help="give a run another name")
    action.add_argument("--stop", metavar="RUN", help="let a run save and end; withdraw it if it waits in line")
    action.add_argument("--delete", metavar="RUN", help="remove a run and all that it made")
    add_runs_dir(runs)
    add_json(runs)


def _runs(options) -> None:
    from sft.runs import find_run, list_runs, runs_dir

    root = runs_dir(options.runs_dir)
    if options.compare:
        _compare([find_run(name, root) for name in options.compare], options.json)
        return
    if options.rename or options.stop or options.delete:
        _change(options, root)
        if not options.json:
            return
    rows = [_row(run) for run in list_runs(root)]
    if options.json:
        print_json(rows)
        return
    if not rows:
        print(f"No runs in {root} yet. Start one: python -m sft train examples/support-json.yaml")
    for row in rows:
        _print_row(row)


def _change(options, root) -> None:
    from sft import launch
    from sft.runs import find_run, rename

    if options.rename:
        rename(find_run(options.rename[0], root), options.rename[1])
    elif options.stop:
        launch.stop(find_run(options.stop, root))
    else:
        find_run(options.delete, root).delete()


def _compare(runs: list, as_json: bool) -> None:
    from sft.runs import differing

    rows, fields = [_row(run) for run in runs], differing(runs)
    if as_json:
        print_json({"runs": rows, "differing": fields})
        return
    for row in rows:
        _print_row(row)
    if not fields:
        print("\nTheir settings are the same.")
    for name, values in fields.items():
        print(f"\n{name}")
        for row, value in zip(rows, values, strict=True):
            print(f"    {row['name']:36} {value}")


def _row(run) -> dict:
    from sft.launch import place

    status = run.status()
    logs, evals = run.events("log"), run.events("eval")
    return {
        "name": run.name,
        "state": status.state,
        "place": place(run),
        "started": status.started,
        "step": status.step,
        "max_steps": status.max_steps,
        "loss": logs[-1]["loss"] if logs else None,
        "stop_loss": logs[-1].get("stop_loss") if logs else None,
        "eval_loss": evals[-1]["loss"] if evals else None,
        "adapter": str(run.adapter) if run.adapter.is_dir() else None,
        "result": str(run.result) if run.has_result else None,
        "resumable": run.resumable,
        "message": status.message,
    }


def _print_row(row: dict) -> None:
    loss = f"loss {row['loss']:.3f}" if row["loss"] is not None else ""
    held_out = f"held-out {row['eval_loss']:.3f}" if row["eval_loss"] is not None else ""
    print(f"{row['name']:40} {row['state']:12} {row['step']}/{row['max_steps']:<6} {loss:12} {held_out}".rstrip())
    if row["state"] in ("queued", "failed", "interrupted") and row["message"]:
        print(f"    {row['message']}")
