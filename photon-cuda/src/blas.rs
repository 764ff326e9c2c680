//! cuBLASLt, as a yardstick: how fast NVIDIA's own library multiplies large matrices of bf16 on this GPU.
//!
//! No layer of a model goes through it (DESIGN.md says why), so all of it that is here is one product of square
//! matrices, `out = x w^T`, which the library sees by columns.
#![allow(unsafe_code, reason = "calls cuBLASLt")]

use std::{
    ffi::{c_int, c_void},
    ptr,
};

use crate::{
    library::{self, functions},
    sys::Handle,
};

/// `cublasStatus_t`: zero is success.
type Status = c_int;
const COMPUTE_F32: c_int = 68;
/// `cudaDataType_t`.
const F32: c_int = 0;
const BF16: c_int = 14;
const DESCRIPTION_TRANSPOSE_A: c_int = 3;
const TRANSPOSED: c_int = 1;
const PREFERENCE_SCRATCH: c_int = 1;

/// Algorithms that the library suggests at most.
const SUGGESTIONS: usize = 8;

/// `cublasLtMatmulAlgo_t`.
pub(crate) type Algorithm = [u64; 8];

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Suggestion {
    algorithm: Algorithm,
    scratch_bytes: usize,
    state: Status,
    waves: f32,
    reserved: [c_int; 4],
}

functions! {
    /// cuBLASLt's functions, the same in CUDA 12 and 13.
    Functions {
        cublasLtCreate: fn(*mut Handle) -> Status,
        cublasLtDestroy: fn(Handle) -> Status,
        cublasLtMatmulDescCreate: fn(*mut Handle, c_int, c_int) -> Status,
        cublasLtMatmulDescDestroy: fn(Handle) -> Status,
        cublasLtMatmulDescSetAttribute: fn(Handle, c_int, *const c_void, usize) -> Status,
        cublasLtMatrixLayoutCreate: fn(*mut Handle, c_int, u64, u64, i64) -> Status,
        cublasLtMatrixLayoutDestroy: fn(Handle) -> Status,
        cublasLtMatmulPreferenceCreate: fn(*mut Handle) -> Status,
        cublasLtMatmulPreferenceDestroy: fn(Handle) -> Status,
        cublasLtMatmulPreferenceSetAttribute: fn(Handle, c_int, *const c_void, usize) -> Status,
        cublasLtMatmulAlgoGetHeuristic: fn(
            Handle, Handle, Handle, Handle, Handle, Handle, Handle, c_int, *mut Suggestion, *mut c_int,
        ) -> Status,
        cublasLtMatmul: fn(
            Handle, Handle, *const c_void, *const c_void, Handle, *const c_void, Handle, *const c_void,
            *const c_void, Handle, *mut c_void, Handle, *const Algorithm, *mut c_void, usize, Handle,
        ) -> Status,
    }
}

fn check(status: Status, doing: &str) -> Result<(), String> {
    if status == 0 { Ok(()) } else { Err(format!("{doing}: cuBLASLt gives status {status}")) }
}

/// The library, on the context of the thread that opened it.
pub(crate) struct Blas {
    functions: Functions,
    handle: Handle,
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: created by `open` and destroyed only here; products borrow it.
        let _ = unsafe { (self.functions.cublasLtDestroy)(self.handle) };
    }
}

impl Blas {
    /// Opens the library of the driver's version of CUDA, or an older one.
    pub(crate) fn open(driver_version: u32) -> Result<Self, String> {
        let majors: Vec<u32> = (12..=(driver_version / 1000).min(13)).rev().collect();
        let functions = Functions::load(library::open(&library::names("cublasLt", &majors))?)?;
        let mut handle = ptr::null_mut();
        // SAFETY: `handle` is there to be written to; without a context the library says so.
        check(unsafe { (functions.cublasLtCreate)(&raw mut handle) }, "opening cuBLASLt")?;
        Ok(Blas { functions, handle })
    }
}

/// A description of the library's, until it is dropped.
struct Described<'a> {
    raw: Handle,
    destroy: &'a unsafe extern "C" fn(Handle) -> Status,
}

impl Drop for Described<'_> {
    fn drop(&mut self) {
        // SAFETY: created by the library and destroyed only here.
        let _ = unsafe { (self.destroy)(self.raw) };
    }
}

