"""The Tune tab: choose data and settings, start, watch, stop; and the runs so far.

The page trains nothing itself: it writes a config, launch.py starts the process, and a timer reads the run folder.
"""

from dataclasses import asdict, fields
from pathlib import Path

import gradio as gr
import pandas as pd

from sft import launch, models
from sft.config import TrainConfig, read_yaml
from sft.errors import UserError
from sft.runs import Run, Status, runs_dir
from sft.shapes import shape_of
from sft.ui import paint, rows
from sft.ui.inputs import DATA, guard_model, user_errors
from sft.ui.sources import chosen, table_of
from sft.ui.visitors import check_owner, run_of, runs_of

CURVE_POINTS = 240
MAIN = ("max_steps", "learning_rate", "lora_r", "per_device_train_batch_size", "max_length")
ADVANCED = (
    "lora_alpha", "lora_dropout", "target_modules", "gradient_accumulation_steps", "lr_scheduler_type",
    "warmup_steps", "weight_decay", "max_grad_norm", "eval_steps", "max_eval_samples", "on_bad_rows", "columns", "seed",
)  # fmt: skip
SETTINGS = (*MAIN, *ADVANCED)
FIELDS = {item.name: item for item in fields(TrainConfig)}
_QUIET = {"show_progress": "hidden", "api_visibility": "private"}


def build(owner_st: gr.State) -> dict:
    """Builds and wires the tab. Returns what the page's load and the Chat tab need."""
    with gr.Row():
        with gr.Column(scale=4, min_width=320):
            model_dd = gr.Dropdown(
                models.choices(),
                value="embedded",
                allow_custom_value=True,
                label="Model to tune",
            )
            source_rd = gr.Radio(["Example", "Upload", "Hub"], value="Example", label="Data")
            example_dd = gr.Dropdown(list(DATA), value="support-json", label="Example data set")
            upload_fl = gr.File(
                label="JSONL, JSON, CSV or Parquet", file_types=[".jsonl", ".json", ".csv", ".parquet"], visible=False
            )
            with gr.Row(visible=False) as hub_row:
                hub_tb = gr.Textbox(label="Hub id", placeholder="HuggingFaceTB/smoltalk", min_width=160)
                config_tb = gr.Textbox(label="Config", placeholder="all", min_width=80)
                split_tb = gr.Textbox("train", label="Split", min_width=80)
            look_btn = gr.Button("Look at the rows", size="sm", elem_id="look-at-rows")
            with gr.Row():
                main = [_field(name) for name in MAIN]
            with gr.Accordion("Advanced: names as in TRL and PEFT", open=False), gr.Row():
                advanced = [_field(name) for name in ADVANCED]
            with gr.Row():
                start_btn = gr.Button("Start tuning", variant="primary", elem_id="start-tuning")
                stop_btn = gr.Button("Stop", interactive=False, elem_id="stop-tuning")
        source = [source_rd, example_dd, upload_fl, hub_tb, config_tb, split_tb]
        looks = [look_btn.click, source_rd.change, upload_fl.upload, upload_fl.clear]
        looks += [hub_tb.submit, config_tb.submit, split_tb.submit]
        max_length_nb, columns_tb = main[MAIN.index("max_length")], advanced[ADVANCED.index("columns")]
        with gr.Column(scale=6, min_width=320):
            run_dd = gr.Dropdown([], label="Run", info="Newest first", elem_id="run-picker")
            card_html = gr.HTML(paint.empty("No run yet. Choose data and settings, then press Start tuning."))
            curve_lp = gr.LinePlot(
                _no_points(), x="step", y="loss", color="part", x_title="step", y_title="loss per trained token",
                color_map={"train": "#6366f1", "held-out": "#f59e0b"}, height=260, visible=False, buttons=["export"],
            )  # fmt: skip
            chat_btn = gr.Button("Chat with it", visible=False, elem_id="chat-with-run")
            with gr.Accordion("Rows as they will be trained on", open=True):
                look = rows.build(model_dd, max_length_nb, columns_tb, source, looks)
    seen_st = gr.State("")  # what the card showed last, so that nothing is sent when nothing changed
    timer = gr.Timer(1.0)

    shown = [card_html, curve_lp, stop_btn, chat_btn, seen_st]

    def choose_source(kind):
        return [gr.update(visible=kind == name) for name in ("Example", "Upload", "Hub")]

    def use_example_settings(name):
        values = example_settings(name)
        return [values[setting] for setting in SETTINGS]

    def begin(owner, model, *values):
        check_owner(owner)
        settings = dict(zip(SETTINGS, values[: len(SETTINGS)], strict=True))
        config = make_config(model, settings, *values[len(SETTINGS) :])
        run = launch.start(config, runs_dir(), owner)
        return gr.update(choices=run_names(owner), value=run.name)

    def stop(owner, name):
        launch.stop(run_of(owner, name))
        return gr.update(value="Stopping …", interactive=False)

    source_rd.change(choose_source, source_rd, [example_dd, upload_fl, hub_row], **_QUIET)
    example_dd.change(use_example_settings, example_dd, [*main, *advanced], **_QUIET).then(**look)
    start_btn.click(
        user_errors(begin), [owner_st, model_dd, *main, *advanced, *source], run_dd, api_visibility="private"
    ).success(show_run, [owner_st, run_dd], shown, **_QUIET)
    stop_btn.click(user_errors(stop), [owner_st, run_dd], stop_btn, **_QUIET)
    run_dd.change(show_run, [owner_st, run_dd], shown, **_QUIET)
    timer.tick(refresh, [owner_st, run_dd, seen_st], shown, queue=False, **_QUIET)
    return {
        "model_dd": model_dd, "run_dd": run_dd, "chat_btn": chat_btn, "fields": [*main, *advanced],
        "use_example_settings": use_example_settings, "look": look, "show_run": show_run, "shown": shown,
    }  # fmt: skip


