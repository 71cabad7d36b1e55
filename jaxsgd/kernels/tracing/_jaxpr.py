"""A traced function as a graph of values: flat, walkable backwards, and evaluated on demand.

JAX's own representation nests calls (``jit``, ``jax.checkpoint``, functions with custom derivatives) and runs from
the first equation to the last. :func:`trace` inlines the calls, so that the equation which produces a value is always
in sight, and :func:`evaluate` runs only what the requested values need. A value inside the body of a ``scan`` can be
requested too, stacked over its iterations: see :meth:`Scan.stack`.

The obvious way would be to run the jaxpr from its first equation and to note what passes by. What is wanted here are
operands of a few equations, and not the results that the function was traced for:

- The product that a gradient comes from may stand inside several calls. In the *flat* graph it is the ``operation`` of
  the gradient, or of one that this leads to, however the loss was wrapped.
- Its result, for all examples together, would be the n·P numbers to be avoided. Evaluated *on demand*, from what is
  requested backwards, it is not computed at all, and this is not left to a compiler to find out.
- In a loop the operands exist in every iteration, and what comes out is their sum. A scan is therefore written anew,
  with the operands among what it stacks, and without the carry for the sum. So is a ``cond``, with the operands of a
  branch among what comes out, zeros where another one is taken.

The price is that calls lose what they were there for: a function under ``jax.checkpoint`` is not computed twice, and
its intermediate values may be kept.

This is the only module that touches the internals of JAX; what differs between its versions is at the bottom.
"""

import heapq
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal

from jaxsgd._core.sums import varying_like

_CALLS = {"jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call"}


class Value:
    """One array of the graph: an input, a constant, or an output of an operation.

    ``varies`` is False of constants, of inputs that are shared, and of what is computed from these alone. ``outside``
    is what an input of a branch, or one that is the same in every iteration of a loop, is outside of it.
    """

    __slots__ = ("aval", "constant", "operation", "outside", "varies")

    def __init__(self, aval: Any, operation: "Operation | None" = None, constant: Any = None, varies: bool = True):
        self.aval = aval
        self.operation = operation
        self.constant = constant
        self.outside: Value | None = None
        self.varies = varies and constant is None

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.aval.shape)


class Operation:
    """One equation: a primitive applied to values."""

    def __init__(self, order: int, equation: Any, inputs: list[Value]):
        self.order = order
        self.name: str = equation.primitive.name
        self.primitive = equation.primitive
        self.params: dict[str, Any] = equation.params
        self.inputs = inputs
        self.has_effects = bool(equation.effects)
        varies = self.has_effects or any(value.varies for value in inputs)
        self.outputs = [Value(variable.aval, self, varies=varies) for variable in equation.outvars]

    def run(self, values: dict[Value, Any], requested: set[Value]) -> None:
        """Compute the outputs from the values of the inputs, and add them to ``values``."""
        del requested
        arguments = [read(values, value) for value in self.inputs]
        out = self.primitive.bind(*arguments, **self.primitive.get_bind_params(self.params))
        values.update(zip(self.outputs, out if self.primitive.multiple_results else [out], strict=True))

    def dependencies(self, requested: set[Value]) -> Iterable[Value]:
        """The values that the requested outputs need."""
        del requested
        return self.inputs