/// The product of matrices of `side` by `side`.
pub(crate) struct Product<'a> {
    blas: &'a Blas,
    description: Described<'a>,
    /// Of all three.
    matrix: Described<'a>,
}

impl<'a> Product<'a> {
    /// Scratch memory it takes.
    pub(crate) const SCRATCH_BYTES: usize = 32 << 20;

    pub(crate) fn new(blas: &'a Blas, side: usize) -> Result<Self, String> {
        let functions = &blas.functions;
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is there to be written to.
        let status =
            unsafe { (functions.cublasLtMatmulDescCreate)(&raw mut raw, COMPUTE_F32, F32) };
        check(status, "describing a product")?;
        let description = Described { raw, destroy: &functions.cublasLtMatmulDescDestroy };
        // SAFETY: the description lives, and the value is as long as said.
        let status = unsafe {
            let (value, len) = (ptr::from_ref(&TRANSPOSED).cast(), size_of_val(&TRANSPOSED));
            (functions.cublasLtMatmulDescSetAttribute)(raw, DESCRIPTION_TRANSPOSE_A, value, len)
        };
        check(status, "describing a product")?;
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is there to be written to.
        let status = unsafe {
            let create = functions.cublasLtMatrixLayoutCreate;
            create(&raw mut raw, BF16, side as u64, side as u64, side as i64)
        };
        check(status, "describing a matrix")?;
        let matrix = Described { raw, destroy: &functions.cublasLtMatrixLayoutDestroy };
        Ok(Product { blas, description, matrix })
    }

    /// What the library suggests; empty if it cannot.
    pub(crate) fn algorithms(&self) -> Result<Vec<Algorithm>, String> {
        let functions = &self.blas.functions;
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is there to be written to.
        let status = unsafe { (functions.cublasLtMatmulPreferenceCreate)(&raw mut raw) };
        check(status, "asking for algorithms")?;
        let preference = Described { raw, destroy: &functions.cublasLtMatmulPreferenceDestroy };
        let most = Self::SCRATCH_BYTES as u64;
        // SAFETY: the preference lives, and the value is as long as said.
        let status = unsafe {
            let (set, value) = (functions.cublasLtMatmulPreferenceSetAttribute, &raw const most);
            set(preference.raw, PREFERENCE_SCRATCH, value.cast(), size_of_val(&most))
        };
        check(status, "asking for algorithms")?;
        let mut list = [Suggestion::default(); SUGGESTIONS];
        let mut count = 0;
        // SAFETY: every handle lives; the list is as long as said.
        let status = unsafe {
            (functions.cublasLtMatmulAlgoGetHeuristic)(
                self.blas.handle,
                self.description.raw,
                self.matrix.raw,
                self.matrix.raw,
                self.matrix.raw,
                self.matrix.raw,
                preference.raw,
                SUGGESTIONS as c_int,
                list.as_mut_ptr(),
                &raw mut count,
            )
        };
        check(status, "asking for algorithms")?;
        let found = list.iter().take(count.unsigned_abs() as usize);
        Ok(found.filter(|found| found.state == 0).map(|found| found.algorithm).collect())
    }

    /// Multiplies.
    ///
    /// # Safety
    /// `w`, `x` and `out` are addresses of such matrices, `scratch` of [`Self::SCRATCH_BYTES`]; they live until
    /// the work has run on `stream`, which is one of the context that the library was opened on.
    pub(crate) unsafe fn run(
        &self,
        algorithm: &Algorithm,
        [w, x, out, scratch]: [u64; 4],
        stream: Handle,
    ) -> Result<(), String> {
        let (one, zero) = (1.0f32, 0.0f32);
        // SAFETY: every handle lives; the factors are f32, as the description says; the caller vouches for
        // the addresses.
        let status = unsafe {
            (self.blas.functions.cublasLtMatmul)(
                self.blas.handle,
                self.description.raw,
                (&raw const one).cast(),
                w as *const c_void,
                self.matrix.raw,
                x as *const c_void,
                self.matrix.raw,
                (&raw const zero).cast(),
                out as *const c_void,
                self.matrix.raw,
                out as *mut c_void,
                self.matrix.raw,
                algorithm,
                scratch as *mut c_void,
                Self::SCRATCH_BYTES,
                stream,
            )
        };
        check(status, "multiplying")
    }
}
