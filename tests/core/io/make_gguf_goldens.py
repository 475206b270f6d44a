#!/usr/bin/env python3
"""Makes tests/data/gguf with the Python package gguf, whose reader, writer and dequantisation are independent of ours.

    python3 -m venv venv && venv/bin/pip install gguf safetensors numpy torch
    venv/bin/python tests/core/io/make_gguf_goldens.py        (made with gguf 0.19.0)

blocks.gguf          one [2][512] tensor of every type we read; quantised ones are random bytes with sensible scales, so that
                     every bit of every field matters
blocks.safetensors   the same tensors as F32, by gguf.quants.dequantize
llama-llama3.gguf    golden/llama-llama3 as BF16, q and k rows permuted and rope_freqs.weight made as GGUF's converters do:
                     its logits are golden/llama-llama3/golden.safetensors
qwen2.gguf           golden/qwen2 as BF16, likewise
gemma2.gguf          golden/gemma2 as F32, likewise: norm weights are one more there; GGUF has no query scalar, so q is scaled
gemma3.gguf          golden/gemma3 as BF16, likewise
"""
import json
import math
import pathlib

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Q
from safetensors import safe_open
from safetensors.numpy import save_file

ROOT = pathlib.Path(__file__).resolve().parents[3]
OUT = ROOT / "tests" / "data" / "gguf"
GOLDEN = ROOT / "tests" / "data" / "golden"

# Offsets of the half-precision scales in a block of each type.
HALVES = {Q.Q8_0: [0], Q.Q4_0: [0], Q.Q4_1: [0, 2], Q.Q5_0: [0], Q.Q5_1: [0, 2], Q.Q4_K: [0, 2], Q.Q5_K: [0, 2], Q.Q6_K: [208]}


def make_blocks():
    rng = np.random.default_rng(11)
    writer = gguf.GGUFWriter(OUT / "blocks.gguf", "blocks")
    writer.add_bool("test.bool", True)
    writer.add_int32("test.int32", -7)
    writer.add_uint64("test.uint64", 2**63 + 5)
    writer.add_float32("test.float32", 0.5)
    writer.add_string("test.string", "Grüße")
    writer.add_array("test.strings", ["a", "", "ü"])
    writer.add_array("test.ints", [1, -2, 3])
    writer.add_array("test.floats", [0.5, -1.5])
    writer.add_array("test.bools", [True, False, True])
    expected = {}
    rows, cols = 2, 512
    for kind in (Q.F32, Q.F16):
        values = rng.standard_normal((rows, cols)).astype(np.float32 if kind == Q.F32 else np.float16)
        writer.add_tensor(kind.name, values)
        expected[kind.name] = values.astype(np.float32)
    bits = (rng.standard_normal((rows, cols)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    writer.add_tensor("BF16", bits.view(np.uint8), raw_dtype=Q.BF16)
    expected["BF16"] = (bits.astype(np.uint32) << 16).view(np.float32)
    for kind, halves in HALVES.items():
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (rows * cols // elements, size), dtype=np.uint8)
        for at in halves:
            scales = (rng.standard_normal(len(blocks)) * 0.01).astype(np.float16)
            blocks[:, at:at + 2] = scales.view(np.uint8).reshape(-1, 2)
        data = blocks.reshape(rows, -1)
        writer.add_tensor(kind.name, data, raw_dtype=kind)
        expected[kind.name] = gguf.quants.dequantize(data, kind).astype(np.float32).reshape(rows, cols)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(expected, OUT / "blocks.safetensors")


NAMES = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
         "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


GEMMA_NAMES = {**NAMES, "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
               "post_feedforward_layernorm": "post_ffw_norm"}


def gguf_name(name, names=NAMES):
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
             "lm_head.weight": "output.weight"}
    if name in whole:
        return whole[name]
    layer, rest = name.removeprefix("model.layers.").split(".", 1)
    module, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{names[module]}.{kind}"


def interleave(t, heads):
    """Rows (half, pair) of every head to (pair, half): rotation of channels (2i, 2i + 1) instead of (i, i + d/2)."""
    d = t.shape[0] // heads
    return t.reshape(heads, 2, d // 2, -1).swapaxes(1, 2).reshape(t.shape)


def make_model(name, arch):
    config = json.loads((GOLDEN / name / "config.json").read_text())
    generation = {"eos_token_id": [config["eos_token_id"]]}
    if (GOLDEN / name / "generation_config.json").exists():
        generation = json.loads((GOLDEN / name / "generation_config.json").read_text())
    gemma = arch.startswith("gemma")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim", config["hidden_size"] // heads)
    rope = config.get("rope_parameters", {"rope_theta": config.get("rope_theta"), "rope_type": "default"})
    writer = gguf.GGUFWriter(OUT / f"{name}.gguf", arch)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(generation["eos_token_id"][0])
    if gemma:
        period = config.get("sliding_window_pattern", 2)
        writer.add_sliding_window(config["sliding_window"])
        writer.add_array(f"{arch}.attention.sliding_window_pattern",
                         [(i + 1) % period != 0 for i in range(config["num_hidden_layers"])])
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            if key in config:
                writer.add_float32(f"{arch}.{key}", config[key])
        if "rope_local_base_freq" in config:
            writer.add_float32(f"{arch}.rope.freq_base_swa", config["rope_local_base_freq"])
        if "rope_scaling" in config:
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(config["rope_scaling"]["factor"])
    if rope["rope_type"] == "llama3":
        frequency = rope["rope_theta"] ** -(np.arange(0, head_dim, 2) / head_dim)
        wavelength = 2 * math.pi / frequency
        original, low, high, factor = (rope[k] for k in ("original_max_position_embeddings", "low_freq_factor",
                                                         "high_freq_factor", "factor"))
        smooth = np.clip((original / wavelength - low) / (high - low), 0, 1)
        divisors = 1 / ((1 - smooth) / factor + smooth)
        writer.add_tensor("rope_freqs.weight", divisors.astype(np.float32))
    with safe_open(GOLDEN / name / "model.safetensors", "pt") as tensors:
        for key in tensors.keys():
            t = tensors.get_tensor(key)
            if arch == "llama" and ("q_proj" in key or "k_proj" in key):
                t = interleave(t, heads if "q_proj" in key else kv_heads)
            t = t.contiguous()
            to = gguf_name(key, GEMMA_NAMES if gemma else NAMES)
            if gemma and "norm" in key:
                t = t.float() + 1
            if gemma and ("q_norm" if arch == "gemma3" else "q_proj") in key:
                t = t * math.sqrt(head_dim / config["query_pre_attn_scalar"])
            if t.dim() == 1 or t.dtype == torch.float32:
                writer.add_tensor(to, t.float().numpy())
            else:
                writer.add_tensor(to, t.view(torch.uint8).numpy(), raw_dtype=Q.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    make_blocks()
    make_model("llama-llama3", "llama")
    make_model("qwen2", "qwen2")
    make_model("gemma2", "gemma2")
    make_model("gemma3", "gemma3")