class Graph:
    """Inputs, outputs, and the operations between them in a valid order; ``varies`` says so of every input."""

    def __init__(self, closed_jaxpr: Any, varies: Sequence[bool]):
        inputs = zip(closed_jaxpr.jaxpr.invars, varies, strict=True)
        self.inputs = [Value(variable.aval, varies=each) for variable, each in inputs]
        self.operations: list[Operation] = []
        self._products: dict[frozenset[Value], list[Value]] = {}
        self.effectful: list[Operation] = []  # a print or a callback runs, whether or not a value needs it
        self._count = 0
        self.outputs = self._inline(closed_jaxpr, self.inputs)

    def _inline(self, closed_jaxpr: Any, arguments: Sequence[Value]) -> list[Value]:
        jaxpr = closed_jaxpr.jaxpr
        values = dict(zip(jaxpr.invars, arguments, strict=True))
        constants = zip(jaxpr.constvars, closed_jaxpr.consts, strict=True)
        values |= {variable: Value(variable.aval, constant=constant) for variable, constant in constants}

        def lookup(atom: Any) -> Value:
            return Value(atom.aval, constant=atom.val) if isinstance(atom, Literal) else values[atom]

        for equation in jaxpr.eqns:
            inputs = [lookup(atom) for atom in equation.invars]
            inner, product = _called(equation), frozenset(inputs)
            if inner is not None:
                outputs = self._inline(inner, inputs)
            elif equation.primitive.name == "mul" and product in self._products:  # a b is b a
                outputs = self._products[product]
            else:
                self._count += 1
                operation = _kind(equation)(self._count, equation, inputs)
                outputs = operation.outputs
                self.operations.append(operation)
                if operation.name == "mul" and len(product) == 2:
                    self._products[product] = outputs
                if operation.has_effects:
                    self.effectful.append(operation)
            values.update(zip(equation.outvars, outputs, strict=True))
        return [lookup(atom) for atom in jaxpr.outvars]


class Computed(Operation):
    """A function of values in place of the equation that had an output."""

    def __init__(self, output: Value, inputs: Sequence[Value], function: Callable[..., Any]):
        assert output.operation is not None
        self.order, self.name, self.has_effects = output.operation.order, function.__name__.replace("_", " "), False
        self.inputs, self.outputs, self._function = list(inputs), [output], function
        output.operation = self

    def run(self, values: dict[Value, Any], requested: set[Value]) -> None:
        del requested
        values[self.outputs[0]] = self._function(*(read(values, value) for value in self.inputs))


