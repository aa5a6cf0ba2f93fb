"""What multiscale patches and the exponent are worth, and whether patch scores know where things are.

A frozen backbone (AlexNet's five convolutions, ImageNet weights) gives features of patches and of whole photos; small
heads are trained on them. Measured on the test photos, with one and the same backbone and training photos:

- mean AP for the exponents 1, 2, 3, 5, 8, 12 and infinity of the patch score;
- against one crop of the whole photo: the same trained head on it, and a head of the same shape trained on whole
  photos instead (several classes at once, sigmoid);
- pointing accuracy and CorLoc per class against chance, and a report.html with all pictures.

The number of epochs of each head is chosen on a fifth of the training photos, then the head is trained on all.

    python -m tests.benchmarks.scores_on_photos --data_dir ../shared/voc \
        --weights ../shared/weights/alexnet_features.pth --out /tmp/scores

The features and the heads are kept in --out and used again. --bfloat16 computes the features in half the time.

Measured on 1,000 training photos (64 patches each) and 500 test photos (96 each) with --bfloat16, all-points AP,
difficult objects ignored: exponents 1, 2, 3, 5, 8, 12 and infinity 68.20, 71.20, 71.68, 71.61, 71.46, 71.10 and
70.56; the same head on one crop of the whole photo 62.71, a head trained on whole photos 59.96 (patches are 11.65
better, 95 % interval 7.34 to 15.03). In float32, with the features of an earlier version, every one of these was
within 0.6.

Localization in the same run: pointing 78.61, by chance 31.48, for the middle of the photo 61.48; CorLoc 28.03, for
the photo's frame 19.94. Pointing per class, and by chance: aeroplane 72.7, 24.7; bicycle 80.0, 20.9; bird 82.1, 34.7;
boat 55.6, 28.2; bottle 40.0, 15.3; bus 95.2, 41.4; car 73.9, 25.9; cat 89.3, 43.8; chair 51.9, 23.2; cow 85.7, 28.0;
diningtable 75.0, 46.7; dog 93.2, 42.5; horse 96.7, 38.7; motorbike 95.2, 37.5; person 83.6, 33.1; pottedplant 68.2,
22.5; sheep 88.9, 26.2; sofa 76.5, 38.8; train 91.3, 43.9; tvmonitor 77.3, 13.7.

Maps by the mean over the covering patches, which an earlier version drew, pointed right for 43.57.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

import transferkit as tk
from tests.benchmarks.table import Table, write_tables
from transferkit.alexnet import AlexNet
from transferkit.datasets import VOCDataset
from transferkit.finetune import RunReport, build_report
from transferkit.finetune.report import locate
from transferkit.heads import adaptation_head
from transferkit.preprocessing import IMAGENET
from transferkit.progress import track
from transferkit.sampler import MultiscaleSampler, crop_and_resize
from transferkit.scorer import VOC2010, PatchLog, evaluate
from transferkit.scorer.pictures import plot_exponents, save_figure
from transferkit.transfer import TransferReport

EXPONENTS = (1, 2, 3, 5, 8, 12, math.inf)
EPOCHS = {"patches": (1, 2, 3, 4, 6, 8), "whole": (5, 10, 20, 30, 40, 60, 80)}


@dataclasses.dataclass
class Features:
    """Features of the patches of one image set, and of its photos as a whole."""

    patches: Tensor  # (P, C) half
    labels: Tensor  # (P,)
    boxes: Tensor  # (P, 4)
    image_index: Tensor  # (P,)
    whole: Tensor  # (N, C) half


def main() -> None:
    """Run all comparisons and write them to --out."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    started = time.perf_counter()
    train_set = VOCDataset(args.data_dir, image_set="trainval", max_images=args.train_photos)
    test_set = VOCDataset(args.data_dir, image_set="test", max_images=args.test_photos)
    train = extract(args, "train", train_set, args.train_patches)
    test = extract(args, "test", test_set, args.test_patches)
    seconds = {"features": time.perf_counter() - started}
    truth = test_set.presence()

    started = time.perf_counter()
    head, epochs = train_patch_head(args, train, train_set)
    seconds[f"patch head, {epochs} epochs"] = time.perf_counter() - started
    started = time.perf_counter()
    whole_head, whole_epochs = train_whole_head(args, train, train_set)
    seconds[f"whole-photo head, {whole_epochs} epochs"] = time.perf_counter() - started

    started = time.perf_counter()
    log = score_patches(head, test, len(test_set))

    def mean_ap(scores: Tensor) -> float:
        return float(VOC2010.average_precision(scores, truth.present, truth.difficult_only).nanmean())

    with torch.no_grad():
        same_head = head(test.whole.float()).softmax(dim=1).double()
        own_head = whole_head(test.whole.float()).sigmoid().double()
    by_exponent = {exponent: mean_ap(log.compute(exponent, log=True)) for exponent in EXPONENTS}
    crops = {"whole-photo crop, same head": mean_ap(same_head), "whole-photo crop, own head": mean_ap(own_head)}
    result = evaluate(
        log.compute(), truth.present, truth.difficult_only, class_names=test_set.class_names, bootstrap=1000
    )
    located = locate(log, test_set)
    seconds["scores and localization"] = time.perf_counter() - started

    print(f"{len(train_set)} training photos with {args.train_patches} patches, {len(test_set)} test photos with "
          f"{args.test_patches}; seconds: { {k: round(v) for k, v in seconds.items()} }")  # fmt: skip
    for exponent, value in by_exponent.items():
        print(f"exponent {exponent:>4g}: mean AP {100 * value:.2f}")
    for name, value in crops.items():
        print(f"{name}: mean AP {100 * value:.2f}")
    difference = paired_interval(log.compute(), own_head, truth)
    print(f"patches (exponent 5) minus whole-photo crop with its own head: {difference}")
    print(result, located, sep="\n\n")
    figure = plot_exponents(
        {"sum over patches": by_exponent}, rule=str(VOC2010), references=list(crops.items())
    )
    save_figure(figure, args.out / "exponents.png")
    numbers = {"exponents": {str(k): v for k, v in by_exponent.items()}, "crops": crops, "seconds": seconds,
               "result": result.to_dict(), "localization": located.to_dict()}  # fmt: skip
    (args.out / "scores_on_photos.json").write_text(json.dumps(numbers, indent=2))
    if args.json:
        table = Table(
            f"Mean AP on {len(test_set)} photos with {args.test_patches} patches each; "
            f"{len(train_set)} for training with {args.train_patches} patches each",
            {"way": "", "mean AP": ".2f"},
            [[f"patches, exponent {exponent:g}", 100 * value] for exponent, value in by_exponent.items()],
            [f"Patches (exponent 5) minus the crop with its own head, and its 95 % interval: {difference}."],
        )
        for name, value in crops.items():
            table.add(name, 100 * value)
        write_tables(args.json, [table])
    report = RunReport("AlexNet's convolutions, frozen, on VOC photos", result, log, test_set, seconds=seconds,
                       transfer=str(transferred_backbone(args.weights)[1]),
                       settings={k: str(v) for k, v in vars(args).items()})  # fmt: skip
    build_report(report).write(args.out / "report.html")


