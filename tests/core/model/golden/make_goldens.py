#!/usr/bin/env python3
"""Makes the golden checkpoints of tests/data/golden: one tiny seeded random model per family and rope variant.

    python3 -m venv venv && venv/bin/pip install torch transformers safetensors numpy
    venv/bin/python tests/core/model/golden/make_goldens.py        (made with transformers 5.23.0, torch 2.15.0)

Each folder holds
  config.json         written by hand below, with the old or the new key names; transformers reads this very file
  model.safetensors   weights in the type `dtype` says; the values are rounded to it before the reference runs
  golden.safetensors  input_ids [n] (as F32), logits [n][vocab] F32 of one forward pass over all n tokens (eager attention,
                      float32), inv_freq [head_dim / 2] and attention_scaling [1] as the rotary embedding used them
Convention for dynamic rope scaling: transformers computes the inverse frequencies once per forward pass, for its whole length n,
so position 0 is rotated as if it had always been part of n tokens: RopeInverseFrequencies(rope, n) for every position.
Norms are not 1, biases not 0 and queries and keys are large enough for attention to be peaked, so that nothing hides.
"""
import argparse
import json
import pathlib
import zlib

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB = 160


def base(architecture, model_type, **extra):
    config = dict(architectures=[architecture], model_type=model_type, hidden_size=48, intermediate_size=80,
                  num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=VOCAB,
                  max_position_embeddings=256, rms_norm_eps=1e-5, hidden_act="silu", bos_token_id=1, eos_token_id=2,
                  tie_word_embeddings=False)
    config.update(extra)
    return {k: v for k, v in config.items() if v is not None}


def llama(**extra):
    return base("LlamaForCausalLM", "llama", **extra)


