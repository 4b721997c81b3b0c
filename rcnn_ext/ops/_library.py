"""Registration of an operator with PyTorch's dispatcher: everything but its native kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NoReturn

import torch
from torch.autograd import forward_ad

from rcnn_ext import _extension
from rcnn_ext.ops._arguments import check_arguments, named_error
from rcnn_ext.ops._backend import references

NAMESPACE = "rcnn_ext"

# Filled by define_operator: the operator's name -> its schema, as this package states it.
schemas: dict[str, str] = {}


def _tensors(args: tuple[Any, ...]) -> Iterator[torch.Tensor]:
    """Yield the tensors among an operator's arguments, also those in lists."""
    for argument in args:
        if isinstance(argument, torch.Tensor):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from _tensors(tuple(argument))


def _device_type(args: tuple[Any, ...]) -> str:
    """Return the type of the device of an operator's first tensor; "cpu" where there is none."""
    return next((tensor.device.type for tensor in _tensors(args)), "cpu")


def _arguments_of(schema: str) -> dict[str, bool]:
    """Return the arguments of a schema such as ``(Tensor a, Tensor? b) -> Tensor``.

    Returns:
        Whether each may be None, by name, in order.
    """
    texts = schema[1 : schema.rindex(") -> ")].split(",")
    arguments = (text.split() for text in texts if text.strip())
    return {name: kind.endswith("?") for kind, name in arguments}


