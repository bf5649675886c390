"""`forecast`: how long a run will take and how much memory it will need."""

from dataclasses import asdict

from sft.cli.options import add_command, add_json, print_json, to_stderr


def add_to(commands) -> None:
    forecast = add_command(commands, "forecast", _forecast, "say how long a run will take and what memory it needs")
    forecast.add_argument("config", metavar="CONFIG.yaml")
    forecast.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change one setting")
    add_json(forecast)


def _forecast(options) -> None:
    from sft.config import TrainConfig
    from sft.run import duration, gigabytes

    config = TrainConfig.load(options.config, options.set)
    from sft.forecast import forecast  # imports torch, which takes seconds

    found = forecast(config, to_stderr)
    if options.json:
        print_json(asdict(found))
        return
    parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in found.parts.items() if seconds >= 0.5)
    print(f"about {duration(found.seconds)}: {parts}")
    print(f"memory {gigabytes(found.memory_bytes)} of {gigabytes(found.free_bytes)} free")
    if found.disturbed:
        print("Other programs worked while this was measured: alone it is quicker. Ask again when they have ended.")
    print(f"LoRA {gigabytes(found.lora_bytes)}, all weights {gigabytes(found.full_bytes)}")
