//! Operations that move rows, and Fourier features.
use std::f32::consts::TAU;

use photon_core::{Copy, Fourier, Gather, Scatter, Tile};

use super::{for_runs, index};
use crate::{
    Cpu,
    elements::{Float, Rows, RowsMut, with_float},
    simd::{Convert, dispatch},
};

/// `out[i] = x[source(i)]` for the rows that have a source.
fn move_rows<T: Float, U: Float>(
    cpu: &Cpu,
    out: RowsMut<'_, T>,
    x: Rows<'_, U>,
    source: impl Fn(usize) -> Option<usize> + Sync,
) {
    for_runs(cpu, out.rows(), out.cols() * 4, |rows| {
        for i in rows {
            let Some(from) = source(i) else { continue };
            // SAFETY: runs of rows are disjoint (the partition).
            let out = unsafe { out.row(i) };
            dispatch(cpu.isa(), Convert { out, x: x.row(from) });
        }
    });
}

pub(crate) fn copy(cpu: &Cpu, op: Copy<'_, Cpu>) {
    if op.out.dtype() == op.x.dtype() {
        return copy_bytes(cpu, RowsMut::bytes_of(op.out), Rows::bytes_of(op.x));
    }
    with_float!(op.out.dtype(), T => with_float!(op.x.dtype(), U => {
        move_rows(cpu, RowsMut::<T>::new(op.out), Rows::<U>::new(op.x), Some);
    }));
}

/// Rows of one type, whatever their bits.
fn copy_bytes(cpu: &Cpu, out: RowsMut<'_, u8>, x: Rows<'_, u8>) {
    for_runs(cpu, out.rows(), 2 * out.cols(), |rows| {
        for i in rows {
            // SAFETY: runs of rows are disjoint (the partition).
            unsafe { out.row(i) }.copy_from_slice(x.row(i));
        }
    });
}

pub(crate) fn tile(cpu: &Cpu, op: Tile<'_, Cpu>) {
    with_float!(op.out.dtype(), T => with_float!(op.x.dtype(), U => {
        let x = Rows::<U>::new(op.x);
        move_rows(cpu, RowsMut::<T>::new(op.out), x, |i| Some(i % x.rows()));
    }));
}

pub(crate) fn gather(cpu: &Cpu, op: Gather<'_, Cpu>) {
    let indices = Rows::<i32>::new(op.indices).all();
    with_float!(op.out.dtype(), T => with_float!(op.x.dtype(), U => {
        let x = Rows::<U>::new(op.x);
        move_rows(cpu, RowsMut::<T>::new(op.out), x, |i| index(indices[i], x.rows()));
    }));
}

pub(crate) fn scatter(cpu: &Cpu, op: Scatter<'_, Cpu>) {
    let indices = Rows::<i32>::new(op.indices).all();
    with_float!(op.out.dtype(), T => with_float!(op.x.dtype(), U => {
        scatter_rows(cpu, RowsMut::<T>::new(op.out), Rows::<U>::new(op.x), indices);
    }));
}

/// Tasks own columns, not rows, so that indices that repeat against the rules cannot race.
fn scatter_rows<T: Float, U: Float>(
    cpu: &Cpu,
    out: RowsMut<'_, T>,
    x: Rows<'_, U>,
    indices: &[i32],
) {
    // Whole cache lines, whatever the type.
    const BLOCK: usize = 64;
    for_runs(cpu, x.cols().div_ceil(BLOCK), BLOCK * x.rows() * 4, |blocks| {
        let cols = blocks.start * BLOCK..(blocks.end * BLOCK).min(x.cols());
        for (i, &to) in indices.iter().enumerate() {
            let Some(to) = index(to, out.rows()) else { continue };
            // SAFETY: runs of columns are disjoint (the partition).
            let out = unsafe { out.part(to, cols.clone()) };
            dispatch(cpu.isa(), Convert { out, x: x.part(i, cols.clone()) });
        }
    });
}

pub(crate) fn fourier(cpu: &Cpu, op: Fourier<'_, Cpu>) {
    with_float!(op.out.dtype(), T => {
        fourier_rows(cpu, RowsMut::<T>::new(op.out), Rows::new(op.values), Rows::new(op.w));
    });
}

fn fourier_rows<T: Float>(cpu: &Cpu, out: RowsMut<'_, T>, values: Rows<'_, f32>, w: Rows<'_, f32>) {
    let features = w.cols();
    // A sine and a cosine take some 40 ns, as long as moving 1 KiB.
    for_runs(cpu, out.rows(), features * 1024, |rows| {
        let mut row = vec![0.0; 2 * features];
        for i in rows {
            let (cos, sin) = row.split_at_mut(features);
            sin.fill(0.0);
            for (d, &value) in values.row(i).iter().enumerate() {
                for (sum, w) in sin.iter_mut().zip(w.row(d)) {
                    *sum += value * w;
                }
            }
            for (cos, sin) in cos.iter_mut().zip(sin) {
                (*sin, *cos) = (TAU * *sin).sin_cos();
            }
            // SAFETY: runs of rows are disjoint (the partition).
            let out = unsafe { out.row(i) };
            dispatch(cpu.isa(), Convert { out, x: &row });
        }
    });
}
