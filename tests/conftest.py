"""For all tests: one torch thread.

The networks are so small that threads only wait for each other, the more so where another
process uses a core. Processes that integration tests start set their own number.
"""

import torch

torch.set_num_threads(1)
