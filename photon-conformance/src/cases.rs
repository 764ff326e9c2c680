//! The cases, one module for each family of operations.
pub(crate) mod device;
pub(crate) mod experts;
pub(crate) mod gate;
pub(crate) mod linear;
pub(crate) mod norm;
pub(crate) mod paged;
pub(crate) mod replay;
pub(crate) mod rope;
pub(crate) mod rows;
pub(crate) mod sample;
pub(crate) mod vision;

/// Sizes that are no multiple of any vector, warp or tile.
pub(crate) const RAGGED: [usize; 4] = [1, 7, 33, 65];

/// Indices that name no row of a tensor with `rows` rows.
pub(crate) fn poisoned(rows: usize) -> [i32; 5] {
    [-1, i32::MIN, i32::MAX, rows as i32, -(rows as i32)]
}
