//! What happens to sums on their way out: bias, activation, residual, rounding.
#![allow(unsafe_code, reason = "tasks write disjoint parts of the output")]

use photon_core::Activation;

use crate::{
    elements::{Float, RowsMut},
    simd::{Element, Op, Simd, activate, load, store},
};

/// A rectangle of finished sums.
#[derive(Clone, Copy)]
pub(super) struct Piece<'a> {
    /// Sums; rows are `stride` apart and padded to whole vectors.
    pub(super) sums: &'a [f32],
    pub(super) stride: usize,
    /// First row and number of rows.
    pub(super) rows: (usize, usize),
    /// First column and number of columns.
    pub(super) columns: (usize, usize),
}

/// Where sums go, and how.
#[derive(Clone, Copy)]
pub(super) struct Epilogue<'a, O> {
    pub(super) out: RowsMut<'a, O>,
    /// The places of the rows of sums in `out`, if they differ.
    pub(super) members: Option<&'a [usize]>,
    /// What sums count times, one per column, padded to whole panels.
    pub(super) scales: Option<&'a [f32]>,
    /// One per column.
    pub(super) bias: Option<&'a [f32]>,
    pub(super) activation: Activation,
    pub(super) accumulate: bool,
}

/// Finishes and stores a piece.
///
/// # Safety
/// No other piece that overlaps this one is being stored, and `members` differ from each other.
pub(super) unsafe fn store_piece<S: Simd, O: Float>(
    s: S,
    epilogue: &Epilogue<'_, O>,
    piece: Piece<'_>,
) {
    let (first, rows) = piece.rows;
    let columns = piece.columns.0..piece.columns.0 + piece.columns.1;
    for row in 0..rows {
        let place = epilogue.members.map_or(first + row, |members| members[first + row]);
        // SAFETY: the caller keeps pieces disjoint, and this function takes one row at a time.
        let out = unsafe { epilogue.out.part(place, columns.clone()) };
        let scales = epilogue.scales.map(|scales| &scales[columns.start..]);
        let bias = epilogue.bias.map(|bias| &bias[columns.clone()]);
        let sums = &piece.sums[row * piece.stride..];
        let Epilogue { activation, accumulate, .. } = *epilogue;
        s.run(Row { out, sums, scales, bias, activation, accumulate });
    }
}

struct Row<'a, O> {
    out: &'a mut [O],
    sums: &'a [f32],
    scales: Option<&'a [f32]>,
    bias: Option<&'a [f32]>,
    activation: Activation,
    accumulate: bool,
}

impl<O: Element> Row<'_, O> {
    /// One vector, from column `at` on.
    #[inline(always)]
    fn vector<S: Simd>(&self, s: S, at: usize, bias: Option<&[f32]>, old: &[O]) -> S::V {
        let mut x = load(s, &self.sums[at..]);
        if let Some(scales) = self.scales {
            x = s.mul(x, load(s, &scales[at..]));
        }
        if let Some(bias) = bias {
            x = s.add(x, load(s, bias));
        }
        x = activate(s, self.activation, x);
        if self.accumulate {
            x = s.add(x, load(s, old));
        }
        x
    }
}

impl<O: Element> Op for Row<'_, O> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        let columns = self.out.len();
        let whole = columns / S::LANES * S::LANES;
        for at in (0..whole).step_by(S::LANES) {
            let bias = self.bias.map(|bias| &bias[at..]);
            let x = self.vector(s, at, bias, &self.out[at..]);
            store(s, &mut self.out[at..], x);
        }
        let rest = columns - whole;
        if rest > 0 {
            // Longest vector: 16.
            let (mut bias, mut out) = ([0.0; 16], [O::default(); 16]);
            if let Some(all) = self.bias {
                bias[..rest].copy_from_slice(&all[whole..]);
            }
            out[..rest].copy_from_slice(&self.out[whole..]);
            let x = self.vector(s, whole, Some(&bias), &out);
            store(s, &mut out, x);
            self.out[whole..].copy_from_slice(&out[..rest]);
        }
    }
}