def detached(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor without its history.

    For an operator without a derivative: given a tensor that requires grad, PyTorch would fail in
    the backward pass only.
    """
    return tensor.detach() if tensor.requires_grad else tensor


def refuse_vmap(reason: str) -> Callable[..., NoReturn]:
    """Return the batching rule of an operator that has none: it raises ``NotImplementedError``."""

    def rule(*args: Any) -> NoReturn:
        raise NotImplementedError(reason)

    return rule


def _checked(name: str, schema: str, reference: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a reference: tensors are readable, and autocast takes no products in 16 bits."""
    arguments = _arguments_of(schema)

    @functools.wraps(reference)
    def run(*args: Any, **kwargs: Any) -> Any:
        check_arguments(name, arguments, args)
        device = _device_type(args)
        try:
            if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
                return reference(*args, **kwargs)
            with torch.autocast(device, enabled=False):
                return reference(*args, **kwargs)
        except Exception as error:
            better = named_error(name, error)
            if better is None:
                raise
            raise better from None

    return run


def _checked_fake(name: str, schema: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a fake kernel: the dispatcher takes None for a tensor, where another one is fake."""
    arguments = _arguments_of(schema)

    @functools.wraps(fake)
    def run(*args: Any, **kwargs: Any) -> Any:
        for (argument, is_optional), value in zip(arguments.items(), args, strict=False):
            if value is None and not is_optional:
                raise TypeError(f"{name}: expected {argument} to be a tensor, got None")
        return fake(*args, **kwargs)

    return run


def _checked_save(name: str, schema: str, setup_context: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap what saves for the backward pass: tensors of inference mode are refused by name."""
    arguments = list(_arguments_of(schema))

    @functools.wraps(setup_context)
    def run(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        setup_context(ctx, inputs, output)
        for saved in getattr(ctx, "to_save", None) or ():
            if not (isinstance(saved, torch.Tensor) and saved.is_inference()):
                continue
            for argument, value in zip(arguments, inputs, strict=False):
                if value is saved:
                    raise RuntimeError(
                        f"{name}: expected {argument} to be a tensor that autograd can save, got "
                        "one that was made in inference mode; its clone() is none of inference "
                        "mode, outside of it"
                    )

    return run


def _as_fallback(reference: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a reference that the dispatcher runs where it has no kernel, which may be a mistake."""

    @functools.wraps(reference)
    def run(*args: Any, **kwargs: Any) -> Any:
        _extension.warn_of_hidden_kernels(_device_type(args))
        return reference(*args, **kwargs)

    return run


def _loop_vmap(apply: Callable[..., Any]) -> Callable[..., Any]:
    """Return a batching rule that calls a function per member of the batch."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        results = [
            apply(*(a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        if isinstance(results[0], torch.Tensor):
            return torch.stack(results), 0
        return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * len(results[0])

    return rule


def _function_of(
    name: str,
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    setup_context: Callable[..., Any],
    vmap: Callable[..., Any] | None,
    jvp: Callable[..., Any] | None,
) -> type[torch.autograd.Function]:
    """Return the operator as an ``autograd.Function``, which function transforms can take.

    What ``torch.library.register_autograd`` makes of the formulas has no ``setup_context``.
    """

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        setup_context(ctx, inputs, output)
        if jvp is not None:
            ctx.save_for_forward(*(a for a in inputs if isinstance(a, torch.Tensor)))

    # Named as the operator, for messages and graphs of autograd.
    attributes: dict[str, Any] = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(save),
        "backward": staticmethod(backward),
    }
    if jvp is not None:
        attributes["jvp"] = staticmethod(jvp)
    function: Any = type(name, (torch.autograd.Function,), attributes)
    function.vmap = staticmethod(vmap or _loop_vmap(lambda *args: function.apply(*args)))
    made: type[torch.autograd.Function] = function
    return made


class _Arguments:
    """Arguments of an operator on lists of tensors, without the tensors, which stand in one row.

    Args:
        args: The arguments.
    """

    def __init__(self, args: tuple[Any, ...]) -> None:
        self._args = args
        # How many tensors each argument is or holds; None where it is no list.
        self._sizes = [
            len(arg)
            if isinstance(arg, (list, tuple)) and any(isinstance(a, torch.Tensor) for a in arg)
            else None
            for arg in args
        ]

    def flatten(self, values: Sequence[Any]) -> list[Any]:
        """Return the values for tensors in one row, from one value or list for each argument.

        Args:
            values: For a list of tensors a list, or ``None`` for a list of nothing but that.
        """
        row: list[Any] = []
        for arg, size, value in zip(self._args, self._sizes, values, strict=True):
            if size is not None:
                row += [None] * size if value is None else value
            elif isinstance(arg, torch.Tensor):
                row.append(value)
        return row

    def unflatten(self, row: Sequence[Any]) -> list[Any]:
        """Return the arguments with the values of a row in place of the tensors."""
        rest = iter(row)
        args: list[Any] = []
        for arg, size in zip(self._args, self._sizes, strict=True):
            if size is not None:
                args.append([next(rest) for _ in range(size)])
            else:
                args.append(next(rest) if isinstance(arg, torch.Tensor) else arg)
        return args


def _function_of_lists(
    name: str,
    operator: Any,
    backward: Callable[..., Any],
    setup_context: Callable[..., Any],
    vmap: Callable[..., Any],
    jvp: Callable[..., Any] | None,
    returns_list: bool,
) -> Callable[..., Any]:
    """Return an operator on lists of tensors as a function that transforms can take.

    An ``autograd.Function`` has no lists of tensors among its arguments and results, so they are
    taken apart around it.
    """

    def as_row(result: Any) -> Any:
        return tuple(result) if returns_list else result

    def forward(arguments: _Arguments, *row: Any) -> Any:
        return as_row(operator(*arguments.unflatten(row)))

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.arguments, *row = inputs
        setup_context(ctx, tuple(ctx.arguments.unflatten(row)), output)

    def flat_backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        results = backward(ctx, list(grads)) if returns_list else backward(ctx, *grads)
        return None, *ctx.arguments.flatten(results)

    def flat_vmap(info: Any, in_dims: Any, arguments: _Arguments, *row: Any) -> tuple[Any, Any]:
        args = arguments.unflatten(row)
        # For what holds no tensor the dimension has no meaning.
        result, out_dims = vmap(info, tuple(arguments.unflatten(in_dims[1:])), *args)
        return as_row(result), as_row(out_dims)

    def flat_jvp(ctx: Any, _: None, *tangents: Any) -> Any:
        assert jvp is not None
        arguments = ctx.arguments
        return jvp(ctx, *arguments.unflatten(tangents))

    function = _function_of(
        name, forward, flat_backward, save, flat_vmap, None if jvp is None else flat_jvp
    )

    def call(*args: Any) -> Any:
        arguments = _Arguments(args)
        result = function.apply(arguments, *arguments.flatten(args))
        return list(result) if returns_list else result

    return call


def _for_derivatives(
    operator: Any,
    under_transforms: Callable[..., Any],
    forward_mode: Callable[..., Any] | None,
) -> Callable[..., Any]:
    """Wrap an operator: take transforms and forward mode, skip autograd where nothing needs it.

    For a forward-mode derivative PyTorch would take 0 without a word. An autograd formula in Python
    costs 4 us per call, gradient or not: as much as the rest of a small call.

    Args:
        operator: The operator.
        under_transforms: What to call under function transforms.
        forward_mode: What to call where forward-mode derivatives may be needed; without it they are
            refused.
    """

    def call(*args: Any) -> Any:
        transformed = torch._C._functorch.peek_interpreter_stack() is not None
        if forward_ad._current_level >= 0 and not torch.compiler.is_compiling():
            if forward_mode is not None:
                return forward_mode(*args)
            for tensor in _tensors(args):
                if forward_ad.unpack_dual(tensor).tangent is not None:
                    raise NotImplementedError(
                        f"{operator.name().split('::')[1]}: has no forward-mode derivative; "
                        "use reverse mode (backward)"
                    )
        elif (
            not torch.compiler.is_compiling()
            and not transformed
            and not (torch.is_grad_enabled() and torch._C._any_requires_grad(*args))
        ):
            with torch._C._AutoDispatchBelowAutograd():
                return operator(*args)
        if transformed and not torch.compiler.is_compiling():
            return under_transforms(*args)
        return operator(*args)

    return call


def define_operator(
    name: str,
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., Any] | None = None,
    vmap: Callable[..., Any] | None = None,
    jvp: Callable[..., Any] | None = None,
    composite: Literal["never", "forward mode", "transforms"] = "never",
    takes_lists: bool = False,
) -> Any:
    """Define ``rcnn_ext::name``, where the native module has not, and return it, ready to call.

    The reference is registered for every device (CompositeExplicitAutograd); a kernel that a native
    module registers for CPU or CUDA takes precedence. So the dispatcher is the fallback.

    Args:
        name: Name of the operator.
        schema: Arguments and results in the syntax of ``torch.library.define``; equal to the
            operator's in csrc/core/schemas_cpu.cpp, which holds where it is compiled.
        reference: The operator in plain PyTorch, with equal arguments.
        fake: Function that returns empty results of the right shape, dtype and strides.
        backward: Derivative for ``torch.library.register_autograd``.
        setup_context: Function that saves what ``backward`` needs.
        vmap: Batching rule for ``torch.library.register_vmap``.
        jvp: Forward-mode derivative, as the ``jvp`` of an ``autograd.Function``.
        composite: Where the PyTorch operators of the reference are differentiated instead: in
            forward mode, or under every function transform too.
        takes_lists: The operator takes lists of tensors, which an ``autograd.Function`` can't; it
            needs a ``vmap``.
    """
    qualified = f"{NAMESPACE}::{name}"
    reference = _checked(name, schema, reference)
    # The first operator loads the schemas and kernels of all.
    _extension.load_operators()
    if not hasattr(getattr(torch.ops, NAMESPACE), name):
        torch.library.define(qualified, schema, tags=(torch.Tag.pt2_compliant_tag,))
    schemas[name] = schema
    torch.library.impl(qualified, "CompositeExplicitAutograd", _as_fallback(reference))
    torch.library.register_fake(qualified, _checked_fake(name, schema, fake))
    if backward is not None:
        assert setup_context is not None
        setup_context = _checked_save(name, schema, setup_context)
        torch.library.register_autograd(qualified, backward, setup_context=setup_context)
    if vmap is not None:
        torch.library.register_vmap(qualified, vmap)
    operator = getattr(getattr(torch.ops, NAMESPACE), name).default
    references[operator] = reference
    if backward is None:
        return operator
    assert setup_context is not None
    if composite == "transforms":
        transformed = reference
    elif takes_lists:
        assert vmap is not None
        transformed = _function_of_lists(
            name, operator, backward, setup_context, vmap, jvp, schema.endswith("-> Tensor[]")
        )
    else:
        transformed = _function_of(name, operator, backward, setup_context, vmap, jvp).apply
    forward_mode = reference if composite != "never" else transformed if jvp else None
    return _for_derivatives(operator, transformed, forward_mode)
