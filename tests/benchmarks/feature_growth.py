"""How time and memory grow with the number of photos, in one process and in two.

    python -m tests.benchmarks.feature_growth --data_dir DIR --weights FILE --out OUT

Fills a cache with shared features from empty, trains a head on it for one epoch and scores all photos from it, with 448
patches each. Several processes run under torchrun with gloo, share the photos between them and have the machine's cores
divided among them; the start of Python and of torch is left out of the phases, and is in the total. Memory is that of all
processes together, workers included.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import distributed

from tests.benchmarks import ways
from tests.benchmarks.cached_training import head_run
from tests.benchmarks.parts import Parts
from tests.benchmarks.process_tree import watch
from tests.benchmarks.setting import GRID, RULE, SEED, load_backbone
from tests.benchmarks.table import Table, write_tables
from transferkit.datasets import VOCDataset
from transferkit.features import FeatureCache
from transferkit.finetune import process_group, score_images, train_epoch
from transferkit.sampler import MultiscaleSampler
from transferkit.scorer import ImageScorer

PHASES = ("fill the cache", "train an epoch", "score")


def main() -> None:
    """Run the benchmark, or one process of a case."""
    options = parse_arguments()
    if options.report:
        with process_group(torch.device("cpu")):
            one_process(options)
        return
    names = ("patches", "pyramid_scales", "workers", "data_dir", "weights")
    parts = Parts(options.out, name="growth", **{name: getattr(options, name) for name in names})
    table = Table(
        f"Time and memory of caching ({ways.shared_name(options.pyramid_scales)}), one epoch of training and scoring, "
        f"{options.patches} patches of each photo",
        {"photos": "", "processes": "", **{f"{phase}, s": ",.1f" for phase in PHASES}, "total, s": ",.1f",
         "total, ms a photo": ",.0f", "memory, MB": ",.0f", "of mapped files, MB more": ",.0f", "cache, MB": ",.0f"},
    )  # fmt: skip
    for photos in options.photos:
        for processes in options.processes:
            found = parts.figures(
                f"{photos}_photos_{processes}_processes", partial(case, options, photos, processes)
            )
            each = [found[phase] for phase in PHASES]
            total = found["total"]
            table.add(str(photos), str(processes), *each, total, 1e3 * total / photos, found["own"], found["mapped"],
                      found["cache"])  # fmt: skip
    print(table.markdown())
    if options.json:
        write_tables(options.json, [table])


def case(options: argparse.Namespace, photos: int, processes: int) -> dict[str, float]:
    """Run one case in processes of its own and return what it took."""
    with TemporaryDirectory(dir=options.out) as folder:
        report = Path(folder, "report.json")
        start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        threads = max(1, (os.cpu_count() or 1) // processes)
        command = [
            "env",
            f"OMP_NUM_THREADS={threads}",
            sys.executable,
            *(start if processes > 1 else []),
            "-m",
            "tests.benchmarks.feature_growth",
        ]
        command += ["--data_dir", str(options.data_dir), "--weights", str(options.weights), "--out", folder]
        command += [
            "--photos",
            str(photos),
            "--patches",
            str(options.patches),
            "--pyramid_scales",
            str(options.pyramid_scales),
        ]
        usage = watch([*command, "--workers", str(options.workers), "--report", str(report)])
        found: dict[str, float] = json.loads(report.read_text())
    return {**found, "total": usage.seconds, "own": usage.own, "mapped": usage.mapped}


def one_process(options: argparse.Namespace) -> None:
    """Do the work of one process of a case; the first writes what the phases took."""
    joined = distributed.is_initialized()
    data = VOCDataset(options.data_dir, max_images=options.photos[0])
    features = ways.shared(load_backbone(options.weights), options.pyramid_scales)
    marks = [time.perf_counter()]
    cache = FeatureCache(options.out / "cache", features, data, grid=GRID)
    cache.fill(num_workers=options.workers)
    marks.append(time.perf_counter())
    run = head_run(len(data.class_names))
    train_epoch(run, stream(cache, "train", options))
    marks.append(time.perf_counter())
    scorer = ImageScorer(len(data), len(data.class_names))
    score_images(run.model, stream(cache, "test", options), scorer, run.preprocessing)
    marks.append(time.perf_counter())
    if not joined or distributed.get_rank() == 0:
        found = {phase: marks[place + 1] - marks[place] for place, phase in enumerate(PHASES)}
        options.report.write_text(json.dumps({**found, "cache": cache.size().written / 1e6}))


def stream(cache: FeatureCache, mode: Any, options: argparse.Namespace) -> MultiscaleSampler:
    """Return the patches of an epoch or a test."""
    return MultiscaleSampler(
        cache, grid=GRID, rule=RULE, mode=mode, patches_per_image=options.patches, seed=SEED
    )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder that holds VOCdevkit")
    parser.add_argument("--weights", type=Path, required=True, help="AlexNet's convolutions")
    parser.add_argument("--out", type=Path, required=True, help="where parts are kept")
    parser.add_argument("--photos", type=int, nargs="+", default=[100, 200, 400, 800])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--patches", type=int, default=448, help="of each photo")
    parser.add_argument("--pyramid_scales", type=int, default=2, help="of the shared features")
    parser.add_argument("--workers", type=int, default=1, help="of each process, to decode")
    parser.add_argument("--json", type=Path, help="also write the table here")
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
