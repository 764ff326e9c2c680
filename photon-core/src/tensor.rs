//! A typed, row-major window on a buffer.
//!
//! A tensor is a handle: views share memory, and Rust's borrow rules do not see device memory. The
//! `&mut` in an operation's fields says which tensors it writes; order on the stream does the rest.
use std::ops::Range;

use crate::{DType, Device};

/// Up to four dimensions, outermost first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    dims: [usize; 4],
    rank: usize,
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(d: [usize; N]) -> Self {
        const { assert!(1 <= N && N <= 4, "one to four dimensions") };
        let mut dims = [1; 4];
        dims[..N].copy_from_slice(&d);
        Shape { dims, rank: N }
    }
}

impl Shape {
    /// The dimensions.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// The size of the innermost dimension.
    pub fn cols(&self) -> usize {
        self.dims[self.rank - 1]
    }

    /// The product of all but the innermost dimension; 1 for a vector.
    pub fn rows(&self) -> usize {
        self.dims[..self.rank - 1].iter().product()
    }

    /// Elements in all.
    pub fn elements(&self) -> usize {
        self.dims().iter().product()
    }
}

impl std::fmt::Debug for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.dims().fmt(f)
    }
}

/// A tensor: element `(row, col)` lies `row * row_stride + col` elements after `offset` bytes.
#[derive(Debug)]
pub struct Tensor<D: Device> {
    buffer: D::Buffer,
    offset: usize,
    shape: Shape,
    row_stride: usize,
    dtype: DType,
    epoch: Option<u32>,
}

impl<D: Device> Tensor<D> {
    /// A contiguous tensor at byte `offset` of `buffer`. The caller vouches for the buffer's size.
    pub fn new(buffer: D::Buffer, offset: usize, shape: impl Into<Shape>, dtype: DType) -> Self {
        let shape = shape.into();
        assert_eq!(offset % dtype.size(), 0, "tensor: offset {offset} is not aligned for {dtype}");
        Tensor { buffer, offset, shape, row_stride: shape.cols(), dtype, epoch: None }
    }

    /// A zeroed tensor with memory of its own.
    pub fn zeros(device: &D, shape: impl Into<Shape>, dtype: DType) -> crate::Result<Self> {
        let shape = shape.into();
        Ok(Tensor::new(device.alloc(shape.elements() * dtype.size())?, 0, shape, dtype))
    }

    pub(crate) fn at_epoch(self, epoch: u32) -> Self {
        Tensor { epoch: Some(epoch), ..self }
    }

    /// The pass this activation belongs to; `None` for weights and caches.
    pub(crate) fn epoch(&self) -> Option<u32> {
        self.epoch
    }

    /// The memory.
    pub fn buffer(&self) -> &D::Buffer {
        &self.buffer
    }

    /// Byte offset of the first element.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// The shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// See [`Shape::rows`].
    pub fn rows(&self) -> usize {
        self.shape.rows()
    }

    /// See [`Shape::cols`].
    pub fn cols(&self) -> usize {
        self.shape.cols()
    }

    /// Elements from one row to the next.
    pub fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Whether the rows follow each other without gaps.
    pub fn is_contiguous(&self) -> bool {
        self.row_stride == self.cols() || self.rows() == 1
    }

    /// The byte range of a contiguous tensor in its buffer.
    ///
    /// # Panics
    /// If the tensor is a column view.
    #[track_caller]
    pub fn byte_range(&self) -> Range<usize> {
        assert!(self.is_contiguous(), "byte_range of a column view");
        self.offset..self.offset + self.shape.elements() * self.dtype.size()
    }

    /// Another handle to the same elements.
    pub fn view(&self) -> Self {
        Tensor { buffer: self.buffer.clone(), ..*self }
    }

    /// Rows `range`, as `[range.len(), cols]`.
    #[track_caller]
    pub fn row_range(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.rows(), "rows {range:?} of {self:?}");
        let offset = self.offset + range.start * self.row_stride * self.dtype.size();
        let shape = [range.len(), self.cols()].into();
        Tensor { buffer: self.buffer.clone(), offset, shape, ..*self }
    }

    /// Columns `range`, as `[rows, range.len()]` with the same stride.
    #[track_caller]
    pub fn col_range(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.cols(), "cols {range:?} of {self:?}");
        let offset = self.offset + range.start * self.dtype.size();
        let shape = [self.rows(), range.len()].into();
        Tensor { buffer: self.buffer.clone(), offset, shape, ..*self }
    }

    /// The same elements under another shape.
    ///
    /// # Panics
    /// If the tensor is a column view or the number of elements differs.
    #[track_caller]
    pub fn reshape(&self, shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        assert!(self.is_contiguous(), "reshape of a column view");
        assert_eq!(shape.elements(), self.shape.elements(), "reshape to {shape:?}");
        Tensor { buffer: self.buffer.clone(), shape, row_stride: shape.cols(), ..*self }
    }

    /// Part of a contiguous byte tensor read as elements of another type: how one upload carries
    /// many small arrays.
    ///
    /// # Panics
    /// If this is not a contiguous u8 tensor, or the part is misaligned or does not fit.
    #[track_caller]
    pub fn bytes_as(&self, offset: usize, shape: impl Into<Shape>, dtype: DType) -> Self {
        let shape = shape.into();
        assert_eq!(self.dtype, DType::U8, "bytes_as of a tensor that is not bytes");
        let end = offset + shape.elements() * dtype.size();
        assert!(end <= self.byte_range().len(), "bytes_as {offset}..{end} of {:?}", self.shape);
        let part = Tensor::new(self.buffer.clone(), self.offset + offset, shape, dtype);
        Tensor { epoch: self.epoch, ..part }
    }

    /// The same memory seen by another device that shares this one's buffers.
    pub fn on<E: Device<Buffer = D::Buffer>>(&self) -> Tensor<E> {
        let Tensor { buffer, offset, shape, row_stride, dtype, .. } = self;
        Tensor {
            buffer: buffer.clone(),
            offset: *offset,
            shape: *shape,
            row_stride: *row_stride,
            dtype: *dtype,
            epoch: None,
        }
    }
}
