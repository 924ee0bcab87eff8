"""Encode with an autoencoder of your own: any object with a few attributes and methods.

python examples/own_autoencoder.py photos/ out/
"""

import argparse

import torch

import latentq
from latentq.autoencoders import Normalization


class Pooled(torch.nn.Module):
    """A stand-in for a network that averages blocks of 4 x 4 pixels; its latents are (3, S/4, S/4).

    latentq needs `name`, `pixel_range`, `encode`, `decode` and `latent_shape`; `normalization` says how latents are
    scaled for training. Since this is a torch module, the card keeps a hash of its weights, and a run that continues
    with other weights is refused.
    """

    name = "pooled"
    normalization = Normalization(factor=2.0)
    pixel_range = (-1.0, 1.0)

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(1.5))

    def encode(self, pixels):
        return self.gain * torch.nn.functional.avg_pool2d(pixels, 4)

    def decode(self, latents):
        return torch.nn.functional.interpolate(latents / self.gain, scale_factor=4.0)

    def latent_shape(self, size):
        if size % 4:
            raise ValueError(f"{self.name} encodes images whose side is a multiple of 4, not {size}")
        return 3, size // 4, size // 4


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", help="a folder of images")
    parser.add_argument("out", help="the dataset's folder")
    options = parser.parse_args()
    card = latentq.encode(options.source, options.out, autoencoder=Pooled(), size=128)
    print(f"{card.counts.samples} samples of shape {card.latents['latent'].shape}, weights {card.autoencoder.weights}")


if __name__ == "__main__":
    main()
