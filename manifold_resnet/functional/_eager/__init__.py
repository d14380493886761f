"""The layers on CPUs without compiled kernels: torch operations in place, with as few passes over memory as they allow.

Functions have the names, arguments and results of `manifold_resnet.functional._native.Library`'s, and take its place;
only those for norms get the gain and the centre ready for use, and those there get their parameters.
They must not be recorded or traced: see `manifold_resnet.functional._backend.fused`.
"""