class Scan(Operation):
    """A ``scan``, whose body is a graph of its own."""

    def __init__(self, order: int, equation: Any, inputs: list[Value]):
        super().__init__(order, equation, inputs)
        num_consts, num_carry = _scan_arity(self.params, len(inputs))
        self.consts, self.initial, self.xs = _split(inputs, num_consts, num_carry)
        self.body = self._traced(num_consts, num_carry)
        self.body_consts, self.body_carry, self.body_xs = _split(self.body.inputs, num_consts, num_carry)
        for inner, value in zip(self.body_consts, self.consts, strict=True):
            inner.outside = value
        self.final, self.ys = self.outputs[:num_carry], self.outputs[num_carry:]
        self.body_final, self.body_ys = self.body.outputs[:num_carry], self.body.outputs[num_carry:]
        self._stacks: dict[Value, Value] = {}

    def _traced(self, num_consts: int, num_carry: int) -> Graph:
        """The body, in which a carry varies where it does at the beginning or after an iteration."""
        varies = [value.varies for value in self.inputs]
        while True:
            body = Graph(self.params["jaxpr"], varies)
            carries = range(num_consts, num_consts + num_carry)
            more = [at for at, out in zip(carries, body.outputs, strict=False) if out.varies and not varies[at]]
            if not more:
                return body
            for at in more:
                varies[at] = True

    @property
    def length(self) -> int:
        """How many iterations there are."""
        return int(self.params["length"])

    def stack(self, inner: Value) -> Value:
        """A value of the body as a value of the graph, with a leading axis of ``length``."""
        if inner not in self._stacks:
            shape = (self.length, *inner.shape)
            self._stacks[inner] = Value(jax.core.ShapedArray(shape, inner.aval.dtype), self, varies=inner.varies)
        return self._stacks[inner]

    def _plan(self, requested: set[Value]) -> tuple[list[int], dict[Value, Value], list[Value]]:
        """Which carries must be kept, what is stacked, and which values of the body that takes."""
        stacked = {out: inner for out, inner in zip(self.ys, self.body_ys, strict=True) if out in requested}
        stacked |= {out: inner for inner, out in self._stacks.items() if out in requested}
        kept = [c for c, out in enumerate(self.final) if out in requested]
        while True:
            wanted = [*stacked.values(), *(self.body_final[c] for c in kept)]
            leaves: set[Value] = set()
            _needed(wanted, self.body.effectful, (), leaves)
            more = [c for c, carry in enumerate(self.body_carry) if carry in leaves and c not in kept]
            if not more:
                return kept, stacked, [value for value in self.body.inputs if value in leaves]
            kept += more

    def dependencies(self, requested: set[Value]) -> Iterable[Value]:
        """The consts, initial carries and scanned arrays that the requested outputs need."""
        kept, _, leaves = self._plan(requested)
        outside = dict(zip(self.body.inputs, self.inputs, strict=True))
        return [*(outside[leaf] for leaf in leaves), *(self.initial[c] for c in kept)]

    def run(self, values: dict[Value, Any], requested: set[Value]) -> None:
        """Run the loop for the requested outputs only."""
        kept, stacked, leaves = self._plan(requested)
        needed = set(leaves)
        outside = dict(zip(self.body.inputs, self.inputs, strict=True))
        consts = {value: read(values, outside[value]) for value in self.body_consts if value in needed}
        scanned = [value for value in self.body_xs if value in needed]

        def step(carry: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
            known = consts | dict(zip((self.body_carry[c] for c in kept), carry, strict=True))
            known |= dict(zip(scanned, xs, strict=True))
            wanted = [*(self.body_final[c] for c in kept), *stacked.values()]
            results = evaluate(wanted, known, self.body.effectful)
            return results[: len(kept)], results[len(kept) :]

        final, ys = jax.lax.scan(
            step,
            [read(values, self.initial[c]) for c in kept],
            [read(values, outside[value]) for value in scanned],
            length=self.length,
            reverse=self.params["reverse"],
            unroll=self.params["unroll"],
        )
        values.update(zip((self.final[c] for c in kept), final, strict=True))
        values.update(zip(stacked, ys, strict=True))


class Cond(Operation):
    """A ``cond`` or ``switch``, whose branches are graphs of their own."""

    def __init__(self, order: int, equation: Any, inputs: list[Value]):
        super().__init__(order, equation, inputs)
        self.index, *self.operands = inputs
        self.branches = [Graph(branch, [value.varies for value in self.operands]) for branch in self.params["branches"]]
        self._exposed: dict[Value, tuple[int, Value]] = {}
        self._of_branch: dict[tuple[int, Value], Value] = {}
        for branch in self.branches:
            for inner, value in zip(branch.inputs, self.operands, strict=True):
                inner.outside = value

    def of_branch(self, branch: int, inner: Value) -> Value:
        """A value of a branch as a value of the graph: zero where another branch is taken."""
        if (branch, inner) not in self._of_branch:
            value = Value(inner.aval, self, varies=self.index.varies or inner.varies)
            self._of_branch[branch, inner], self._exposed[value] = value, (branch, inner)
        return self._of_branch[branch, inner]

    def _wanted(self, requested: set[Value]) -> list[list[Value | None]]:
        """For every branch, which of its values are the requested ones, in order; None where another branch has it."""
        places = [value for value in (*self.outputs, *self._exposed) if value in requested]
        return [[self._in_branch(value, k) for value in places] for k in range(len(self.branches))]

    def _in_branch(self, value: Value, branch: int) -> Value | None:
        if value not in self._exposed:
            return self.branches[branch].outputs[self.outputs.index(value)]
        where, inner = self._exposed[value]
        return inner if where == branch else None

    def dependencies(self, requested: set[Value]) -> Iterable[Value]:
        """The index, and the operands that the requested values need in any branch."""
        leaves: set[Value] = set()
        for branch, wanted in zip(self.branches, self._wanted(requested), strict=True):
            _needed([value for value in wanted if value is not None], branch.effectful, (), leaves)
        outside = [dict(zip(branch.inputs, self.operands, strict=True)) for branch in self.branches]
        return [self.index, *dict.fromkeys(inside[leaf] for inside in outside for leaf in inside if leaf in leaves)]

    def run(self, values: dict[Value, Any], requested: set[Value]) -> None:
        """Run the branch that is taken, for the requested values only."""
        places = [value for value in (*self.outputs, *self._exposed) if value in requested]
        needed = list(self.dependencies(requested))[1:]
        arrays = [read(values, value) for value in needed]

        def run(branch: Graph, wanted: list[Value | None], arrays: list[Any]) -> list[Any]:
            known = dict(zip(needed, arrays, strict=True))
            inside = {a: known[b] for a, b in zip(branch.inputs, self.operands, strict=True) if b in known}
            found = iter(evaluate([value for value in wanted if value is not None], inside, branch.effectful))
            zeros = varying_like(arrays, [jnp.zeros(value.shape, value.aval.dtype) for value in places])
            return [next(found) if value is not None else zero for value, zero in zip(wanted, zeros, strict=True)]

        bodies = [partial(run, *each) for each in zip(self.branches, self._wanted(requested), strict=True)]
        values.update(zip(places, jax.lax.switch(read(values, self.index), bodies, arrays), strict=True))


def _kind(equation: Any) -> type[Operation]:
    """What an equation becomes; a choice between platforms, of which but one can be compiled, is left as it is."""
    if equation.primitive.name == "cond" and equation.params.get("branches_platforms") is None:
        return Cond
    return Scan if equation.primitive.name == "scan" else Operation


def trace(function: Callable[..., Any], shared: Any, *arguments: Any) -> Graph:
    """The graph of ``function(shared, *arguments)``; arguments are pytrees of anything with a shape and a dtype.

    Inputs and outputs are the leaves of the arguments and of the result. Values that depend on ``shared`` alone are
    known not to vary.
    """
    closed_jaxpr, num_shared = jax.make_jaxpr(function)(shared, *arguments), len(jax.tree.leaves(shared))
    return Graph(closed_jaxpr, [place >= num_shared for place in range(len(closed_jaxpr.jaxpr.invars))])


def evaluate(requested: Sequence[Value], known: dict[Value, Any], effectful: Sequence[Operation] = ()) -> list[Any]:
    """Compute the requested values from the known ones; run the ``effectful`` operations too."""
    values = dict(known)
    needed = _needed(requested, effectful, known.keys())
    for operation in sorted(needed, key=lambda operation: operation.order):
        operation.run(values, needed[operation])
    return [read(values, value) for value in requested]


def read(values: dict[Value, Any], value: Value) -> Any:
    """The array of a value that is known or constant."""
    return value.constant if value.constant is not None else values[value]


def needed(requested: Sequence[Value], effectful: Sequence[Operation] = ()) -> Iterable[Operation]:
    """The operations that the requested values take."""
    return _needed(requested, effectful, ()).keys()


def _needed(
    requested: Iterable[Value],
    effectful: Iterable[Operation],
    known: Iterable[Value],
    inputs: set[Value] | None = None,
) -> dict[Operation, set[Value]]:
    """The operations that must run, each with the outputs wanted of it; ``inputs`` collects what they read.

    What a scan needs depends on what is wanted of it, so operations are visited from the last to the first: all users
    of an output come before its producer.
    """
    wanted: dict[Operation, set[Value]] = {}
    waiting: list[tuple[int, Operation]] = []  # a heap, the last operation first
    known = set(known)

    def want(operation: Operation, outputs: Iterable[Value]) -> None:
        if operation not in wanted:
            wanted[operation] = set()
            heapq.heappush(waiting, (-operation.order, operation))
        wanted[operation].update(outputs)

    def read_by_some(values: Iterable[Value]) -> None:
        for value in values:
            if value in known:
                continue
            if value.operation is not None:
                want(value.operation, [value])
            elif value.constant is None and inputs is not None:
                inputs.add(value)

    for operation in effectful:
        want(operation, ())
    read_by_some(requested)
    while waiting:
        _, operation = heapq.heappop(waiting)
        read_by_some(operation.dependencies(wanted[operation]))
    return wanted


def _split(values: list[Value], first: int, second: int) -> tuple[list[Value], list[Value], list[Value]]:
    return values[:first], values[first : first + second], values[first + second :]


# What differs between versions of JAX.


def _called(equation: Any) -> Any:
    """The function that an equation calls, or None if it calls none that can be inlined."""
    if equation.primitive.name not in _CALLS:
        return None
    inner = next(equation.params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in equation.params)
    return inner if hasattr(inner, "consts") else ClosedJaxpr(inner, ())


def _scan_arity(params: dict[str, Any], num_inputs: int) -> tuple[int, int]:
    """How many of a scan's inputs are constants, and how many carries."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].update(list(range(num_inputs))).unpack()
    return len(list(consts)), len(list(carry))
