"""One runtime in a process of its own, for `benchmarks/decode.py`, which starts it in that runtime's Python.

    PYTHON benchmarks/decode_peers.py KIND MODEL '{"prompt": 760, "question": 24, "new": 32, "threads": 2}'

It loads the model, warms up and prints a JSON line; for every line on standard input it measures once and
prints another. Every runtime reads a prompt of the same length and then generates, token by token. Those that
cannot run our vision tower (genai, llama.cpp, OpenVINO GenAI) are given token ids instead of a picture's
embeddings: their time to the first token has no vision in it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Result = dict[str, Any]
clock = time.perf_counter


def token_ids(count: int, vocabulary: int) -> list[int]:
    """The same prompt for everyone."""
    return np.random.default_rng(5).integers(3, vocabulary, count).tolist()


def peak() -> int:
    """Most bytes that this process held. (getrusage would count its parent before exec.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


class Ours:
    """A bundle in pulse-edge."""

    def __init__(self, model: str, plan: dict[str, Any]) -> None:
        from pulse_edge.runtimes.load import load

        self.plan, session = plan, load(model, verify=False, threads=plan["threads"])
        self.backend = session.backend
        self.tiles = np.random.default_rng(3).standard_normal((5, 3, 336, 336)).astype(np.float32)
        self.question = token_ids(plan["question"], plan["vocabulary"])
        self.run()

    def run(self) -> Result:
        backend, new = self.backend, self.plan["new"]
        start = clock()
        embeddings = backend.encode(self.tiles, (672, 672))
        seen = clock()
        before = self.plan["prompt"] - len(embeddings) - len(self.question)
        backend.prefill(embeddings, [*token_ids(before, self.plan["vocabulary"]), -200])
        kept = backend.position
        logits = backend.extend(self.question)
        first = clock()
        steps = []
        for _ in range(new):
            at = clock()
            logits = backend.step(int(logits.argmax()))
            steps.append(clock() - at)
        at = clock()
        backend.rewind(kept)
        backend.extend(self.question)
        follow = clock() - at
        return {"vision": seen - start, "prefill": first - seen, "steps": steps, "follow_up": follow}

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        return np.asarray(self.backend.prefill(None, ids))


class HuggingFace:
    """transformers, with our tower: the checkpoint as PULSE in PyTorch."""

    def __init__(self, model: str, plan: dict[str, Any], kind: str) -> None:
        import torch

        from pulse_edge.model.checkpoint import load_model

        torch.set_num_threads(plan["threads"])
        torch.set_grad_enabled(False)
        self.torch, self.plan = torch, plan
        self.model = load_model(Path(model), kind).eval()
        self.kind = getattr(torch, kind)
        self.lm = self.model.model.language_model
        tiles = np.random.default_rng(3).standard_normal((5, 3, 336, 336)).astype(np.float32)
        self.tiles = torch.from_numpy(tiles).to(self.kind)
        self.run()

    def read(self, embeds: Any, cache: Any) -> Any:
        out = self.lm(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
        return self.model.lm_head(out.last_hidden_state[:, -1:])[0, -1]

    def run(self) -> Result:
        from transformers import DynamicCache

        torch, new = self.torch, self.plan["new"]
        table = self.lm.embed_tokens
        start = clock()
        seen = self.model.encode_images(self.tiles).to(self.kind).reshape(1, -1, table.weight.shape[1])
        looked = clock()
        ids = token_ids(self.plan["prompt"] - seen.shape[1], self.plan["vocabulary"])
        cache = DynamicCache()
        logits = self.read(torch.cat([seen, table(torch.tensor([ids]))], 1), cache)
        first = clock()
        steps = []
        for _ in range(new):
            at = clock()
            logits = self.read(table(logits.argmax()[None, None]), cache)
            steps.append(clock() - at)
        return {"vision": looked - start, "prefill": first - looked, "steps": steps}

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        from transformers import DynamicCache

        logits = self.read(self.lm.embed_tokens(self.torch.tensor([ids])), DynamicCache())
        return np.asarray(logits.float().numpy())


class GenAI:
    """onnxruntime-genai."""

    def __init__(self, model: str, plan: dict[str, Any]) -> None:
        import onnxruntime_genai as og

        self.og, self.plan = og, plan
        self.model = og.Model(model)
        self.run()

    def start(self, length: int) -> Any:
        params = self.og.GeneratorParams(self.model)
        params.set_search_options(max_length=length, min_length=length, do_sample=False)
        return self.og.Generator(self.model, params)

    def run(self) -> Result:
        plan = self.plan
        ids = np.array([token_ids(plan["prompt"], plan["vocabulary"])], np.int32)
        generator = self.start(plan["prompt"] + plan["new"] + 2)
        start = clock()
        generator.append_tokens(ids)
        generator.generate_next_token()
        first = clock()
        steps = []
        for _ in range(plan["new"]):
            at = clock()
            generator.generate_next_token()
            steps.append(clock() - at)
        return {"vision": None, "prefill": first - start, "steps": steps}

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        generator = self.start(len(ids) + 2)
        generator.append_tokens(np.array([ids], np.int32))
        return np.asarray(generator.get_output("logits"), np.float32).reshape(-1)[-self.plan["vocabulary"] :]


class LlamaCpp:
    """llama.cpp through llama-cpp-python."""

    def __init__(self, model: str, plan: dict[str, Any]) -> None:
        import llama_cpp

        self.plan, self.library = plan, llama_cpp
        threads = plan["threads"]
        self.llm = llama_cpp.Llama(
            model, n_ctx=plan["prompt"] + plan["new"] + 64, n_threads=threads, n_threads_batch=threads,
            n_batch=512, flash_attn=True, verbose=False,
        )  # fmt: skip
        self.run()

    def last(self) -> NDArray[np.float32]:
        pointer = self.library.llama_get_logits_ith(self.llm.ctx, -1)
        return np.ctypeslib.as_array(pointer, (self.plan["vocabulary"],))

    def run(self) -> Result:
        plan = self.plan
        ids = token_ids(plan["prompt"], plan["vocabulary"])
        self.llm.reset()
        start = clock()
        self.llm.eval(ids)
        first = clock()
        steps = []
        for _ in range(plan["new"]):
            token = int(self.last().argmax())
            at = clock()
            self.llm.eval([token])
            steps.append(clock() - at)
        return {"vision": None, "prefill": first - start, "steps": steps}

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        self.llm.reset()
        self.llm.eval(ids)
        return self.last().copy()


class OpenVINO:
    """OpenVINO on the model that OpenVINO GenAI makes of llama.cpp's file.

    GenAI's own pipeline refuses a vocabulary without a real tokenizer, but has written its model by then.
    """

    def __init__(self, model: str, plan: dict[str, Any]) -> None:
        import openvino as ov
        import openvino_genai

        self.plan, place = plan, Path(model).with_name("openvino_model.xml")
        if not place.is_file():
            try:
                openvino_genai.LLMPipeline(model, "CPU", enable_save_ov_model=True)
            except IndexError:
                if not place.is_file():
                    raise
        options = {"INFERENCE_NUM_THREADS": plan["threads"], "PERFORMANCE_HINT": "LATENCY"}
        self.request = ov.Core().compile_model(str(place), "CPU", options).create_infer_request()
        self.run()

    def read(self, ids: list[int], past: int) -> NDArray[np.float32]:
        total = past + len(ids)
        feed = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(past, total)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        self.request.infer(feed)
        return np.asarray(self.request.get_output_tensor(0).data).reshape(-1, self.plan["vocabulary"])[-1]

    def run(self) -> Result:
        plan = self.plan
        self.request.reset_state()
        start = clock()
        logits = self.read(token_ids(plan["prompt"], plan["vocabulary"]), 0)
        first = clock()
        steps = []
        for i in range(plan["new"]):
            at = clock()
            logits = self.read([int(logits.argmax())], plan["prompt"] + i)
            steps.append(clock() - at)
        return {"vision": None, "prefill": first - start, "steps": steps}

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        self.request.reset_state()
        return self.read(ids, 0).copy()


def bandwidth(threads: int) -> Result:
    """Bytes a second that all threads together read, and move in a triad, from arrays beyond any cache."""
    from concurrent.futures import ThreadPoolExecutor

    size = 1 << 28  # float32 values: 1 GiB an array
    a, b, c = (np.ones(size, np.float32) for _ in range(3))
    parts = [slice(i * size // threads, (i + 1) * size // threads) for i in range(threads)]

    def read(part: slice) -> None:
        np.dot(b[part], b[part])

    def triad(part: slice) -> None:  # piecewise, so that what multiply wrote is still in the cache
        for at in range(part.start, part.stop, 1 << 14):
            piece = slice(at, min(at + (1 << 14), part.stop))
            np.multiply(b[piece], 3.0, out=a[piece])
            np.add(a[piece], c[piece], out=a[piece])

    best = {}
    with ThreadPoolExecutor(threads) as pool:
        for name, work, count in (("read", read, 4 * size), ("triad", triad, 12 * size)):
            times = []
            for _ in range(4):
                start = clock()
                list(pool.map(work, parts))
                times.append(clock() - start)
            best[name] = count / min(times)
    return best


KINDS: dict[str, Callable[[str, dict[str, Any]], Any]] = {
    "ours": Ours,
    "ours fp32": Ours,
    "transformers bf16": lambda model, plan: HuggingFace(model, plan, "bfloat16"),
    "transformers fp32": lambda model, plan: HuggingFace(model, plan, "float32"),
    "onnxruntime-genai": GenAI,
    "llama.cpp": LlamaCpp,
    "OpenVINO": OpenVINO,
}


def main() -> None:
    """Serve measurements until standard input ends."""
    kind, model, plan = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is not a result
    if kind == "bandwidth":
        print(json.dumps(bandwidth(plan["threads"])), file=out, flush=True)
        return
    start = clock()
    runtime = KINDS[kind](model, plan)
    logits = runtime.logits(token_ids(16, plan["vocabulary"]))
    ready = {"load": clock() - start, "logits": None if logits is None else logits.tolist()}
    print(json.dumps(ready), file=out, flush=True)
    for _ in sys.stdin:
        result = runtime.run()
        result["rss"] = peak()
        print(json.dumps(result), file=out, flush=True)


if __name__ == "__main__":
    main()
