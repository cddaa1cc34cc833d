"""What int8 and bfloat16 kernels cost on x86 processors with AVX512-VNNI and without AMX.

Fitted to the sites of a few models, one thread, in a process that other work disturbed; on other
processors the ratios differ, with AMX most of all. ``dataclasses.replace(INDUCTOR, costs=...)``
gives a backend a table of its own, ``costs=None`` one that predicts nothing.
"""

from embedl_deploy.quantization.costs import KernelCost, PrecisionCosts, TargetCosts

X86_VNNI_COSTS = TargetCosts(
    measured_on="AMD EPYC (Zen 4, AVX512-VNNI and AVX512-BF16, no AMX), one thread, torch 2.13",
    command="OMP_NUM_THREADS=1 python -m benchmarks.sites && python -m benchmarks.site_fit",
    int8=PrecisionCosts(
        kernels={
            "conv": KernelCost(us_per_mmac=4.052, us_per_megabyte=109.445),
            "depthwise conv": KernelCost(us_per_mmac=29.194, us_per_megabyte=20.95),
            "grouped conv": KernelCost(us_per_mmac=3.392, us_per_megabyte=36.502),
            "linear": KernelCost(us_per_mmac=4.586, us_per_megabyte=0.0),
            "pointwise conv": KernelCost(us_per_mmac=4.4, us_per_megabyte=47.107),
            "row": KernelCost(us_per_mmac=0.0, us_per_megabyte=12.798),
        },
        us_per_call=39.5,
        us_per_mega_activation=169.03,
        us_per_loop=0.0,
        us_per_mega_value=260.63,
    ),
    bf16=PrecisionCosts(
        kernels={
            "conv": KernelCost(us_per_mmac=7.851, us_per_megabyte=81.933),
            "depthwise conv": KernelCost(us_per_mmac=18.494, us_per_megabyte=23.319),
            "grouped conv": KernelCost(us_per_mmac=4.85, us_per_megabyte=38.08),
            "linear": KernelCost(us_per_mmac=9.095, us_per_megabyte=0.0),
            "matmul": KernelCost(us_per_mmac=9.107, us_per_megabyte=0.0),
            "pointwise conv": KernelCost(us_per_mmac=8.886, us_per_megabyte=17.317),
            "row": KernelCost(us_per_mmac=0.0, us_per_megabyte=11.167),
        },
        us_per_call=32.06,
        us_per_mega_activation=79.37,
        us_per_loop=0.11,
        us_per_mega_value=189.22,
    ),
    int8_activations={
        "conv": ("ReLU", "ReLU6", "Hardtanh", "Hardswish", "SiLU"),
        "linear": ("ReLU", "GELU"),
    },
)
