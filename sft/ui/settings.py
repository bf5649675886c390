"""The form of a training: its fields, the config that they describe, and back from a run's config to the fields."""

from dataclasses import fields
from pathlib import Path

import gradio as gr
from gradio.processing_utils import save_file_to_cache
from gradio.utils import get_upload_folder

from sft.config import TrainConfig, read_yaml
from sft.errors import DataError
from sft.shapes import shape_of
from sft.ui.inputs import DATA, guard_model, is_path
from sft.ui.sources import chosen, table_of

MAIN = ("max_steps", "learning_rate", "lora_r", "per_device_train_batch_size", "max_length")
ADVANCED = (
    "lora_alpha", "lora_dropout", "target_modules", "gradient_accumulation_steps", "lr_scheduler_type",
    "warmup_steps", "weight_decay", "max_grad_norm", "eval_steps", "max_eval_samples", "on_bad_rows", "columns", "seed",
)  # fmt: skip
KIND = "finetuning_type"
SETTINGS = (KIND, *MAIN, *ADVANCED)
LORA_ONLY = tuple(name for name in SETTINGS if name.startswith("lora_") or name == "target_modules")
CHATML = {"chat_template": "chatml", "trainable_token_indices": "<|im_start|>,<|im_end|>"}
FIELDS = {item.name: item for item in fields(TrainConfig)}
_FULL_IS_SLOWER = 10  # times smaller is the learning rate that suits full fine-tuning


def kind_field() -> gr.Radio:
    """LoRA or full fine-tuning, with what each costs in words."""
    return gr.Radio(
        [("LoRA", "lora"), ("Full fine-tuning", "full")], value="lora", label="What is trained",
        elem_id=f"setting-{KIND}",
        info="LoRA: a small adapter, a few MB a run; memory for one copy of the model. Full fine-tuning: every weight, "
        "a whole model saved a run; memory for four copies, and a tenth of the learning rate.",
    )  # fmt: skip


def chatml_field() -> gr.Checkbox:
    return gr.Checkbox(
        label="Learn ChatML tokens", elem_id="learn-chatml",
        info="For a base model: lays messages out as ChatML and trains the embeddings of <|im_start|> and <|im_end|>, "
        "which it has never seen. Without it a base model ends its turns in its own end-of-text token.",
    )  # fmt: skip


def field(name: str, value):
    """The input for a setting, with label and help text from TrainConfig."""
    rules, default = FIELDS[name].metadata, FIELDS[name].default
    about = {"label": rules["label"], "info": rules["help"], "min_width": 150, "elem_id": f"setting-{name}"}
    if rules["choices"]:
        return gr.Dropdown(list(rules["choices"]), value=value, **about)
    if isinstance(default, str | None):  # only a text may be left out
        return gr.Textbox(value, **about)
    return gr.Number(value, precision=0 if isinstance(default, int) else None, **about)


def rate_of(kind: str, learning_rate: float | None) -> float | None:
    """The learning rate that suits a kind of training, from one that suits the other."""
    times = _FULL_IS_SLOWER if kind == "lora" else 1 / _FULL_IS_SLOWER
    return learning_rate and float(f"{learning_rate * times:.6g}")


def usable(kind: str) -> list:
    """ChatML tokens and LoRA's own fields: whether they can be set."""
    lora = kind == "lora"
    chatml = gr.update(interactive=True) if lora else gr.update(interactive=False, value=False)
    return [chatml, *(gr.update(interactive=lora) for _ in LORA_ONLY)]


# ---- fields → config ----


def config_of(model, chatml: bool, *values) -> TrainConfig:
    """The config of the whole form: `values` are those of SETTINGS, then those that name the data."""
    settings = dict(zip(SETTINGS, values, strict=False))
    return make_config(model, settings | (CHATML if chatml else {}), *values[len(SETTINGS) :])


def make_config(model, settings: dict, kind, example, *upload_and_hub) -> TrainConfig:
    """The config of settings and data. Raises UserError for each thing that is wrong or missing."""
    guard_model(model)
    values = {"model": model, **{key: value for key, value in settings.items() if value not in (None, "")}}
    source = chosen(kind, example, *upload_and_hub)
    if kind == "Example":
        values |= {"dataset": source.name, "eval_dataset": str(DATA[example].with_suffix(".eval.jsonl"))}
        values["eval_format"] = read_yaml(Path("examples") / f"{example}.yaml").get("eval_format")
    else:
        values |= {"dataset": source.name, "dataset_config": source.config, "train_split": source.split}
        values |= {"eval_share": 0.1}
    config = TrainConfig.from_dict(values, "The settings")
    if kind != "Hub":
        shape_of(table_of(source), config.columns)  # what cannot be read is said here, not by a run that fails
    return config


# ---- config → fields ----


def example_settings(name: str) -> list:
    """The settings of the example's own config, where the model is left to the page."""
    return settings_of(TrainConfig.from_dict(read_yaml(Path("examples") / f"{name}.yaml"), name))


def settings_of(config: TrainConfig) -> list:
    """The values of SETTINGS, in their order."""
    return [getattr(config, name) for name in SETTINGS]


def learns_chatml(config: TrainConfig) -> bool:
    return all(getattr(config, name) == value for name, value in CHATML.items())


def not_taken_over(config: TrainConfig) -> list[str]:
    """The settings of a run for which the form, filled from it, has no place."""
    again = config_of(config.model, learns_chatml(config), *settings_of(config), *source_of(config))
    return [name for name in FIELDS if name != "dataset" and getattr(again, name) != getattr(config, name)]


def source_of(config: TrainConfig) -> list:
    """The fields that name a run's data: kind, example, upload, Hub id, its configuration, its split."""
    example = next((name for name, path in DATA.items() if str(path) == config.dataset), None)
    if example:
        return ["Example", example, None, "", "", "train"]
    if is_path(config.dataset):
        return ["Upload", gr.skip(), _uploaded(Path(config.dataset)), "", "", "train"]
    return ["Hub", gr.skip(), None, config.dataset, config.dataset_config or "", config.train_split]


def _uploaded(path: Path) -> str:
    """A copy where Gradio takes files from; its content, and so its run's data, are the same."""
    if not path.is_file():
        raise DataError(f"The file of this run, {path.name}, is not there any more.", "Choose other data.")
    return save_file_to_cache(path, get_upload_folder())
