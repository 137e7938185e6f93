"""Writes the Llama model of a GGUF file as an ordinary checkpoint: config.json, model.safetensors (f32) and tokenizer.json.

Usage: gguf_to_checkpoint.py FILE.gguf FOLDER
"""

import json
import os
import struct
import sys
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL = 3  # llama.cpp's type of special tokens


def main(file, folder):
    folder.mkdir(parents=True, exist_ok=True)
    reader = GGUFReader(file)

    def field(key):
        return reader.fields[key].contents()

    heads, kv_heads = field("llama.attention.head_count"), field("llama.attention.head_count_kv")

    def name_of(name):
        parts = name.split(".")
        if parts[0] == "blk":
            return f"model.layers.{parts[1]}.{NAMES[parts[2]]}.{parts[3]}"
        return f"{NAMES[parts[0]]}.{parts[1]}"

    def values_of(tensor):
        values = dequantize(tensor.data, tensor.tensor_type).astype("<f4")
        # llama.cpp stores the rows of each head of q and k in the order of its rotation.
        for part, of in (("attn_q", heads), ("attn_k", kv_heads)):
            if f".{part}." in tensor.name:
                rows, width = values.shape
                values = values.reshape(of, rows // of // 2, 2, width).swapaxes(1, 2).reshape(rows, width)
        return np.ascontiguousarray(values)

    header, end = {}, 0
    for tensor in reader.tensors:
        shape = [int(n) for n in reversed(tensor.shape)]
        size = 4 * int(np.prod(shape))
        header[name_of(tensor.name)] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    part = folder / "model.safetensors.part"
    with open(part, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for tensor in reader.tensors:
            out.write(values_of(tensor).tobytes())

    tokens, types = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    special = [
        {
            "id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True,
        }
        for i, (token, kind) in enumerate(zip(tokens, types)) if kind == CONTROL
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
        "pre_tokenizer": level, "post_processor": level, "decoder": level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in field("tokenizer.ggml.merges")],
        },
    }
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "vocab_size": len(tokens), "hidden_size": field("llama.embedding_length"),
        "intermediate_size": field("llama.feed_forward_length"), "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "max_position_embeddings": field("llama.context_length"),
        "rms_norm_eps": float(f"{field('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": field("llama.rope.freq_base"), "tie_word_embeddings": True,
        "bos_token_id": field("tokenizer.ggml.bos_token_id"), "eos_token_id": field("tokenizer.ggml.eos_token_id"),
    }
    for name, value in (("tokenizer.json", tokenizer), ("config.json", config)):
        with open(folder / f"{name}.part", "w", encoding="utf-8") as out:
            json.dump(value, out, ensure_ascii=False)
        os.replace(folder / f"{name}.part", folder / name)
    os.replace(part, folder / "model.safetensors")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
