"""The two inner loops that need the processor's vector registers, as LLVM code of our own.

numba's loops do not keep a block of outputs in registers, which is what makes a convolution
fast, and do not press numbers together. Widths follow the processor that numba compiles for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types as _types
from numba.core import cgutils as _cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic as _intrinsic

# Places in a ``job`` of :func:`block`, whole numbers; most are addresses of arrays.
(
    INPUT,  # float32 [P, i]
    STARTS,  # for each pixel of the block: the input pixel that its first tap reads
    TAPS,  # for each tap: how many pixels further it reads
    TAP_COUNT,
    PRESENT,  # i
    FILTERS,  # float32 [taps * i, STRIDE]
    STRIDE,
    SHIFT,  # float32, at least as long as the block is wide
    OUTPUT,  # float32 [P', n]
    TARGETS,  # for each pixel of the block: its first number in the output
    LAST,  # channels in the last register of a pixel
    RECTIFY,  # 1: what is negative becomes 0
) = range(12)
JOB = 12

# Untyped, or typed otherwise than they are used.
cgutils: Any = _cgutils
intrinsic: Any = _intrinsic
types: Any = _types

_BIT, _INDEX, _WHOLE = (ir.IntType(bits) for bits in (1, 32, 64))
_FLOAT = ir.FloatType()


@dataclass(frozen=True)
class Registers:
    """How much of the output one pass of the inner loop holds in registers.

    Attributes:
        lanes: float32 numbers of a register.
        pixels: of the output.
        widest: registers of channels for each pixel, at most.
    """

    lanes: int
    pixels: int
    widest: int


def _registers() -> Registers:
    """For this processor: outputs, filters and one input fit into its registers."""
    if HAS_AVX512:
        return Registers(16, 8, 3)  # 24 + 3 + 1 of 32
    if "+avx," in _FEATURES:
        return Registers(8, 6, 2)  # 12 + 2 + 1 of 16
    return Registers(4, 6, 2)


_FEATURES = str(cpu_target.target_context.codegen().magic_tuple()[2]) + ","
HAS_AVX512 = "+avx512f," in _FEATURES
REGISTERS = _registers()
"""Of the processor that numba compiles for."""


def block(size: Registers, wide: int) -> Callable[[Any], None]:
    """Makes the inner loop of a convolution: a block of outputs, summed up in registers.

    Args:
        size: of a register, and pixels of the block.
        wide: registers of channels of each pixel.

    Returns:
        A function for compiled code; its argument is the address of a job (see above).
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def block_of_outputs(_typing: Any, job: Any) -> tuple[Any, Any]:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            _Block(builder, size, wide, arguments[0]).generate()
            return context.get_dummy_value()

        return types.void(types.int64), generate

    made: Callable[[Any], None] = block_of_outputs
    return made


class _Vectors:
    """What both loops need: vectors of float32 numbers at addresses.

    Args:
        builder: of LLVM code.
        lanes: of a vector.
    """

    def __init__(self, builder: Any, lanes: int) -> None:
        self.b, self.lanes = builder, lanes
        self.kind = ir.VectorType(_FLOAT, lanes)
        self.zero = ir.Constant(self.kind, [0.0] * lanes)

    def at(self, address: Any, offset: Any, kind: Any = _FLOAT) -> Any:
        """Pointer to number ``offset`` of an array."""
        return self.b.gep(self.b.inttoptr(address, kind.as_pointer()), [offset])

    def load(self, pointer: Any) -> Any:
        """A vector from anywhere."""
        return self.b.load(self._cast(pointer), align=4)

    def store(self, vector: Any, pointer: Any) -> None:
        """A vector to anywhere."""
        self.b.store(vector, self._cast(pointer), align=4)

    def store_first(self, vector: Any, pointer: Any, mask: Any) -> None:
        """The lanes of a mask; nothing else is written."""
        arguments = [self.kind, self.kind.as_pointer(), _INDEX, mask.type]
        store = self.function("masked.store", ir.VoidType(), arguments, ".p0")
        self.b.call(store, [vector, self._cast(pointer), _INDEX(4), mask])

    def spread(self, value: Any, kind: Any) -> Any:
        """The same number in all lanes."""
        nothing = ir.Constant(ir.VectorType(kind, self.lanes), ir.Undefined)
        everywhere = ir.Constant(ir.VectorType(_INDEX, self.lanes), [0] * self.lanes)
        one = self.b.insert_element(nothing, value, _INDEX(0))
        return self.b.shuffle_vector(one, nothing, everywhere)

    def function(self, name: str, result: Any, arguments: Any, ending: str = "") -> Any:
        """One of LLVM's functions for these vectors."""
        kind = ir.FunctionType(result, arguments)
        full = f"llvm.{name}.v{self.lanes}f32{ending}"
        return cgutils.get_or_insert_function(self.b.module, kind, full)

    def _cast(self, pointer: Any) -> Any:
        return self.b.bitcast(pointer, self.kind.as_pointer())


