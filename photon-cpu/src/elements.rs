//! Typed rows of tensors.
//!
//! A view is made once per operation and checks there that every row lies inside the buffer, so rows
//! are handed out without further ado. Which rows may be written at the same time is the partition's
//! business (see [`crate::memory`]), hence `unsafe` on [`RowsMut::part`].
#![allow(unsafe_code, reason = "typed views of raw memory")]

use std::{marker::PhantomData, ops::Range};

use half::{bf16, f16};
use photon_core::{DType, Shape, Tensor, kv};

use crate::{
    Cpu, Isa,
    simd::{self, Convert, Fp8, Op, Simd, dispatch},
};

/// A plain old element of a tensor.
pub(crate) trait Plain: Copy + Send + Sync + 'static {
    /// The type as tensors name it.
    const DTYPE: DType;
}

impl Plain for i32 {
    const DTYPE: DType = DType::I32;
}

impl Plain for u8 {
    const DTYPE: DType = DType::U8;
}

impl Plain for f32 {
    const DTYPE: DType = DType::F32;
}

impl Plain for f16 {
    const DTYPE: DType = DType::F16;
}

impl Plain for bf16 {
    const DTYPE: DType = DType::Bf16;
}

/// A float as tensors store it: vectors of it are converted by [`crate::simd`].
pub(crate) trait Float: Plain + simd::Element {}

impl<T: Plain + simd::Element> Float for T {}

/// Runs `$body` with the type alias `$t` for a float type known only at run time.
macro_rules! with_float {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            photon_core::DType::F32 => {
                type $t = f32;
                $body
            }
            photon_core::DType::F16 => {
                type $t = half::f16;
                $body
            }
            photon_core::DType::Bf16 => {
                type $t = half::bf16;
                $body
            }
            other => unreachable!("Cx lets only floats through, not {other}"),
        }
    };
}
pub(crate) use with_float;

impl Plain for i8 {
    const DTYPE: DType = DType::Int8;
}

impl Plain for Fp8 {
    const DTYPE: DType = DType::Fp8;
}

/// A key or value as a cache stores it: see [`photon_core::kv`].
pub(crate) trait Cached: Plain + simd::Readable {
    /// Elements that a head's scale takes, behind the values of all heads; 0 if there is none.
    const SCALE_LEN: usize;
    /// The scale in those elements; 1 if there is none.
    fn scale(stored: &[Self]) -> f32;
    /// Stores a head and its scale.
    fn store(isa: Isa, out: &mut [Self], scale: &mut [Self], x: &[f32]);
}

macro_rules! cached {
    ($($float:ty),+; $($code:ty: $largest:expr, $encode:expr, $byte:expr, $of_byte:expr;)+) => {
        $(impl Cached for $float {
            const SCALE_LEN: usize = 0;
            #[inline(always)]
            fn scale(_: &[Self]) -> f32 {
                1.0
            }
            fn store(isa: Isa, out: &mut [Self], _: &mut [Self], x: &[f32]) {
                dispatch(isa, Convert { out, x });
            }
        })+
        $(impl Cached for $code {
            const SCALE_LEN: usize = kv::SCALE_BYTES;
            #[inline(always)]
            fn scale(stored: &[Self]) -> f32 {
                f32::from_le_bytes(std::array::from_fn(|i| $byte(stored[i])))
            }
            fn store(isa: Isa, out: &mut [Self], scale: &mut [Self], x: &[f32]) {
                let of_head = dispatch(isa, Encode { out, x, largest: $largest, code: $encode });
                scale.copy_from_slice(&of_head.to_le_bytes().map($of_byte));
            }
        })+
    };
}
cached! {
    f32, f16, bf16;
    i8: kv::INT8_MAX, kv::to_int8, i8::cast_unsigned, u8::cast_signed;
    Fp8: kv::FP8_MAX, |x| Fp8(kv::to_fp8(x)), |code: Fp8| code.0, Fp8;
}

/// The codes of a head; yields its scale.
struct Encode<'a, T, F> {
    out: &'a mut [T],
    x: &'a [f32],
    largest: f32,
    code: F,
}

impl<T, F: Fn(f32) -> T> Op for Encode<'_, T, F> {
    type Output = f32;

    #[inline(always)]
    fn call<S: Simd>(self, _: S) -> f32 {
        let Encode { out, x, largest, code } = self;
        let scale = kv::scale_of(x, largest);
        for (out, x) in out.iter_mut().zip(x) {
            *out = code(x / scale);
        }
        scale
    }
}

