"""The small encoders that tasks train: vectors or small images to one embedding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["ConvEncoder", "VectorEncoder", "encoder_for"]


class VectorEncoder(nn.Module):
    """Two hidden layers on (B, D); `layers` gives each layer's output, for detectors."""

    def __init__(self, dim: int, out_dim: int, *, hidden_dim: int = 128) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(dim, hidden_dim), nn.GELU(), nn.LayerNorm(hidden_dim)),
                nn.Sequential(nn.Linear(hidden_dim, hidden_dim), nn.GELU()),
                nn.Linear(hidden_dim, out_dim),
            ]
        )

    def layers(self, x: Tensor) -> list[Tensor]:
        """(B, D) -> outputs (B, D_l) of every layer, the embedding last."""
        found = []
        for block in self.blocks:
            x = block(x)
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, out_dim)."""
        return self.layers(x)[-1]


class ConvEncoder(nn.Module):
    """Three strided convolutions on flattened images (B, C*H*W), then a linear layer."""

    def __init__(self, image_shape: Sequence[int], out_dim: int, *, width: int = 32) -> None:
        super().__init__()
        self.image_shape = tuple(image_shape)
        channels = self.image_shape[0]

        def block(inputs: int, outputs: int) -> nn.Sequential:
            conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.GELU())

        self.blocks = nn.ModuleList(
            [block(channels, width), block(width, 2 * width), block(2 * width, 2 * width)]
        )
        with torch.no_grad():
            shape = torch.zeros(2, *self.image_shape)
            for stage in self.blocks:
                shape = stage(shape)
        self.head = nn.Linear(shape[0].numel(), out_dim)

    def layers(self, x: Tensor) -> list[Tensor]:
        """(B, C*H*W) -> spatial means (B, D_l) of every block, then the embedding."""
        x = x.reshape(-1, *self.image_shape)
        found = []
        for stage in self.blocks:
            x = stage(x)
            found.append(x.mean(dim=(2, 3)))
        found.append(self.head(x.flatten(1)))
        return found

    def forward(self, x: Tensor) -> Tensor:
        """(B, C*H*W) -> (B, out_dim)."""
        return self.layers(x)[-1]


def encoder_for(
    dim: int, image_shape: Sequence[int] | None, out_dim: int
) -> VectorEncoder | ConvEncoder:
    """Convolutions where the rows are images of at least 16 pixels a side, else the MLP."""
    if image_shape is not None and min(image_shape[1:]) >= 16:
        return ConvEncoder(image_shape, out_dim)
    return VectorEncoder(dim, out_dim)
