"""TrainConfig: every setting of a run, once. And the arguments of a template, which are written as JSON.

The same fields feed YAML files, `--set KEY=VALUE` and the page's labels and help texts. Names are those of TRL's
SFTConfig and PEFT's LoraConfig where such a setting exists there.
"""

import difflib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import get_args, get_type_hints

import yaml

from sft import reply_format
from sft.errors import ConfigError, listed
from sft.json_text import JsonProblem, loads

# What a template is given besides its arguments, and whence.
_RESERVED = {
    **dict.fromkeys(("messages", "conversations", "tools"), "Write it into the conversation."),
    "chat_template": "Choose the template by itself.",
    "add_generation_prompt": "There is a switch of its own for it.",
    **dict.fromkeys(
        ("return_assistant_tokens_mask", "continue_final_message", "compiled_template", "self"), "Leave it out."
    ),
    **dict.fromkeys(("raise_exception", "strftime_now"), "Leave it out: it is a function that templates call."),
}
_DEEPEST = 50  # lists and objects inside each other: templates and JSON writers call themselves for each


def _setting(default, help: str, *, label: str = "", choices=None, minimum=None, maximum=None, above=None):
    rules = {"choices": choices, "minimum": minimum, "maximum": maximum, "above": above}
    return field(default=default, metadata={"help": help, "label": label, **rules})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of one run. Build it with `from_dict` or `load`: they report all problems together."""

    model: str = _setting(
        "embedded", "'embedded', a name from the catalogue, a Hub id, or a local folder", label="Model"
    )
    chat_template: str | None = _setting(
        None,
        "how messages become text: the name of a preset (chatml, plain, llama3 …) or a .jinja file; without one, the "
        "model's own, or plain for a base model that has none",
        label="chat_template",
    )
    dataset: str = _setting("", "a file, a folder, or a Hub id", label="Data set")
    dataset_config: str | None = _setting(None, "configuration of a Hub data set; a file has none", label="Hub config")
    columns: str | None = _setting(
        None,
        "what the columns hold where their names do not say it: 'user=Frage, assistant=Antwort', or 'messages=dialog'; "
        "columns can be joined ('user=instruction+input'), and there may be a system=",
        label="Columns",
    )
    train_split: str = _setting("train", "split of a Hub data set to train on", label="Train split")
    eval_dataset: str | None = _setting(
        None, "file with held-out rows, which are never trained on", label="Held-out file"
    )
    eval_split: str | None = _setting(
        None, "split of a Hub data set that holds the held-out rows", label="Held-out split"
    )
    eval_share: float | None = _setting(
        None, "share of the training rows to hold out", label="Held-out share", above=0, maximum=0.5
    )
    on_bad_rows: str = _setting(
        "stop",
        "rows that break a rule: 'stop' refuses the data set, 'skip' trains without them and says how many",
        label="Bad rows",
        choices=("stop", "skip"),
    )
    max_steps: int = _setting(
        30, "optimizer steps; each learns from one batch", label="Steps", minimum=1, maximum=1_000_000
    )
    learning_rate: float = _setting(
        5e-4,
        "size of each step; LoRA likes about ten times what full fine-tuning takes (5e-4 and 5e-5)",
        label="Learning rate",
        above=0,
        maximum=1,
    )
    finetuning_type: str = _setting(
        "lora",
        "'lora' trains small matrices beside the frozen model; 'full' trains every weight, which takes memory for "
        "four copies of the model (weights, gradients, two moments of the optimizer), saves a whole model for each "
        "run, and wants a tenth of the learning rate",
        label="finetuning_type",
        choices=("lora", "full"),
    )
    lora_r: int = _setting(
        16, "rank of the trained matrices: higher learns more and costs more", label="LoRA rank", minimum=1,
        maximum=512,
    )  # fmt: skip
    per_device_train_batch_size: int = _setting(
        4, "conversations per step and device", label="Batch size", minimum=1, maximum=1024
    )
    max_length: int = _setting(
        512, "longest conversation in tokens; what is longer is cut", label="Max length", minimum=8,
        maximum=131_072,
    )  # fmt: skip
    lora_alpha: int = _setting(32, "the adapter is scaled by alpha / rank", label="lora_alpha", minimum=1, maximum=4096)
    lora_dropout: float = _setting(
        0.0, "share of the adapter's inputs dropped while training", label="lora_dropout", minimum=0, maximum=0.9
    )
    target_modules: str = _setting(
        "all-linear",
        "layers that get an adapter: 'all-linear', or names with commas between (q_proj,v_proj)",
        label="target_modules",
    )
    trainable_token_indices: str | None = _setting(
        None,
        "tokens whose embeddings are trained beside the adapter, as text or number, with commas between: "
        "'<|im_start|>,<|im_end|>' lets a base model learn ChatML's markers",
        label="trainable_token_indices",
    )
    gradient_accumulation_steps: int = _setting(
        1, "batches added up before each step", label="gradient_accumulation_steps", minimum=1, maximum=1024
    )
    lr_scheduler_type: str = _setting(
        "cosine",
        "how the learning rate moves after the warm-up",
        label="lr_scheduler_type",
        choices=("cosine", "linear", "constant", "constant_with_warmup"),
    )
    warmup_steps: int = _setting(
        0, "steps over which the learning rate rises from zero", label="warmup_steps", minimum=0,
        maximum=1_000_000,
    )  # fmt: skip
    weight_decay: float = _setting(0.0, "pulls the weights towards zero", label="weight_decay", minimum=0, maximum=1)
    max_grad_norm: float = _setting(
        1.0, "gradients longer than this are shortened to it", label="max_grad_norm", above=0, maximum=1000
    )
    eval_strategy: str = _setting(
        "steps",
        "'steps' measures the held-out loss every eval_steps, if rows are held out; 'no' never does",
        label="eval_strategy",
        choices=("no", "steps"),
    )
    eval_steps: int = _setting(10, "steps between two measurements", label="eval_steps", minimum=1, maximum=1_000_000)
    max_eval_samples: int = _setting(
        64, "held-out rows measured while training; evaluate takes them all", label="max_eval_samples", minimum=1,
        maximum=1_000_000,
    )  # fmt: skip
    snapshots: int = _setting(
        4,
        "adapters of the way that are kept, evenly over the steps, so that one can chat with the model as it was then; "
        "0 keeps none, and full fine-tuning never does",
        label="snapshots",
        minimum=0,
        maximum=100,
    )
    eval_format: str | None = _setting(
        None,
        "what a valid reply looks like to evaluate, where it is neither JSON nor one of a few labels, which are "
        "recognised: 'regex: PATTERN' for the whole reply, or 'contains: TEXT'",
        label="Reply format",
    )
    seed: int = _setting(42, "same seed, same rows in the same order", label="seed", minimum=0, maximum=2**31 - 1)
    report_to: str = _setting(
        "none",
        "tracker that is told the losses too: 'trackio' or 'tensorboard', installed apart; 'none' for none",
        label="report_to",
        choices=("none", "tensorboard", "trackio"),
    )

    @classmethod
    def from_dict(cls, values: dict, source: str = "The config") -> "TrainConfig":
        """Validated settings. Raises ConfigError that lists every unknown key and every bad value."""
        hints = get_type_hints(cls)
        known = {item.name: item for item in fields(cls)}
        found, clean = [], {}
        for key, value in values.items():
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
                found.append(f"{key}: there is no such setting" + (f"; did you mean {near[0]}?" if near else ""))
                continue
            try:
                clean[key] = _convert(value, hints[key])
                found += [f"{key}: {problem}" for problem in _range_problems(clean[key], known[key].metadata)]
            except ValueError as error:
                found.append(f"{key}: {error}")
        if not found:
            found = _combination_problems(clean)
        if found:
            raise ConfigError(f"{source} cannot be used:\n{listed(found, 20)}", "Change the settings named above.")
        return cls(**clean)

    @classmethod
    def load(cls, path: str | Path, overrides: list[str] = ()) -> "TrainConfig":
        """Reads flat YAML, then applies `KEY=VALUE` overrides."""
        values = read_yaml(path)
        for override in overrides:
            key, equals, text = override.partition("=")
            if not equals:
                raise ConfigError(f"--set {override} has no '='.", "Write --set KEY=VALUE, such as --set max_steps=50.")
            values[key.strip()] = _yaml(text, f"--set {override}")
        return cls.from_dict(values, str(path))

    def save(self, path: str | Path) -> None:
        Path(path).write_text(yaml.safe_dump(asdict(self), sort_keys=False, allow_unicode=True), encoding="utf-8")

    def targets(self) -> str | list[str]:
        """`target_modules` as PEFT takes it: 'all-linear' or a list of module names."""
        if self.target_modules == "all-linear":
            return "all-linear"
        return [name.strip() for name in self.target_modules.split(",") if name.strip()]


def read_yaml(path: str | Path) -> dict:
    """A YAML file that holds a flat mapping; ConfigError says where it does not."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"There is no config file {path}.", "Give the path of a YAML file.") from None
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as text: {error}", "Give the path of a YAML file.") from None
    values = _yaml(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no settings.", "Write one 'name: value' a line, such as 'max_steps: 30'.")
    return values


def _yaml(text: str, source: str):
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {error}", "Write one 'name: value' a line.") from None
    except (ValueError, ArithmeticError, LookupError, AttributeError, TypeError, RecursionError) as error:
        # PyYAML lets through what Python raises for a value that only looks like a date or a number
        raise ConfigError(
            f"{source[:200]} holds a value that cannot be read: {error}", "Put quotes around it if it is text."
        ) from None


def _convert(value, hint):
    """`value` as the type that `hint` asks for. YAML reads 5e-4 as text, so numbers are read from text too."""
    types = get_args(hint) or (hint,)
    wanted = types[0]
    if value is None:
        if type(None) in types:
            return None
        raise ValueError("needs a value")
    if wanted is str:
        if value is False:
            return "no"  # YAML reads a bare no as false
        if isinstance(value, list) and all(isinstance(item, str | int) for item in value):
            return ",".join(map(str, value))
        if not isinstance(value, str):
            raise ValueError(f"must be text, not {value!r}")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"must be a number, not {value!r}")
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"must be a number, not {value!r}") from None
    except OverflowError:  # not shown: Python refuses to print integers that are long enough
        raise ValueError("is too large a number") from None
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError(f"must be a finite number, not {value!r}")
    if wanted is int:
        if number != int(number):
            raise ValueError(f"must be a whole number, not {value!r}")
        return int(number)
    return number