/// [`with_float`] for the types of a cache.
macro_rules! with_cached {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            photon_core::DType::Int8 => {
                type $t = i8;
                $body
            }
            photon_core::DType::Fp8 => {
                type $t = crate::simd::Fp8;
                $body
            }
            float => crate::elements::with_float!(float, $t => $body),
        }
    };
}
pub(crate) use with_cached;

/// The layout of a tensor whose rows are known to lie inside its buffer.
#[derive(Clone, Copy)]
struct Layout {
    rows: usize,
    cols: usize,
    stride: usize,
}

impl Layout {
    #[track_caller]
    fn of<T: Plain>(tensor: &Tensor<Cpu>) -> Self {
        assert_eq!(tensor.dtype(), T::DTYPE, "element type of {tensor:?}");
        Layout::in_elements(tensor)
    }

    /// Counted in bytes, whatever the elements are.
    #[track_caller]
    fn of_bytes(tensor: &Tensor<Cpu>) -> Self {
        let Layout { rows, cols, stride } = Layout::in_elements(tensor);
        let size = tensor.dtype().size();
        Layout { rows, cols: cols * size, stride: stride * size }
    }

    #[track_caller]
    fn in_elements(tensor: &Tensor<Cpu>) -> Self {
        let shape: Shape = tensor.shape();
        let (rows, cols, stride) = (shape.rows(), shape.cols(), tensor.row_stride());
        if rows > 0 && cols > 0 {
            let last = (rows - 1).checked_mul(stride).and_then(|start| start.checked_add(cols));
            let end = last
                .and_then(|n| n.checked_mul(tensor.dtype().size()))
                .and_then(|bytes| bytes.checked_add(tensor.offset()));
            let len = tensor.buffer().len();
            assert!(end.is_some_and(|end| end <= len), "{tensor:?} ends outside its {len} bytes");
            assert!(rows == 1 || cols <= stride, "rows of {tensor:?} overlap");
        }
        Layout { rows, cols, stride }
    }

    #[inline(always)]
    fn start(&self, row: usize, cols: &Range<usize>) -> usize {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert!(cols.start <= cols.end && cols.end <= self.cols, "columns of {}", self.cols);
        row * self.stride + cols.start
    }
}

fn base<T>(tensor: &Tensor<Cpu>) -> *mut T {
    assert!(tensor.offset() <= tensor.buffer().len(), "{tensor:?} starts outside its buffer");
    // SAFETY: the offset is inside the buffer's allocation, or one past its end: asserted above.
    unsafe { tensor.buffer().as_ptr().add(tensor.offset()) }.cast()
}

/// Read access to the rows of a tensor.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a, T> {
    base: *const T,
    layout: Layout,
    tensor: PhantomData<&'a Tensor<Cpu>>,
}

// SAFETY: a view is a shared borrow of a tensor, whose elements are plain data; the stream and the
// partition keep writers away.
unsafe impl<T: Plain> Send for Rows<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Plain> Sync for Rows<'_, T> {}

impl<'a, T: Plain> Rows<'a, T> {
    /// # Panics
    /// If the tensor's elements are not `T` or its rows do not fit in its buffer.
    #[track_caller]
    pub(crate) fn new(tensor: &'a Tensor<Cpu>) -> Self {
        Rows { base: base(tensor), layout: Layout::of::<T>(tensor), tensor: PhantomData }
    }

    pub(crate) fn rows(&self) -> usize {
        self.layout.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.layout.cols
    }

    /// Row `row`.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &'a [T] {
        self.part(row, 0..self.layout.cols)
    }

    /// The columns `cols` of row `row`.
    #[inline(always)]
    pub(crate) fn part(&self, row: usize, cols: Range<usize>) -> &'a [T] {
        let start = self.layout.start(row, &cols);
        if cols.is_empty() {
            return &[];
        }
        // SAFETY: the layout was checked against the buffer, and row and columns against the layout.
        let first = unsafe { self.base.add(start) };
        // SAFETY: as above; memory is initialized (zeroed at birth) and aligned (buffers to 256
        // bytes, offsets by `Tensor::new`); nobody writes these elements meanwhile: outputs do not
        // overlap inputs (`Cx`), and other operations wait their turn (the stream).
        unsafe { std::slice::from_raw_parts(first, cols.len()) }
    }
}

impl<'a, T: Plain> Rows<'a, T> {
    /// All elements of a contiguous tensor.
    pub(crate) fn all(&self) -> &'a [T] {
        assert!(self.layout.rows <= 1 || self.layout.stride == self.layout.cols, "contiguous");
        let flat = Layout {
            rows: 1,
            cols: self.layout.rows * self.layout.cols,
            stride: self.layout.rows * self.layout.cols,
        };
        Rows { layout: flat, ..*self }.row(0)
    }
}

