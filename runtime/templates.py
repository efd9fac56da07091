"""How a model family writes conversations: chat template, stop tokens, marks of thinking, dates."""

import functools

import peer_context


def chat_ids(tokenizer, system: str, messages: list[dict[str, str]]) -> list[int]:
    """Token ids of a conversation with the generation prompt, thinking off where it can be.

    messages: [{"role": "user" or "assistant", "content": text}, ...], user first. Rendered to text
    first and tokenised without special tokens: the template writes its own, and a second BOS would
    be one too many. Where a template has no system role the system message opens the first user
    turn.
    """
    if _writes_role(tokenizer, "system"):
        messages = [{"role": "system", "content": system}, *messages]
    else:
        first, *rest = messages
        messages = [{"role": "user", "content": f"{system}\n\n{first['content']}"}, *rest]
    return tokenizer(_render(tokenizer, messages), add_special_tokens=False)["input_ids"]


def _render(tokenizer, messages) -> str:
    return tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )


@functools.lru_cache(maxsize=16)
def _writes_role(tokenizer, role: str) -> bool:
    """Whether the chat template writes a "system" message, or earlier "assistant" turns."""
    if not tokenizer.chat_template:
        raise ValueError(
            "the tokenizer has no chat template: use an instruction-tuned model, or give it one"
        )
    asked, probe = {"role": "user", "content": "."}, {"role": role, "content": "<probe?>"}
    try:
        text = _render(tokenizer, [probe, asked] if role == "system" else [asked, probe, asked])
    except Exception as error:  # templates refuse a role with an exception type of their own
        text = str(error)
    if role == "system" and "<probe?>" not in text:
        print("the chat template has no system role: system messages open the first user turn")
    return "<probe?>" in text


def layouts_of(tokenizer) -> tuple[str, ...]:
    """The layouts that the chat template can write: some drop earlier turns of the assistant."""
    return peer_context.LAYOUTS if _writes_role(tokenizer, "assistant") else ("turn",)


def student_ids(tokenizer, problem) -> list[int]:
    """What the student reads: the problem's system message and one user turn."""
    return chat_ids(tokenizer, problem.system, [{"role": "user", "content": problem.prompt}])


def stop_ids(model, tokenizer) -> list[int]:
    """Every token that ends a turn: the tokenizer's and the model's own, which may be several."""
    found = {tokenizer.eos_token_id}
    for config in (model.config, model.generation_config):
        ids = getattr(config, "eos_token_id", None)
        found.update(ids if isinstance(ids, (list, tuple)) else [ids])
    return sorted(found - {None})


def completion_text(tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True)


def plain_text(tokenizer, text: str) -> str:
    """The text with its special tokens broken up: tokenised, they would end its turn."""
    for token in tokenizer.added_tokens_decoder.values():
        if token.special:
            text = text.replace(token.content, f"{token.content[0]} {token.content[1:]}")
    return text
