"""Every baseline with settings that fit the tiny models, and the correction after them."""

from q2n.baselines.awq import AWQ
from q2n.baselines.gptq import GPTQ
from q2n.baselines.leanquant import LeanQuant
from q2n.baselines.owq import OWQ
from q2n.baselines.pbllm import PBLLM
from q2n.baselines.quarot import QuaRot
from q2n.baselines.quip import QuIP
from q2n.baselines.rtn import RTN
from q2n.baselines.smoothquant import SmoothQuant
from q2n.corrections.null_space import NullSpaceScale

ON = NullSpaceScale(t=0.1, lam=0.2, skip=[])
BASELINES = {
    "rtn": RTN(bits=3, group_size=16),
    "gptq": GPTQ(bits=3, group_size=16, act_order=True),
    "quip": QuIP(bits=3),
    "pbllm": PBLLM(bits=3),
    "leanquant": LeanQuant(bits=3),
    "owq": OWQ(bits=3, target_rank=2),
    "awq": AWQ(bits=3, group_size=16),
    "smoothquant": SmoothQuant(bits=4),
    "quarot": QuaRot(bits=4, k_bits=4, v_bits=4),
}
