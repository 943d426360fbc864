"""What a GPU makes of it: runs by itself where there is one, and says nothing where there is none.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --quick     (a dry run, for whoever changes this file)

ResNet-18 on data of CIFAR-10's shape. The bare step in fp32 and contiguous memory beside channels_last, bf16 and
torch.compile with CUDA graphs; UNSIR of two classes complete, in GPU seconds (the authors' notebook: 4.1 s); cycles of
gated transfer in a second; an epoch of the incompetent teacher beside as many bare steps.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from bench import line, middle
from torch import nn
from torch.nn.functional import cross_entropy

from unlearning.data.samples import Rows, TensorSamples
from unlearning.methods.apply import unlearn
from unlearning.methods.task import Task
from unlearning.models.architectures import build
from unlearning.speed import Speed, using
from unlearning.training import build_seeded

Work = Callable[[], object]
SHAPE = (3, 32, 32)


def seconds(work: Work, device: torch.device) -> float:
    """Wall seconds, with everything that was sent to the GPU done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def blank(seed: int) -> nn.Module:
    return build_seeded(lambda: build("resnet18", {"stem": "small"}, input_shape=SHAPE, outputs=10), seed)


def step(device: torch.device, rows: int, *, last: bool, bf16: bool, compiled: bool) -> Work:
    """The bare step."""
    model = blank(0).to(device).train()
    inputs, targets = torch.randn(rows, *SHAPE, device=device), torch.arange(rows, device=device) % 10
    if last:
        model.to(memory_format=torch.channels_last)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    run: Any = torch.compile(model, mode="reduce-overhead") if compiled else model

    def work() -> None:
        adam.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            outputs = run(inputs)
        cross_entropy(outputs.float(), targets).backward()
        adam.step()

    for _ in range(3):
        work()
    return work


def task(rows: int, classes: tuple[int, ...]) -> Task:
    pixels = torch.randint(256, (rows, *SHAPE), dtype=torch.uint8)
    targets = torch.arange(rows) % 10
    samples = TensorSamples(pixels, targets, mean=[0.5] * 3, std=[0.25] * 3)
    forget = torch.isin(targets, torch.tensor(classes)) if classes else torch.arange(rows) < rows // 50
    return Task(
        input_shape=SHAPE,
        outputs=10,
        forget_classes=classes,
        blank=blank,
        forget=Rows(samples, forget.nonzero()[:, 0]),
        retain=Rows(samples, (~forget).nonzero()[:, 0]),
    )


def measured(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    rows, pairs, every = (4, 2, 200) if quick else (256, 20, 10_000)
    plain = step(device, rows, last=False, bf16=False, compiled=False)
    kinds = {
        "channels_last": {"last": True, "bf16": False, "compiled": False},
        "bf16": {"last": False, "bf16": True, "compiled": False},
        "bf16, channels_last": {"last": True, "bf16": True, "compiled": False},
        "bf16, channels_last, CUDA graphs": {"last": True, "bf16": True, "compiled": True},
    }
    for name, kind in kinds.items():
        if kind["compiled"] and device.type != "cuda":
            continue
        other = step(device, rows, **kind)
        ratios = [seconds(other, device) / seconds(plain, device) for _ in range(pairs)]
        value, spread = middle(ratios)
        yield line("gpu", f"step with {name} / plain", value, None, network="resnet18", spread=spread)
    for precision in ("fp32", "bf16"):
        best = step(device, rows, last=True, bf16=precision == "bf16", compiled=False)
        bare = middle([seconds(best, device) for _ in range(pairs)])[0]
        model = blank(0).to(device).eval()
        settings: dict[str, dict[str, Any]] = {
            "unsir": {"noise_batch": rows, "noise_steps": 2 if quick else 40, "noise_images": every // 10},
            "incompetent_teacher": {"epochs": 1, "teacher": "random", "watch": "never", "retain_fraction": 1.0},
            "gated_transfer": {"cycles": 2 if quick else 100, "monitor_every": 10_000},
        }
        for method, given in settings.items():
            sets = task(every, () if method == "incompetent_teacher" else (0, 2))
            took = []
            with using(Speed(precision=precision)):  # type: ignore[arg-type]
                for _ in range(1 if quick else 2):  # the first also makes cuDNN choose
                    took.append(
                        seconds(
                            lambda method=method, given=given, sets=sets, model=model: unlearn(  # type: ignore[misc]
                                model, sets, name=method, settings={**given, "batch_size": rows}, seed=0
                            ),
                            device,
                        )
                    )
            peak = torch.cuda.max_memory_allocated() // 2**20 if device.type == "cuda" else None
            more: dict[str, Any] = {"network": "resnet18", "method": method, "peak_mib": peak, "bare_ms": 1000 * bare}
            if method == "unsir":
                yield line("gpu", f"two classes, complete, seconds, {precision}", took[-1], 2.0, **more)
            elif method == "gated_transfer":
                yield line("gpu", f"seconds a cycle, {precision}", took[-1] / given["cycles"], None, **more)
            else:
                steps = -(-every // rows)
                yield line("gpu", f"an epoch / its bare steps, {precision}", took[-1] / (steps * bare), None, **more)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    texts: list[str] = []
    if asked.device != "cuda" or torch.cuda.is_available():
        for one in measured(torch.device(asked.device), asked.quick):
            texts.append(json.dumps(one))
            print(texts[-1], flush=True)
    if asked.out:
        asked.out.write_text("".join(f"{text}\n" for text in texts))


if __name__ == "__main__":
    main()