def _field(name: str):
    """The input for a setting, with label and help text from TrainConfig."""
    rules, default = FIELDS[name].metadata, FIELDS[name].default
    about = {"label": rules["label"], "info": rules["help"], "min_width": 150, "elem_id": f"setting-{name}"}
    if rules["choices"]:
        return gr.Dropdown(list(rules["choices"]), value=default, **about)
    if isinstance(default, str | None):  # only a text may be left out
        return gr.Textbox(default, **about)
    return gr.Number(default, precision=0 if isinstance(default, int) else None, **about)


def example_settings(name: str) -> dict:
    """The settings of the example's own config, where the model is left to the page."""
    values = read_yaml(Path("examples") / f"{name}.yaml")
    return asdict(TrainConfig.from_dict(values, name))


def make_config(model, settings, kind, example, *upload_and_hub) -> TrainConfig:
    """The config that the page's fields describe. Raises UserError for each thing that is wrong or missing."""
    guard_model(model)
    values = {"model": model, **{key: value for key, value in settings.items() if value not in (None, "")}}
    source = chosen(kind, example, *upload_and_hub)
    if kind == "Example":
        values |= {"dataset": source.name, "eval_dataset": str(DATA[example].with_suffix(".eval.jsonl"))}
    else:
        values |= {"dataset": source.name, "dataset_config": source.config, "train_split": source.split}
        values |= {"eval_share": 0.1}
    config = TrainConfig.from_dict(values, "The settings")
    if kind != "Hub":
        shape_of(table_of(source), config.columns)  # what cannot be read is said here, not by a run that fails
    return config


# ---- runs ----


def run_names(owner: str) -> list[str]:
    return [run.name for run in runs_of(owner)]


def show_run(owner: str, name: str | None):
    """Card, curve and buttons for a run, and a mark of what was shown."""
    run = _picked(owner, name)
    if run is None:
        text = "No run yet. Choose data and settings, then press Start tuning."
        return paint.empty(text), gr.update(visible=False), _stop(False), gr.update(visible=False), ""
    status, events = run.status(), run.events()  # in this order: a run writes its events first
    points = _points(events)
    curve = gr.update(value=points, visible=len(points) > 0, x_lim=[0, max(status.max_steps, 1)])
    card = paint.run_card(run, status, events)
    return card, curve, _stop(status.active and not run.stop_asked), _chat(run), _mark(run, status)


def refresh(owner: str, name: str | None, seen: str):
    """Every second: nothing while nothing changed, save that the clock of a working run moves on."""
    run = _picked(owner, name)
    status = run.status() if run else None
    if (_mark(run, status) if run else "") != seen:
        return show_run(owner, name)
    card = paint.run_card(run, status) if run and status.active else gr.skip()
    return card, gr.skip(), gr.skip(), gr.skip(), gr.skip()


def _picked(owner: str, name: str | None) -> Run | None:
    try:
        return run_of(owner, name)
    except UserError:
        return None


def _mark(run: Run, status: Status) -> str:
    """Differs whenever there is something new to paint; a run sets its status after each event of the curve."""
    return f"{run.name} {status.state} {status.updated}"


def _stop(possible: bool):
    return gr.update(value="Stop", interactive=possible)


def _chat(run):
    return gr.update(visible=run.has_adapter)


def _no_points() -> pd.DataFrame:
    return pd.DataFrame({"step": [], "loss": [], "part": []})


def _points(events: list[dict]) -> pd.DataFrame:
    """Train and held-out losses; a long curve is thinned, the last point stays."""
    rows = [(event["step"], event["loss"], "train") for event in paint.of_kind(events, "log")]
    stride = max(1, -(-len(rows) // CURVE_POINTS))
    rows = [*rows[:-1:stride], *rows[-1:]]
    rows += [(event["step"], event["loss"], "held-out") for event in paint.of_kind(events, "eval")]
    return pd.DataFrame(rows, columns=["step", "loss", "part"])
