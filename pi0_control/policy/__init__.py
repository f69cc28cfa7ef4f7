"""Physical units to model space and back: images, prompts, states and actions of one robot."""

from pi0_control.policy.config import PolicyConfig
from pi0_control.policy.norm_stats import NormStats, RunningStats, VectorStats
from pi0_control.policy.policy import HoldPolicy, Pi0Policy, Policy, load_policy, resolve_device, warm_up
from pi0_control.policy.pretrained import PolicyFiles, bundled_policies, read_policy
from pi0_control.policy.rtc import RtcConfig
from pi0_control.policy.tokenizer import Tokenizer
from pi0_control.policy.transforms import PolicyTransforms, check_observation, policy_actions, policy_states

__all__ = [
    "HoldPolicy",
    "NormStats",
    "Pi0Policy",
    "Policy",
    "PolicyConfig",
    "PolicyFiles",
    "PolicyTransforms",
    "RtcConfig",
    "RunningStats",
    "Tokenizer",
    "VectorStats",
    "bundled_policies",
    "check_observation",
    "load_policy",
    "policy_actions",
    "policy_states",
    "read_policy",
    "resolve_device",
    "warm_up",
]
