"""Both replies at once against one after the other: transformers' `generate` on the base model, then on PEFT's.

    python tests/benchmarks/chat.py [--new-tokens 40] [--rounds 3] [--json]

The embedded model and an adapter of random numbers (rank 16 on all linear layers, small enough that replies stay
sentences). Conversations of three turns; in each turn both sides answer the same prompts, greedily, with replies of a
fixed length, and the one that goes first changes from turn to turn. Prints, as medians over all turns:

- time until both replies are there, ours over the other's;
- time until the first token stands in both panes, over that of `generate` on the PEFT model alone: for the first turn,
  of which the template's opening is read ahead, and for later ones, where all that was read is kept;
- how many replies are the same, token for token.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
QUESTIONS = [
    ["What is the capital of France?", "And of Italy?", "Which of the two is older, and how do we know?"],
    ["Write a short poem about the sea.", "Now one about a mountain.", "Which of them do you like better?"],
    ["How do I boil an egg so that its yolk stays soft?", "And hard?", "What goes well with it?"],
    ["Explain in two sentences what a database index is.", "When is one a bad idea?", "Give me an example in SQL."],
]


def make_run(folder: Path):
    """A run folder whose adapter changes every layer a little."""
    import torch
    from peft import LoraConfig, get_peft_model

    from sft import models
    from sft.chat_format import ChatFormat
    from sft.config import TrainConfig
    from sft.runs import create_run

    base = models.locate("embedded")
    run = create_run(TrainConfig.from_dict({"dataset": "none.jsonl"}), folder, "random")
    tokenizer = models.load_tokenizer(base)
    ChatFormat.of(tokenizer).save(run.folder)
    tuned = get_peft_model(
        models.load_base(base), LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    torch.manual_seed(0)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.004)
    tuned.save_pretrained(run.adapter)
    tokenizer.save_pretrained(run.adapter)
    return run, tuned.eval()


def generate(model, prompt: list[int], count: int) -> tuple[list[int], float]:
    """The greedy reply and the seconds that it took. Stop tokens do not stop it."""
    import torch

    ids = torch.tensor([prompt], device=model.device)
    began = time.perf_counter()
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    return output[0, len(prompt) :].tolist(), time.perf_counter() - began


def ours(contest, prompts: list[list[int]], count: int) -> tuple[list[list[int]], float, float]:
    """Both replies, the seconds until the first token of both, and until all."""
    from sft import chat

    began, first, replies = time.perf_counter(), 0.0, []
    for replies in chat.stream(contest, prompts, chat.Sampling(max_new_tokens=count)):  # noqa: B007
        first = first or time.perf_counter() - began
    return [reply.token_ids for reply in replies], first, time.perf_counter() - began


def measure(count: int, rounds: int) -> dict:
    from sft import chat, models
    from sft.contest import Contest
    from sft.weights import WEIGHTS

    with tempfile.TemporaryDirectory() as folder:
        run, tuned = make_run(Path(folder))
        contest = Contest.of_run(run)
        object.__setattr__(contest.chat_format, "stop_token_ids", [])  # replies of equal length, whatever they say
        base = models.load_base(contest.folder)
        ours(contest, [[1, 2, 3]] * 2, 2)
        generate(base, [1, 2, 3], 2), generate(tuned, [1, 2, 3], 2)
        both, first, later, same = [], [], [], []
        for number in range(rounds):
            for at, questions in enumerate(QUESTIONS):
                WEIGHTS.forget_rows()
                chat.get_ready(contest, [])  # as the page does when somebody is chosen to answer
                histories = [[], []]
                for turn, question in enumerate(questions):
                    for history in histories:
                        history.append({"role": "user", "content": question})
                    prompts = [contest.chat_format.prompt_ids(history) for history in histories]

                    def theirs(prompts=prompts):
                        _, alone = generate(tuned, prompts[1], 1)
                        pair = [generate(base, prompts[0], count), generate(tuned, prompts[1], count)]
                        return [reply for reply, _ in pair], alone, sum(seconds for _, seconds in pair)

                    def mine(prompts=prompts):
                        return ours(contest, prompts, count)

                    order = [mine, theirs] if (number + at + turn) % 2 else [theirs, mine]
                    told = {side: side() for side in order}
                    both.append(told[mine][2] / told[theirs][2])
                    (first if turn == 0 else later).append(told[mine][1] / told[theirs][1])
                    same += [one == other for one, other in zip(told[mine][0], told[theirs][0], strict=True)]
                    for history, reply in zip(histories, told[mine][0], strict=True):
                        text = contest.chat_format.tokenizer.decode(reply, skip_special_tokens=True)
                        history.append({"role": "assistant", "content": text})
    return {
        "both_replies_ratio": statistics.median(both),
        "first_token_ratio": statistics.median(first + later),
        "first_token_ratio_first_turn": statistics.median(first),
        "first_token_ratio_later_turns": statistics.median(later),
        "same_replies": sum(same),
        "replies": len(same),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--new-tokens", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.new_tokens, options.rounds)
    if options.json:
        print(json.dumps(found))
        return
    print(f"both replies           {found['both_replies_ratio']:.2f} of the time of one after the other")
    print(f"first token, turn 1    {found['first_token_ratio_first_turn']:.2f} of a single model's")
    print(f"first token, later     {found['first_token_ratio_later_turns']:.2f}")
    print(f"same replies           {found['same_replies']} of {found['replies']}")


if __name__ == "__main__":
    main()
