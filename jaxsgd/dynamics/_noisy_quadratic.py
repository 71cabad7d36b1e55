"""A noisy quadratic whose SGD is a closed form at every number of steps: a training run in small.

It needs no design and no examples, unlike the quadratics beside it: its noise is a given number.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.optimize
from jaxtyping import Float64

from jaxsgd._core import validate

_NUM_RATES = 64
_SMALLEST_RATE = 1e-6  # of the learning rates tried, relative to the largest stable one
_BISECTIONS = 60


@dataclass(frozen=True)
class NoisyQuadratic:
    """½ Σ h_i θ_i², with gradients h_i θ_i + noise of variance c_i/B at batch size B, the same at every θ.

    A step with the rate α makes the second moments E θ_i² of independent coordinates

        E θ_i²(t+1) = (1 − αh_i)² E θ_i²(t) + α² c_i/B,    so    E θ_i²(t) = v_i + (1 − αh_i)^{2t} (E θ_i²(0) − v_i)

    with v_i = α c_i/(B h_i (2 − αh_i)). With h_i = c_i = 1/i it is a training run in small: the steps to a target fall
    like 1/B, then less, then not at all. Numbers of steps need not be integers, and B may be infinite.

    Attributes:
        curvatures: h_i > 0.
        noise: c_i > 0.
        second_moments: E θ_i²(0) > 0.

    Raises:
        ValueError: if the three are not vectors of one length, or a number is not positive.

    References:
        G. Zhang, L. Li, Z. Nado, J. Martens, S. Sachdeva, G. Dahl, C. Shallue and R. Grosse, "Which algorithmic choices
        matter at which batch sizes? Insights from a noisy quadratic model", NeurIPS 2019.

    >>> model = NoisyQuadratic.of_dimension(2)
    >>> [round(float(model.expected_loss(B, 0.5, 1)), 4) for B in (1, 4)], float(model.expected_loss(1, 0.5, 0))
    ([0.4219, 0.3047], 0.75)
    """

    curvatures: tuple[float, ...]
    noise: tuple[float, ...]
    second_moments: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("curvatures", "noise", "second_moments"):
            values = np.asarray(getattr(self, name), np.float64)
            validate.finite_vector(**{name: values})
            validate.vector(len(self.curvatures), **{name: values})
            object.__setattr__(self, name, tuple(map(float, values)))
            validate.positive(**{name: getattr(self, name)})

    @classmethod
    def of_dimension(cls, dimension: int) -> "NoisyQuadratic":
        """h_i = c_i = 1/i for i = 1, …, ``dimension``, from E θ_i² = 1."""
        validate.positive_integer(dimension=dimension)
        h = tuple(1 / np.arange(1, dimension + 1))
        return cls(h, h, (1.0,) * dimension)

    def expected_loss(self, batch_size: Any, learning_rate: Any, num_steps: Any) -> Any:
        """E ½ Σ h_i θ_i² after a number of steps, broadcast over ``learning_rate`` and ``num_steps``."""
        return 0.5 * self._moments(batch_size, learning_rate, num_steps) @ np.asarray(self.curvatures)

    def noise_scale(self, batch_size: Any, learning_rate: Any, num_steps: Any) -> Any:
        """Σ h_i c_i/Σ h_i³ E θ_i² after a number of steps, that is tr HΣ over the expectation of ḡᵀHḡ; broadcast."""
        h = np.asarray(self.curvatures)
        return h @ np.asarray(self.noise) / (self._moments(batch_size, learning_rate, num_steps) @ h**3)

    def steps_to(self, target: Any, batch_size: Any, learning_rate: Any) -> Any:
        """After how many steps the expected loss is at the target, not rounded; infinite where it ends above it.

        It falls all the time if it starts above its stationary value in every coordinate, E θ_i²(0) ≥ v_i.

        Args:
            target: the expected loss.
            batch_size: B, or infinity.
            learning_rate: α, with αh_i < 2 for all i; any shape, which is that of the result.

        Raises:
            ValueError: if an argument is not positive, or a learning rate not stable.
        """
        validate.positive(target=target, batch_size=batch_size)
        rates = np.asarray(learning_rate, np.float64)
        limit = 2 / max(self.curvatures)
        unstable = rates[~((rates > 0) & (rates < limit))]
        if unstable.size:
            raise ValueError(f"learning_rate must be positive and below {limit:g}, got {unstable[0]}")
        reaches = self.expected_loss(batch_size, rates, np.inf) < target
        low, high = np.zeros(rates.shape), np.where(reaches, 1.0, 0.0)
        while np.any(waiting := reaches & (self.expected_loss(batch_size, rates, high) > target)):
            low, high = np.where(waiting, high, low), np.where(waiting, 2 * high, high)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            above = self.expected_loss(batch_size, rates, middle) > target
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        return np.where(reaches, high, np.inf)

    def fewest_steps(self, target: Any, batch_size: Any) -> tuple[float, float]:
        """The fewest steps to an expected loss over all constant learning rates, and the rate that takes them.

        The best of a grid, refined between its neighbors: exact if there is one minimum there.

        >>> model = NoisyQuadratic.of_dimension(100)
        >>> [round(model.fewest_steps(0.5, B)[0]) for B in (1, 2, 64, 128)]
        [135, 70, 9, 8]
        """
        validate.positive(target=target, batch_size=batch_size)
        logs = np.log(2 / max(self.curvatures)) + np.linspace(np.log(_SMALLEST_RATE), -1e-6, _NUM_RATES)
        place = int(np.argmin(self.steps_to(target, batch_size, np.exp(logs))))
        ends = logs[max(place - 1, 0)], logs[min(place + 1, _NUM_RATES - 1)]
        found = scipy.optimize.minimize_scalar(
            lambda log: float(self.steps_to(target, batch_size, np.exp(log))),
            bounds=ends,
            method="bounded",
            options={"xatol": 1e-6},
        )
        return float(found.fun), float(np.exp(found.x))

    def _moments(self, batch_size: Any, learning_rate: Any, num_steps: Any) -> Float64[np.ndarray, "... d"]:
        """E θ_i²(t), shape (..., d)."""
        h, c, start = map(np.asarray, (self.curvatures, self.noise, self.second_moments))
        alpha, t = (np.asarray(value, np.float64)[..., None] for value in (learning_rate, num_steps))
        v = alpha * c / (batch_size * h * (2 - alpha * h))
        return v + ((1 - alpha * h) ** 2) ** t * (start - v)
