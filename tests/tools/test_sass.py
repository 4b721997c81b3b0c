"""The reader of machine code finds the innermost loops and counts them right."""

from __future__ import annotations

import sass

# Of no real kernel: a loop with a loop inside, a slow path out of line, and a spilled register.
CODE = """
	code for sm_90
		Function : _ZN8rcnn_ext6kernelIfEEvPfi
	.headerflags	@"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;      /* 0x00000a00ff017b82 */
                                                               /* 0x000ff00000000800 */
        /*0010*/                   STL [R1], R2 ;              /* 0x00000a00ff017b82 */
        /*0020*/                   MOV R4, RZ ;                /* 0x00000a00ff017b82 */
        /*0030*/                   LDG.E R8, desc[UR4][R2.64] ;
        /*0040*/                   LDS.128 R12, [R6] ;
        /*0050*/                   FFMA R9, R8, R12, R9 ;
        /*0060*/              @P1 BRA 0x110 ;
        /*0070*/                   MUFU.RCP R10, R9 ;
        /*0080*/                   FFMA R10, R9, R10, R10 ;
        /*0090*/                   IADD3 R4, R4, 0x1, RZ ;
        /*00a0*/              @!P0 BRA 0x30 ;
        /*00b0*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*00c0*/                   LDL R2, [R1] ;
        /*00d0*/              @!P2 BRA 0x20 ;
        /*00e0*/                   STG.E desc[UR4][R2.64], R10 ;
        /*00f0*/                   EXIT ;
        /*0100*/                   NOP ;
        /*0110*/                   CALL.REL.NOINC 0x140 ;
        /*0120*/                   MOV R10, R7 ;
        /*0130*/                   BRA 0x90 ;
        /*0140*/                   MUFU.RCP R7, R9 ;
        /*0150*/                   RET.REL.NODEC R20 0x0 ;
        /*0160*/                   BRA 0x160 ;
        /*0170*/                   NOP ;
"""

TWO_FUNCTIONS = (
    CODE
    + """
		Function : second
        /*0000*/                   ISETP.GE.AND P0, PT, R2, R3, PT ;
        /*0010*/                   REDG.E.ADD.F32.FTZ.RN.STRONG.GPU desc[UR4][R2.64], R5 ;
        /*0020*/                   BRA.U !UP0, 0x0 ;
        /*0030*/                   EXIT ;
        /*0040*/                   BRA 0x40;
"""
)


def only_function(text: str) -> sass.Function:
    (function,) = sass.parse_sass(text)
    return function


def test_reads_instructions_with_addresses_predicates_and_targets():
    function = only_function(CODE)
    assert function.name == "_ZN8rcnn_ext6kernelIfEEvPfi"
    assert len(function.code) == 24
    assert function.code[3] == sass.Instruction(0x30, "LDG.E", False, None)
    assert function.code[10] == sass.Instruction(0xA0, "BRA", True, 0x30)


def test_takes_the_innermost_loop_only():
    (loop,) = sass.inner_loops(only_function(CODE))
    assert (loop.first, loop.last) == (0x30, 0xA0)
    assert loop.instructions == 8
    assert loop.kinds == {"global_loads": 1, "shared": 1, "multiply_adds": 2, "reciprocals": 1}


def test_screened_and_shortest_leave_out_what_a_test_saves():
    (loop,) = sass.inner_loops(only_function(CODE))
    # Without 0x70 and 0x80, the block that divides.
    assert loop.screened == 6
    # The way over the slow path leaves the loop's addresses: it is no shorter one.
    assert loop.shortest == 8
    skipping = CODE.replace("@P1 BRA 0x110", "@P1 BRA 0x90")
    (loop,) = sass.inner_loops(only_function(skipping))
    assert loop.shortest == 6


def test_a_slow_path_that_returns_into_a_loop_is_no_loop():
    # 0x130 branches back to 0x90, but 0x90 is also reached without it.
    assert len(sass.inner_loops(only_function(CODE))) == 1


def test_a_block_that_calls_is_not_counted():
    inside = CODE.replace(
        "/*0080*/                   FFMA R10, R9, R10, R10", "/*0080*/ CALL.REL.NOINC 0x140"
    )
    (loop,) = sass.inner_loops(only_function(inside))
    assert loop.instructions == 6


def test_padding_behind_the_code_is_no_loop():
    without = CODE.replace("@!P0 BRA 0x30", "NOP").replace("@!P2 BRA 0x20", "NOP")
    assert sass.inner_loops(only_function(without)) == []


def test_counts_spills():
    assert only_function(CODE).spills == 2


def test_separates_functions_and_reads_conditions_in_operands():
    first, second = sass.parse_sass(TWO_FUNCTIONS)
    assert len(first.code) == 24
    assert second.code[2].conditional
    (loop,) = sass.inner_loops(second)
    assert (loop.instructions, loop.kinds) == (3, {"atomics": 1})


def test_a_loop_of_two_ways_back_is_one_loop():
    text = CODE.replace(
        "/*0080*/                   FFMA R10, R9, R10, R10", "/*0080*/ @P3 BRA 0x30"
    )
    (loop,) = sass.inner_loops(only_function(text))
    assert (loop.first, loop.last, loop.instructions) == (0x30, 0xA0, 8)
    assert loop.shortest == 6


def test_names_lack_parameters_namespaces_and_hashes():
    # The unnamed namespace of a .cu file has a hash of its path and of the compiler's run.
    unnamed = "_GLOBAL__N__67db76e7_15_box_iou_cuda_cu_57dc527d_104232"
    mangled = f"_ZN8rcnn_ext{len(unnamed)}{unnamed}6kernelIfLi4EEEvPKT_i"
    assert sass.demangle([mangled]) == {mangled: "kernel<float, 4>"}
    full = "void rcnn_ext::(anonymous namespace)::match<true, c10::Half>(c10::Half const*, int)"
    assert sass.short_name(full) == "match<true, Half>"
    nested = "void rcnn_ext::gather<rcnn_ext::Gradient<float>, 1, (bool)1>(rcnn_ext::Plan)"
    assert sass.short_name(nested) == "gather<Gradient<float>, 1, (bool)1>"