def transferred_backbone(weights: Path) -> tuple[nn.Module, TransferReport]:
    """Return AlexNet's convolutions with the pretrained weights, and the report of their transfer."""
    model = AlexNet(channels=(64, 192, 384, 256, 256), hidden=1)
    transferred = tk.WeightTransfer(tk.read_checkpoint(weights), select=tk.by_name("features.*")).apply(model)
    return model.features.eval().to(memory_format=torch.channels_last), transferred


def extract(args: argparse.Namespace, name: str, dataset: VOCDataset, patches: int) -> Features:
    """Compute the features of an image set, or read those of an earlier run."""
    path = feature_file(args, name, dataset, patches)
    if path.is_file():
        return Features(**torch.load(path, weights_only=True))
    backbone, _ = transferred_backbone(args.weights)

    @torch.inference_mode()
    def features(pixels: Tensor) -> Tensor:
        pixels = IMAGENET(pixels).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bfloat16):
            return backbone(pixels).flatten(1).half()

    mode = "train" if name == "train" else "test"
    sampler = MultiscaleSampler(dataset, mode=mode, patches_per_image=patches, seed=args.seed, shuffle=False)
    parts: dict[str, list[Tensor]] = {"patches": [], "labels": [], "boxes": [], "image_index": []}
    for batch in track(sampler, True, description=name, unit="batch"):
        found = (features(batch.pixels), batch.labels, batch.boxes.float(), batch.image_index)
        for part, value in zip(parts.values(), found, strict=True):
            part.append(value)
    whole = []
    for n in range(len(dataset)):
        image = dataset[n].image
        height, width = image.shape[-2:]
        whole.append(features(crop_and_resize(image, torch.tensor([[0.0, 0.0, width, height]]), 224)))
    result = Features(**{key: torch.cat(part) for key, part in parts.items()}, whole=torch.cat(whole))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(vars(result), path)
    return result


def feature_file(args: argparse.Namespace, name: str, dataset: VOCDataset, patches: int) -> Path:
    """Return where something computed of an image set is kept."""
    precision = "_bfloat16" if args.bfloat16 else ""
    return args.out / f"{name}_{len(dataset)}_{patches}_{args.seed}{precision}.pt"