# name: (tokens, generation_config or None, config). d = hidden / heads unless head_dim says otherwise.
MODELS = {
    "llama": (96, None, llama(num_hidden_layers=3, rope_theta=10000.0, rope_scaling=None, torch_dtype="float32")),
    "llama-bias": (72, None, llama(attention_bias=True, mlp_bias=True, rope_theta=5000.0, torch_dtype="float32",
                                   num_key_value_heads=1)),
    "llama-linear": (80, None, llama(rope_theta=10000.0, rope_scaling={"type": "linear", "factor": 4.0},
                                     torch_dtype="bfloat16")),
    # 80 tokens where 32 were trained, with room for 32 * 4.
    "llama-dynamic": (80, None, llama(rope_theta=10000.0, rope_scaling={"rope_type": "dynamic", "factor": 4.0},
                                      max_position_embeddings=32, torch_dtype="float16")),
    "llama-yarn": (90, None, llama(
        head_dim=16, max_position_embeddings=128, dtype="bfloat16",
        rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
                         "original_max_position_embeddings": 32})),
    "llama-yarn-mscale": (72, None, llama(
        head_dim=16, max_position_embeddings=256, dtype="bfloat16",
        rope_parameters={"rope_type": "yarn", "rope_theta": 20000.0, "factor": 8.0, "beta_fast": 16.0, "beta_slow": 2.0,
                         "mscale": 1.0, "mscale_all_dim": 0.4, "truncate": False,
                         "original_max_position_embeddings": 32})),
    # Wavelengths 6.3, 20 and 63 and more: one band each is kept, smoothed and divided.
    "llama-llama3": (100, {"eos_token_id": [2, 7, 9], "temperature": 0.6, "top_p": 0.9, "do_sample": True}, llama(
        head_dim=16, max_position_embeddings=256, dtype="bfloat16",
        rope_parameters={"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 32})),
    "mistral": (96, None, base("MistralForCausalLM", "mistral", num_hidden_layers=3, sliding_window=16, rms_norm_eps=1e-6,
                               rope_theta=10000.0, torch_dtype="bfloat16")),
    "qwen2": (72, {"eos_token_id": [2, 5], "top_k": 20, "top_p": 0.8, "temperature": 0.7}, base(
        "Qwen2ForCausalLM", "qwen2", tie_word_embeddings=True, rope_theta=1000000.0, use_sliding_window=False,
        sliding_window=16, max_window_layers=1, rms_norm_eps=1e-6, torch_dtype="bfloat16")),
    "qwen2-window": (80, None, base(
        "Qwen2ForCausalLM", "qwen2", num_hidden_layers=3, use_sliding_window=True, sliding_window=16, max_window_layers=1,
        rms_norm_eps=1e-6, dtype="float16", bos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0})),
    "qwen3": (90, None, base(
        "Qwen3ForCausalLM", "qwen3", head_dim=16, num_hidden_layers=3, rms_norm_eps=1e-6, dtype="bfloat16",
        tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        use_sliding_window=False, sliding_window=None, max_window_layers=3, eos_token_id=[2, 3])),
    # Attention and logits capped well below what they reach, a query scalar that is not head_dim, every second layer
    # windowed.
    "gemma2": (96, None, base(
        "Gemma2ForCausalLM", "gemma2", num_hidden_layers=3, head_dim=16, hidden_act=None, rms_norm_eps=1e-6,
        hidden_activation="gelu_pytorch_tanh", tie_word_embeddings=None, sliding_window=16, query_pre_attn_scalar=24,
        attn_logit_softcapping=2.0, final_logit_softcapping=3.0, rope_theta=10000.0, torch_dtype="float32")),
    # The old keys: every third layer global, with a rope of its own that is scaled.
    "gemma3": (96, {"eos_token_id": [1, 106], "top_k": 64, "top_p": 0.95, "do_sample": True}, base(
        "Gemma3ForCausalLM", "gemma3_text", num_hidden_layers=4, head_dim=16, hidden_act=None, rms_norm_eps=1e-6,
        hidden_activation="gelu_pytorch_tanh", tie_word_embeddings=None, sliding_window=16, sliding_window_pattern=3,
        query_pre_attn_scalar=24, attn_logit_softcapping=None, final_logit_softcapping=None, rope_theta=1000000.0,
        rope_local_base_freq=10000.0, rope_scaling={"rope_type": "linear", "factor": 8.0}, torch_dtype="bfloat16")),
    # The new ones, and an untied head.
    "gemma3-new": (80, None, base(
        "Gemma3ForCausalLM", "gemma3_text", num_hidden_layers=3, head_dim=16, hidden_act=None, rms_norm_eps=1e-6,
        hidden_activation="gelu_pytorch_tanh", sliding_window=12, query_pre_attn_scalar=16, dtype="float32",
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 500000.0},
                         "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0}})),
    "smollm2": (100, None, llama(hidden_size=144, num_attention_heads=9, num_key_value_heads=3, intermediate_size=96,
                                 tie_word_embeddings=True, rope_theta=100000.0, rope_interleaved=False,
                                 torch_dtype="bfloat16")),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def fill(name, shape, generator, norm):
    values = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return norm + 0.3 * values if "norm" in name else 0.3 * values
    gain = 1.6 if ("q_proj" in name or "k_proj" in name) else 1.0
    return gain * values / shape[-1] ** 0.5


# Of the layers without a window, where there are two.
def rotary_of(rotary, what):
    return getattr(rotary, what) if hasattr(rotary, what) else getattr(rotary, "full_attention_" + what)


def make(folder, name):
    tokens, generation, config = MODELS[name]
    folder = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=1) + "\n")
    dtype = DTYPES[config.get("dtype", config.get("torch_dtype"))]
    hf = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(hf, dtype=torch.float32, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    norm = 0.0 if name.startswith("gemma") else 1.0  # Gemma's files hold the norms' weights less one
    with torch.no_grad():
        weights = {}
        for key, parameter in model.named_parameters():  # tied weights come once
            values = fill(key, parameter.shape, generator, norm).to(dtype)
            parameter.copy_(values.float())
            weights[key] = values.contiguous()
        ids = torch.randint(3, VOCAB, (1, tokens), generator=generator)
        ids[0, 0] = 1
        ids[0, tokens // 2: tokens // 2 + 8] = ids[0, 4:12]  # a repetition for attention to find
        logits = model(input_ids=ids, use_cache=False).logits[0]
    rotary = model.model.rotary_emb
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_file({"input_ids": ids[0].float(), "logits": logits.float().contiguous(),
               "inv_freq": rotary_of(rotary, "inv_freq").float().contiguous().clone(),
               "attention_scaling": torch.tensor([float(rotary_of(rotary, "attention_scaling"))])},
              folder / "golden.safetensors")
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name}: {tokens} tokens, logits std {logits.std():.2f}, {size} bytes")


if __name__ == "__main__":
    root = pathlib.Path(__file__).resolve().parents[4]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=root / "tests" / "data" / "golden")
    parser.add_argument("names", nargs="*", default=list(MODELS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    for model_name in args.names or MODELS:
        make(args.out, model_name)
