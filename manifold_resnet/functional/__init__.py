"""The mathematics as functions of tensors: no modules, no state.

Every operation has a hand-written backward; `naive` holds the same operations as the plain composition of geoopt calls.
"""

from manifold_resnet.functional._backend import get_backend, set_backend
from manifold_resnet.functional.activation import poincare_relu
from manifold_resnet.functional.ball import (
    dist,
    expmap,
    expmap0,
    gyration,
    lambda_x,
    logmap,
    logmap0,
    mobius_add,
    project,
    transp,
)
from manifold_resnet.functional.batch_norm import midpoint_batch_norm
from manifold_resnet.functional.charts import (
    DEFAULT_MAX_DISTANCE,
    ball_to_hyperboloid,
    convert,
    from_lorentz,
    hyperboloid_to_ball,
    hyperboloid_to_tangent,
    tangent_to_hyperboloid,
    to_lorentz,
)
from manifold_resnet.functional.conv import beta_ratio, poincare_conv, poincare_conv2d
from manifold_resnet.functional.frechet import frechet_mean, frechet_variance
from manifold_resnet.functional.linear import poincare_linear, poincare_mlr
from manifold_resnet.functional.midpoint import midpoint
from manifold_resnet.functional.pooling import poincare_adaptive_avg_pool2d, poincare_avg_pool2d
from manifold_resnet.functional.residual import mobius_residual

__all__ = [
    "DEFAULT_MAX_DISTANCE",
    "ball_to_hyperboloid",
    "beta_ratio",
    "convert",
    "dist",
    "expmap",
    "expmap0",
    "frechet_mean",
    "frechet_variance",
    "from_lorentz",
    "get_backend",
    "gyration",
    "hyperboloid_to_ball",
    "hyperboloid_to_tangent",
    "lambda_x",
    "logmap",
    "logmap0",
    "midpoint",
    "midpoint_batch_norm",
    "mobius_add",
    "mobius_residual",
    "poincare_adaptive_avg_pool2d",
    "poincare_avg_pool2d",
    "poincare_conv",
    "poincare_conv2d",
    "poincare_linear",
    "poincare_mlr",
    "poincare_relu",
    "project",
    "set_backend",
    "tangent_to_hyperboloid",
    "to_lorentz",
    "transp",
]
