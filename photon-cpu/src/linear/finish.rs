//! What happens to sums on their way out: bias, activation, residual, rounding.
#![allow(unsafe_code, reason = "tasks write disjoint parts of the output")]

use photon_core::Activation;

use super::layout::PANEL;
use crate::{
    elements::{Float, RowsMut},
    simd::{Element, MAX_LANES, Op, Simd, activate, load, store},
};

/// A rectangle of finished sums.
#[derive(Clone, Copy)]
pub(super) struct Piece<'a> {
    /// Sums; rows are `stride` apart and padded to whole vectors.
    pub(super) sums: &'a [f32],
    pub(super) stride: usize,
    /// First row and number of rows.
    pub(super) rows: (usize, usize),
    /// First column and number of columns, at most [`PANEL`].
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

/// What the columns of a piece count times and are shifted by where nobody says: neither changes any bit.
const ONES: [f32; PANEL] = [1.0; PANEL];
const ZEROS: [f32; PANEL] = [-0.0; PANEL];

/// Finishes and stores a piece.
///
/// # Safety
/// No other piece that overlaps this one is being stored, and `members` differ from each other.
pub(super) unsafe fn store_piece<S: Simd, O: Float>(
    s: S,
    epilogue: &Epilogue<'_, O>,
    piece: Piece<'_>,
) {
    s.run(Finish { epilogue, piece });
}

/// A call of [`store_piece`]; whoever makes one keeps its contract.
struct Finish<'a, O> {
    epilogue: &'a Epilogue<'a, O>,
    piece: Piece<'a>,
}

impl<O: Float> Op for Finish<'_, O> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, s: S) {
        // A loop for each, none of which asks again at every vector.
        match self.epilogue.activation {
            Activation::None => self.rows(s, Activation::None),
            Activation::GeluTanh => self.rows(s, Activation::GeluTanh),
            Activation::GeluErf => self.rows(s, Activation::GeluErf),
        }
    }
}

impl<O: Float> Finish<'_, O> {
    #[inline(always)]
    fn rows<S: Simd>(&self, s: S, activation: Activation) {
        let Finish { epilogue: Epilogue { out, members, scales, bias, accumulate, .. }, piece } =
            self;
        let (first, rows) = piece.rows;
        let columns = piece.columns.0..piece.columns.0 + piece.columns.1;
        assert!(columns.len() <= PANEL);
        let whole = columns.len() / S::LANES * S::LANES;
        let scales = scales.map_or(&ONES[..], |scales| &scales[columns.start..]);
        let bias = bias.map_or(&ZEROS[..], |bias| &bias[columns.clone()]);
        for row in 0..rows {
            let place = members.map_or(first + row, |members| members[first + row]);
            // SAFETY: the caller keeps pieces disjoint, and this function takes one row at a time.
            let out = unsafe { out.part(place, columns.clone()) };
            let (out, rest) = out.split_at_mut(whole);
            let sums = &piece.sums[row * piece.stride..];
            let columns = scales.chunks_exact(S::LANES).zip(bias.chunks_exact(S::LANES));
            let vectors = out.chunks_exact_mut(S::LANES).zip(sums.chunks_exact(S::LANES));
            for ((out, sums), (scales, bias)) in vectors.zip(columns) {
                finish(s, activation, *accumulate, out, [sums, scales, bias]);
            }
            if !rest.is_empty() {
                let (mut old, mut last_bias) = ([O::default(); MAX_LANES], [0.0; MAX_LANES]);
                old[..rest.len()].copy_from_slice(rest);
                last_bias[..rest.len()].copy_from_slice(&bias[whole..][..rest.len()]);
                let columns = [&sums[whole..], &scales[whole..], &last_bias];
                finish(s, activation, *accumulate, &mut old, columns);
                rest.copy_from_slice(&old[..rest.len()]);
            }
        }
    }
}

/// One vector of `out`, from its columns' sums, scales and bias.
#[inline(always)]
fn finish<S: Simd, O: Element>(
    s: S,
    activation: Activation,
    accumulate: bool,
    out: &mut [O],
    [sums, scales, bias]: [&[f32]; 3],
) {
    let x = s.add(s.mul(load(s, sums), load(s, scales)), load(s, bias));
    let mut x = activate(s, activation, x);
    if accumulate {
        x = s.add(x, load(s, out));
    }
    store(s, out, x);
}
