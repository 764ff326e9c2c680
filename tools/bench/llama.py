"""A language model of Moondream 2's dimensions in llama.cpp, with random weights: a worker of `cargo xtask peers`.

llama.cpp's `phi2` is the same network: attention and MLP in parallel behind one norm, rotation of 32 of a head's 64
features, GELU, biases. Every matrix is quantized, the embedding and the head too, where llama.cpp's own recipe for
q4_0 leaves the head at 6 bits and Photon leaves it at 16. Every phase can be run with and without flash attention, and
the harness keeps the faster.
"""
import argparse
import os
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

from worker import serve

PROMPT, CONTEXT, SLOTS = 750, 770, 800
DIM, HEADS, FF, ROTARY, VOCABULARY = 2048, 32, 8192, 32, 51200


def write(path, layers, quantization):
    """The model, unless it lies there."""
    if path.exists():
        return
    rng = np.random.default_rng(0)
    kind = gguf.GGMLQuantizationType[quantization.upper()]
    unfinished = path.with_suffix(f".{os.getpid()}")
    writer = gguf.GGUFWriter(unfinished, "phi2")
    writer.add_context_length(2048)
    writer.add_embedding_length(DIM)
    writer.add_feed_forward_length(FF)
    writer.add_block_count(layers)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_eps(1e-5)
    writer.add_rope_dimension_count(ROTARY)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("none")

    def matrix(rows, columns):
        weights = rng.normal(0, 0.02, (rows, columns)).astype(np.float32)
        return gguf.quants.quantize(weights, kind)

    def linear(name, data):
        writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)
        if name != "token_embd":
            writer.add_tensor(f"{name}.bias", np.zeros(len(data), np.float32))

    def norm(name):
        writer.add_tensor(f"{name}.weight", np.ones(DIM, np.float32))
        writer.add_tensor(f"{name}.bias", np.zeros(DIM, np.float32))

    vocabulary = matrix(VOCABULARY, DIM)
    linear("token_embd", vocabulary)
    # Blocks have the same numbers, in memory of their own: making them is slow.
    shapes = {"attn_qkv": (3 * DIM, DIM), "attn_output": (DIM, DIM), "ffn_up": (FF, DIM), "ffn_down": (DIM, FF)}
    matrices = {name: matrix(*shape) for name, shape in shapes.items()}
    for block in range(layers):
        norm(f"blk.{block}.attn_norm")
        for name, data in matrices.items():
            linear(f"blk.{block}.{name}", data)
    norm("output_norm")
    linear("output", vocabulary)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(path)


class Context:
    """A cache of keys and values, and what runs on it: sequences that are decoded, and behind them one that prompts
    are computed in."""

    def __init__(self, model, args, flash):
        self.sequences = args.sequences
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = (args.sequences + 1) * SLOTS
        params.n_batch = params.n_ubatch = 768
        params.n_seq_max = args.sequences + 1
        params.n_threads = params.n_threads_batch = args.threads
        params.flash_attn_type = int(flash)
        # Each sequence looks at its own keys alone.
        params.kv_unified = False
        self.context = llama_cpp.llama_init_from_model(model, params)
        if not self.context:
            raise RuntimeError("llama.cpp makes no context")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(params.n_batch, 0, 1)
        self.compute([(i, 0) for i in range(PROMPT)])
        self.compute([(i, 0) for i in range(PROMPT, CONTEXT)])
        for sequence in range(1, args.sequences):
            llama_cpp.llama_memory_seq_cp(self.memory, 0, sequence, -1, -1)

    def compute(self, tokens):
        """Computes tokens, given by position and sequence, and the likeliest after the last of each sequence."""
        last = {sequence: i for i, (_, sequence) in enumerate(tokens)}
        self.batch.n_tokens = len(tokens)
        for i, (position, sequence) in enumerate(tokens):
            self.batch.token[i] = 17 + 31 * position % 500
            self.batch.pos[i] = position
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = sequence
            self.batch.logits[i] = last[sequence] == i
        if llama_cpp.llama_decode(self.context, self.batch) != 0:
            raise RuntimeError("llama.cpp cannot compute a batch")
        for i in last.values():
            logits = llama_cpp.llama_get_logits_ith(self.context, i)
            np.ctypeslib.as_array(logits, (VOCABULARY,)).argmax()

    def forget(self, sequence, start):
        if not llama_cpp.llama_memory_seq_rm(self.memory, sequence, start, -1):
            raise RuntimeError("llama.cpp does not forget")

    def prefill(self):
        self.forget(self.sequences, 0)
        self.compute([(i, self.sequences) for i in range(PROMPT)])

    def decode(self, sequences, tokens):
        for sequence in range(sequences):
            self.forget(sequence, CONTEXT)
        for i in range(tokens):
            self.compute([(CONTEXT + i, sequence) for sequence in range(sequences)])


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--quantization", choices=["q8_0", "q4_0"], required=True)
    args.add_argument("--threads", type=int, required=True)
    args.add_argument("--text-layers", type=int, required=True)
    args.add_argument("--decode-tokens", type=int, required=True)
    args.add_argument("--sequences", type=int, required=True)
    args.add_argument("--models", type=Path, required=True)
    args = args.parse_args()
    path = args.models / f"phi2-{args.text_layers}-{args.quantization}.gguf"
    write(path, args.text_layers, args.quantization)
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp cannot load {path}")
    contexts = {name: Context(model, args, flash) for name, flash in (("plain", False), ("flash attention", True))}

    def ways(run):
        return {name: lambda context=context: run(context) for name, context in contexts.items()}

    tokens = args.decode_tokens
    serve(
        f"llama-cpp-python {llama_cpp.__version__}",
        {
            "prefill": ways(Context.prefill),
            "decode 1": ways(lambda context: context.decode(1, tokens)),
            f"decode {args.sequences}": ways(lambda context: context.decode(args.sequences, tokens)),
        },
    )


main()
