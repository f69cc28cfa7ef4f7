"""Every error this package raises on purpose.

    Pi0Error
    ├── ConfigError         a setting, an option or a name that does not exist or does not fit
    ├── ObservationError    an observation the policy must not act upon
    ├── CheckpointError     a policy directory or weight file that is missing, corrupt or partial
    │   └── RobotMismatchError   the policy was made for another robot
    ├── DatasetError        a dataset that cannot be read or does not fit
    ├── FrameError          bytes that are not a message between a policy server and its client
    ├── RemoteError         a policy server that cannot be reached, is late, fails or is not the one expected
    └── RenderError         MuJoCo cannot render off-screen on this machine

Each message is one sentence that says what was got, what was expected and what is available.
"""


class Pi0Error(Exception):
    """Base of all errors of pi0_control; the command line prints it as one sentence and exits with 2."""


class ConfigError(Pi0Error):
    """A setting, an option or a name that does not exist or does not fit."""


class ObservationError(Pi0Error):
    """An observation the policy must not act upon: missing camera, wrong shape, NaN, empty prompt."""


class CheckpointError(Pi0Error):
    """A policy directory or weight file that is missing, corrupt or partial."""


class RobotMismatchError(CheckpointError):
    """The policy was made for another robot."""


class DatasetError(Pi0Error):
    """A dataset that cannot be read or does not fit."""


class FrameError(Pi0Error):
    """Bytes that are not a message between a policy server and its client."""


class RemoteError(Pi0Error):
    """A policy server that cannot be reached, is late, fails or is not the one expected."""


class RenderError(Pi0Error):
    """MuJoCo cannot render off-screen on this machine."""
