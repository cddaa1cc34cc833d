"""Rows of the lifting table for pools and dropouts."""

from collections.abc import Callable

from torch import nn

from embedl_deploy.tracing.lift_call import Call, Lifting, Option, Unliftable


def dropout(module_class: type[nn.Module]) -> Callable[[Call], Lifting]:
    """Returns the row of an elementwise dropout."""

    def row(call: Call) -> Lifting:
        training = call.option("train") is True
        options = {"p": call.option("p")}
        return Lifting(module_class, options, (call.node_of("input"),), {}, training)

    return row


def feature_dropout(call: Call) -> Lifting:
    """Dropout of whole channels."""
    by_rank = {3: nn.Dropout1d, 4: nn.Dropout2d, 5: nn.Dropout3d}
    rank = call.rank("input")
    if rank not in by_rank:
        raise Unliftable
    return dropout(by_rank[rank])(call)


def max_pool(module_class: type[nn.Module], first: bool = False) -> Callable[[Call], Lifting]:
    """Returns the row of a max pool."""

    def row(call: Call) -> Lifting:
        options: dict[str, Option] = {
            "kernel_size": call.compact("kernel_size"),
            "stride": call.compact("stride") or None,
            "padding": call.compact("padding"),
            "dilation": call.compact("dilation"),
            "ceil_mode": call.option("ceil_mode"),
        }
        return Lifting(module_class, options, (call.node_of("self"),), first_of_several=first)

    return row


def average_pool(module_class: type[nn.Module]) -> Callable[[Call], Lifting]:
    """Returns the row of an average pool."""

    def row(call: Call) -> Lifting:
        options: dict[str, Option] = {
            "kernel_size": call.compact("kernel_size"),
            "stride": call.compact("stride") or None,
            "padding": call.compact("padding"),
            "ceil_mode": call.option("ceil_mode"),
            "count_include_pad": call.option("count_include_pad"),
        }
        if "divisor_override" in call.bound:
            options["divisor_override"] = call.option("divisor_override")
        return Lifting(module_class, options, (call.node_of("self"),))

    return row


def adaptive_pool(module_class: type[nn.Module], first: bool = False) -> Callable[[Call], Lifting]:
    """Returns the row of an adaptive pool."""

    def row(call: Call) -> Lifting:
        options = {"output_size": call.compact("output_size")}
        return Lifting(module_class, options, (call.node_of("self"),), first_of_several=first)

    return row