/// Read access to a paged cache: see [`photon_core::kv`].
#[derive(Clone, Copy)]
pub(crate) struct CacheRows<'a, T> {
    rows: Rows<'a, T>,
    /// Elements of the values of all heads; the scales follow.
    values: usize,
}

impl<'a, T: Cached> CacheRows<'a, T> {
    /// # Panics
    /// If the tensor's elements are not `T` or its rows do not fit in its buffer.
    #[track_caller]
    pub(crate) fn new(tensor: &'a Tensor<Cpu>, kv_heads: usize) -> Self {
        let rows = Rows::<T>::new(tensor);
        CacheRows { rows, values: rows.cols() - kv_heads * T::SCALE_LEN }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows.rows()
    }

    pub(crate) fn cols(&self) -> usize {
        self.rows.cols()
    }

    /// Row `row`: what is stored of all heads, unscaled, then the scales.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &'a [T] {
        self.rows.row(row)
    }

    /// The columns `cols` of row `row`, unscaled.
    #[inline(always)]
    pub(crate) fn part(&self, row: usize, cols: Range<usize>) -> &'a [T] {
        self.rows.part(row, cols)
    }

    /// What the elements of a head of row `row` count times.
    #[inline(always)]
    pub(crate) fn scale(&self, row: usize, kv_head: usize) -> f32 {
        let at = self.values + kv_head * T::SCALE_LEN;
        T::scale(self.rows.part(row, at..at + T::SCALE_LEN))
    }
}

impl<'a> Rows<'a, u8> {
    /// The bytes of a tensor of any type.
    ///
    /// # Panics
    /// If its rows do not fit in its buffer.
    #[track_caller]
    pub(crate) fn bytes_of(tensor: &'a Tensor<Cpu>) -> Self {
        Rows { base: base(tensor), layout: Layout::of_bytes(tensor), tensor: PhantomData }
    }
}

/// Write access to the rows of a tensor, in parts.
#[derive(Clone, Copy)]
pub(crate) struct RowsMut<'a, T> {
    base: *mut T,
    layout: Layout,
    tensor: PhantomData<&'a mut Tensor<Cpu>>,
}

// SAFETY: the elements are plain data; parts handed out at the same time do not overlap (the contract
// of `part`).
unsafe impl<T: Plain> Send for RowsMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Plain> Sync for RowsMut<'_, T> {}

impl<'a, T: Plain> RowsMut<'a, T> {
    /// # Panics
    /// If the tensor's elements are not `T` or its rows do not fit in its buffer.
    #[track_caller]
    pub(crate) fn new(tensor: &'a mut Tensor<Cpu>) -> Self {
        RowsMut { base: base(tensor), layout: Layout::of::<T>(tensor), tensor: PhantomData }
    }

    pub(crate) fn rows(&self) -> usize {
        self.layout.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.layout.cols
    }

    /// Row `row`, to be written.
    ///
    /// # Safety
    /// No other part that overlaps this one may be in use.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "the contract is the caller's: see Safety")]
    pub(crate) unsafe fn row(&self, row: usize) -> &mut [T] {
        // SAFETY: the caller's promise.
        unsafe { self.part(row, 0..self.layout.cols) }
    }

    /// The columns `cols` of row `row`, to be written.
    ///
    /// # Safety
    /// No other part that overlaps this one may be in use.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "the contract is the caller's: see Safety")]
    pub(crate) unsafe fn part(&self, row: usize, cols: Range<usize>) -> &mut [T] {
        let start = self.layout.start(row, &cols);
        if cols.is_empty() {
            return &mut [];
        }
        // SAFETY: the layout was checked against the buffer, and row and columns against the layout.
        let first = unsafe { self.base.add(start) };
        // SAFETY: as above; memory is initialized (zeroed at birth) and aligned (buffers to 256
        // bytes, offsets by `Tensor::new`); the caller promises that nobody else uses this part, and
        // other operations wait their turn (the stream).
        unsafe { std::slice::from_raw_parts_mut(first, cols.len()) }
    }
}

impl<'a> RowsMut<'a, u8> {
    /// The bytes of a tensor of any type.
    ///
    /// # Panics
    /// If its rows do not fit in its buffer.
    #[track_caller]
    pub(crate) fn bytes_of(tensor: &'a mut Tensor<Cpu>) -> Self {
        RowsMut { base: base(tensor), layout: Layout::of_bytes(tensor), tensor: PhantomData }
    }
}
