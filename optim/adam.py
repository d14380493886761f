"""Riemannian Adam."""

from __future__ import annotations

from typing import Any

import geoopt

__all__ = ["RiemannianAdam"]


class RiemannianAdam(geoopt.optim.RiemannianAdam):
    """geoopt's Riemannian Adam, which also carries on bit for bit from a saved state.

    Arguments are those of ``geoopt.optim.RiemannianAdam``.
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # torch's Adam turns a loaded step count into a float32 tensor, and with it the bias corrections that
        # geoopt computes from an int in double precision
        for moments in self.state.values():
            if "step" in moments:
                moments["step"] = int(moments["step"])
