"""`chat`: base and tuned model answer one prompt."""

from sft.cli.options import add_command, add_json, add_runs_dir, positive, print_json, seed, temperature


def add_to(commands) -> None:
    chat = add_command(commands, "chat", _chat, "let base and tuned model answer a prompt")
    chat.add_argument("run", metavar="RUN")
    chat.add_argument("--prompt", metavar="TEXT", required=True)
    chat.add_argument("--system", metavar="TEXT", help="a system message")
    chat.add_argument("--step", metavar="N", type=positive, help="the run as it was after a step of its snapshots")
    chat.add_argument("--template", choices=["right", "none", "wrong"], default="right", help="ask in this template")
    chat.add_argument("--max-new-tokens", metavar="N", type=positive, default=128)
    chat.add_argument("--temperature", metavar="T", type=temperature, default=0.0, help="0 takes the likeliest token")
    chat.add_argument("--seed", metavar="N", type=seed, default=0)
    add_runs_dir(chat)
    add_json(chat)


def _chat(options) -> None:
    from sft.prompts import prompt_ids
    from sft.runs import find_run, runs_dir

    run = find_run(options.run, runs_dir(options.runs_dir))
    from sft import chat  # imports torch, which takes seconds

    contest = chat.Contest.of_run(run, options.step)
    messages = [{"role": "system", "content": options.system}] if options.system else []
    messages.append({"role": "user", "content": options.prompt})
    prompt = prompt_ids(contest.chat_format, messages, options.template)
    sampling = chat.Sampling(temperature=options.temperature, max_new_tokens=options.max_new_tokens, seed=options.seed)
    replies = []
    for replies in chat.stream(contest, [prompt] * len(contest.contestants), sampling):  # noqa: B007
        pass
    base, tuned = ({"text": each.text, "token_ids": each.token_ids, "stopped": each.stopped} for each in replies)
    if options.json:
        print_json({"prompt_token_ids": prompt, "base": base, "tuned": tuned})
        return
    for name, reply in (("base", base), ("tuned", tuned)):
        ending = "" if reply["stopped"] else "  [did not stop]"
        print(f"--- {name} ---\n{reply['text']}{ending}")