def _range_problems(value, rules) -> list[str]:
    if value is None:
        return []
    if rules["choices"] and value not in rules["choices"]:
        return [f"must be one of {', '.join(rules['choices'])}, not {value!r}"]
    if rules["minimum"] is not None and value < rules["minimum"]:
        return [f"must be at least {rules['minimum']}, not {value}"]
    if rules["above"] is not None and value <= rules["above"]:
        return [f"must be more than {rules['above']}, not {value}"]
    if rules["maximum"] is not None and value > rules["maximum"]:
        return [f"must be at most {rules['maximum']}, not {value}"]
    return []


def _combination_problems(values: dict) -> list[str]:
    found = []
    if not values.get("dataset"):
        found.append("dataset: name the data set to train on")
    held_out = [key for key in ("eval_dataset", "eval_split", "eval_share") if values.get(key)]
    if len(held_out) > 1:
        found.append(f"{' and '.join(held_out)}: give only one of them")
    if values.get("eval_format"):
        try:
            reply_format.named(values["eval_format"])
        except ValueError as error:
            found.append(f"eval_format: {error}")
    if values.get("finetuning_type") == "full" and values.get("trainable_token_indices"):
        found.append("trainable_token_indices: full fine-tuning trains every token already; leave it out")
    return found


def template_arguments(text: str) -> dict:
    """The further variables of a template, from JSON. Raises ConfigError where they are none."""
    example = 'Write {"bos_token": "<s>", "enable_thinking": false}.'
    try:
        arguments = loads(text)
    except JsonProblem as problem:
        where = f" (line {problem.line})" if "\n" in text.strip() else ""
        raise ConfigError(f"The template arguments are not JSON: {problem.said}{where}.", example) from None
    if not isinstance(arguments, dict):
        raise ConfigError("The template arguments are not a JSON object.", example)
    _check_depth(arguments)
    for name, value in arguments.items():
        _check_argument(name, value)
    try:
        json.dumps(arguments, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ConfigError(
            "The template arguments hold half a character, which is not valid Unicode text.", "Write it whole."
        ) from None
    return arguments


def _check_argument(name: str, value) -> None:
    if name in _RESERVED:
        raise ConfigError(f"{name} cannot be a template argument.", _RESERVED[name])
    if name.endswith("_token") and not isinstance(value, str):
        raise ConfigError(
            f"The template argument {name} must be text, not {json.dumps(value)[:60]}.",
            'Put it in quotation marks, such as "</s>", or leave it out.',
        )
    documents = value is None or (isinstance(value, list) and all(isinstance(item, dict) for item in value))
    if name == "documents" and not documents:
        raise ConfigError(
            "The template argument documents must be a list of objects.", 'Write [{"title": "…", "text": "…"}].'
        )


def _check_depth(value) -> None:
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            item
            for outer in level
            if isinstance(outer, dict | list)
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if level:
        raise ConfigError(
            f"The template arguments are nested more than {_DEEPEST} deep.", "No template needs that: write them flat."
        )
