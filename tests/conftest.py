"""One thread a test process: tiny matrices gain nothing from more, and competing pools cost minutes."""

import torch

torch.set_num_threads(1)
