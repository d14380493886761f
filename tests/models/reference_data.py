"""Random weights in the layouts of the authors' code and of HypLL, and what these computed with them.

``data/reference.json`` holds, for each case, the names and shapes of a state dict as the other code gives them, and
outputs of the other code, float32, on a CPU, for the weights and images that `weights` and `images` draw from the seed:

- ``authors-*``: logits of the code published with the paper (first version on GitHub), by its names of models;
- ``hypll-network``: the network of HypLL's tutorial (0.1.1): tangent vectors at the origin that its last group gives;
- ``hypll-layers``: single modules of HypLL: ball points that they give.

To add a case, load ``weights(shapes, ...)`` into the other code, run it on ``images(...)`` and write down what it says.
"""

import json
from pathlib import Path

import numpy as np
import torch

REFERENCE = json.loads((Path(__file__).parent / "data" / "reference.json").read_text())


def weights(shapes, seed=0, gain=1.0, c=0.1):
    """A state dict of these names and shapes; `c` is what curvatures are stored as, `gain` multiplies kernels.

    numpy's RandomState gives the same numbers everywhere and for good.
    """
    draw = np.random.RandomState(seed)
    values = {}
    for name in sorted(shapes):
        shape, last = tuple(shapes[name]), name.rpartition(".")[2]
        normal = draw.standard_normal(shape)
        if name.endswith(("isp_c", "c.value")):
            value = c
        elif name.endswith(("norm.running_mean", "norm.running_var")):  # never touched there
            value = np.zeros(shape) if "mean" in last else 1.0
        elif last == "num_batches_tracked":
            value = 7
        elif last in ("weights", "z"):
            value = gain * normal / shape[0] ** 0.5
        elif last == "weight" and len(shape) > 1:
            value = gain * normal / np.prod(shape[1:]) ** 0.5
        elif last in ("var", "running_var", "weight"):
            value = 0.5 + np.abs(normal)
        else:
            value = 0.1 * normal
        dtype = torch.int64 if last == "num_batches_tracked" else torch.float32
        values[name] = torch.tensor(np.asarray(value), dtype=dtype).reshape(shape)
    return values


def images(*shape, seed=1):
    return torch.tensor(np.random.RandomState(seed).standard_normal(shape), dtype=torch.float32)
