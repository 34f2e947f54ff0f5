"""The GPU kernels go through the real compilers for an H200: no spill, no serialised wgmma."""

import pytest

from experiments import gpu_compile

reason = gpu_compile.cannot_compile()


def test_reads_the_compilers_report():
    report = (
        "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are "
        "serialized due to insufficient register resources\n"
        "    8 bytes stack frame, 16 bytes spill stores, 24 bytes spill loads\n"
        "ptxas info    : Used 168 registers, used 16 barriers\n"
    )
    found = gpu_compile.read_ptxas("forward", report, "Resources(smem_scratch_bytes=171008, x)")
    assert found == gpu_compile.Compiled("forward", 168, 40, True, 171008)
    with pytest.raises(ValueError, match="Used"):
        gpu_compile.read_ptxas("forward", report.split("ptxas info    : Used")[0], "")


@pytest.mark.slow
@pytest.mark.skipif(bool(reason), reason=reason or "it can")
@pytest.mark.parametrize("kind", ["bits", "soft"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_hopper_kernels_neither_spill_nor_serialise(head_dim, kind):
    arguments = gpu_compile.attention_arguments(
        3000, 2000, 4, head_dim, "bfloat16", kind=kind, capacity=64
    )
    found = gpu_compile.compile_mosaic(arguments)
    assert [each.kernel for each in found] == ["backward_kv", "backward_q", "forward"]
    for each in found:
        assert each.spilled_bytes == 0, each
        assert not each.serialised, each
        assert each.registers is not None
        assert each.registers <= 168, each
        # What a block may use on the H200.
        assert each.shared_bytes is not None
        assert each.shared_bytes <= 227 * 1024, each


@pytest.mark.slow
@pytest.mark.skipif(bool(reason), reason=reason or "it can")
@pytest.mark.parametrize("kind", ["bits", "soft"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_triton_kernels_do_not_spill(head_dim, kind):
    arguments = gpu_compile.attention_arguments(
        3000, 2000, 4, head_dim, "bfloat16", kind=kind, capacity=64
    )
    gpu_compile.compile_triton(arguments)
