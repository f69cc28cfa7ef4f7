"""The model: shapes only, no robot. Images, tokens and state in; a chunk of actions in model space out."""

from pi0_control.model.config import Pi0Config, SiglipConfig
from pi0_control.model.pi0 import ModelInputs, Pi0
from pi0_control.model.prefix_cache import PrefixCache
from pi0_control.model.rtc import Guidance, guidance_weight, prefix_weights
from pi0_control.model.sampler import sample_actions, sample_noise
from pi0_control.model.times import sample_time

__all__ = [
    "Guidance",
    "ModelInputs",
    "Pi0",
    "Pi0Config",
    "PrefixCache",
    "SiglipConfig",
    "guidance_weight",
    "prefix_weights",
    "sample_actions",
    "sample_noise",
    "sample_time",
]
