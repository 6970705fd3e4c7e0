"""A radius rule: its question before every step, its possible answers, and a plain function as a rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lightning_gluon.radius.observe import Measurement, Observation, measurements_of
from lightning_gluon.radius.radii import Proposal
from lightning_gluon.radius.saved import SavedState


class RadiusRule:
    """Base class of the rules that set radii during training.

        radius_i[k] = limits(rule(observation[k]))

    Before every step a rule is called with an `Observation`. It returns one of

        a number          one factor on all initial radii
        `Factors`         one factor for what an LMO steps and one for what AdamW steps
        a mapping         radii by group name or layer name; those that are not named stay
        `None`            everything stays

    Attributes:
        needs: The measurements it needs, subclasses of `lightning_gluon.radius.Measurement`.
        done: Whether the radii stay from now on; nothing is measured any more.
        ramp: Whether it starts from its own radius, which is not averaged with the initial one.
        doubt: A sentence if the radii it ended with may be wrong, for a warning; else empty.

    References:
        A. Riabinin et al., "Gluon: Making Muon & Scion Great Again!", arXiv 2505.13416.

    Example:
        >>> class Halve(RadiusRule):
        ...     def __call__(self, observation):
        ...         return 0.5**observation.step
        >>> Halve()(Observation(step=2))
        0.25
    """

    needs: tuple[type[Measurement], ...] = ()
    ramp = False

    @property
    def done(self) -> bool:
        """True when the radii no longer change."""
        return False

    @property
    def doubt(self) -> str:
        """A reason to doubt the radii that were found; empty if there is none."""
        return ""

    def __call__(self, observation: Observation) -> Proposal | None:
        """Return the radii of the coming step."""
        raise NotImplementedError

    def state_dict(self) -> SavedState:
        """Return plain values, for a checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore them, or raise before anything has changed."""


class Adapter(RadiusRule):
    """A function, or an object with some of the attributes of a rule, as a rule.

    Args:
        function: The function of an `Observation`.
    """

    def __init__(self, function: Callable[[Observation], Proposal | None]) -> None:
        self.function = function
        self.needs = measurements_of(function)
        self.ramp = bool(getattr(function, "ramp", False))

    @property
    def done(self) -> bool:
        """The function's own word."""
        return bool(getattr(self.function, "done", False))

    def __call__(self, observation: Observation) -> Proposal | None:
        """Call the function."""
        return self.function(observation)

    def state_dict(self) -> SavedState:
        """Return the function's own state, if it has one."""
        own = getattr(self.function, "state_dict", dict)
        return own()

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore it."""
        if hasattr(self.function, "load_state_dict"):
            self.function.load_state_dict(state)
