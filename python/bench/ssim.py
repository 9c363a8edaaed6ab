"""Structural similarity of two images (Wang et al. 2004), with the Gaussian window and the constants of its paper."""

import numpy as np
import torch
from PIL import Image


def ssim(a: Image.Image, b: Image.Image) -> float:
    """Mean over all channels and all windows of 11 x 11 pixels; 1 for equal images."""
    pixels = [torch.from_numpy(np.array(i.convert("RGB"), np.float64)).permute(2, 0, 1)[:, None] for i in (a, b)]
    line = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    window = (torch.outer(line, line) / line.sum() ** 2)[None, None]

    def mean(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(values, window)

    x, y = pixels
    mx, my = mean(x), mean(y)
    vx, vy, covariance = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(((2 * mx * my + c1) * (2 * covariance + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())
