"""A function of JAX with its variables: a frozen teacher."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from kdjax.models import own
from kdjax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Function:
    """A function of JAX as a frozen teacher.

    Attributes:
        apply: `(variables, images) -> logits`, or logits with a dictionary of features,
            or `Outputs`; in evaluation mode.
        variables: a tree of arrays.
        name: for messages and tables.
    """

    apply: Callable[[Any, jax.Array], Any]
    variables: Any
    name: str = "function"


@dataclasses.dataclass(frozen=True)
class FunctionNetwork(own.Network):
    """A frozen teacher that is a function.

    Its 'params' are the function's variables. If these are a dictionary of 'params' and
    'batch_stats' alone, its collections are the same.

    Attributes:
        function: the function with its variables.
        name: for error messages.
    """

    function: Function
    name: str

    @property
    def given(self) -> bool:
        """Whether its initial variables are given, whatever the key."""
        return True

    def _is_split(self) -> bool:
        variables = self.function.variables
        return (
            isinstance(variables, Mapping)
            and "params" in variables
            and set(variables) <= {"params", "batch_stats"}
        )

    def init(
        self, key: jax.Array, images: jax.Array, train: bool = False
    ) -> dict[str, Any]:
        """Returns the function's variables; they do not depend on the key."""
        del key, images, train
        variables = self.function.variables
        return jax.tree.map(
            jnp.asarray, dict(variables) if self._is_split() else {"params": variables}
        )

    def apply(
        self,
        variables: Mapping[str, Any],
        images: jax.Array,
        train: bool = False,
        **options: Unpack[own.ApplyOptions],
    ) -> Any:
        """Returns the function's outputs.

        Raises:
            UserError: it is called in training mode.
        """
        if train:
            raise UserError(
                f"model {self.name!r} is a function: it can teach, but not be trained"
            )
        given: Any = dict(variables)
        if not self._is_split():
            given = given["params"]
        elif "batch_stats" not in self.function.variables:
            given.pop("batch_stats", None)

        # kdjax keeps all variables in floating point: integers get their dtype back.
        def restored(leaf: Any, own: Any) -> Any:
            dtype = jnp.asarray(own).dtype
            return leaf if jnp.issubdtype(dtype, jnp.floating) else leaf.astype(dtype)

        given = jax.tree.map(restored, given, self.function.variables)
        outputs = own.as_outputs(self.function.apply(given, images), self.name)
        return (outputs, {}) if options.get("mutable", False) is not False else outputs
