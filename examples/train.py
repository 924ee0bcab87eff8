"""Trains a small class-conditional flow model on a latent dataset, and decodes its samples to a picture.

    latentq encode photos/ latents/ --size 64
    python examples/train.py latents/                       # a minute on a CPU
    python examples/train.py latents/ --reading resident

--reading selects one of three ways to read:

    workers    LatentDataset in torch's own DataLoader: two worker processes prepare batches
    loader     ds.loader(...): threads prepare batches
    resident   ds.to_device(...): the whole dataset is in the device's memory

The model is a transformer over patches of the latent. At a point x on the straight path from noise to data (Liu et
al., "Flow Straight and Fast", 2022) it predicts the data, which needs less width than predicting noise; the velocity at
time t is (prediction - x) / (1 - t). A tenth of the labels are dropped, for classifier-free guidance. Within a minute
on a CPU the model memorizes a few dozen small pictures; more pictures need a GPU.
"""

import argparse
import time
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from latentq import LatentDataset
from latentq.decode import autoencoder_for, decode_latents
from latentq.reading.loader import LoaderOptions

LABEL_DROPOUT = 0.1
LEARNING_RATE = 2e-3


class Flow(nn.Module):
    """Predicts the data from points (B, C, h, w) at times (B,), for labels (B,); label `classes` means any class."""

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int = 256, depth: int = 2) -> None:
        super().__init__()
        self.shape = shape
        channels, height, _ = shape
        self.patch = height // 4 if height % 4 == 0 else 1  # 4 x 4 tokens, few enough for a CPU
        tokens = height * shape[2] // self.patch**2
        self.embed = nn.Linear(channels * self.patch**2, width)
        self.position = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.label = nn.Embedding(classes + 1, width)
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.out = nn.Linear(width, channels * self.patch**2)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        patches = functional.unfold(x, self.patch, stride=self.patch).transpose(1, 2)
        angles = t[:, None] * torch.exp(torch.linspace(0, 6, 32, device=x.device))
        condition = self.time(torch.cat([angles.sin(), angles.cos()], 1)) + self.label(label)
        hidden = self.blocks(self.embed(patches) + self.position + condition[:, None])
        return functional.fold(self.out(hidden).transpose(1, 2), self.shape[1:], self.patch, stride=self.patch)


def batches(dataset: LatentDataset, reading: str, batch_size: int, device: str) -> Iterator[dict[str, Tensor]]:
    """Yields batches endlessly, epoch after epoch."""
    options = LoaderOptions(shuffle=True, label_dropout=LABEL_DROPOUT)
    loader = {
        "workers": lambda: DataLoader(
            dataset,
            batch_size,
            shuffle=True,
            num_workers=2,
            persistent_workers=True,
            collate_fn=dataset.collate,
        ),
        "loader": lambda: dataset.loader(batch_size, device=device, **options),
        "resident": lambda: dataset.to_device(device).loader(batch_size, **options),
    }[reading]()
    while True:
        yield from loader


def train(dataset: LatentDataset, classes: int, options: argparse.Namespace) -> tuple[Flow, list[float]]:
    """Trains a model; returns it and the loss of each step."""
    shape = dataset.layout.latents["latent"].shape
    model = Flow(shape, classes).to(options.device)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    losses: list[float] = []
    start = time.perf_counter()
    for batch in batches(dataset, options.reading, options.batch_size, options.device):
        latent, label = (batch[name].to(options.device) for name in ("latent", "label"))
        # A DataLoader gives no such mask, so for it the mask is drawn here.
        drop = batch["drop_label"] if "drop_label" in batch else torch.rand(label.shape) < LABEL_DROPOUT
        label = torch.where(drop.to(options.device), classes, label)
        noise, t = torch.randn_like(latent), torch.rand(len(latent), device=latent.device)
        predicted = model(torch.lerp(noise, latent, t[:, None, None, None]), t, label)
        loss = functional.mse_loss(predicted, latent)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if len(losses) % 50 == 0:
            rate = len(losses) / (time.perf_counter() - start)
            print(f"step {len(losses)}: loss {np.mean(losses[-50:]):.3f}, {rate:.1f} steps/s", flush=True)
        done = max((time.perf_counter() - start) / options.seconds, len(losses) / (options.steps or float("inf")))
        if done >= 1:
            return model, losses
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - done)
    raise AssertionError("batches never end")


@torch.no_grad()
def sample(model: Flow, labels: Tensor, classes: int, steps: int = 40, guidance: float = 1.5) -> Tensor:
    """Draws latents for labels: Euler steps from noise, with classifier-free guidance."""
    x = torch.randn(len(labels), *model.shape, device=labels.device)
    for step in range(steps):
        t = torch.full((len(labels),), step / steps, device=labels.device)
        given, any_class = model(x, t, labels), model(x, t, torch.full_like(labels, classes))
        x += (torch.lerp(any_class, given, guidance) - x) / (steps - step)
    return x


def main(arguments: list[str] | None = None) -> list[float]:
    """Trains a model, writes eight samples as one picture, and returns the losses."""
    parser = argparse.ArgumentParser(description="Trains a small flow model on a latent dataset.")
    parser.add_argument("dataset")
    parser.add_argument("--reading", choices=["workers", "loader", "resident"], default="loader")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--steps", type=int, default=0, help="maximum number of steps; 0 for no maximum")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", default="samples.png")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    dataset = LatentDataset(options.dataset, columns=["latent", "label"], scale="normalized")
    classes = int(dataset.batch(range(len(dataset)))["label"].max()) + 1
    model, losses = train(dataset, classes, options)
    tenth = max(len(losses) // 10, 1)
    print(f"{len(losses)} steps; loss {np.mean(losses[:tenth]):.3f} at first, {np.mean(losses[-tenth:]):.3f} at last")
    labels = torch.arange(8, device=options.device) % classes
    facts = dataset.layout.latents["latent"].facts
    mean, std = (
        torch.tensor(x, device=options.device)[:, None, None] for x in (facts.statistics.mean, facts.statistics.std)
    )
    latents = sample(model, labels, classes) * std + mean
    pictures = decode_latents(autoencoder_for(dataset.card), latents.cpu())
    Image.fromarray(np.concatenate(list(pictures), axis=1)).save(options.out)
    print(f"samples of classes {labels.tolist()}: {options.out}")
    return losses


if __name__ == "__main__":
    main()
