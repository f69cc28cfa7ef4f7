"""Flow matching: learn the velocity from noise to the demonstrated actions, several draws per encoded prefix."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pi0_control.model import ModelInputs, sample_actions
from pi0_control.policy.transforms import PolicyTransforms, for_all_joints
from pi0_control.train.batches import Draws, FrameInputs, Indices, evenly, split_episodes
from pi0_control.train.config import TrainConfig
from pi0_control.train.dataset import Dataset
from pi0_control.train.distributed import World
from pi0_control.train.grounding import Learner

_VALIDATION_FRAMES = 256
_VALIDATION = 1000  # stage number of its draws


@dataclass
class FlowTargets:
    """What the model should say for B frames.

    Attributes:
        actions: float32 [B, H, action_dim] in model space.
        joints: how many of the action dimensions are not padding.
        action_shares: float32 [B, H], 0 behind the end of the episode, else one over how many such there are in the
            batch of all ranks.
        positions: float32 [B, 2, 3], of the objects the instruction names [m].
        position_shares: float32 [B, 2], the same for them; 0 where it names none.
    """

    joints: int
    actions: Tensor
    action_shares: Tensor
    positions: Tensor
    position_shares: Tensor


class FlowStage:
    """Demonstrations: predict the action chunk that follows each frame.

    Args:
        dataset: N frames.
        images: uint8 [N, used cameras, S, S, 3].
        transforms: of the policy.
        config: of the training.
    """

    name = "policy"

    def __init__(
        self, dataset: Dataset, images: NDArray[np.uint8], transforms: PolicyTransforms, config: TrainConfig
    ) -> None:
        self.steps = config.steps
        self.samples_per_step = config.batch_size
        self._config = config
        self._dataset = replace(dataset, actions=for_all_joints(dataset.actions, transforms.config))
        self._transforms = transforms
        self._inputs = FrameInputs(dataset, images, transforms)
        self._frames, held_out = split_episodes(dataset, config.validation_fraction, config.seed)
        self._held_out = evenly(held_out, _VALIDATION_FRAMES) if len(held_out) else held_out
        self._weight = config.grounding_weight if (dataset.targets >= 0).any() else 0.0
        self._forward = torch.compile(flow_losses) if config.compile else flow_losses

    def losses(self, learner: Learner, draws: Draws) -> dict[str, Tensor]:
        """This rank's share of the losses of one random batch; ``loss`` is the one to be minimised."""
        indices = draws.frames(self._frames, self._config.batch_size)
        inputs = self._inputs.get_augmented(indices, self._config, draws)
        targets = self.targets(indices, draws.world)
        return self._weighed(self._forward(learner, inputs, targets, *self._noise(len(indices), draws), self._locates))

    def targets(self, indices: Indices, world: World) -> FlowTargets:
        """What the model should say for some frames, this rank's part of the batch."""
        data = self._dataset
        actions, is_pad = data.action_chunks(indices, self._transforms.config.model.action_horizon)
        named = data.targets[indices]
        if data.object_names:
            positions = data.objects[indices[:, None], np.maximum(named, 0)]
        else:
            positions = np.zeros((*named.shape, 3), np.float32)
        arrays = (self._transforms.targets(actions, data.states[indices]), ~is_pad, positions, named >= 0)
        chunks, real, where, is_named = (torch.from_numpy(np.asarray(a, np.float32)).to(world.device) for a in arrays)
        joints = len(self._transforms.config.commanded)
        return FlowTargets(joints, chunks, world.share(real), where, world.share(is_named))

    @torch.no_grad()
    def validate(self, learner: Learner, device: torch.device) -> dict[str, float]:
        """On held-out frames: the flow's loss, the mean error of sampled actions (in the robot's unit, grippers and
        joints without an action left out) and the median error of the named objects' positions [m].
        """
        flow, actions, positions = [], [], []
        alone = World(device=device)  # every rank goes through all of it
        for start in range(0, len(self._held_out), self._config.batch_size):
            indices = self._held_out[start : start + self._config.batch_size]
            draws = Draws(self._config.seed, _VALIDATION, start, alone)
            inputs, targets = self._inputs.get(indices, device), self.targets(indices, alone)
            losses = flow_losses(learner, inputs, targets, *self._noise(len(indices), draws), self._locates)
            flow.append(float(losses["flow_loss"]))
            sampled = sample_actions(
                learner.policy, inputs, draws.normal(*targets.actions.shape), self._transforms.config.num_steps
            )
            actions.append(self._action_error(sampled, indices))
            if self._locates:
                distance = learner.head.error_m(losses["predicted"], targets.positions)
                positions.append(distance[targets.position_shares > 0].cpu().numpy())
        if not flow:
            return {}
        flow_loss = np.average(flow, weights=[len(part) for part in actions])  # as if it were one batch
        scores = {"flow_loss": float(flow_loss), "action_error": float(np.concatenate(actions).mean())}
        if any(len(part) for part in positions):
            scores["grounding_error_m"] = float(np.median(np.concatenate(positions)))
        return scores

    def _action_error(self, sampled: Tensor, indices: Indices) -> NDArray[np.float32]:
        """Mean absolute error of every action inside its episode, [actions]."""
        actions, is_pad = self._dataset.action_chunks(indices, sampled.shape[1])
        predicted = self._transforms.actions(sampled.float().cpu().numpy(), self._dataset.states[indices])
        config = self._transforms.config
        commanded = np.isin(np.arange(len(config.robot.joints)), config.commanded)
        arm = commanded & ~config.robot.gripper_mask
        judged = arm if arm.any() else commanded
        return np.abs(predicted - actions)[..., judged].mean(-1)[~is_pad]

    @property
    def _locates(self) -> bool:
        return self._weight > 0

    def _noise(self, batch: int, draws: Draws) -> tuple[Tensor, Tensor]:
        """Noise [B * K, H, action_dim] and times [B * K], or [B * K, H] where first actions may be known."""
        rows, model = batch * self._config.noise_draws_per_prefix, self._transforms.config.model
        noise, time = draws.normal(rows, model.action_horizon, model.action_dim), draws.times(rows)
        if self._config.rtc_max_delay:
            known = torch.from_numpy(draws.integers(self._config.rtc_max_delay + 1, rows, 1)).to(draws.device)
            time = time[:, None] * (torch.arange(model.action_horizon, device=draws.device) >= known)
        return noise, time

    def _weighed(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        losses.pop("predicted", None)
        total = losses["flow_loss"] + self._weight * losses.get("grounding_loss", torch.zeros(()))
        return {"loss": total, **losses}


def flow_losses(
    learner: Learner, inputs: ModelInputs, targets: FlowTargets, noise: Tensor, time: Tensor, locate: bool
) -> dict[str, Tensor]:
    """Losses of one batch of B frames with K noise draws each.

    Args:
        noise: [B * K, H, action_dim], the draws of a frame in a row.
        time: [B * K], 1 noise .. 0 data; or [B * K, H], where 0 marks known actions. These are not learned, and the
            others of their chunk count for them.
        locate: also tell where the named objects are.

    Returns:
        ``flow_loss``: squared error of the velocity over the actions inside the episode, summed over the action
        dimensions and divided by the real ones (padding is trained too, since sampling feeds it back). With
        ``locate`` also ``grounding_loss`` and the ``predicted`` positions [B, 2, 3], normalised.
    """
    draws = len(noise) // inputs.batch_size
    cache = learner.policy.encode_prefix(inputs, with_hidden=locate)
    repeated = replace(cache, hidden=None).repeat_interleave(draws)
    actions = targets.actions.repeat_interleave(draws, dim=0)
    state = inputs.state.repeat_interleave(draws, dim=0)
    error = learner.policy.flow_error(repeated, state, actions, noise, time).sum(-1)
    shares = targets.action_shares.repeat_interleave(draws, dim=0)
    if time.dim() == 2:
        learned = (time > 0).to(shares)
        shares = shares * learned / learned.mean(dim=1, keepdim=True)
    losses = {"flow_loss": (error * shares).sum() / (draws * targets.joints)}
    if locate:
        assert cache.hidden is not None
        predicted = learner.head(cache.hidden, inputs.token_mask)
        off = learner.head.loss(predicted, targets.positions, targets.position_shares)
        losses |= {"grounding_loss": off, "predicted": predicted}
    return losses
