"""Layers on the Poincaré ball.

A layer takes and returns plain tensors of ball points, so it sits beside any other geoopt model. Between layers of
one network the points may travel in another chart (``in_chart=``, ``out_chart=``), which saves conversions and
changes nothing else.
"""

from manifold_resnet.nn import init
from manifold_resnet.nn.base import ClippingMonitor, monitor_clipping
from manifold_resnet.nn.batch_norm import (
    PoincareBatchNorm1d,
    PoincareBatchNorm2d,
    PoincareBatchNorm3d,
    convert_sync_batchnorm,
)
from manifold_resnet.nn.conv_transpose import (
    PoincareConvTranspose1d,
    PoincareConvTranspose2d,
    PoincareConvTranspose3d,
)
from manifold_resnet.nn.dropout import PoincareDropout, PoincareDropout1d, PoincareDropout2d, PoincareDropout3d
from manifold_resnet.nn.embedding import PoincareEmbedding
from manifold_resnet.nn.flatten import PoincareFlatten
from manifold_resnet.nn.hyperplanes import (
    PoincareConv1d,
    PoincareConv2d,
    PoincareConv3d,
    PoincareLinear,
    PoincareMLR,
)
from manifold_resnet.nn.max_pool import PoincareMaxPool1d, PoincareMaxPool2d, PoincareMaxPool3d
from manifold_resnet.nn.radial import (
    ExpMap0,
    LogMap0,
    PoincareAdaptiveAvgPool2d,
    PoincareAvgPool2d,
    PoincareReLU,
    PoincareResidual,
)

__all__ = [
    "ClippingMonitor",
    "ExpMap0",
    "LogMap0",
    "PoincareAdaptiveAvgPool2d",
    "PoincareAvgPool2d",
    "PoincareBatchNorm1d",
    "PoincareBatchNorm2d",
    "PoincareBatchNorm3d",
    "PoincareConv1d",
    "PoincareConv2d",
    "PoincareConv3d",
    "PoincareConvTranspose1d",
    "PoincareConvTranspose2d",
    "PoincareConvTranspose3d",
    "PoincareDropout",
    "PoincareDropout1d",
    "PoincareDropout2d",
    "PoincareDropout3d",
    "PoincareEmbedding",
    "PoincareFlatten",
    "PoincareLinear",
    "PoincareMLR",
    "PoincareMaxPool1d",
    "PoincareMaxPool2d",
    "PoincareMaxPool3d",
    "PoincareReLU",
    "PoincareResidual",
    "convert_sync_batchnorm",
    "init",
    "monitor_clipping",
]