def train_patch_head(args: argparse.Namespace, train: Features, dataset: VOCDataset) -> tuple[nn.Module, int]:
    """Train a head on labeled patches; return it and its number of epochs."""
    held = len(dataset) * 4 // 5
    rows = {True: (train.image_index < held).nonzero()[:, 0], False: torch.arange(len(train.labels))}
    truth = dataset.presence()

    def loss(head: nn.Module, chosen: Tensor) -> Tensor:
        return cross_entropy(head(train.patches[chosen].float()), train.labels[chosen])

    def quality(head: nn.Module) -> float:
        keep = train.image_index >= held
        part = Features(
            train.patches[keep],
            train.labels[keep],
            train.boxes[keep],
            train.image_index[keep] - held,
            train.whole,
        )
        scores = score_patches(head, part, len(dataset) - held).compute()
        return held_out_ap(scores, truth, held)

    path = feature_file(args, "patch_head", dataset, args.train_patches)
    return choose_and_train(path, loss, rows, quality, EPOCHS["patches"], 128, args.seed)


def train_whole_head(args: argparse.Namespace, train: Features, dataset: VOCDataset) -> tuple[nn.Module, int]:
    """Train a head of the same shape on whole photos and all the classes in each."""
    held = len(dataset) * 4 // 5
    rows = {True: torch.arange(held), False: torch.arange(len(dataset))}
    truth = dataset.presence()
    counted = (~truth.difficult_only).float()

    def loss(head: nn.Module, chosen: Tensor) -> Tensor:
        logits = head(train.whole[chosen].float())
        return binary_cross_entropy_with_logits(logits, truth.present[chosen].float(), weight=counted[chosen])

    @torch.no_grad()
    def quality(head: nn.Module) -> float:
        return held_out_ap(head(train.whole[held:].float()).sigmoid().double(), truth, held)

    path = feature_file(args, "whole_head", dataset, args.train_patches)
    return choose_and_train(path, loss, rows, quality, EPOCHS["whole"], 32, args.seed)


def choose_and_train(path, loss, rows, quality, epochs, batch_size, seed):
    """Train on four fifths to choose the number of epochs, then on all; or take what an earlier run kept."""
    if path.is_file():
        head = adaptation_head(9216, 21, hidden=(512,), drop_rate=0.5)
        kept = torch.load(path, weights_only=True)
        head.load_state_dict(kept["head"])
        return head.eval(), kept["epochs"]
    best: tuple[float, int] = (-1.0, epochs[0])
    for choosing in (True, False):
        torch.manual_seed(seed)
        head = adaptation_head(9216, 21, hidden=(512,), drop_rate=0.5)
        optimizer = torch.optim.Adam(head.parameters(), lr=1e-4, weight_decay=1e-4)
        for epoch in range(1, (max(epochs) if choosing else best[1]) + 1):
            head.train()
            order = rows[choosing][torch.randperm(len(rows[choosing]))]
            for chosen in order.split(batch_size):
                optimizer.zero_grad()
                loss(head, chosen).backward()
                optimizer.step()
            if choosing and epoch in epochs:
                found = quality(copy.deepcopy(head).eval())
                print(f"  {epoch} epochs: mean AP {100 * found:.2f} on held-out training photos", flush=True)
                best = max(best, (found, epoch))
    torch.save({"head": head.state_dict(), "epochs": best[1]}, path)
    return head.eval(), best[1]


def held_out_ap(scores: Tensor, truth, held: int) -> float:
    """Return the mean AP on the last fifth of the training photos."""
    return float(VOC2010.average_precision(scores, truth.present[held:], truth.difficult_only[held:]).nanmean())


@torch.no_grad()
def score_patches(head: nn.Module, features: Features, num_images: int) -> PatchLog:
    """Run a head over all patches."""
    log = PatchLog(num_images, 21)
    for rows in torch.arange(len(features.labels)).split(1024):
        probs = head(features.patches[rows].float()).softmax(dim=1)
        log.add_batch(probs, features.image_index[rows], features.boxes[rows])
    return log


def paired_interval(a: Tensor, b: Tensor, truth, samples: int = 1000) -> str:
    """Return the difference in mean AP and its 95 % bootstrap interval over photos."""
    rankings = [VOC2010.rank(scores, truth.present, truth.difficult_only) for scores in (a, b)]
    generator = torch.Generator().manual_seed(0)
    differences = []
    for _ in range(samples):
        weights = torch.randint(len(a), (len(a),), generator=generator).bincount(minlength=len(a))
        one, other = ((r.resampled(weights).envelope * r.right * weights[r.order]).sum(0)
                      / (r.sought * weights[r.order]).sum(0) for r in rankings)  # fmt: skip
        differences.append((one - other).nanmean())
    low, high = torch.stack(differences).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    full = [(r.envelope * r.right).sum(0) / r.positives for r in rankings]
    return f"{100 * float((full[0] - full[1]).nanmean()):+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path, help="also write a table here")
    parser.add_argument("--train_photos", type=int, default=1000)
    parser.add_argument("--test_photos", type=int, default=500)
    parser.add_argument("--train_patches", type=int, default=64)
    parser.add_argument("--test_patches", type=int, default=96)
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