class _Block(_Vectors):
    """Writes the code of :func:`block`."""

    def __init__(self, builder: Any, size: Registers, wide: int, job: Any) -> None:
        super().__init__(builder, size.lanes)
        self.wide, self.pixels, self._job = wide, size.pixels, job
        self._multiply_add = self.function("fmuladd", self.kind, [self.kind] * 3)
        # LLVM turns these into registers.
        self._sums = [
            [cgutils.alloca_once(builder, self.kind) for _ in range(wide)]
            for _ in range(size.pixels)
        ]

    def generate(self) -> None:
        b, job = self.b, self._field
        self._start()
        present, starts = job(PRESENT), job(STARTS)
        first = [
            b.mul(b.load(self.at(starts, _WHOLE(p), _WHOLE)), present) for p in range(self.pixels)
        ]
        x, taps, stride = job(INPUT), job(TAPS), job(STRIDE)
        filters = cgutils.alloca_once(b, _FLOAT.as_pointer())
        b.store(self.at(job(FILTERS), _WHOLE(0)), filters)
        with cgutils.for_range(b, job(TAP_COUNT)) as tap:
            further = b.mul(b.load(self.at(taps, tap.index, _WHOLE)), present)
            rows = [self.at(x, b.add(place, further)) for place in first]
            with cgutils.for_range(b, present) as channel:
                here = b.load(filters)
                self._add(here, [b.gep(row, [channel.index]) for row in rows])
                b.store(b.gep(here, [stride]), filters)
        self._finish()

    def _field(self, place: int) -> Any:
        return self.b.load(self.at(self._job, _WHOLE(place), _WHOLE))

    def _start(self) -> None:
        shift = self._field(SHIFT)
        for register in range(self.wide):
            value = self.load(self.at(shift, _WHOLE(register * self.lanes)))
            for sums in self._sums:
                self.b.store(value, sums[register])

    def _add(self, filters: Any, inputs: Any) -> None:
        """One input channel of one tap: all pixels times all channels."""
        b = self.b
        factors = [self.load(b.gep(filters, [_WHOLE(r * self.lanes)])) for r in range(self.wide)]
        for pointer, sums in zip(inputs, self._sums, strict=True):
            value = self.spread(b.load(pointer), _FLOAT)
            for factor, total in zip(factors, sums, strict=True):
                b.store(b.call(self._multiply_add, [value, factor, b.load(total)]), total)

    def _finish(self) -> None:
        b, out, targets = self.b, self._field(OUTPUT), self._field(TARGETS)
        rectify = b.icmp_signed("!=", self._field(RECTIFY), _WHOLE(0))
        numbers = ir.Constant(ir.VectorType(_INDEX, self.lanes), list(range(self.lanes)))
        last = self.spread(b.trunc(self._field(LAST), _INDEX), _INDEX)
        mask = b.icmp_signed("<", numbers, last)
        for pixel, sums in enumerate(self._sums):
            target = b.load(self.at(targets, _WHOLE(pixel), _WHOLE))
            for register, total in enumerate(sums):
                value = b.load(total)
                negative = b.fcmp_ordered("<", value, self.zero)  # NaN stays
                positive = b.select(negative, self.zero, value)
                value = b.select(rectify, positive, value)
                pointer = self.at(out, b.add(target, _WHOLE(register * self.lanes)))
                if register == self.wide - 1:
                    self.store_first(value, pointer, mask)
                else:
                    self.store(value, pointer)


def _pointers(kind: Any) -> Callable[[int], Any]:
    @intrinsic  # type: ignore[untyped-decorator]
    def pointer(_typing: Any, address: Any) -> tuple[Any, Any]:
        def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            return b.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), generate

    made: Callable[[int], Any] = pointer
    return made


singles, doubles, wholes = map(_pointers, (types.float32, types.float64, types.int64))
"""What lies at an address, for ``numba.carray``."""


@intrinsic  # type: ignore[untyped-decorator]
def press(
    _typing: Any,
    source: Any,
    scale: Any,
    masks: Any,
    counts: Any,
    groups: Any,
    out: Any,
) -> tuple[Any, Any]:
    """Writes the numbers of a mask next to each other, times their scales. Needs AVX-512.

    Arguments are whole numbers: addresses of the source and of scales, float32 [16 groups];
    of masks, 16 bits for each group of 16 numbers, lowest first, and of how many bits are
    set, int64 [groups]; groups; the address of the output, of which up to 16 numbers more
    are written than the masks say.
    """

    def generate(context: Any, b: Any, _signature: Any, arguments: Any) -> Any:
        source, scale, masks, counts, groups, out = arguments
        vectors = _Vectors(b, 16)
        bits = ir.VectorType(_BIT, 16)
        kinds = [vectors.kind, vectors.kind, bits]
        together = vectors.function("x86.avx512.mask.compress", vectors.kind, kinds)
        target = cgutils.alloca_once(b, _FLOAT.as_pointer())
        b.store(vectors.at(out, _WHOLE(0)), target)
        with cgutils.for_range(b, groups) as group:
            first = b.mul(group.index, _WHOLE(16))
            value = b.fmul(
                vectors.load(vectors.at(source, first)), vectors.load(vectors.at(scale, first))
            )
            whole = b.load(vectors.at(masks, group.index, _WHOLE))
            mask = b.bitcast(b.trunc(whole, ir.IntType(16)), bits)
            here = b.load(target)
            vectors.store(b.call(together, [value, vectors.zero, mask]), here)
            count = b.load(vectors.at(counts, group.index, _WHOLE))
            b.store(b.gep(here, [count]), target)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), generate
