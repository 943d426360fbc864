"""Large pictures on large networks: 224 pixels, ViT-B/16 and ResNet-50, UNSIR and the incompetent teacher.

    OMP_NUM_THREADS=2 python benchmarks/large.py
    OMP_NUM_THREADS=2 python benchmarks/large.py --network resnet50 --method unsir --steps 2

Each runs in a process of its own, so that its peak memory is its own too: the stages themselves, noise included, on few
rows and with few updates, in batches of 64 as a real run would have; `Speed.memory_gib` and `checkpointing` keep what a
pass holds within bounds. The target is 24 GiB in all.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

MIB = 24 * 1024


def run(network: str, method: str, steps: int, batch: int, memory: float) -> dict[str, Any]:
    """The stages of a method on synthetic pictures; the peak and what an update costs."""
    import torch
    from bench import line

    from unlearning.data.samples import Rows, TensorSamples
    from unlearning.methods.apply import unlearn
    from unlearning.methods.task import Task
    from unlearning.models.architectures import build
    from unlearning.speed import Speed, using
    from unlearning.training import best_device, build_seeded

    shape = (3, 224, 224)

    def blank(seed: int) -> torch.nn.Module:
        return build_seeded(lambda: build(network, {}, input_shape=shape, outputs=10), seed)

    rows = steps * batch
    pixels = torch.randint(256, (rows, *shape), dtype=torch.uint8)
    samples = TensorSamples(pixels, torch.arange(rows) % 10, mean=[0.5] * 3, std=[0.25] * 3)
    forget = torch.arange(rows) % 10 == 0
    task = Task(
        input_shape=shape,
        outputs=10,
        forget_classes=(0,),
        blank=blank,
        forget=Rows(samples, forget.nonzero()[:, 0]),
        retain=Rows(samples, (~forget).nonzero()[:, 0]),
    )
    settings: dict[str, Any] = {"batch_size": batch}
    if method == "unsir":
        settings |= {"noise_batch": batch, "noise_steps": steps, "noise_images": int(forget.sum())}
        settings |= {"impair_epochs": 1, "repair_epochs": 1}
    else:
        settings |= {"epochs": 1, "teacher": "random", "watch": "never", "retain_fraction": 1.0}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    model = blank(0).eval().to(best_device())
    seen: list[str] = []
    with using(Speed(checkpointing=True, memory_gib=memory)):
        began = time.process_time()
        done = unlearn(
            model, task, name=method, settings=settings, seed=0, progress=lambda phase, *_: seen.append(phase)
        )
        cpu = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    updates = len(seen)
    finite = all(bool(value.isfinite().all()) for value in done.model.state_dict().values())
    return line(
        "large",
        f"peak MiB, batches of {batch}, {updates} updates in all",
        peak,
        MIB,
        network=network,
        method=method,
        before_mib=before,
        updates=dict(Counter(seen)),
        cpu_s=round(cpu, 1),
        cpu_s_per_row=round(cpu / updates / batch, 3),
        finite=finite,
        memory_gib=memory,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet50,vit_b_16")
    parser.add_argument("--method", default="unsir,incompetent_teacher")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--memory", type=float, default=2.0, help="GiB that one pass may keep")
    parser.add_argument("--quick", action="store_true", help="batches of 8")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    size = 8 if asked.quick else asked.batch
    if asked.here:
        print(json.dumps(run(asked.network, asked.method, asked.steps, size, asked.memory)))
        return
    texts = []
    for network in asked.network.split(","):
        for method in asked.method.split(","):
            words = ["--here", "--network", network, "--method", method, "--steps", str(asked.steps)]
            words += ["--batch", str(size), "--memory", str(asked.memory)]
            ended = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
            texts.append(ended.stdout.splitlines()[-1])
            print(texts[-1], flush=True)
    if asked.out:
        asked.out.write_text("\n".join(texts) + "\n")


if __name__ == "__main__":
    main()
