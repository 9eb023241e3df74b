"""What the descriptor learns from: copies are told from everything else in the batch, and vectors spread over the sphere.

InfoNCE over both views of every picture (van den Oord et al. 2018, as SimCLR and SSCD arrange it), and the entropy regulariser of SSCD
(Pizzi et al. 2022, equation 5; Kozachenko and Leonenko's estimate, Sablayrolles et al. 2019). The second pushes each vector away from its
nearest stranger, so that one threshold on the cosine means the same everywhere.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

_NEAREST = 1e-6  # distances are at least this, so that the logarithm stays finite


def contrastive(first: torch.Tensor, second: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """float[n, d] and float[n, d] of length 1, row i of both from the same picture: (loss, share of rows nearest to their own copy).

    Each of the 2n vectors chooses among the 2n − 1 others; the loss is the mean of −log of what it gives to its copy.
    """
    both = torch.cat([first, second])
    similar = both @ both.T / temperature
    similar.fill_diagonal_(float("-inf"))
    rows = len(first)
    copies = torch.arange(2 * rows, device=both.device).roll(rows)
    found = (similar.argmax(1) == copies).float().mean()
    return F.cross_entropy(similar, copies), found


def spread(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Mean of −log of the distance to the nearest vector of another picture, over all 2n vectors of two views, float[n, d] each."""
    both = torch.cat([first, second])
    with torch.no_grad():
        picture = torch.arange(len(first), device=both.device).repeat(2)
        similar = both @ both.T
        similar[picture[:, None] == picture[None, :]] = -2.0
        nearest = similar.argmax(1)
    distance = (both - both[nearest]).norm(dim=1).clamp(min=_NEAREST)
    loss: torch.Tensor = -distance.log().mean()
    return loss
