"""What hyperbolic layers and networks cost, next to Euclidean ones and to the plain composition of geoopt calls."""

from manifold_resnet.benchmark.run import Settings, benchmark

__all__ = ["Settings", "benchmark"]
