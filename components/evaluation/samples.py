"""Sample responses: generated greedily by a model, beside the reference responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from components.data.records import Record
from components.model.chat import encode_prompts


@dataclass(frozen=True, slots=True)
class Sample:
    """A record of the holdout, and the model's response to its prompt."""

    id: str
    prompt: str
    reference: str
    generated: str


def generate_samples(
    records: Sequence[Record],
    model: Any,
    tokenizer: Any,
    *,
    system: str,
    max_length: int,
    sample_tokens: int,
    template: str = "chat",
) -> list[Sample]:
    """A sample for each record that the template accepts, with a greedy response of at most `sample_tokens` tokens."""
    import torch
    from transformers import GenerationConfig

    encoded = zip(records, encode_prompts(records, tokenizer, system=system, template=template), strict=True)
    # a prompt that is too long keeps its end, to which the response replies
    prompted = [(record, ids[-max_length:]) for record, ids in encoded if ids is not None]
    if not prompted:
        return []
    prompts = [ids for _, ids in prompted]
    width = max(len(ids) for ids in prompts)
    padding = next(token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if token is not None)
    # padded on the left, so that generation continues from the prompt's last token; the mask is made from lengths
    ids = torch.tensor([[padding] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    ends = {tokenizer.eos_token_id, *_as_list(model.generation_config.eos_token_id)} - {None}
    # the model's own generation configuration may ask for sampling
    greedy = GenerationConfig(
        do_sample=False, max_new_tokens=sample_tokens, pad_token_id=padding, eos_token_id=sorted(ends) or None
    )
    model.generation_config = greedy
    with torch.inference_mode():
        output = model.generate(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
    texts = tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
    return [
        Sample(record.id, record.prompt, record.response, text)
        for (record, _), text in zip(prompted, texts, strict=True)
    ]


def _as_list(token: int | list[int] | None) -> list[int | None]:
    return list(token) if isinstance(token, list) else [token]
