"""Tiny models of transformers' causal architectures, with random weights."""

from __future__ import annotations

import json
from typing import Any

SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_size", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "moe_intermediate_size", "intermediate_size_mlp"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads"), 4),
    **dict.fromkeys(("num_key_value_heads",), 2),
    **dict.fromkeys(("head_dim", "rotary_dim"), 8),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "context_length"), 512),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 1),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "first_k_dense_replace": 1, "state_size": 8, "lru_width": 32, "time_step_rank": 4,
    "mamba_d_state": 8, "mamba_dt_rank": 4,
}  # fmt: skip
SPECIAL: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 1, "chunk_size": 16},
    "recurrent_gemma": {"num_hidden_layers": 3, "attention_window_size": 512, "num_key_value_heads": 1},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False,
              "expert_layer_period": 2, "expert_layer_offset": 1},
    "deepseek_v3": {"num_key_value_heads": 4, "head_dim": 8},
    "deepseek_v2": {"num_key_value_heads": 4, "head_dim": 8, "num_experts_per_tok": 2},
    "glm4_moe_lite": {"num_key_value_heads": 4},
    "rwkv": {"attention_hidden_size": 32},
}  # fmt: skip


def tiny_model(model_type: str, vocabulary: int) -> Any:
    """A model of an architecture, the same weights every time; more random than at the start of a training."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    kind = CONFIG_MAPPING[model_type]
    defaults = kind()
    known = {key: value for key, value in SMALL.items() if getattr(defaults, key, None) is not None}
    changes = {**known, "vocab_size": vocabulary, **SPECIAL.get(model_type, {})}
    layers = changes.get("num_hidden_layers", 2)
    if getattr(defaults, "layer_types", None) and "layer_types" in json.dumps(defaults.to_dict()):
        kinds = list(dict.fromkeys(defaults.layer_types))
        changes["layer_types"] = [kinds[number % len(kinds)] for number in range(layers)]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(kind(**changes)).float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.3 / max(1.0, weight.shape[-1] / 32) ** 0.5)
    return model
