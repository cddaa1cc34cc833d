"""What int8 and bfloat16 kernels cost on x86 processors with AVX512-VNNI and without AMX.

Fitted to the sites of a few models, one thread, in a process that other work disturbed; on other
processors the ratios differ, with AMX most of all. ``dataclasses.replace(INDUCTOR, costs=...)``
gives a backend a table of its own, ``costs=None`` one that predicts nothing.
"""

from embedl_deploy.quantization.costs import KernelCost, PrecisionCosts, TargetCosts

X86_VNNI_COSTS = TargetCosts(
    measured_on="AMD EPYC (Zen 4, AVX512-VNNI and AVX512-BF16, no AMX), one thread, torch 2.13",
    command="OMP_NUM_THREADS=1 python -m benchmarks.sites --again && python -m benchmarks.site_fit",
    int8=PrecisionCosts(
        kernels={
            "conv": KernelCost(us_per_mmac=4.03, us_per_megabyte=112.883),
            "depthwise conv": KernelCost(us_per_mmac=27.854, us_per_megabyte=33.967),
            "grouped conv": KernelCost(us_per_mmac=3.45, us_per_megabyte=37.123),
            "linear": KernelCost(us_per_mmac=4.597, us_per_megabyte=0.0),
            "pointwise conv": KernelCost(us_per_mmac=4.442, us_per_megabyte=46.52),
            "row": KernelCost(us_per_mmac=0.0, us_per_megabyte=13.093),
        },
        us_per_call=27.81,
        us_per_mega_activation=154.13,
        us_per_loop=0.0,
        us_per_mega_value=255.34,
    ),
    bf16=PrecisionCosts(
        kernels={
            "conv": KernelCost(us_per_mmac=7.816, us_per_megabyte=84.037),
            "depthwise conv": KernelCost(us_per_mmac=20.075, us_per_megabyte=17.068),
            "grouped conv": KernelCost(us_per_mmac=4.844, us_per_megabyte=38.449),
            "linear": KernelCost(us_per_mmac=9.101, us_per_megabyte=0.0),
            "matmul": KernelCost(us_per_mmac=9.101, us_per_megabyte=0.0),
            "pointwise conv": KernelCost(us_per_mmac=8.846, us_per_megabyte=17.768),
            "row": KernelCost(us_per_mmac=0.0, us_per_megabyte=11.055),
        },
        us_per_call=26.56,
        us_per_mega_activation=83.49,
        us_per_loop=0.15,
        us_per_mega_value=167.61,
    ),
    int8_activations={
        "conv": ("ReLU", "ReLU6", "Hardtanh", "Hardswish", "SiLU"),
        "linear": ("ReLU", "GELU"),
    },
)
