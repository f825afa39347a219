"""Sample responses of a model, generated greedily, beside the reference responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from components.data.records import Record
from components.model.chat import encode_prompts


def generate_samples(
    records: Sequence[Record], model: Any, tokenizer: Any, *, system: str, max_length: int, sample_tokens: int
) -> list[dict[str, str]]:
    """For each record its id, prompt, reference response and a greedy response of at most `sample_tokens` tokens."""
    import torch
    from transformers import GenerationConfig

    if not records:
        return []
    # of a prompt that is too long the end is kept: it is what the response answers
    prompts = [ids[-max_length:] for ids in encode_prompts(records, tokenizer, system=system)]
    width = max(len(ids) for ids in prompts)
    padding = next(token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if token is not None)
    # padded on the left, so that generation continues the prompt's last token; the mask comes from lengths
    ids = torch.tensor([[padding] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    ends = {tokenizer.eos_token_id, *_as_list(model.generation_config.eos_token_id)} - {None}
    # the model's own configuration may ask for sampling
    greedy = GenerationConfig(
        do_sample=False, max_new_tokens=sample_tokens, pad_token_id=padding, eos_token_id=sorted(ends) or None
    )
    model.generation_config = greedy
    with torch.inference_mode():
        output = model.generate(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
    texts = tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
    return [
        {"id": record.id, "prompt": record.prompt, "reference": record.response, "generated": text}
        for record, text in zip(records, texts, strict=True)
    ]


def _as_list(token: int | list[int] | None) -> list[int | None]:
    return list(token) if isinstance(token, list) else [token]
