"""The Tune tab: choose data and settings, start, watch, stop; and the runs so far, side by side.

The page trains nothing itself: it writes a config, launch.py starts the process, and a timer reads the run folder.
"""

import gradio as gr

from sft import launch, models
from sft.runs import runs_dir
from sft.ui import forecasts, paint, rows, run_view, side_by_side
from sft.ui import settings as form
from sft.ui.inputs import DATA, user_errors
from sft.ui.visitors import check_owner

_QUIET = {"show_progress": "hidden", "api_visibility": "private"}


def build(owner_st: gr.State) -> dict:
    """Builds and wires the tab. Returns what the page's load and the Chat tab need."""
    first = "support-json"
    filled_st = gr.State(first)  # the example whose settings were filled in last
    begun = dict(zip(form.SETTINGS, form.example_settings(first), strict=True))
    with gr.Row():
        with gr.Column(scale=4, min_width=320):
            model_dd = gr.Dropdown(
                models.choices(),
                value="embedded",
                allow_custom_value=True,
                label="Model to tune",
            )
            source_rd = gr.Radio(["Example", "Upload", "Hub"], value="Example", label="Data")
            example_dd = gr.Dropdown(list(DATA), value=first, label="Example data set")
            upload_fl = gr.File(
                label="JSONL, JSON, CSV or Parquet", file_types=[".jsonl", ".json", ".csv", ".parquet"], visible=False
            )
            with gr.Row(visible=False) as hub_row:
                hub_tb = gr.Textbox(label="Hub id", placeholder="HuggingFaceTB/smoltalk", min_width=160)
                config_tb = gr.Textbox(label="Config", placeholder="all", min_width=80)
                split_tb = gr.Textbox("train", label="Split", min_width=80)
            look_btn = gr.Button("Look at the rows", size="sm", elem_id="look-at-rows")
            kind_rd = form.kind_field()
            with gr.Row():
                main = [form.field(name, begun[name]) for name in form.MAIN]
            with gr.Accordion("Advanced: names as in TRL and PEFT", open=False):
                chatml_cb = form.chatml_field()
                with gr.Row():
                    advanced = [form.field(name, begun[name]) for name in form.ADVANCED]
            settings = dict(zip(form.SETTINGS, [kind_rd, *main, *advanced], strict=True))
            fields = list(settings.values())
            source = [source_rd, example_dd, upload_fl, hub_tb, config_tb, split_tb]
            whole_form = [model_dd, chatml_cb, *fields, *source]
            changes = [part.input for part in whole_form if part not in (upload_fl, example_dd)]
            forecast = forecasts.build(whole_form, [*changes, upload_fl.upload, upload_fl.clear])
            start_btn = gr.Button("Start tuning", variant="primary", elem_id="start-tuning")
        looks = [look_btn.click, source_rd.change, upload_fl.upload, upload_fl.clear]
        looks += [hub_tb.submit, config_tb.submit, split_tb.submit]
        with gr.Column(scale=6, min_width=320):
            viewed = run_view.build(owner_st)
            listed = side_by_side.build(owner_st, viewed["run_dd"])
            with gr.Accordion("Rows as they will be trained on", open=True):
                look = rows.build(model_dd, settings["max_length"], settings["columns"], source, looks)
    run_dd = viewed["run_dd"]

    def begin(owner, page, *values):
        check_owner(owner)
        config = form.config_of(*values)
        page.check(config)
        run = launch.start(config, runs_dir(), owner)
        return gr.update(choices=run_view.run_names(owner), value=run.name)

    def fill(example, filled):
        """The settings of an example that is new: a dropdown's `input` also fires when its field is left."""
        return [example, *form.example_settings(example)] if example != filled else [gr.skip()] * (1 + len(fields))

    def duplicate(owner, ticked):
        """The settings and the data of a run, back in the form."""
        run = side_by_side.only(owner, ticked)
        config = run.config()
        lost = form.not_taken_over(config)
        but = f" It has no place for {', '.join(lost)}, which are as for every new run." if lost else ""
        said = f"The form holds the settings of {run.name} now.{but} Change what you like, then press Start."
        gr.Info(paint.escape(said))
        source = form.source_of(config)
        return [config.model, form.learns_chatml(config), *form.settings_of(config), *source, source[1]]

    source_rd.change(_shown, source_rd, [example_dd, upload_fl, hub_row], **_QUIET)
    filling = {"inputs": [example_dd, filled_st], "outputs": [filled_st, *fields], **_QUIET}
    example_dd.input(fill, **filling).then(**look).then(**forecast["changed"])
    rate_nb, of_lora = settings["learning_rate"], [settings[name] for name in form.LORA_ONLY]
    kind_rd.input(form.rate_of, [kind_rd, rate_nb], rate_nb, **_QUIET)
    kind_rd.change(form.usable, kind_rd, [chatml_cb, *of_lora], **_QUIET)
    start_btn.click(
        user_errors(begin), [owner_st, forecast["page_st"], *whole_form], run_dd, api_visibility="private"
    ).success(**viewed["looking"])
    listed["duplicate_btn"].click(
        user_errors(duplicate), [owner_st, listed["ticked_st"]], [*whole_form, filled_st], **_QUIET
    ).success(**look).then(**forecast["changed"])
    return {**viewed, "model_dd": model_dd, "look": look}


def _shown(kind: str) -> list:
    """Which of example, upload and Hub are to be seen."""
    return [gr.update(visible=kind == name) for name in ("Example", "Upload", "Hub")]
