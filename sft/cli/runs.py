"""`runs`: what runs there are and how they went."""

from sft.cli.options import add_command, add_json, add_runs_dir, print_json


def add_to(commands) -> None:
    runs = add_command(commands, "runs", _runs, "list the runs and their states")
    add_runs_dir(runs)
    add_json(runs)


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
        print_json(rows)
        return
    if not rows:
        print(f"No runs in {root} yet. Start one: python -m sft train examples/support-json.yaml")
    for row in rows:
        loss = f"loss {row['loss']:.3f}" if row["loss"] is not None else ""
        held_out = f"held-out {row['eval_loss']:.3f}" if row["eval_loss"] is not None else ""
        print(f"{row['name']:40} {row['state']:12} {row['step']}/{row['max_steps']:<6} {loss:12} {held_out}")
        if row["state"] in ("failed", "interrupted"):
            print(f"    {row['message']}")
