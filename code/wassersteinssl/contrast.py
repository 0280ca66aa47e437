"""What contrastive methods share: InfoNCE and the queue of past embeddings."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wassersteinssl.cli import UserError


def info_nce(query: Tensor, positive: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """mean_i -log( e^(q_i p_i / T) / (e^(q_i p_i / T) + sum_j e^(q_i n_j / T)) ), in the inputs' type.

    query, positive (b, m), negatives (k, m), all of unit rows (van den Oord et al., arXiv 1807.03748). By log-sum-exp:
    neither the queue nor its logits are copied.
    """
    logits = query @ negatives.T / temperature  # (b, k)
    own = (query * positive).sum(dim=1) / temperature  # (b,)
    return (torch.logaddexp(own, logits.logsumexp(dim=1)) - own).mean()


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """SimCLR's loss over 2b unit rows: each row's positive is the other view, all other rows are negatives.

    a, b (b, m): mean over rows i of cat(a, b) of logsumexp_{j != i} (z_i z_j / T) - z_i z_i' / T.
    """
    z = torch.cat([a, b])
    logits = (z @ z.T / temperature).fill_diagonal_(-torch.inf)  # (2b, 2b)
    own = (a * b).sum(dim=1).repeat(2) / temperature
    return (logits.logsumexp(dim=1) - own).mean()


class Queue(nn.Module):
    """The last `size` unit rows that were put in; the oldest are overwritten first. It starts with random directions.

    The rows are a buffer: saved and loaded with the method, never trained. A `put` that reaches the end continues at
    the start. `step`, the number of rows that a training step puts in, may not exceed `size`.
    """

    rows: Tensor
    next: Tensor

    def __init__(self, size: int, dim: int, step: int = 1):
        super().__init__()
        if step > size:  # refused before a run's folder is written
            raise UserError(f"--queue-size {size} is less than the {step} rows that a step puts in")
        self.register_buffer("rows", F.normalize(torch.randn(size, dim)))
        self.register_buffer("next", torch.zeros((), dtype=torch.long))  # on the device, so that no step waits for it

    @torch.no_grad()
    def put(self, z: Tensor) -> None:
        """Put in unit rows z (k, dim), k <= size. Not between a forward and its backward pass, which needs the rows."""
        size = len(self.rows)
        if len(z) > size:
            raise ValueError(f"a queue of {size} rows cannot take {len(z)} at once")
        places = (self.next + torch.arange(len(z), device=z.device)) % size
        self.rows.index_copy_(0, places, z.to(self.rows.dtype))
        self.next.copy_((self.next + len(z)) % size)
